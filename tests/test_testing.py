"""The contract suites pass what is sound and fail what is broken, each with the test that says so."""

import contextlib
import copy
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx import Arch, Space, one_of, repeat
from nasx.arch import Value
from nasx.cli import BadInput, print_json, run_command
from nasx.cost import AdditiveCost, Cost
from nasx.feasible import Feasible
from nasx.nn import FeedForward, Supernet
from nasx.search import Evolution, RandomSearch, Scored, Searcher
from nasx.space import ArchSet, Probability, Rng
from nasx.testing import CostContract, RecipeContract, SearcherContract, SpaceContract, SupernetContract


def failing(suite: type) -> set[str]:
    """Run every test of a suite and return which fail, without their prefix."""
    found = set()
    for name in dir(suite):
        if name.startswith("test_"):
            try:
                getattr(suite(), name)()
            except SkipTest:
                continue
            except Exception:
                found.add(name.removeprefix("test_"))
    return found


# Spaces

BLOCK = Space(op=one_of({"none": None, "conv": Space(kernel_size=one_of(3, 5))}))
SPACE = Space(width=one_of(8, 16), block=repeat(BLOCK, one_of(1, 2)))


def with_space(subject: Space, where: str = "") -> set[str]:
    class Suite(SpaceContract):
        space, importable = subject, where

    return failing(Suite)


class BlindIndex(Space):
    def index(self, arch: Mapping[str, Value]) -> int:
        return min(super().index(arch), 3)


class TakesAll(Space):
    def __contains__(self, arch: object) -> bool:
        return True


class SpoilsChildren(Space):
    def mutate(self, arch: Mapping[str, Value], rng: Rng, probability: Probability = 0.1) -> Arch:
        return Arch({**arch, "width": 24})


class InventsChildren(Space):
    def crossover(self, first: Mapping[str, Value], second: Mapping[str, Value], rng: Rng) -> Arch:
        return self[self.size - 1]


class IgnoresTheSeed(Space):
    def sample(self, rng: Rng, n: int | None = None) -> Any:
        return super().sample(int.from_bytes(os.urandom(4)), 1 if n is None else n)[0 if n is None else slice(None)]


class ForgetsInJson(Space):
    def to_json(self) -> str:
        return Space(width=8).to_json()


def test_spaces() -> None:
    assert with_space(SPACE) == set()
    assert with_space(Space(width=8)) == set()
    broken = {
        BlindIndex: "index_is_a_bijection",
        TakesAll: "membership_needs_every_entry_and_no_other",
        SpoilsChildren: "children_are_in_the_space_and_inherit",
        InventsChildren: "children_are_in_the_space_and_inherit",
        IgnoresTheSeed: "draws_follow_the_seed",
        ForgetsInJson: "json_round_trip",
    }
    for subject, expected in broken.items():
        assert expected in with_space(subject(**SPACE.nodes)), subject.__name__


def test_a_space_from_a_set_depends_on_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"activation{i}" for i in range(12)]
    text = f"from nasx import Space, one_of\nSET = Space(op=one_of(*set({words})))\nLIST = Space(op=one_of(*{words}))\n"
    (tmp_path / "spaces_of_words.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    space = Space(op=one_of(*words))
    assert with_space(space, "spaces_of_words:LIST") == set()
    assert with_space(space, "spaces_of_words:SET") == {"nothing_depends_on_the_order_of_hashes"}


# Costs


class Weights(AdditiveCost):
    unit = "parameters"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        return 10 * int(shared["width"])

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return int(shared["width"]) * int(choices.get("kernel_size", 0))


class Halves(Weights):
    def fixed(self, shared: Mapping[str, Value]) -> int:
        return super().fixed(shared) / 2  # type: ignore[return-value]


class Interacts(Weights):
    def __call__(self, arch: Arch) -> int:
        return super().__call__(arch) + (arch.get("block.0.op") == arch.get("block.1.op"))


class Counts(Weights):
    calls = 0

    def fixed(self, shared: Mapping[str, Value]) -> int:
        self.calls += 1
        return super().fixed(shared) + self.calls


class FirstEntry(Weights):
    def __call__(self, arch: Arch) -> int:
        return super().__call__(arch) + len(next(iter(arch)))


def with_cost(subject: Cost, count: Callable[[Arch], int] | None = None) -> set[str]:
    class Suite(CostContract):
        space, cost = SPACE, staticmethod(subject)

        def counted(self, arch: Arch) -> int | None:
            return count(arch) if count else None

    return failing(Suite)


def test_costs() -> None:
    assert with_cost(Weights()) == set()
    assert with_cost(Weights(), Weights()) == set()
    assert with_cost(lambda arch: len(arch) ** 2) == set()
    alone = "is_a_whole_number_of_the_architecture_alone"
    assert alone in with_cost(Halves())
    assert alone in with_cost(lambda arch: -1)
    assert {alone, "is_fixed_plus_parts"} <= with_cost(Counts())
    assert alone in with_cost(FirstEntry())
    assert "is_fixed_plus_parts" in with_cost(Interacts())
    assert with_cost(Weights(), lambda arch: Weights()(arch) + (arch["width"] == 16)) == {"is_what_is_counted"}


# Supernets

SMALL = Space(op=one_of("a", "b"), hidden=one_of(4, 8))


class Plain(nn.Module):
    def __init__(self, stem: nn.Module, op: nn.Module, ffn: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.op, self.ffn, self.head = stem, op, ffn, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.ffn(self.op(self.stem(x))))


def linear_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))


