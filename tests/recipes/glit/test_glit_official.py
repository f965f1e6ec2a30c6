"""Published weights: what they compute, what does not fit, and what is never executed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from nasx.measure import count_params
from nasx.weights import StateDict
from recipes.glit.model import DEIT_TINY, GLIT_TINY
from recipes.glit.official import infer_deit, infer_glit, load_deit, load_glit

CHECKPOINTS = Path(__file__).parents[4] / "shared" / "spec" / "checkpoints"
GLIT_SHAPES, DEIT_SHAPES = CHECKPOINTS / "glit_tiny_official.json", CHECKPOINTS / "deit_tiny_timm.json"


def published(path: Path) -> dict[str, Tensor]:
    """Random weights of published names and shapes, of a size at which every part matters to the logits."""
    if not path.exists():
        pytest.skip(f"{path.name}, the published names and shapes, is not beside this checkout")
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in json.loads(path.read_text()).items():
        drawn = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            drawn = drawn.abs() + 0.5
        elif name.endswith("num_batches_tracked"):
            drawn = torch.tensor(7)
        elif len(shape) == 1 and name.endswith("weight"):
            drawn = 1 + 0.2 * drawn
        elif len(shape) > 1 and name.endswith("weight"):
            drawn = drawn * drawn[0].numel() ** -0.5
        state[name] = drawn
    return state


@pytest.fixture(scope="module")
def glit() -> dict[str, Tensor]:
    return published(GLIT_SHAPES)


@pytest.fixture(scope="module")
def deit() -> dict[str, Tensor]:
    return published(DEIT_SHAPES)


def images(count: int = 2, size: int = 224) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def released_glit(w: dict[str, Tensor], images: Tensor) -> Tensor:
    """The released network, straight from its weights: heads of 64 channels, global ones first, local ones last."""
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16).flatten(2).mT
    x = torch.cat([w["cls_token"].repeat(len(images), 1, 1), x], dim=1) + w["pos_embed"]
    width = x.shape[-1]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def attention(x: Tensor, name: str) -> Tensor:
        inner = w[f"{name}.proj.weight"].shape[1]
        packed = x @ w[f"{name}.qkv.weight"].T + w[f"{name}.qkv.bias"]
        heads, outputs = x.shape[-1] // 64, []
        wide = inner // heads
        for head in range(heads):
            q, k, v = (packed[..., part * inner + head * wide :][..., :wide] for part in range(3))
            outputs.append(torch.softmax(q @ k.mT * wide**-0.5, dim=-1) @ v)
        return torch.cat(outputs, dim=-1) @ w[f"{name}.proj.weight"].T + w[f"{name}.proj.bias"]

    def local(x: Tensor, name: str) -> Tensor:
        x = F.conv1d(x.mT, w[f"{name}.1.weight"], w[f"{name}.1.bias"])
        value, gate = x.chunk(2, dim=1)
        kernel = w[f"{name}.3.conv.weight"]
        x = value * torch.sigmoid(gate)
        x = F.conv1d(x, kernel, w[f"{name}.3.conv.bias"], padding=kernel.shape[-1] // 2, groups=len(kernel))
        mean, var = (w[f"{name}.4.running_{kind}"][:, None] for kind in ("mean", "var"))
        x = (x - mean) / torch.sqrt(var + 1e-5) * w[f"{name}.4.weight"][:, None] + w[f"{name}.4.bias"][:, None]
        return F.conv1d(x * torch.sigmoid(x), w[f"{name}.6.weight"], w[f"{name}.6.bias"]).mT

    for i in range(12):
        block = f"blocks.{i}.0"
        has_attention, has_local = (f"{block}.attn.{part}.weight" in w for part in ("qkv", "net.1"))
        h = norm(x, f"{block}.norm1")
        split = w[f"{block}.attn.qkv.weight"].shape[1] if has_attention else 0
        parts = [attention(h[..., :split], f"{block}.attn")] if has_attention else []
        parts += [local(h[..., split:], f"{block}.attn.net")] if has_local else []
        x = x + torch.cat(parts, dim=-1)
        h = F.gelu(norm(x, f"{block}.norm2") @ w[f"{block}.mlp.fc1.weight"].T + w[f"{block}.mlp.fc1.bias"])
        x = x + h @ w[f"{block}.mlp.fc2.weight"].T + w[f"{block}.mlp.fc2.bias"]
    return norm(x, "norm")[:, 0] @ w["head.weight"].T + w["head.bias"]


def test_released_glit_is_the_published_network_and_computes_what_it_computes(glit: dict[str, Tensor]) -> None:
    vit, arch = infer_glit(glit)
    assert arch == GLIT_TINY
    assert (vit.image_size, vit.patch_size, vit.embed_dim, vit.num_heads) == (224, 16, 192, 3)
    network = load_glit({"model": glit, "epoch": 300})
    assert not network.training
    assert count_params(network) == 7_264_456
    with torch.no_grad():
        expected = released_glit(glit, images())
        assert expected.std() > 0.1
        torch.testing.assert_close(network(images()), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(load_glit(glit)(images()), network(images()), rtol=0, atol=0)


@pytest.mark.parametrize(("size", "parameters"), [("tiny", 5_717_416), ("small", 22_050_664), ("base", 86_567_656)])
def test_deit_of_every_size_computes_what_timm_computes(size: str, parameters: int) -> None:
    torch.manual_seed(0)
    source = timm.create_model(f"deit_{size}_patch16_224", pretrained=False).eval()
    with torch.no_grad():
        for parameter in source.parameters():  # timm starts biases at 0, which would hide a lost one
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    network = load_deit(source.state_dict())
    assert count_params(network) == parameters
    with torch.no_grad():
        torch.testing.assert_close(network(images(1)), source(images(1)), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        *(("vit_tiny_patch16_224", 3), ("vit_small_patch16_224", 6), ("vit_base_patch16_224", 12)),
        *(("vit_large_patch16_224", 16), ("vit_huge_patch14_224", 16), ("vit_giant_patch14_224", 16)),
    ],
)
def test_heads_of_published_sizes_are_those_of_timm_and_are_said(name: str, heads: int) -> None:
    with torch.device("meta"):
        source: Any = timm.create_model(name, pretrained=False, num_classes=10)
    assert source.blocks[0].attn.num_heads == heads
    notes: list[str] = []
    meta = {name: torch.empty(tensor.shape, device="meta") for name, tensor in source.state_dict().items()}
    vit, arch = infer_deit(StateDictOfShapes(meta), note=notes.append)
    assert (vit.num_heads, vit.embed_dim, len(arch.parts("block"))) == (heads, source.embed_dim, len(source.blocks))
    size = name.split("_")[1]
    assert notes[0].startswith(f"assuming {heads} heads, as {size} has them ({source.embed_dim} channels")


class StateDictOfShapes(StateDict):
    """Shapes alone, of networks that are too large to make."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        dict.__init__(self, tensors)


