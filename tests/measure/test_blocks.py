"""Networks taken apart: their parts and what stands around them do what the whole networks do."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from nasx import Arch, Space, one_of, repeat
from nasx.arch import Value
from nasx.cost import AdditiveCost
from nasx.latency import measure_latency
from nasx.measure import Call, NetworkBlocks, count_macs
from nasx.nn.parts import repeat_names
from tests.families import FAMILIES, RECIPES, Family

TAKEN_APART = [f for f in (*FAMILIES, *RECIPES) if f.additive and any(repeat_names(f.space))]


def blocks_of(family: Family) -> NetworkBlocks:
    return NetworkBlocks(family.make, family.space, Call(family.args, family.kwargs), parts=family.parts)


@dataclass(frozen=True)
class MacsOfBlocks(AdditiveCost):
    blocks: NetworkBlocks
    unit = "MACs"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        return count_macs(*self.blocks.fixed(shared))

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return count_macs(*self.blocks.part(name, 0, shared, choices))


@pytest.mark.parametrize("family", TAKEN_APART, ids=str)
def test_parts_and_what_stands_around_them_multiply_as_the_network_does(family: Family) -> None:
    blocks = blocks_of(family)
    for arch in family.archs(2):
        assert MacsOfBlocks(blocks)(arch) == count_macs(*blocks.network(arch)) > 0


class Twice(nn.Module):
    """Calls its block twice, by keyword, with something that is no tensor, and asks it for an attribute."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Scaled(int(part["width"])) for part in arch.parts("block"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x=layer(x=x, by=2), by=layer.width)
        return x


class Scaled(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, by: int) -> torch.Tensor:
        return self.linear(x) * by


SPACE = Space(block=repeat(Space(width=one_of(4, 8)), one_of(1, 2)))


def test_a_part_is_called_as_often_and_as_the_network_calls_it() -> None:
    blocks = NetworkBlocks(Twice, SPACE, torch.randn(5, 3), parts={"block": "layers"})
    module, *inputs = blocks.part("block", 1, {"block.count": 2}, {"width": 8})
    assert [tuple(tensor.shape) for tensor in inputs] == [(5, 3)] * 2
    assert count_macs(module, *inputs) == 2 * 5 * 9
    around, *given = blocks.fixed({"block.count": 2})
    assert count_macs(around, *given) == 0
    whole = around(*given)
    assert all(torch.equal(around(*given)[0], whole[0]) for _ in range(2)), "call after call"


def test_latencies_of_a_network_of_ones_own_are_measured() -> None:
    blocks = NetworkBlocks(Twice, SPACE, torch.randn(5, 3), parts={"block": "layers"})
    latency = measure_latency(SPACE, blocks, device="cpu", rounds=2)
    assert all(latency(arch) > 0 for arch in SPACE)
    assert latency.sizes == {"inputs": [[5, 3]]}


class Unused(Twice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_what_cannot_be_taken_apart_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the repeat 'block' is no module list .*parts=\{'block': "):
        NetworkBlocks(Twice, SPACE, torch.randn(5, 3))
    unused = NetworkBlocks(Unused, SPACE, torch.randn(5, 3), parts={"block": "layers"})
    with pytest.raises(ValueError, match=r"the network calls no 'layers\.0'"):
        unused.part("block", 0, {"block.count": 1}, {"width": 4})
    with pytest.raises(ValueError, match=r"no architecture of the space has \{'width': 5\} in 'block'"):
        unused.part("block", 0, {"block.count": 1}, {"width": 5})
    with pytest.raises(TypeError, match=r"write NetworkBlocks\(make, space, example\)"):
        NetworkBlocks(SPACE, Twice, torch.randn(5, 3))  # type: ignore[arg-type]