class SlicedFeedForward(FeedForward):
    """The first hidden neurons of a feed-forward."""

    def forward(self, x: Tensor, hidden: int = 0) -> Tensor:
        x = self.drop(self.act(F.linear(x, self.fc1.weight[:hidden], self.fc1.bias[:hidden])))
        return self.drop(F.linear(x, self.fc2.weight[:, :hidden], self.fc2.bias))

    def extract(self, hidden: int) -> FeedForward:
        plain = FeedForward(6, hidden, dropout=0.2).to(self.fc1.weight.dtype)
        shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
        plain.load_state_dict({n: t[tuple(map(slice, shapes[n]))] for n, t in self.state_dict().items()})
        return plain


class Sound(nn.Module):
    """Separate weights in the operation, entangled ones in the feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.ops = nn.ModuleDict({"a": linear_norm(), "b": linear_norm()})
        self.ffn = SlicedFeedForward(6, 8, dropout=0.2)

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        return self.head(self.ffn(self.ops[str(arch["op"])](self.stem(x)), hidden=int(arch["hidden"])))

    def extract(self, arch: Arch) -> nn.Module:
        stem, op, head = map(copy.deepcopy, (self.stem, self.ops[str(arch["op"])], self.head))
        return Plain(stem, op, self.ffn.extract(int(arch["hidden"])), head).train(self.training)


class RemembersTheArch(Sound):
    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        self.arch = arch
        x = self.stem(x)
        return self.head(self.ffn(self.ops[str(self.arch["op"])](x), hidden=int(self.arch["hidden"])))


class KeepsTheArchInAList(Sound):
    """As above, where no attribute is assigned: only threads notice."""

    def __init__(self) -> None:
        super().__init__()
        self.current: list[Arch] = []

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        self.current[:] = [arch]
        x = self.stem(x)
        return self.head(self.ffn(self.ops[str(self.current[0]["op"])](x), hidden=int(self.current[0]["hidden"])))


class SharesMemory(Sound):
    def extract(self, arch: Arch) -> nn.Module:
        network = super().extract(arch)
        network.head = self.head
        return network


class SharesStatistics(Sound):
    def extract(self, arch: Arch) -> nn.Module:
        network = super().extract(arch)
        norm, own = network.get_submodule("op.1"), self.ops[str(arch["op"])].get_submodule("1")
        norm.running_mean = own.running_mean
        return network


class RunsEveryCandidate(Sound):
    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        x = self.stem(x)
        outputs = {key: op(x) for key, op in self.ops.items()}
        return self.head(self.ffn(outputs[str(arch["op"])], hidden=int(arch["hidden"])))


class ExtractsTheWrongSlice(Sound):
    def extract(self, arch: Arch) -> nn.Module:
        return super().extract(Arch({**arch, "hidden": 4}))


class ForgetsDropout(Sound):
    def extract(self, arch: Arch) -> nn.Module:
        network = super().extract(arch)
        network.ffn.drop = nn.Identity()  # type: ignore[union-attr]
        return network


class ForgetsTheMode(Sound):
    def extract(self, arch: Arch) -> nn.Module:
        return super().extract(arch).train()


class SkipsByTheData(Sound):
    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        if torch.equal(x[0], x[1]):
            return self.head(self.stem(x))
        return super().forward(x, arch)


class SkipsByTheHistory(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Arch] = []

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        self.seen.append(arch)
        return self.head(self.stem(x)) if len(self.seen) > 3 else super().forward(x, arch)


class Structured(nn.Module):
    """Named or several inputs in, a dict out, around a supernet or one of its networks."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, scale: Tensor, arch: Arch | None = None) -> dict[str, Any]:
        outputs = self.inner(x * scale) if arch is None else self.inner(x * scale, arch)
        return {"logits": outputs, "hidden": (outputs.tanh(), None)}

    def extract(self, arch: Arch) -> nn.Module:
        assert isinstance(self.inner, Sound)
        return Structured(self.inner.extract(arch)).train(self.training)


