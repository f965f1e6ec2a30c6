"""The store is the elementwise maximum over all architectures of a space, also of one too large to walk."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from nasx import Arch, Space, one_of, repeat
from nasx.nn import Supernet


class Chain(nn.Module):
    """Layers whose widths are an architecture's values, in order."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        widths = [3, *(int(value) for value in arch.values()), 2]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Dense(nn.Module):
    """Each layer reads what all before it gave, so its width is a sum over the parts."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        width, layers = 3, []
        for part in arch.parts("layer"):
            layers.append(nn.Linear(width, int(part["growth"])))
            width += int(part["growth"])
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=-1)
        return self.head(x)


class Products(nn.Module):
    """Sizes that are products of choices in branches of which none has the largest of both."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.core = nn.Linear(int(arch["width"]) + int(arch["w0"]), int(arch["depth"]) * int(arch["w1"]))
        self.rest = nn.ModuleDict({name: nn.Linear(2, int(arch[name])) for name in WIDTHS})

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x[..., : self.core.in_features]).sum(-1)


WIDTHS = [f"w{i}" for i in range(8)]
LARGE = Space(**{name: one_of(4, 6, 2, 8) for name in WIDTHS})
BRANCHES = Space(
    **{name: one_of(1, 3, 2) for name in WIDTHS},
    mode=one_of({0: Space(width=one_of(2, 16), depth=one_of(1, 2)), 1: Space(width=one_of(4, 8), depth=one_of(3, 4))}),
)


def shapes(supernet: Supernet) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in supernet.named_parameters()}


def check(supernet: Supernet, space: Space, x: Tensor) -> None:
    supernet.double()
    for arch in space.sample(0, 10):
        torch.testing.assert_close(supernet(x.double(), arch), supernet.extract(arch)(x.double()), rtol=0, atol=1e-12)


def test_widths_of_neighbours_in_a_large_space() -> None:
    supernet = Supernet(Chain, LARGE)
    widths = [3, *[8] * 8, 2]
    assert shapes(supernet) == {
        f"layers.{i}.{kind}": (out, into) if kind == "weight" else (out,)
        for i, (into, out) in enumerate(pairwise(widths))
        for kind in ("weight", "bias")
    }
    check(supernet, LARGE, torch.randn(4, 3))


def test_products_over_branches_in_a_large_space() -> None:
    supernet = Supernet(Products, BRANCHES)
    assert BRANCHES.size > 50_000
    assert shapes(supernet)["core.weight"] == (4 * 3, 16 + 3)
    check(supernet, BRANCHES, torch.randn(4, 19))


@pytest.mark.parametrize("growths", [(2, 4, 8), (8, 4, 2)])
def test_sums_over_parts(growths: tuple[int, ...]) -> None:
    space = Space(layer=repeat(Space(growth=one_of(*growths)), one_of(1, 2, 3)))
    supernet = Supernet(Dense, space)
    assert shapes(supernet)["head.weight"] == (2, 3 + 3 * 8)
    check(supernet, space, torch.randn(4, 3))


def test_sums_over_parts_of_different_options() -> None:
    space = Space(layer=repeat(Space(growth=one_of(2, 4, 6, 8)), 3)).pin({"layer.1.growth": 4})
    supernet = Supernet(Dense, space)
    assert shapes(supernet)["head.weight"] == (2, 3 + 8 + 4 + 8)
    check(supernet, space, torch.randn(4, 3))


class UNet(nn.Module):
    """Layers of a decoder read what the layer before and one of the encoder give."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        down, up = ([int(part["width"]) for part in arch.parts(name)] for name in ("enc", "dec"))
        self.enc = nn.ModuleList(map(nn.Linear, [3, *down], down))
        skips = down[::-1]
        self.dec = nn.ModuleList(nn.Linear(a + b, c) for a, b, c in zip([0, *up], skips, up, strict=False))

    def forward(self, x: Tensor) -> Tensor:
        skips = [x := layer(x) for layer in self.enc]
        x = x[..., :0]
        for layer, skip in zip(self.dec, reversed(skips), strict=True):
            x = layer(torch.cat([x, skip], dim=-1))
        return x.sum(-1)


@pytest.mark.parametrize("widths", [(16, 32), (32, 16)])
def test_sums_over_two_repeats_whose_options_run_in_other_orders(widths: tuple[int, int]) -> None:
    space = Space(enc=repeat(Space(width=one_of(*widths)), 2), dec=repeat(Space(width=one_of(*widths[::-1])), 2))
    supernet = Supernet(UNet, space)
    most = max(widths)
    assert shapes(supernet)["dec.1.weight"] == (most, 2 * most)
    check(supernet, space, torch.randn(4, 3))


def test_sums_over_parts_whose_options_run_in_other_orders() -> None:
    space = Space(layer=repeat(Space(growth=one_of(2, 8, 4)), 2)).pin({"layer.1.growth": lambda growth: growth != 2})
    supernet = Supernet(Dense, space)
    assert shapes(supernet)["head.weight"] == (2, 3 + 8 + 8)
    check(supernet, space, torch.randn(4, 3))


def test_many_parts_take_no_more_networks_than_the_options_of_one() -> None:
    built: list[Arch] = []

    def make(arch: Arch) -> nn.Module:
        built.append(arch)
        return Dense(arch)

    supernet = Supernet(make, Space(layer=repeat(Space(growth=one_of(*range(1, 10))), 20)))
    assert shapes(supernet)["head.weight"] == (2, 3 + 20 * 9)
    assert len(built) < 40


def test_parts_that_have_too_many_options_of_their_own() -> None:
    space = Space(layer=repeat(Space(growth=3, block=repeat(Space(hidden=one_of(*range(1, 10))), 10)), 2))
    assert space.parts("layer")[0].size == 9**10

    class Nested(nn.Module):
        def __init__(self, arch: Arch) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                nn.ModuleList(nn.Linear(2, int(block["hidden"])) for block in part.parts("block"))
                for part in arch.parts("layer")
            )

        def forward(self, x: Tensor) -> Tensor:
            blocks = [block for layer in self.layers for block in layer]  # type: ignore[attr-defined]
            return torch.stack([block(x).sum(-1) for block in blocks]).sum(0)

    supernet = Supernet(Nested, space)
    assert set(shapes(supernet).values()) == {(9, 2), (9,)}
    check(supernet, space, torch.randn(4, 2))
