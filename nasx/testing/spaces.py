"""What every space and every cost promises."""

import os
import subprocess
import sys
from functools import partial
from unittest import SkipTest

import numpy as np

from nasx.arch import Arch, split
from nasx.cost import AdditiveCost, Budget, Cost
from nasx.feasible import attainable
from nasx.space import ArchSet, Space
from nasx.testing.subjects import assert_raises, some_archs, some_numbers


class SpaceContract:
    """What every space promises: architecture <-> integer, membership, JSON, valid children, seeded draws.

    `importable` ("package.module:NAME") lets a fresh interpreter import the space, to show that it does not depend on
    the order of hashes.
    """

    space: Space
    importable: str = ""
    samples: int = 50

    def test_index_is_a_bijection(self) -> None:
        """Every integer below the size is one architecture's, and no other is."""
        numbers = some_numbers(self.space.size, self.samples)
        archs = [self.space[number] for number in numbers]
        for number, arch in zip(numbers, archs, strict=True):
            assert self.space.index(arch) == number, f"{dict(arch)} has number {number}, but index says otherwise"
        assert len(set(archs)) == len(numbers), "two integers gave one architecture"
        for outside in (-1, self.space.size):
            assert_raises(IndexError, partial(self.space.__getitem__, outside), f"an index of {outside}")

    def test_membership_needs_every_entry_and_no_other(self) -> None:
        """Order does not matter, entries do; `canonical` gives the space's own order."""
        for arch in some_archs(self.space, self.samples):
            shuffled = _reversed(arch)
            assert arch in self.space, f"{dict(arch)} was drawn from the space but is not in it"
            assert shuffled in self.space, f"{dict(shuffled)} is not in the space because of its order"
            assert list(self.space.canonical(shuffled).items()) == list(arch.items())
            assert Arch({**arch, "no_such_entry": 0}) not in self.space, "an entry too many was not noticed"
            for name in arch:
                fewer = Arch({key: value for key, value in arch.items() if key != name})
                assert fewer not in self.space, f"{dict(fewer)} lacks {name!r} but is in the space"
                other = Arch({**arch, name: "no such value"})
                assert other not in self.space, f"{dict(other)} has no valid {name!r} but is in the space"

    def test_pinning_every_entry_leaves_one_architecture(self) -> None:
        """An architecture's own entries name it alone."""
        for arch in some_archs(self.space, self.samples):
            assert list(self.space.pin(arch)) == [arch]

    def test_json_round_trip(self) -> None:
        """Spaces and architectures come back from JSON as they were."""
        read = Space.from_json(self.space.to_json())
        assert read == self.space
        for arch in some_archs(self.space, self.samples):
            again = Arch.from_json(arch.to_json())
            assert (again, again.to_json()) == (arch, arch.to_json())
            assert read.index(arch) == self.space.index(arch)

    def test_children_are_in_the_space_and_inherit(self) -> None:
        """Mutants and crossings are valid; a crossing has each entry from one of its parents."""
        rng = np.random.default_rng(0)
        archs = some_archs(self.space, self.samples)
        for first, second in zip(archs, reversed(archs), strict=True):
            mutant, crossing = self.space.mutate(first, rng, 0.3), self.space.crossover(first, second, rng)
            assert mutant in self.space, f"the mutant {dict(mutant)} of {dict(first)} is not in the space"
            assert crossing in self.space, f"{dict(crossing)}, of two parents in the space, is not in it"
            for name, value in crossing.items():
                assert value in (first.get(name), second.get(name)), f"{name}={value!r} is from neither parent"

    def test_draws_follow_the_seed(self) -> None:
        """One seed gives the same draws again."""
        assert _draws(self.space) == _draws(self.space)

    def test_nothing_depends_on_the_order_of_hashes(self) -> None:
        """Fresh interpreters with other hash seeds draw the same."""
        if not self.importable:
            raise SkipTest("`importable` does not say where a fresh interpreter finds the space")
        found = set()
        for seed in ("1", "2"):
            environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            command = [sys.executable, "-c", _DRAW_ELSEWHERE, self.importable]
            found.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
        assert len(found) == 1, "the space's order or its draws change with PYTHONHASHSEED; sort what comes from a set"


