"""Table 6: what the local heads are, and which tokens they let see each other."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx import Arch
from nasx.measure import count_macs, count_params
from nasx.nn import Supernet
from nasx.testing import CostContract, SpaceContract, SupernetContract
from recipes.glit.cost import Macs, Params
from recipes.glit.model import GLiTConfig, build_in
from recipes.glit.space import (
    TINY_CONV2D,
    TINY_WINDOW,
    GLiTSpace,
    details_space,
    heads_space,
    reduced,
    same_heads,
    table2,
)
from recipes.glit.supernet import supernet
from recipes.glit.variant import OFFICIAL, PAPER, Locality, Variant

IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))  # 16 patches
CHOICES = {
    "conv2d": GLiTSpace(blocks=2, locality="conv2d", kernel_size=(1, 3, 5), held_kernel_size=3),
    "window": GLiTSpace(blocks=2, locality="window", window=(2, 4, 8), held_window=4),
}
KINDS: tuple[Locality, ...] = ("conv2d", "window")

both = pytest.mark.parametrize("locality", KINDS)
in_both_variants = pytest.mark.parametrize("variant", [OFFICIAL, PAPER], ids=["official", "paper"])


def vit(locality: Locality, variant: Variant = OFFICIAL) -> GLiTConfig:
    variant = replace(variant, locality=locality)
    return GLiTConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=24, variant=variant)


@both
def test_sizes_and_what_stage_one_holds(locality: Locality) -> None:
    choices = TINY_CONV2D if locality == "conv2d" else TINY_WINDOW
    assert reduced(choices).size == 36**12
    assert table2(choices).size == (198 if locality == "conv2d" else 3 * 27 + 9) ** 12
    stage_one = heads_space(choices)
    assert stage_one.size == 4**12
    local = stage_one[0]
    held = {"kernel_size": 5, "expansion": 4} if locality == "conv2d" else {"window": 28, "qkv_ratio": 1}
    assert dict(local.parts("block")[0]) == {"global_heads": 0} | held | {"mlp_ratio": 4}
    for heads in range(4):
        details = details_space(same_heads(heads, choices), choices)
        assert details.size == 9**12
        assert same_heads(heads, choices) in details
        assert details.sample(heads) in table2(choices)


@pytest.mark.parametrize("projection", ["separate", "joint"])
@in_both_variants
@both
def test_every_kind_of_block_costs_what_is_counted(locality: Locality, variant: Variant, projection: str) -> None:
    own = vit(locality, replace(variant, projection=projection))  # type: ignore[arg-type]
    for arch in table2(CHOICES[locality].with_blocks(1)).sample(0, 30):
        network = build_in(own, arch)
        assert count_macs(network, IMAGES[:1]) == Macs(own)(arch)
        assert count_params(network) == Params(own)(arch)


class TestWindowSpace(SpaceContract):
    space = table2(CHOICES["window"])


class TestConv2dMacs(CostContract):
    space, cost = table2(CHOICES["conv2d"]), Macs(vit("conv2d"))

    def counted(self, arch: Arch) -> int:
        return count_macs(build_in(vit("conv2d"), arch), IMAGES[:1])


class TestWindowSupernet(SupernetContract):
    space = table2(CHOICES["window"])

    def make_supernet(self) -> Supernet:
        return supernet(self.space, vit("window"), sharing="separate")

    def make_inputs(self) -> Tensor:
        return IMAGES


def local_part(locality: Locality, **details: float) -> nn.Module:
    choices = CHOICES[locality].with_blocks(1)
    arch = Arch({**same_heads(0, choices), **{f"block.0.{name}": value for name, value in details.items()}})
    torch.manual_seed(0)
    return build_in(vit(locality), arch, init_std=0.2).eval().get_submodule("blocks.0.local")


@torch.no_grad()
def seen(part: nn.Module, tokens: int) -> Tensor:
    """Which token (column) each token's output (row) depends on."""
    x = torch.randn(1, tokens, 24, generator=torch.Generator().manual_seed(1))
    moved = x + torch.eye(tokens)[..., None]  # one sample for each token that moves
    return ((part(moved) - part(x)).abs().amax(-1) > 1e-5).T


def window_mask(window: int) -> Tensor:
    """Which patch sees which, the class token first."""
    number = torch.arange(16) // window
    return F.pad(number[:, None] == number, (1, 0, 1, 0), value=True)


@pytest.mark.parametrize("window", [2, 4, 8])
def test_windows_are_of_successive_patches_and_the_class_token_is_in_all(window: int) -> None:
    assert torch.equal(seen(local_part("window", window=window), 17), window_mask(window))


@torch.no_grad()
def test_windowed_attention_is_masked_attention() -> None:
    for window, ratio in ((4, 1), (8, 2)):
        part = local_part("window", window=window, qkv_ratio=ratio)
        x = torch.randn(2, 17, 24)
        q, k, v = (t.reshape(2, 17, 3, -1).transpose(1, 2) for t in part.get_submodule("qkv")(x).chunk(3, dim=-1))
        scores = (q @ k.mT * (8 * ratio) ** -0.5).masked_fill(~window_mask(window), -torch.inf)
        joined = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        torch.testing.assert_close(part(x), part.get_submodule("proj")(joined))


def test_two_dimensional_convolution_sees_a_square_and_no_further_than_its_edges() -> None:
    rows, columns = torch.arange(16) // 4, torch.arange(16) % 4
    near = [(line[:, None] - line[None]).abs() <= 1 for line in (rows, columns)]
    assert torch.equal(seen(local_part("conv2d", kernel_size=3), 16), near[0] & near[1])


def test_conv2d_has_no_class_token_and_classifies_the_mean() -> None:
    network = build_in(vit("conv2d"), same_heads(1, CHOICES["conv2d"]), init_std=0.2).eval()
    assert "cls_token" not in network.state_dict()
    assert network.pos_embed.shape == (1, 16, 24)
    tokens = torch.randn(2, 16, 24)
    torch.testing.assert_close(network.classify(tokens), network.head(network.norm(tokens).mean(1)))
    assert network(IMAGES).shape == (3, 10)


def test_kernels_and_windows_of_the_paper_run_at_its_size() -> None:
    for choices in (TINY_CONV2D, TINY_WINDOW):
        own = GLiTConfig(variant=Variant(locality=choices.locality))
        arch = table2(choices.with_blocks(3)).sample(0)
        with torch.device("meta"):
            network, image = build_in(own, arch), torch.zeros(1, 3, 224, 224)
        assert count_macs(network, image) == Macs(own)(arch)


def test_blocks_of_another_locality_and_windows_that_do_not_divide_are_refused() -> None:
    pairs: list[tuple[Locality, Locality]] = [("conv2d", "window"), ("window", "conv2d")]
    for locality, other in pairs:
        own, arch = vit(locality), same_heads(1, CHOICES[other])
        uses: list[Callable[[Arch], object]] = [Macs(own), Params(own), partial(build_in, own)]
        for use in uses:
            with pytest.raises(ValueError, match=f"locality is '{locality}'"):
                use(arch)
    with pytest.raises(ValueError, match=r"must divide the 16 patches, but got 5"):
        build_in(vit("window"), Arch({**same_heads(0, CHOICES["window"]), "block.0.window": 5}))
    with pytest.raises(ValueError, match=r"must divide the 16 patches, but got 14"):
        supernet(table2(TINY_WINDOW.with_blocks(1)), vit("window"), sharing="entangled")