def with_supernet(subject: Callable[[], Any], inputs: Callable[[], Any] = lambda: torch.randn(5, 3)) -> set[str]:
    class Suite(SupernetContract):
        space = SMALL

        def make_supernet(self) -> Any:
            return subject()

        def make_inputs(self) -> Any:
            return inputs()

    return failing(Suite)


@pytest.mark.parametrize("kind", [tuple, lambda values: dict(zip(("x", "scale"), values, strict=True))])
def test_supernets_of_any_inputs_and_outputs(kind: Callable[[Any], Any]) -> None:
    def inputs() -> Any:
        return kind((torch.randn(5, 3), torch.rand(5, 1)))

    assert with_supernet(lambda: Structured(Sound()), inputs) == set()
    slices = {"extract_equals_slice", "extract_equals_slice_in_training"}
    assert slices <= with_supernet(lambda: Structured(ExtractsTheWrongSlice()), inputs)
    assert with_supernet(lambda: Structured(ForgetsDropout()), inputs) == {"extract_equals_slice_in_training"}
    remembers = {"forward_keeps_nothing_of_the_architecture", "two_threads_run_two_architectures"}
    assert with_supernet(lambda: Structured(RemembersTheArch()), inputs) == remembers


def derived(arch: Arch) -> nn.Module:
    return Plain(nn.Linear(3, 6), linear_norm(), FeedForward(6, int(arch["hidden"]), dropout=0.2), nn.Linear(6, 2))


def test_supernets() -> None:
    assert with_supernet(Sound) == set()
    assert with_supernet(lambda: Supernet(derived, SMALL)) == set()
    assert with_supernet(lambda: Supernet(derived, SMALL, separate={"op": "op"})) == set()
    remembers = {"forward_keeps_nothing_of_the_architecture", "two_threads_run_two_architectures"}
    assert with_supernet(RemembersTheArch) == remembers
    assert with_supernet(KeepsTheArchInAList) == {"two_threads_run_two_architectures"}
    assert with_supernet(SharesMemory) == {"extract_has_memory_of_its_own"}
    assert "extract_has_memory_of_its_own" in with_supernet(SharesStatistics)
    assert with_supernet(RunsEveryCandidate) == {"a_training_step_changes_only_what_the_path_uses"}
    slices = {"extract_equals_slice", "extract_equals_slice_in_training"}
    assert slices <= with_supernet(ExtractsTheWrongSlice)
    assert with_supernet(ForgetsDropout) == {"extract_equals_slice_in_training"}
    assert "extract_has_memory_of_its_own" in with_supernet(ForgetsTheMode)
    gradients = "which_weights_have_gradients_depends_on_the_architecture_alone"
    assert with_supernet(SkipsByTheData) == {gradients}
    assert gradients in with_supernet(SkipsByTheHistory)
    assert len(with_supernet(lambda: "no module")) == 7


def test_a_subject_that_leaves_something_out_is_named() -> None:
    class Suite(SupernetContract):
        space = SMALL

    with pytest.raises(TypeError, match=r"make_inputs.*make_supernet"):
        Suite()  # type: ignore[abstract]


# Searchers


def evolution(space: ArchSet, seed: int) -> Searcher:
    return Evolution(space, population=10, generations=4, parents=3, seed=seed)