class CostContract:
    """What every cost promises: an integer of the architecture alone; if additive, `fixed` plus parts.

    `counted` may return what is really counted, such as `count_params(build(arch))`. A cost that is a plain function
    needs `staticmethod` around it.
    """

    space: Space
    cost: Cost
    samples: int = 20

    def counted(self, arch: Arch) -> int | None:
        """Return what is counted in the architecture's network, or None where nothing is."""
        return None

    def test_is_a_whole_number_of_the_architecture_alone(self) -> None:
        """Neither earlier calls nor the order of entries change it."""
        archs = some_archs(self.space, self.samples)
        costs = [self.cost(arch) for arch in archs]
        for cost in costs:
            assert isinstance(cost, int | np.integer), f"a cost must be an int, but got {cost!r}; round to a finer unit"
            assert cost >= 0, f"a cost must be 0 or more, but got {cost}"
        again = [self.cost(_reversed(arch)) for arch in reversed(archs)]
        assert again[::-1] == costs, "the cost depends on earlier calls or on the order of entries"

    def test_is_fixed_plus_parts(self) -> None:
        """An additive cost is the sum that budgets rely on."""
        cost = self._additive()
        for arch in some_archs(self.space, self.samples):
            shared, parts = split(arch)
            total = cost.fixed(shared)
            total += sum(cost.part(name, i, shared, choices) for (name, i), choices in parts.items())
            assert cost(arch) == total, f"the cost is {cost(arch):,}, fixed and parts give {total:,}: {dict(arch)}"

    def test_budgets_hold_what_they_say(self) -> None:
        """Attainable costs bound all others, and draws inside a budget cost what it allows."""
        cost = self._additive()
        archs = some_archs(self.space, self.samples)
        costs = sorted(cost(arch) for arch in archs)
        reach = attainable(self.space, cost)
        assert reach.low <= costs[0]
        assert costs[-1] <= reach.high
        low, high = costs[len(costs) // 4], costs[-1 - len(costs) // 4]
        inside = self.space.within(Budget(cost, at_least=low, at_most=high))
        assert all((arch in inside) == (low <= cost(arch) <= high) for arch in archs)
        for arch in inside.sample(0, self.samples):
            assert low <= cost(arch) <= high, f"a draw inside [{low:,}, {high:,}] costs {cost(arch):,}: {dict(arch)}"

    def test_is_what_is_counted(self) -> None:
        """The formula gives what is counted in the network."""
        for arch in some_archs(self.space, self.samples):
            counted = self.counted(arch)
            if counted is None:
                raise SkipTest("`counted` says nothing")
            cost = self.cost(arch)
            assert cost == counted, f"the formula says {cost:,}, counted are {counted:,}: {dict(arch)}"

    def _additive(self) -> AdditiveCost:
        if not isinstance(self.cost, AdditiveCost):
            raise SkipTest(f"{type(self.cost).__name__} is no AdditiveCost: it can only filter draws")
        return self.cost


def _reversed(arch: Arch) -> Arch:
    return Arch(dict(list(arch.items())[::-1]))


def _draws(space: ArchSet) -> list[str]:
    rng = np.random.default_rng(0)
    archs = [space.sample(rng), space.sample_per_choice(rng), *space.sample(rng, 20)]
    archs += [space.mutate(archs[0], rng, 0.3), space.crossover(archs[0], archs[1], rng)]
    return [arch.to_json() for arch in archs]


_DRAW_ELSEWHERE = """
import importlib, sys
module, name = sys.argv[1].split(":")
space = getattr(importlib.import_module(module), name)
archs = list(space.sample(0, 20))
archs += [space.sample_per_choice(0), space.mutate(archs[0], 0, 0.3), space.crossover(archs[0], archs[1], 0)]
print(space.to_json(), *(arch.to_json() for arch in archs))
"""  # nothing but the space is imported, so that it takes no longer than that
