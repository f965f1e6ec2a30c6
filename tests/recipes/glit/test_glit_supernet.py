"""What GLiT's supernets hold, what a training step may touch, and what a shared weight stands for."""

import copy
import itertools
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from nasx import Arch, Space
from nasx.nn import Supernet
from nasx.train import nesterov_sgd, train_supernet
from recipes.glit.model import GLiTConfig
from recipes.glit.space import GLiTSpace, details_space, heads_space, same_heads, table2
from recipes.glit.supernet import supernet as make_supernet
from recipes.glit.variant import OFFICIAL, PAPER, Locality, Variant

CHOICES = GLiTSpace(blocks=3, kernel_size=(3, 5, 9), held_kernel_size=5, mlp_ratio=(2, 4))
VIT = GLiTConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=24)
SPACE = table2(CHOICES)


def make(sharing: Literal["separate", "entangled"], space: Space = SPACE, vit: GLiTConfig = VIT) -> Supernet:
    torch.manual_seed(0)
    return make_supernet(space, vit, sharing=sharing, init_std=0.2).double()


def _batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(8, 1, 8, 8, dtype=torch.float64, generator=generator),
            torch.randint(10, (8,), generator=generator),
        )
        for _ in range(steps)
    ]


def test_unsampled_candidates_are_untouched_with_separate_weights() -> None:
    supernet = make("separate")
    first, second = same_heads(3, CHOICES), same_heads(0, CHOICES)
    optimizer = nesterov_sgd(supernet, lr=0.1, weight_decay=1e-2)
    paths = itertools.cycle([first, second])
    # one step of each fills the momentum of both, so that momentum could move what a later step does not sample
    list(train_supernet(supernet, _batches(2), lambda step: (next(paths),), optimizer))
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    list(train_supernet(supernet, _batches(1), lambda step: (first,), optimizer))
    after = supernet.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    copies = {name.partition("@")[2] for name in changed if "@" in name}
    assert copies == {"global_heads=3,qkv_ratio=1", "mlp_ratio=4"}
    assert {name.partition("@")[0].split(".")[2] for name in changed if "@" in name} == {"attn", "mlp"}


def test_unsampled_slices_get_zero_gradient_with_entangled_weights() -> None:
    supernet = make("entangled")
    arch = Arch({**same_heads(1, CHOICES), "block.0.mlp_ratio": 2})
    ((images, labels),) = _batches(1)
    torch.nn.functional.cross_entropy(supernet(images, arch), labels).backward()  # type: ignore[no-untyped-call]
    gradient = supernet.get_parameter("blocks.0.mlp.fc1.weight").grad
    assert gradient is not None
    assert gradient[: 2 * 24].abs().sum() > 0
    assert gradient[2 * 24 :].abs().sum() == 0
    kernel = supernet.get_parameter("blocks.0.local.depthwise.weight").grad
    assert kernel is not None
    assert kernel[..., 2:7].abs().sum() > 0
    assert kernel[..., :2].abs().sum() == kernel[..., 7:].abs().sum() == 0
    project = supernet.get_parameter("blocks.0.local.project.bias").grad
    assert project is not None  # two of three heads are local: the last channels
    assert project[:8].abs().sum() == 0
    assert (project[8:] != 0).all()


def test_a_stage_holds_only_what_its_space_reaches() -> None:
    assert _candidates(heads_space(CHOICES)) == {
        *(("attn", f"global_heads={heads},qkv_ratio=1") for heads in (1, 2, 3)),
        *(("local", f"global_heads={heads},kernel_size=5,expansion=4") for heads in (0, 1, 2)),
        ("mlp", "mlp_ratio=4"),
    }
    assert len(_candidates(SPACE)) == 3 * 3 + 3 * 9 + 2
    assert len(_candidates(details_space(same_heads(0, CHOICES), CHOICES))) == 9 + 1
    with_paper = replace(VIT, variant=PAPER)
    joint = {f"global_heads={heads}" for heads in range(4)}
    assert {copy for part, copy in _candidates(heads_space(CHOICES), with_paper) if part == "proj"} == joint


def _candidates(space: Space, vit: GLiTConfig = VIT) -> set[tuple[str, str]]:
    found = make("separate", space, vit).state_dict()
    return {(n.split(".")[2], n.partition("@")[2]) for n in found if n.startswith("blocks.0.") and "@" in n}