def ignores_the_budget(space: ArchSet, seed: int) -> Searcher:
    return evolution(space.space if isinstance(space, Feasible) else space, seed)


def ignores_the_seed(space: ArchSet, seed: int) -> Searcher:
    return evolution(space, 0)


def draws_its_own_seed(space: ArchSet, seed: int) -> Searcher:
    return evolution(space, int.from_bytes(os.urandom(4)))


class CannotRestore(RandomSearch):
    def restore(self, state: Mapping[str, Any]) -> None:
        pass


class LosesWhatWaits(RandomSearch):
    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore({**state, "asked": [entry for entry in state["asked"] if "score" in entry]})


class LikesFailures(Evolution):
    """Takes a failure for the best score of all; reports it as a failure again."""

    def tell(self, scores: Mapping[Arch, float]) -> None:
        super().tell({arch: 9.0 if math.isnan(score) else score for arch, score in scores.items()})

    @property
    def history(self) -> tuple[Scored, ...]:
        found = super().history
        return tuple(Scored(s.arch, math.nan, s.generation) if s.score == 9 else s for s in found)

    def best(self, k: int = 1) -> list[Scored]:
        renamed = [Scored(s.arch, 9.0, s.generation) if math.isnan(s.score) else s for s in self.history]
        return sorted(renamed, key=lambda s: -s.score)[:k]


class NeverDone(RandomSearch):
    @property
    def done(self) -> bool:
        return False


class TakesStrangers(RandomSearch):
    def tell(self, scores: Mapping[Arch, float]) -> None:
        waiting = self.ask()
        super().tell({arch: score for arch, score in scores.items() if arch in waiting})


class AsksAgain(RandomSearch):
    def ask(self) -> list[Arch]:
        asked = super().ask()
        return [*asked, *(scored.arch for scored in self.history[:1])] if asked else []


class OrdersByArrival(RandomSearch):
    arrived: tuple[Arch, ...] = ()

    def tell(self, scores: Mapping[Arch, float]) -> None:
        super().tell(scores)
        self.arrived += tuple(scores)

    @property
    def history(self) -> tuple[Scored, ...]:
        return tuple(sorted(super().history, key=lambda s: self.arrived.index(s.arch)))


class StopsEarly(RandomSearch):
    @property
    def done(self) -> bool:
        return super().done or len(self.history) >= 5


def with_searcher(subject: Callable[[ArchSet, int], Searcher]) -> set[str]:
    class Suite(SearcherContract):
        def make_searcher(self, space: ArchSet, seed: int) -> Searcher:
            return subject(space, seed)

    return failing(Suite)


def random_search(kind: type[RandomSearch]) -> Callable[[ArchSet, int], Searcher]:
    return lambda space, seed: kind(space, evaluations=45, batch=10, seed=seed)


def test_searchers() -> None:
    assert with_searcher(evolution) == set()
    assert with_searcher(random_search(RandomSearch)) == set()
    assert with_searcher(ignores_the_budget) == {"candidates_are_inside_the_budget_and_come_once"}
    assert with_searcher(ignores_the_seed) == {"the_seed_decides"}
    assert "the_seed_decides" in with_searcher(draws_its_own_seed)
    restored = "a_restored_search_goes_on_to_the_bit"
    assert with_searcher(random_search(CannotRestore)) == {restored}
    assert with_searcher(random_search(LosesWhatWaits)) == {restored}
    likes = with_searcher(lambda space, seed: LikesFailures(space, population=10, generations=4, seed=seed))
    assert "failures_rank_last_and_have_no_children" in likes
    assert "a_space_that_runs_out_ends_the_search" in with_searcher(random_search(NeverDone))
    assert "refuses_what_was_not_asked_for" in with_searcher(random_search(TakesStrangers))
    assert "candidates_are_inside_the_budget_and_come_once" in with_searcher(random_search(AsksAgain))
    assert with_searcher(random_search(OrdersByArrival)) >= {"the_order_of_scores_does_not_matter"}
    assert "a_space_that_runs_out_ends_the_search" in with_searcher(random_search(StopsEarly))
    short = with_searcher(lambda space, seed: RandomSearch(space, evaluations=10, seed=seed))
    assert "asks_until_told" in short  # or nothing would be shown


