"""Contract suites that spaces, costs, supernets, searchers and recipes from anywhere can inherit.

Each is a plain class of pytest tests: a subclass named `Test...` says what is to be tested, and inherits the rest.

>>> class TestMySpace(SpaceContract):
...     space = MY_SPACE

Nothing here imports pytest.
"""

import contextlib
import copy
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nasx.arch import Arch, Value
from nasx.cost import AdditiveCost, Budget, Cost, split
from nasx.feasible import Feasible, attainable
from nasx.nn.supernet import Supernet
from nasx.search import Scored, Searcher
from nasx.space import ArchSet, Probability, Rng, Space, one_of, repeat
from nasx.verify import check_slice


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
        numbers = _some_numbers(self.space.size, self.samples)
        archs = [self.space[number] for number in numbers]
        for number, arch in zip(numbers, archs, strict=True):
            assert self.space.index(arch) == number, f"{dict(arch)} has number {number}, but index says otherwise"
        assert len(set(archs)) == len(numbers), "two integers gave one architecture"
        for outside in (-1, self.space.size):
            _assert_raises(IndexError, partial(self.space.__getitem__, outside), f"an index of {outside}")

    def test_membership_needs_every_entry_and_no_other(self) -> None:
        """Order does not matter, entries do; `canonical` gives the space's own order."""
        for arch in _some_archs(self.space, self.samples):
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
        for arch in _some_archs(self.space, self.samples):
            assert list(self.space.pin(arch)) == [arch]

    def test_json_round_trip(self) -> None:
        """Spaces and architectures come back from JSON as they were."""
        read = Space.from_json(self.space.to_json())
        assert read == self.space
        for arch in _some_archs(self.space, self.samples):
            again = Arch.from_json(arch.to_json())
            assert (again, again.to_json()) == (arch, arch.to_json())
            assert read.index(arch) == self.space.index(arch)

    def test_children_are_in_the_space_and_inherit(self) -> None:
        """Mutants and crossings are valid; a crossing has each entry from one of its parents."""
        rng = np.random.default_rng(0)
        archs = _some_archs(self.space, self.samples)
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
        archs = _some_archs(self.space, self.samples)
        costs = [self.cost(arch) for arch in archs]
        for cost in costs:
            assert isinstance(cost, int | np.integer), f"a cost must be an int, but got {cost!r}; round to a finer unit"
            assert cost >= 0, f"a cost must be 0 or more, but got {cost}"
        again = [self.cost(_reversed(arch)) for arch in reversed(archs)]
        assert again[::-1] == costs, "the cost depends on earlier calls or on the order of entries"

    def test_is_fixed_plus_parts(self) -> None:
        """An additive cost is the sum that budgets rely on."""
        cost = self._additive()
        for arch in _some_archs(self.space, self.samples):
            shared, parts = split(arch)
            total = cost.fixed(shared)
            total += sum(cost.part(name, i, shared, choices) for (name, i), choices in parts.items())
            assert cost(arch) == total, f"the cost is {cost(arch):,}, fixed and parts give {total:,}: {dict(arch)}"

    def test_budgets_hold_what_they_say(self) -> None:
        """Attainable costs bound all others, and draws inside a budget cost what it allows."""
        cost = self._additive()
        archs = _some_archs(self.space, self.samples)
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
        for arch in _some_archs(self.space, self.samples):
            counted = self.counted(arch)
            if counted is None:
                raise SkipTest("`counted` says nothing")
            cost = self.cost(arch)
            assert cost == counted, f"the formula says {cost:,}, counted are {counted:,}: {dict(arch)}"

    def _additive(self) -> AdditiveCost:
        if not isinstance(self.cost, AdditiveCost):
            raise SkipTest(f"{type(self.cost).__name__} is no AdditiveCost: it can only filter draws")
        return self.cost


