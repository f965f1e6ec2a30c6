"""What AutoFormer's supernet shares, and what a training step may touch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nasx import Arch
from nasx.nn import DropPath, Supernet
from recipes.autoformer.model import AutoFormer, AutoFormerConfig, build
from recipes.autoformer.space import AutoFormerSpace, uniform
from recipes.autoformer.supernet import QkvBias
from recipes.autoformer.supernet import supernet as make_supernet

CHOICES = AutoFormerSpace(embed_dim=(12, 16, 20), depth=(2, 3, 4), num_heads=(1, 2, 3), mlp_ratio=(1, 1.5, 2))
VIT = AutoFormerConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, head_dim=8, max_offset=2)
SPACE = CHOICES.space()


def make(qkv_bias: QkvBias = "thirds", **settings: float) -> Supernet:
    supernet = make_supernet(SPACE, VIT, qkv_bias=qkv_bias, **settings).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return supernet


def images(seed: int = 0, batch: int = 4) -> Tensor:
    return torch.randn(batch, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_rates_of_drop_path_stay_with_their_blocks() -> None:
    supernet = make(drop_path=0.3)
    for depth in CHOICES.depth:
        network = supernet.extract(uniform(16, depth, 1, 1))
        rates = [module.rate for module in network.modules() if isinstance(module, DropPath)]
        assert rates == pytest.approx([0, 0.1, 0.2, 0.3][:depth])


@pytest.mark.parametrize("qkv_bias", ["thirds", "packed"])
def test_which_rows_a_smaller_attention_takes(qkv_bias: QkvBias) -> None:
    supernet = make(qkv_bias)
    rows = 3 * 3 * 8
    with torch.no_grad():
        supernet.get_parameter("blocks.1.attn.qkv.bias").copy_(torch.arange(rows))
        supernet.get_parameter("blocks.1.attn.qkv.weight").copy_(torch.arange(rows)[:, None].expand(-1, 20))
    attention = supernet.extract(uniform(12, 2, 2, 1)).get_submodule("blocks.1.attn")
    thirds = [*range(16), *range(24, 40), *range(48, 64)]
    assert attention.get_parameter("qkv.weight").shape == (48, 12)
    assert attention.get_parameter("qkv.weight")[:, 0].tolist() == thirds
    assert attention.get_parameter("qkv.bias").tolist() == (thirds if qkv_bias == "thirds" else list(range(48)))
    assert attention.get_parameter("proj.weight").shape == (12, 16)


def test_the_networks_differ() -> None:
    supernet = make().eval()
    outputs = torch.stack([supernet(images(), arch) for arch in set(SPACE.sample(0, 30))])
    distances = torch.cdist(outputs.flatten(1), outputs.flatten(1)).fill_diagonal_(1)
    assert distances.min() > 1e-3


def test_built_network_fits_the_extracted_one() -> None:
    arch, supernet = SPACE.sample(5), make().eval()
    built = build(arch, 10, 8, patch_size=2, in_channels=1, head_dim=8, max_offset=2).double().eval()
    built.load_state_dict(supernet.extract(arch).state_dict())
    torch.testing.assert_close(built(images()), supernet(images(), arch), rtol=0, atol=1e-10)


def test_extracted_network_is_plain_torch_with_memory_of_its_own() -> None:
    supernet = make()
    for kind in ("weight", "bias"):
        supernet.get_parameter(f"head.{kind}").requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    with torch.inference_mode():
        network = supernet.extract(SPACE.sample(1))
    assert type(network) is AutoFormer
    assert not any(parameter.requires_grad for parameter in network.head.parameters())
    F.cross_entropy(network(images()), torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for name, p in network.named_parameters() if not name.startswith("head."))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())


@pytest.mark.parametrize("qkv_bias", ["thirds", "packed"])
def test_what_is_not_sampled_gets_no_gradient(qkv_bias: QkvBias) -> None:
    supernet = make(qkv_bias)
    arch = uniform(16, 3, 2, 1.5)
    F.cross_entropy(supernet(images(), arch), torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    thirds = torch.arange(3 * 3 * 8).view(3, 24)[:, :16].flatten().tolist()
    used: dict[str, tuple[list[int], int]] = {  # rows and columns of the slice
        "embed.proj.weight": (list(range(16)), 1),
        "blocks.1.attn.qkv.weight": (thirds, 16),
        "blocks.1.attn.proj.weight": (list(range(16)), 16),
        "blocks.1.mlp.fc1.weight": (list(range(24)), 16),
        "blocks.1.mlp.fc2.weight": (list(range(16)), 24),
        "blocks.1.norm1.weight": (list(range(16)), 1),
        "head.weight": (list(range(10)), 16),
        "blocks.1.attn.qkv.bias": (thirds if qkv_bias == "thirds" else list(range(48)), 1),
    }
    for name, (rows, columns) in used.items():
        gradient = supernet.get_parameter(name).grad
        assert gradient is not None
        inside = torch.zeros(gradient.shape[0], gradient[0].numel(), dtype=torch.bool)
        inside[rows, : gradient[0].numel() if columns == 1 else columns] = True
        touched = gradient.flatten(1) != 0 if gradient.ndim > 1 else gradient[:, None] != 0
        assert not touched[~inside].any(), name
        assert touched[inside].any(), name
    assert all(parameter.grad is None for name, parameter in supernet.named_parameters() if "blocks.3." in name)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (uniform(20, 5, 3, 2), "the supernet holds no 'blocks.4.norm1.weight'"),
        (uniform(24, 4, 3, 2), r"'embed.cls_token' is wanted in the shape \(1, 1, 24\), but .* \(1, 1, 20\)"),
        (uniform(20, 4, 4, 2), r"'blocks.0.attn.qkv.weight' is wanted in the shape \(96, 20\), but .* \(72, 20\)"),
        (uniform(20, 4, 3, 3), r"'blocks.0.mlp.fc1.weight' is wanted in the shape \(60, 20\), but .* \(40, 20\)"),
        (Arch({**uniform(20, 3, 3, 2), "block.count": 4}), "block.count is 4, but the architecture describes 3"),
        (Arch({"block.count": 1, "block.0.num_heads": 1, "block.0.mlp_ratio": 1}), "no entry 'embed_dim'"),
    ],
)
def test_architectures_that_do_not_fit_are_refused(arch: Arch, message: str) -> None:
    supernet = make()
    for use in (lambda: supernet(images(), arch), lambda: supernet.extract(arch)):
        with pytest.raises(ValueError, match=message):
            use()


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="packed"):
        make_supernet(SPACE, VIT, qkv_bias="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of the patch size, but got 225 and 16"):
        build(uniform(12, 1, 1, 1), image_size=225)
    with pytest.raises(ValueError, match="mlp_ratio must leave a hidden width"):
        build(uniform(12, 1, 1, 0.01), head_dim=4)