def test_norms_and_what_stands_around_the_blocks_are_shared() -> None:
    sharings: tuple[Literal["separate", "entangled"], ...] = ("separate", "entangled")
    for sharing in sharings:
        names = {name for name in make(sharing).state_dict() if "@" not in name}
        assert {name for name in names if "blocks.0." in name} >= {f"blocks.0.norm{i}.weight" for i in (1, 2)}
        assert {"patch_embed.proj.weight", "cls_token", "pos_embed", "norm.bias", "head.weight"} <= names
    assert not any("@" in name for name in make("entangled").state_dict())


def test_unknown_sharing_is_refused() -> None:
    with pytest.raises(ValueError, match="separate"):
        make("both")  # type: ignore[arg-type]


LOCALITIES: dict[Locality, GLiTSpace] = {
    "conv1d": GLiTSpace(blocks=1, kernel_size=(3, 9), held_kernel_size=9, expansion=(1, 4)),
    "conv2d": GLiTSpace(blocks=1, locality="conv2d", kernel_size=(1, 5), held_kernel_size=5, expansion=(1, 4)),
    "window": GLiTSpace(blocks=1, locality="window", window=(2, 8), held_window=8),
}

Label = tuple[object, ...]


def meanings(name: str, shape: torch.Size, part: Arch, vit: GLiTConfig) -> list[list[Label]]:
    """Return what each index into each dimension of a block's tensor stands for: a channel, a neuron, a place."""
    variant, width, heads = vit.variant, vit.channels(1), vit.num_heads
    everything: list[Label] = [("channel", c) for c in range(vit.embed_dim)]
    module, layer = name.split(".")[:2]
    own = range(int(part["global_heads"])) if module == "attn" else range(int(part["global_heads"]), heads)
    channels: list[Label] = [("channel", head * width + c) for head in own for c in range(width)]
    reads: list[Label] = everything if variant.submodule_input == "full" else channels
    if module in ("attn", "local") and layer in ("qkv", "proj"):
        ratio = float(part["qkv_ratio"])
        queries = [(head, place) for head in own for place in range(int(ratio * width))]
        values = queries if variant.projection == "separate" else [(h, place) for h in own for place in range(width)]
        rows: list[Label] = [
            (kind, *place) for kind, places in zip("qkv", (queries, queries, values), strict=True) for place in places
        ]
        return [rows, reads] if layer == "qkv" else [channels, [("v", *place) for place in values]]
    if module == "local":
        hidden: list[Label] = [("hidden", i) for i in range(int(part["expansion"]) * len(channels))]
        gated: list[Label] = [(half, *neuron) for half in ("value", "gate") for neuron in hidden]
        kernel: list[Label] = [("offset", i - int(part["kernel_size"]) // 2) for i in range(int(part["kernel_size"]))]
        of_layer: dict[str, list[list[Label]]] = {
            "expand": [gated, reads],
            "expand_norm": [gated],
            "depthwise": [hidden, [("own",)], kernel, kernel],
            "norm": [hidden],
            "project": [channels, hidden],
            "project_norm": [channels],
        }
        return of_layer[layer]
    if module == "mlp":
        neurons: list[Label] = [("neuron", i) for i in range(int(24 * float(part["mlp_ratio"])))]
        return [neurons, everything] if layer == "fc1" else [everything, neurons]
    return [everything, everything]


@pytest.mark.parametrize("locality", LOCALITIES)
@pytest.mark.parametrize(
    "variant",
    [OFFICIAL, PAPER, Variant(submodule_input="full"), Variant(projection="joint"), Variant(local_norm="every")],
    ids=["official", "paper", "full", "joint", "norms"],
)
def test_a_shared_weight_stands_for_the_same_channels_heads_and_neurons_in_every_network(
    variant: Variant, locality: Locality
) -> None:
    vit, space = replace(VIT, variant=replace(variant, locality=locality)), table2(LOCALITIES[locality])
    supernet = make("entangled", space, vit)
    numbered, start = copy.deepcopy(supernet), 0
    with torch.no_grad():
        for tensor in numbered.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.arange(start, start + tensor.numel()).view_as(tensor))
                start += tensor.numel()
    stands_for: dict[int, Label] = {}
    for arch in space:
        (part,) = arch.parts("block")
        for name, tensor in numbered.extract(arch).state_dict().items():
            if not name.startswith("blocks.0.") or not tensor.is_floating_point():
                continue
            labels = meanings(name.removeprefix("blocks.0."), tensor.shape, part, vit)[: tensor.ndim]
            assert [len(labels_of_dim) for labels_of_dim in labels] == list(tensor.shape), name
            for number, label in zip(tensor.flatten().long().tolist(), itertools.product(*labels), strict=True):
                assert stands_for.setdefault(number, label) == label, f"{name} of {dict(part)}"
    assert len(stands_for) > 1000