def test_a_failure_that_becomes_a_parent_is_noticed_whatever_the_ranking_says() -> None:
    class Quiet(LikesFailures):
        """Breeds from failures, but hides them from whoever asks for the best."""

        breeding = False

        def ask(self) -> list[Arch]:
            self.breeding = True
            try:
                return super().ask()
            finally:
                self.breeding = False

        def best(self, k: int = 1) -> list[Scored]:
            return [s for s in super().best(k if self.breeding else 10**6) if self.breeding or s.score != 9][:k]

    found = with_searcher(lambda space, seed: Quiet(space, population=10, generations=4, seed=seed))
    assert found == {"failures_rank_last_and_have_no_children"}


# Recipes


def sound_main(arguments: Sequence[str]) -> int:
    def command() -> int:
        words = list(arguments)
        if words == ["--help"]:
            print("commands: plan, describe")
        elif words == ["plan", "--json"]:
            print_json({"size": 10, "feasible_size": 4, "cost_min": 1, "cost_max": 5})
        elif words == ["describe", "--arch", "known", "--json"]:
            print_json({"params": 5, "macs": 7, "blocks": [{"width": 8}]})
        elif words[:3] == ["run", "--short", "--run-dir"]:
            print_json(sound_run(Path(words[3]), seed=1 if "seed=1" in words else 0))
        else:
            raise BadInput(f"no such command line: {words}")
        return 0

    return run_command(command)


def sound_run(run: Path, seed: int) -> dict[str, Any]:
    network = {"arch": {"width": 8}, "params": 5, "macs": 7, "val_accuracy": 0.5, "test_accuracy": 0.25}
    summary = {"seed": seed, "networks": {"searched": network, "random": network}}
    if run.exists():
        if seed:
            raise BadInput("the seed differs")
        return summary
    run.mkdir()
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "arch.json").write_text(Arch({"width": 8}).to_json())
    for name in ("report.html", "model.safetensors"):
        (run / name).write_text("there")
    return summary


def forgetful_main(arguments: Sequence[str]) -> int:
    if arguments[0] == "run":
        shutil.rmtree(arguments[3], ignore_errors=True)
    return sound_main(arguments)


def boastful_main(arguments: Sequence[str]) -> int:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = sound_main(arguments)
    print(out.getvalue().replace("0.25", "25.0"), end="")
    return status


def talkative_main(arguments: Sequence[str]) -> int:
    print("welcome")
    return sound_main(arguments)


def lenient_main(arguments: Sequence[str]) -> int:
    return 0 if "--no-such-option" in arguments else sound_main(arguments)


def crashing_main(arguments: Sequence[str]) -> int:
    status = sound_main(arguments)
    if status:
        sys.exit("Traceback")
    return status


def impossible_main(arguments: Sequence[str]) -> int:
    if arguments[0] == "plan" and len(arguments) == 2:
        print(json.dumps({"size": 10, "feasible_size": 11, "cost_min": 1, "cost_max": 5}))
        return 0
    return sound_main(arguments)


def with_recipe(subject: Callable[[Sequence[str]], int]) -> set[str]:
    class Suite(RecipeContract):
        described, short = "known", ("--short",)

        def main(self, arguments: Sequence[str]) -> int:
            return subject(arguments)

    return failing(Suite)


def test_recipes() -> None:
    refused = "bad_input_is_refused_with_status_2"
    assert with_recipe(sound_main) == set()
    assert with_recipe(talkative_main) == {"plan", "describe", "run", refused}
    assert with_recipe(lenient_main) == {refused}
    assert with_recipe(crashing_main) == {"run", refused}
    assert with_recipe(impossible_main) == {"plan"}
    assert with_recipe(forgetful_main) == {"run"}
    assert with_recipe(boastful_main) == {"run"}


def test_the_suites_need_no_pytest() -> None:
    def imported() -> Iterator[str]:
        for path in (Path(__file__).parent.parent / "nasx" / "testing").glob("*.py"):
            for line in path.read_text().splitlines():
                if line.strip().startswith(("import ", "from ")):
                    yield line.split()[1].split(".")[0]

    assert {"torch", "unittest"} <= set(imported())
    assert "pytest" not in set(imported())