class SupernetContract(ABC):
    """What every supernet promises: slices are networks of their own, and one path's training touches no other.

    Small supernets do: fewer than ten million weights. They are tested in float64 on the CPU, their weights moved a
    little, so that nothing hides behind an initial zero or one.
    """

    space: Space
    samples: int = 4

    @abstractmethod
    def make_supernet(self) -> Supernet:
        """Return a fresh supernet of the space, a torch module."""

    @abstractmethod
    def make_inputs(self) -> Tensor:
        """Return a batch (B, ...) of two or more different samples."""

    def test_extract_equals_slice(self) -> None:
        """An extracted network computes what the supernet does, in evaluation mode."""
        self._check_slices(training=False)

    def test_extract_equals_slice_in_training(self) -> None:
        """And in training mode, from the same random state, with the same statistics left behind."""
        self._check_slices(training=True)

    def test_extract_has_memory_of_its_own(self) -> None:
        """Training an extracted network does not change the supernet, nor the other way round."""
        inputs = self._inputs()
        for arch in _some_archs(self.space, self.samples):
            supernet = self._supernet().eval()
            assert not supernet.extract(arch).training, "the extracted network has not the supernet's mode"
            network = supernet.train().extract(arch)
            assert network.training, "the extracted network has not the supernet's mode"
            before = _copied(supernet)
            _step(network, partial(network, inputs))
            _move(network)
            changed = _changed(before, supernet)
            assert not changed, f"training the extracted network changed the supernet's {', '.join(changed)}"
            before = _copied(network)
            _move(supernet)
            changed = _changed(before, network)
            assert not changed, f"training the supernet changed the extracted network's {', '.join(changed)}"

    def test_a_training_step_changes_only_what_the_path_uses(self) -> None:
        """Weights and statistics that the path's extracted network does not hold stay as they are."""
        inputs = self._inputs()
        for arch in _some_archs(self.space, self.samples):
            supernet = self._supernet().train()
            used, before = _used(supernet, arch), _copied(supernet)
            _step(supernet, partial(supernet, inputs, arch))
            after = _copied(supernet)
            moved = {name: after[name] != before[name] for name in used}
            assert any(bool(where.any()) for where in moved.values()), "a step of SGD changed nothing at all"
            leaks = [name for name, where in moved.items() if bool((where & ~used[name]).any())]
            assert not leaks, f"a step of {dict(arch)} changed {', '.join(leaks)} where that network holds nothing"

    def test_which_weights_have_gradients_depends_on_the_architecture_alone(self) -> None:
        """As distributed training needs it: neither the data nor earlier paths matter."""
        supernet, inputs = self._supernet().train(), self._inputs()
        archs = _some_archs(self.space, self.samples)
        first = {arch: set(_gradients(supernet, partial(supernet, inputs, arch))) for arch in archs}
        other = inputs.roll(1, 0).clone()
        other[0] = other[1]
        for arch in reversed(archs):
            again = set(_gradients(supernet, partial(supernet, other, arch)))
            differ = sorted(again ^ first[arch])
            assert not differ, f"whether {', '.join(differ)} have gradients depends on more than the architecture"

    def test_forward_keeps_nothing_of_the_architecture(self) -> None:
        """A pass assigns no attribute of any module."""
        supernet, inputs = self._supernet().eval(), self._inputs()
        for arch in _some_archs(self.space, self.samples):
            before = _attributes(supernet)
            with torch.no_grad():
                supernet(inputs, arch)
            after = _attributes(supernet)
            changed = sorted(name for name in before.keys() | after.keys() if not _same(before, after, name))
            assert not changed, f"forward assigns {', '.join(changed)}; pass what depends on the architecture along"

    def test_two_threads_run_two_architectures(self) -> None:
        """Passes that interleave give what each gives alone."""
        supernet, inputs = self._supernet().eval(), self._inputs()
        archs = _some_archs(self.space, 2)
        with torch.no_grad():
            alone = [supernet(inputs, arch) for arch in archs]
        start = threading.Barrier(len(archs))

        def run(arch: Arch) -> list[Tensor]:
            start.wait(60)
            with torch.no_grad():
                return [supernet(inputs, arch) for _ in range(3)]

        for module in supernet.modules():  # let the other thread in before every layer
            module.register_forward_pre_hook(lambda _, __: time.sleep(5e-4))
        with ThreadPoolExecutor(len(archs)) as pool:
            found = list(pool.map(run, archs))
        for arch, expected, outputs in zip(archs, alone, found, strict=True):
            for output in outputs:
                assert torch.equal(output, expected), f"another thread's pass changes the outputs of {dict(arch)}"

    def _check_slices(self, *, training: bool) -> None:
        supernet = self._supernet()
        for arch in _some_archs(self.space, self.samples):
            check = check_slice(supernet, arch, self._inputs(), training=training)
            assert check.passed, f"{check}: {dict(arch)}"

    def _supernet(self) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            supernet = self.make_supernet()
            assert isinstance(supernet, nn.Module), f"a supernet is a torch module, but got {type(supernet).__name__}"
            supernet.to("cpu", torch.float64)  # first: a copy that passes through float32 then shows
            with torch.no_grad():
                for parameter in supernet.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.02)
                for module in supernet.modules():
                    if isinstance(module, _BatchNorm) and module.running_mean is not None:
                        assert module.running_var is not None
                        module.running_mean.add_(torch.randn_like(module.running_mean), alpha=0.1)
                        module.running_var.add_(torch.rand_like(module.running_var))
        return supernet

    def _inputs(self) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            inputs = self.make_inputs().detach().cpu()
        assert len(inputs) > 1, f"`make_inputs` needs two or more samples, but gave {len(inputs)}"
        return inputs.double() if inputs.is_floating_point() else inputs