@pytest.mark.parametrize(("width", "depth", "heads"), [(64, 2, 2), (192, 3, 3), (512, 12, 8)])
def test_heads_of_other_sizes_are_asked_for_and_decide_what_is_computed(width: int, depth: int, heads: int) -> None:
    torch.manual_seed(0)
    size: dict[str, Any] = {"img_size": 32, "patch_size": 8, "num_classes": 5}
    source = timm.models.vision_transformer.VisionTransformer(embed_dim=width, depth=depth, num_heads=heads, **size)
    state = {
        name: 1 + 0.2 * torch.randn_like(tensor) if "norm" in name else torch.randn_like(tensor) * width**-0.5
        for name, tensor in source.state_dict().items()
    }
    source.load_state_dict(state)
    with pytest.raises(ValueError, match=rf"{width} channels, .* and {depth} blocks; say it with num_heads"):
        load_deit(state)
    with torch.no_grad():
        expected = source.eval()(images(3, 32))
        torch.testing.assert_close(load_deit(state, num_heads=heads)(images(3, 32)), expected, rtol=0, atol=1e-4)
        other = load_deit(state, num_heads=1)(images(3, 32))
        assert (other - expected).abs().max() > 1e-3
    for wrong in (0, -1, 7):
        with pytest.raises(ValueError, match=rf"num_heads \(--heads\) must divide the width of {width} .* got {wrong}"):
            load_deit(state, num_heads=wrong)


