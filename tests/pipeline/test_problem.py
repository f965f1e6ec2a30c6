"""What a problem knows of its networks' costs, and what it says where they do not add up."""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from nasx import Arch, Budget, Space, one_of, repeat
from nasx.arch import Value
from nasx.cost import AdditiveCost
from nasx.measure import CachedCost, count_macs
from nasx.pipeline import Problem, Task
from tests.pipeline.searches import SPACE, Perceptron

WIDTHS = Space(layer=repeat(Space(width=one_of(4, 6, 8)), 3))


class Chain(nn.Module):
    """Layers that read as many features as the layer before writes, so that their costs depend on each other."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        widths = [4, *(int(part["width"]) for part in arch.parts("layer"))]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.head = nn.Linear(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


class Widths(AdditiveCost):
    def fixed(self, shared: Mapping[str, Value]) -> int:
        return 0

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return int(choices["width"])


def problem(space: Space, make: Any, **more: Any) -> Problem[Any]:
    x = torch.randn(240, 4, generator=torch.Generator().manual_seed(0))
    return Problem(space, make, Task(TensorDataset(x, x[:, :3].argmax(dim=1))), **more)


def test_costs_that_do_not_add_up_are_counted_one_by_one_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    built: list[Arch] = []

    def make(arch: Arch) -> nn.Module:
        built.append(arch)
        return Chain(arch)

    own = problem(WIDTHS, make)
    built.clear()
    assert isinstance(own.macs, CachedCost)
    assert len(built) < 12  # of 27 networks: the first that disproves the sum ends the table
    assert not caplog.records
    assert (own.cost, own.reach, dict(own.baselines)) == (None, None, {})
    (record,) = caplog.records
    message = record.getMessage()
    assert "there is no largest and no smallest network to compare with" in message
    assert "the MACs are counted network by network, because MACs do not add up over the repeated parts" in message
    for arch in WIDTHS.sample(0, 5):
        assert own.macs(arch) == count_macs(Chain(arch), torch.zeros(1, 4))


def test_an_additive_budget_serves_where_macs_do_not_add_up(caplog: pytest.LogCaptureFixture) -> None:
    own = problem(WIDTHS, Chain, budget=Budget(Widths(), at_most="80%"))
    assert own.cost == own.inside.budgets[0].cost
    assert set(own.baselines) == {"largest", "smallest"}
    plain = problem(SPACE, lambda arch: Perceptron(arch, inputs=4, outputs=3))
    assert set(plain.baselines) == {"largest", "smallest"}
    assert not caplog.records


def test_a_problem_is_checked_once() -> None:
    looked: list[None] = []
    own = problem(WIDTHS, Chain, check=lambda: looked.append(None))
    own.check()
    own.check()
    assert len(looked) == 1


def test_a_problem_that_does_not_fit_is_refused_each_time() -> None:
    def refuse() -> None:
        raise ValueError("the width 4 is too small")

    own = problem(WIDTHS, Chain, check=refuse)
    for _ in range(2):
        with pytest.raises(ValueError, match="too small"):
            own.check()