class SearcherContract(ABC):
    """What every searcher promises: ask and tell, budgets, no candidate twice, seeds, states, failures, an end."""

    @abstractmethod
    def make_searcher(self, space: ArchSet, seed: int) -> Searcher:
        """Return a searcher of three or more generations and thirty or more evaluations."""

    def test_asks_until_told(self) -> None:
        """`ask` repeats what waits for a score; a finished search asks for nothing."""
        searcher = self.make_searcher(_inside(), 0)
        asked = searcher.ask()
        assert asked, "the first `ask` returned nothing"
        assert searcher.ask() == asked
        searcher.tell({asked[0]: 1.0})
        assert searcher.ask() == asked[1:]
        _finish(searcher)
        assert searcher.ask() == []
        assert searcher.generation >= 2, "give the contract a searcher of three or more generations"
        assert len(searcher.history) >= 30, "give the contract a searcher of thirty or more evaluations"

    def test_refuses_what_was_not_asked_for(self) -> None:
        """Unknown architectures, second scores and infinite scores are ValueErrors that record nothing."""
        searcher = self.make_searcher(_inside(), 0)
        asked = searcher.ask()
        stranger = next(arch for arch in _SPACE if arch not in asked)
        _assert_raises(ValueError, lambda: searcher.tell({asked[0]: 1.0, stranger: 1.0}), "an unknown architecture")
        _assert_raises(ValueError, lambda: searcher.tell({asked[0]: math.inf}), "an infinite score")
        assert not searcher.history, "a refused `tell` recorded something"
        searcher.tell({asked[0]: 1.0})
        _assert_raises(ValueError, lambda: searcher.tell({asked[0]: 2.0}), "a second score")

    def test_candidates_are_inside_the_budget_and_come_once(self) -> None:
        """Every candidate is in the space that the searcher was given; none is asked for twice."""
        space, archs = _inside(), list[Arch]()
        for asked in _rounds(searcher := self.make_searcher(space, 0)):
            archs += asked
            searcher.tell({arch: _score(arch) for arch in asked})
        for arch in archs:
            assert arch in space, f"{dict(arch)} is outside the budget"
        assert len(set(archs)) == len(archs), "an architecture was asked for twice"

    def test_the_seed_decides(self) -> None:
        """One seed gives the same search, another seed another."""
        first, again, other = (_finish(self.make_searcher(_inside(), seed)) for seed in (3, 3, 4))
        assert first == again, "two searches with one seed differ"
        assert first != other, "two seeds give the same search"

    def test_the_order_of_scores_does_not_matter(self) -> None:
        """Scores may arrive one by one and backwards."""
        whole, single = self.make_searcher(_inside(), 0), self.make_searcher(_inside(), 0)
        for asked in _rounds(single):
            for arch in reversed(asked):
                single.tell({arch: _score(arch)})
        assert _finish(whole) == single.history, "the order in which scores arrive changes the search"

    def test_a_restored_search_goes_on_to_the_bit(self) -> None:
        """From a state that went through JSON, at any time and with scores outstanding."""
        searcher, stops = self.make_searcher(_inside(), 0), []
        for asked in _rounds(searcher):
            half = len(asked) // 2
            for part in (asked[:half], asked[half:]):
                stops.append((json.dumps(searcher.state(), allow_nan=False), searcher.history, searcher.ask()))
                searcher.tell({arch: _score(arch) for arch in part})
        for state, history, waiting in (stops[0], stops[1], stops[len(stops) // 2], stops[-1]):
            restored = self.make_searcher(_inside(), 0)
            restored.restore(json.loads(state))
            assert restored.history == history, "a restored search has forgotten what it was told"
            assert restored.ask() == waiting, "a restored search has forgotten what waits for a score"
            assert _finish(restored) == searcher.history, "a restored search goes another way"

    def test_failures_rank_last_and_have_no_children(self) -> None:
        """A candidate told NaN is never among the best, nor handed to the space's mutation or crossover."""
        space = _Watched(_inside())
        history = _finish(searcher := self.make_searcher(space, 0), _failing_score)
        failed = {scored.arch for scored in history if math.isnan(scored.score)}
        best = searcher.best(len(history))
        assert searcher.failed == len(failed) > 0
        assert {scored.arch for scored in best} == {scored.arch for scored in history} - failed
        assert [s.score for s in best] == sorted((s.score for s in best), reverse=True), "`best` is not sorted"
        assert not failed & space.parents, "a candidate that failed became a parent"

    def test_a_search_in_which_all_fails_ends(self) -> None:
        """NaN from everywhere is no reason to stop early or to go on for ever."""
        searcher = self.make_searcher(_inside(), 0)
        assert len(_finish(searcher, lambda arch: math.nan)) >= 30
        assert searcher.best() == []

    def test_a_space_that_runs_out_ends_the_search(self) -> None:
        """Every architecture was then asked for."""
        searcher = self.make_searcher(_TINY, 0)
        assert {scored.arch for scored in _finish(searcher)} == set(_TINY)
        assert searcher.done


class RecipeContract(ABC):
    """What every recipe's command line promises: JSON and nothing else on request, status 2 for bad input, whole runs.

    `arguments` is what `plan` needs beside `--json`, `short` what makes a `run` end within seconds, `described` an
    architecture that `describe --arch` knows, `bad` further command lines that must be refused.
    """

    arguments: Sequence[str] = ()
    short: Sequence[str] = ()
    described: str = ""
    bad: Sequence[Sequence[str]] = ()

    @abstractmethod
    def main(self, arguments: Sequence[str]) -> int:
        """Run the command line and return its exit status."""

    def test_help(self) -> None:
        """`--help` says how to use it, with status 0."""
        status, out, _ = self._run("--help")
        assert status == 0
        assert "plan" in out

    def test_plan(self) -> None:
        """`plan --json` prints sizes and attainable costs, and trains nothing."""
        plan = self._json("plan", *self.arguments)
        assert 1 <= plan["feasible_size"] <= plan["size"]
        assert 0 < plan["cost_min"] <= plan["cost_max"]

    def test_describe(self) -> None:
        """`describe --json` prints what a network costs and its blocks."""
        if not self.described:
            raise SkipTest("`described` names no architecture")
        network = self._json("describe", "--arch", self.described)
        assert network["params"] > 0
        assert network["macs"] > 0
        assert network["blocks"]

    def test_run(self) -> None:
        """A run leaves a network with its accuracies and a report; the same command again only tells of it."""
        if not self.short:
            raise SkipTest("`short` gives no run that ends within seconds")
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            command = ["run", *self.short, "--run-dir", str(run)]
            summary = self._json(*command)
            networks = summary["networks"]
            assert len(networks) > 1, f"a run compares what it found with other networks, but told of {list(networks)}"
            for name, network in networks.items():
                for part in ("val_accuracy", "test_accuracy"):
                    assert 0 <= network[part] <= 1, f"{part} of {name} is a share, but was {network[part]}"
                assert network["params"] > 0, name
                assert network["macs"] > 0, name
            assert json.loads((run / "summary.json").read_text()) == summary
            found = Arch.from_json((run / "arch.json").read_text())
            assert dict(found) == networks[next(iter(networks))]["arch"], "the network that was found comes first"
            assert (run / "report.html").stat().st_size
            weights = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
            assert run / "model.safetensors" in weights
            assert self._json(*command) == summary
            again = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
            assert again == weights, "a finished run was trained again"
            status, out, errors = self._run(*command, "--set", f"seed={summary['seed'] + 1}", "--json")
            assert (status, out) == (2, ""), "a finished run does not go on with another configuration"
            assert "seed" in errors

    def test_bad_input_is_refused_with_status_2(self) -> None:
        """A message on standard error, no traceback, nothing on standard output."""
        plan = ["plan", *self.arguments, "--json"]
        lines = [["no-such-command"], [*plan, "--no-such-option"], [*plan, "--set", "no.such.field=1"], *self.bad]
        if self.described:
            lines.append(["describe", "--json", "--arch", "no-such-architecture"])
        for line in lines:
            status, out, errors = self._run(*line)
            assert status == 2, f"{' '.join(line)!r} ended with status {status} instead of 2"
            assert errors.strip(), f"{' '.join(line)!r} was refused without a word"
            assert "Traceback" not in errors
            assert not out, f"{' '.join(line)!r} was refused, but wrote to standard output: {out[:80]!r}"

    def _json(self, *arguments: str) -> dict[str, Any]:
        status, out, errors = self._run(*arguments, "--json")
        assert status == 0, f"{' '.join(arguments)!r} ended with status {status}: {errors[-400:]}"
        try:
            document = json.loads(out)
        except json.JSONDecodeError:
            raise AssertionError(f"with --json standard output is one JSON document, but got {out[:200]!r}") from None
        assert isinstance(document, dict)
        return document

    def _run(self, *arguments: str) -> tuple[int, str, str]:
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            try:
                status = self.main(arguments)
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)  # as Python does
        return status, out.getvalue(), errors.getvalue()


# Subjects


def _some_numbers(size: int, count: int) -> list[int]:
    """Return all integers below a size, or the first, the last and some between."""
    if size <= count:
        return list(range(size))
    return sorted({i * (size - 1) // (count - 1) for i in range(count)})


def _some_archs(space: Space, count: int) -> list[Arch]:
    return [space[number] for number in _some_numbers(space.size, count)]


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


def _assert_raises(error: type[Exception], call: Callable[[], object], what: str) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"{what} must be refused with a {error.__name__}")


# Modules

_FIRST = 1 << 20  # numbers from here on are no weight by chance, and float32 holds those to 2**24


def _used(supernet: Any, arch: Arch) -> dict[str, Tensor]:
    """Return which elements of a supernet's parameters and statistics an extracted network holds copies of.

    Every element is given a number of its own, and the numbers are looked for in the extracted network.
    """
    numbered = copy.deepcopy(supernet)
    own = _state(numbered)
    starts = np.cumsum([0, *(tensor.numel() for tensor in own.values())]) + _FIRST
    assert starts[-1] < 1 << 24, f"{starts[-1] - _FIRST:,} weights are too many to number; give a smaller supernet"
    for tensor, start in zip(own.values(), starts, strict=False):
        tensor.copy_(torch.arange(start, start + tensor.numel()).view_as(tensor))
    found = torch.cat([tensor.flatten() for tensor in _state(numbered.extract(arch)).values()]).round().long()
    marks = torch.zeros(int(starts[-1]), dtype=torch.bool)
    marks[found[(found >= _FIRST) & (found < starts[-1])]] = True
    return {
        name: marks[start : start + tensor.numel()].view_as(tensor)
        for (name, tensor), start in zip(own.items(), starts, strict=False)
    }


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and statistics that are real numbers, those of one memory once."""
    seen: dict[int, str] = {}
    tensors = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    return {name: tensor for name, tensor in tensors.items() if seen.setdefault(tensor.data_ptr(), name) == name}


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _changed(before: Mapping[str, Tensor], module: nn.Module) -> list[str]:
    return [name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])]


def _move(module: nn.Module) -> None:
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(1)


def _gradients(module: nn.Module, run: Callable[[], Tensor]) -> dict[str, Tensor]:
    module.zero_grad(set_to_none=True)
    run().square().mean().backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def _step(module: nn.Module, run: Callable[[], Tensor]) -> None:
    """Take a step of SGD."""
    gradients = _gradients(module, run)
    assert gradients, "no weight has a gradient"
    with torch.no_grad():
        for name, gradient in gradients.items():
            module.get_parameter(name).sub_(gradient, alpha=0.1)


def _attributes(module: nn.Module) -> dict[str, object]:
    """Return every attribute of every module that is no parameter, buffer or module."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, inner in module.named_modules()
        for key, value in vars(inner).items()
        if key not in ("_parameters", "_buffers", "_modules")
    }


def _same(before: Mapping[str, object], after: Mapping[str, object], name: str) -> bool:
    if name not in before or name not in after:
        return False
    first, second = before[name], after[name]
    return first is second or (type(first) is type(second) and not isinstance(first, Tensor) and first == second)


# Searches

_CONV = Space(kernel_size=one_of(3, 5, 7), expansion=one_of(1, 2, 4))
_SPACE = Space(width=one_of(8, 16), block=repeat(Space(op=one_of({"none": None, "conv": _CONV})), one_of(4, 6)))
_TINY = Space(block=repeat(Space(width=one_of(1, 2, 3)), 3))  # fewer than the evaluations that a search has


class _ToyCost(AdditiveCost):
    unit = "units"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        return int(shared["width"])

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return int(choices.get("kernel_size", 0)) * int(choices.get("expansion", 0)) + index


def _inside() -> Feasible:
    return _SPACE.within(Budget(_ToyCost(), at_least=40, at_most=70))


class _Watched:
    """A space that remembers who was handed to its mutation and crossover."""

    def __init__(self, space: Feasible) -> None:
        self.space, self.size = space, space.size
        self.parents: set[Arch] = set()

    def __contains__(self, arch: object) -> bool:
        return arch in self.space

    def __iter__(self) -> Iterator[Arch]:
        return iter(self.space)

    def sample(self, rng: Rng, n: int | None = None) -> Any:
        return self.space.sample(rng) if n is None else self.space.sample(rng, n)

    def sample_per_choice(self, rng: Rng) -> Arch:
        return self.space.sample_per_choice(rng)

    def mutate(self, arch: Arch, rng: Rng, probability: Probability = 0.1) -> Arch:
        self.parents.add(arch)
        return self.space.mutate(arch, rng, probability)

    def crossover(self, first: Arch, second: Arch, rng: Rng) -> Arch:
        self.parents |= {first, second}
        return self.space.crossover(first, second, rng)

    def canonical(self, arch: Mapping[str, Value]) -> Arch:
        return self.space.canonical(arch)


def _score(arch: Arch) -> float:
    return zlib.crc32(json.dumps(sorted(arch.items())).encode()) % 97 / 97


def _failing_score(arch: Arch) -> float:
    score = _score(arch)
    return math.nan if score > 0.6 else score  # those that fail would be the best


def _rounds(searcher: Searcher) -> Iterator[list[Arch]]:
    """Yield what is asked for until the search is done."""
    while not searcher.done:
        asked = searcher.ask()
        assert asked, "`ask` returned nothing although the search is not done"
        told = len(searcher.history)
        yield asked
        assert len(searcher.history) > told, "`history` does not grow with what is told"


def _finish(searcher: Searcher, score: Callable[[Arch], float] = _score) -> tuple[Scored, ...]:
    for asked in _rounds(searcher):
        searcher.tell({arch: score(arch) for arch in asked})
    return searcher.history