def test_an_assumption_is_logged_where_nobody_else_says_it(
    deit: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    load_deit(deit)
    assert [record.message for record in caplog.records if "assuming 3 heads, as tiny" in record.message]
    caplog.clear()
    load_deit(deit, 3)
    assert not caplog.records


def test_heads_of_glit_can_be_said(glit: dict[str, Tensor]) -> None:
    notes: list[str] = []
    assert infer_glit(glit, note=notes.append)[1] == infer_glit(glit, 3)[1] == GLIT_TINY
    assert len(notes) == 1
    with pytest.raises(ValueError, match=r"for each channel of some heads of 48|queries, keys and values of"):
        load_glit(glit, num_heads=4)  # no block of GLiT's splits its channels in quarters
    other = load_glit(glit, num_heads=6)
    with torch.no_grad():
        assert (other(images(1)) - load_glit(glit, 3)(images(1))).abs().max() > 1e-2


def test_numbers_that_are_no_weights_are_refused_by_name(deit: dict[str, Tensor]) -> None:
    bad = deit["blocks.3.attn.qkv.weight"].clone()
    bad[5, 6] = float("inf")
    with pytest.raises(ValueError, match=r"'blocks\.3\.attn\.qkv\.weight' holds NaN or infinity in 1 of"):
        load_deit({**deit, "blocks.3.attn.qkv.weight": bad})
    with pytest.raises(ValueError, match=r"'blocks\.3\.attn\.qkv\.weight' holds torch\.int8"):
        load_deit({**deit, "blocks.3.attn.qkv.weight": bad.to(torch.int8)})
    with pytest.raises(ValueError, match="patches are square"):
        load_deit({**deit, "patch_embed.proj.weight": torch.zeros(192, 3, 16, 8)})


def test_checkpoints_as_they_come_are_read(deit: dict[str, Tensor]) -> None:
    wrapped = {"state_dict": {f"module.{name}": tensor.half() for name, tensor in deit.items()}, "epoch": 3}
    network, plain = load_deit(wrapped, 3), load_deit(deit, 3)
    assert all(torch.equal(network.state_dict()[name], deit[name].half().float()) for name in deit)
    assert network.state_dict().keys() == plain.state_dict().keys()


def test_deit_s_published_names_are_deit_tiny(deit: dict[str, Tensor]) -> None:
    assert infer_deit({"model": deit})[1] == DEIT_TINY
    assert load_deit(deit)(images(1)).shape == (1, 1000)


def test_other_patches_images_and_depths_of_vits() -> None:
    source = timm.create_model("vit_tiny_patch16_224", img_size=48, patch_size=8, depth=3, in_chans=1, num_classes=5)
    network = load_deit(source.state_dict(), num_heads=3)
    gray = images(2, 48)[:, :1]
    with torch.no_grad():
        torch.testing.assert_close(network(gray), source.eval()(gray), rtol=0, atol=1e-4)


def test_fine_tuning_draws_a_head_and_interpolates_positions(deit: dict[str, Tensor]) -> None:
    small, again, other = (load_deit(deit, num_classes=10, image_size=96, seed=seed) for seed in (0, 0, 1))
    assert small(images(2, 96)).shape == (2, 10)
    heads = [network.get_parameter("head.weight") for network in (small, again, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert small.get_parameter("head.bias").abs().max() == 0
    assert torch.equal(small.pos_embed[:, :1], deit["pos_embed"][:, :1])
    expected = resample_abs_pos_embed(deit["pos_embed"], [6, 6], antialias=False)
    torch.testing.assert_close(small.pos_embed.detach(), expected)
    kept = small.state_dict()
    assert all(torch.equal(kept[n], deit[n]) for n in deit if n != "pos_embed" and not n.startswith("head."))
    same = load_deit(deit, num_classes=1000, image_size=224)
    assert all(torch.equal(same.state_dict()[name], deit[name]) for name in deit)


def test_loading_leaves_torch_s_random_state_alone(deit: dict[str, Tensor]) -> None:
    before = torch.get_rng_state()
    load_deit(deit, num_classes=3)
    assert torch.equal(torch.get_rng_state(), before)


def missing(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.pop(name)


def shaped(name: str, *shape: int) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("damage", "name", "shape"),
    [
        (missing("cls_token"), "cls_token", "1, 1, 192"),
        (missing("blocks.5.0.mlp.fc1.weight"), "blocks.5.0.mlp.fc1.weight", ""),
        (missing("blocks.1.0.attn.net.4.running_mean"), "blocks.1.0.attn.net.4.running_mean", "384"),
        (missing("head.weight"), "head.weight", ""),
        (shaped("head.bias", 999), "head.bias", "999"),
        (shaped("pos_embed", 1, 196, 192), "pos_embed", "1, 196, 192"),
        (shaped("pos_embed", 1, 17, 191), "pos_embed", "1, 17, 191"),
        (shaped("blocks.0.0.attn.qkv.weight", 289, 192), "blocks.0.0.attn.qkv.weight", "289, 192"),
        (shaped("blocks.2.0.attn.qkv.weight", 192, 128), "blocks.2.0.attn.qkv.weight", "192, 128"),
        (shaped("blocks.2.0.attn.net.1.weight", 1024, 100, 1), "blocks.2.0.attn.net.1.weight", "1024, 100, 1"),
        (shaped("blocks.2.0.attn.net.6.weight", 128, 512), "blocks.2.0.attn.net.6.weight", "128, 512"),
        (shaped("blocks.2.0.attn.net.3.conv.weight", 512, 1, 30), "blocks.2.0.attn.net.3.conv.weight", "512, 1, 30"),
        (shaped("blocks.11.0.mlp.fc2.bias", 193), "blocks.11.0.mlp.fc2.bias", "193"),
        (shaped("blocks.13.0.norm1.weight", 192), "blocks.13.0.norm1.weight", "192"),
        (shaped("dist_token", 1, 1, 192), "dist_token", "1, 1, 192"),
        (shaped("patch_embed.proj.weight", 192, 3, 16, 8), "patch_embed.proj.weight", "192, 3, 16, 8"),
    ],
)
def test_what_does_not_fit_is_named(
    glit: dict[str, Tensor], damage: Callable[[dict[str, Tensor]], object], name: str, shape: str
) -> None:
    state = dict(glit)
    damage(state)
    with pytest.raises(ValueError, match=r"do not fit") as refusal:
        load_glit(state)
    assert repr(name) in str(refusal.value)
    assert shape in str(refusal.value)


def test_another_model_s_weights_are_refused(glit: dict[str, Tensor], deit: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"'blocks.0.0.attn.qkv.weight' is missing|'blocks.0.0"):
        load_glit(deit)
    with pytest.raises(ValueError, match=r"'blocks.0.attn.qkv.weight' is missing"):
        load_deit(glit)
    nothings: list[Any] = [{}, {"model": {}}, {"weights": 3}, [1]]
    for nothing in nothings:
        with pytest.raises(ValueError, match="maps names to tensors"):
            load_glit(nothing)
