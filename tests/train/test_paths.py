import itertools
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from nasx import Arch, Budget, Space, one_of, repeat
from nasx.arch import Value
from nasx.cost import AdditiveCost
from nasx.feasible import attainable
from nasx.train import FairPaths, Paths, SandwichPaths, StratifiedPaths, UniformArchPaths, UniformPaths


class Work(AdditiveCost):
    """Width times kernel size of each block, an identity being free, and 5 for the rest."""

    unit = "MACs"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        return 5

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return int(choices.get("width", 0)) * int(choices.get("kernel", 0))


# an identity, or one of six convolutions: uniform per choice is not uniform over architectures
BLOCK = Space(op=one_of({"skip": None, "conv": Space(kernel=one_of(3, 5), width=one_of(2, 4, 8))}))
SPACE = Space(block=repeat(BLOCK, one_of(1, 2)))
FLAT = Space(stem=one_of(1, 2), block=repeat(Space(kernel=one_of(3, 5, 7), width=one_of(2, 4, 6, 8)), 2))
COST = Work()
BUDGET = Budget(COST, 15, 40)

SAMPLERS: dict[str, Callable[[Any], Paths]] = {
    "uniform": lambda seed: UniformPaths(SPACE, seed),
    "uniform inside": lambda seed: UniformPaths(SPACE.within(BUDGET), seed),
    "architectures": lambda seed: UniformArchPaths(SPACE, seed),
    "architectures inside": lambda seed: UniformArchPaths(SPACE.within(BUDGET), seed),
    "stratified": lambda seed: StratifiedPaths(SPACE, COST, bins=4, seed=seed),
    "sandwich": lambda seed: SandwichPaths(SPACE, COST, seed),
    "fair": lambda seed: FairPaths(FLAT, seed),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_paths_are_a_function_of_seed_and_step(name: str) -> None:
    make = SAMPLERS[name]
    paths = make(3)
    forward = [paths(step) for step in range(20)]
    assert forward == [paths(step) for step in range(20)]
    assert forward[::-1] == [make(3)(step) for step in reversed(range(20))]
    assert forward != [make(4)(step) for step in range(20)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_path_belongs_to_the_space_and_the_budget(name: str) -> None:
    space = FLAT if name == "fair" else SPACE.within(BUDGET) if "inside" in name else SPACE
    for step in range(100):
        for arch in SAMPLERS[name](0)(step):
            assert arch in space
            assert list(arch) == list(space.canonical(arch))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_is_any_integer_and_nothing_else(name: str) -> None:
    assert SAMPLERS[name](np.int64(3))(5) == SAMPLERS[name](3)(5)
    with pytest.raises(ValueError, match="`seed` must be a whole number, but got None"):
        SAMPLERS[name](None)
    with pytest.raises(ValueError, match="a seed must not be negative, but got -1"):
        SAMPLERS[name](-1)


def test_paths_do_not_depend_on_the_hash_seed() -> None:
    program = (
        f"import runpy; samplers = runpy.run_path({__file__!r})['SAMPLERS'];"
        "print([a.to_json() for make in samplers.values() for s in range(3) for a in make(1)(s)])"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "12345")
    }
    assert len(printed) == 1


@pytest.mark.parametrize("budget", [None, BUDGET])
def test_architecture_paths_are_uniform_over_architectures(budget: Budget | None) -> None:
    inside = [arch for arch in SPACE if budget is None or arch in budget]
    paths = UniformArchPaths(SPACE if budget is None else SPACE.within(budget), seed=0)
    drawn = Counter(paths(step)[0] for step in range(60 * len(inside)))
    assert drawn.keys() == set(inside)
    assert chisquare([drawn[arch] for arch in inside]).pvalue > 1e-3


def test_uniform_paths_are_uniform_over_options_instead() -> None:
    paths = UniformPaths(Space(block=repeat(BLOCK, 1)), seed=0)
    drawn = Counter(paths(step)[0]["block.0.op"] for step in range(2000))
    assert chisquare([drawn["skip"], drawn["conv"]]).pvalue > 1e-3


def test_strata_get_exactly_equal_shares_and_are_uniform_inside() -> None:
    costs = {arch: COST(arch) for arch in SPACE}
    low, high = min(costs.values()), max(costs.values())  # 5 and 85: 81 numbers, cut in four
    starts = [low, 25, 45, 65, high + 1]
    strata = [[a for a, cost in costs.items() if first <= cost < end] for first, end in itertools.pairwise(starts)]
    assert [len(stratum) > 0 for stratum in strata] == [True] * 4
    paths = StratifiedPaths(SPACE, COST, bins=4, seed=0)
    rounds = [[paths(4 * turn + i)[0] for i in range(4)] for turn in range(600)]
    visited = [[next(i for i, s in enumerate(strata) if arch in s) for arch in archs] for archs in rounds]
    assert all(sorted(order) == [0, 1, 2, 3] for order in visited)
    assert chisquare(list(Counter(map(tuple, visited)).values())).pvalue > 1e-3
    assert len(set(map(tuple, visited))) == math.factorial(4)
    drawn = Counter(itertools.chain.from_iterable(rounds))
    for stratum in strata:
        assert len(stratum) == 1 or chisquare([drawn[arch] for arch in stratum]).pvalue > 1e-3


def test_strata_without_an_architecture_are_left_out() -> None:
    occurring = {COST(arch) for arch in SPACE}
    paths = StratifiedPaths(SPACE, COST, bins=1000, seed=0)  # a bin per number, many of no width at all
    assert len(paths.bins) == len(occurring)
    assert {COST(paths(step)[0]) for step in range(len(occurring))} == occurring


def test_strata_keep_to_given_bounds() -> None:
    paths = StratifiedPaths(SPACE, COST, bins=3, seed=0, at_least=15, at_most=40)
    assert {paths(step)[0] for step in range(1500)} == {arch for arch in SPACE if arch in BUDGET}


def test_strata_are_of_costs_that_occur() -> None:
    """Bounds beyond them, as of a budget that leaves all architectures, change nothing."""
    paths, beyond = (
        StratifiedPaths(SPACE, COST, 4, 0, at_least=low, at_most=high) for low, high in ((5, 85), (0, 9999))
    )
    assert [paths(step) for step in range(40)] == [beyond(step) for step in range(40)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bins": 0}, "bins >= 1"),
        (
            {"bins": 2, "at_least": 90, "at_most": 99},
            "no architecture costs 90 to 99 MACs; attainable are 5 to 85 MACs",
        ),
        ({"bins": 2, "at_least": 30, "at_most": 20}, "no architecture costs 30 to 20"),
    ],
)
def test_impossible_strata_are_refused(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StratifiedPaths(SPACE, COST, seed=0, **arguments)


@pytest.mark.parametrize("paths", [partial(StratifiedPaths, bins=2), SandwichPaths])
def test_paths_by_cost_need_one_that_adds_up(paths: Callable[..., Paths]) -> None:
    with pytest.raises(TypeError, match="known of an AdditiveCost only"):
        paths(SPACE, lambda arch: 1, seed=0)


@pytest.mark.parametrize("random", [0, 2, 3])
def test_a_sandwich_is_the_largest_the_smallest_and_random_ones(random: int) -> None:
    costs = [COST(arch) for arch in SPACE]
    paths = SandwichPaths(SPACE, COST, seed=0, random=random)
    for step in range(20):
        largest, smallest, *rest = paths(step)
        assert (COST(largest), COST(smallest), len(rest)) == (max(costs), min(costs), random)
    with pytest.raises(ValueError, match="random >= 0"):
        SandwichPaths(SPACE, COST, seed=0, random=-1)


LOCAL, GLOBAL = {"kernel": one_of(3, 5), "width": one_of(2, 4)}, {"heads": one_of(1, 2), "width": one_of(2, 4)}
HYBRID = Space(
    block=repeat(
        Space(kind=one_of({"local": Space(**LOCAL), "mixed": Space(**LOCAL, heads=1), "global": Space(**GLOBAL)})),
        one_of(2, 3),
    )
)


def test_a_sandwichs_teacher_has_whatever_its_students_have() -> None:
    reach = attainable(HYBRID, COST)
    assert "block.0.heads" not in reach.high_arch  # the costliest network has no attention at all
    paths = SandwichPaths(HYBRID, COST, seed=0)
    teacher, smallest, *students = paths(3)
    assert set(teacher) == {name for name, _ in HYBRID.walk()}
    assert teacher["block.count"] == 3
    assert COST(teacher) == max(COST(arch) for arch in HYBRID if set(arch) == set(teacher))
    assert smallest == reach.low_arch
    assert all(set(student) <= set(teacher) for student in students)
    assert SandwichPaths(HYBRID, COST, seed=0, teacher=teacher)(3) == paths(3)


def test_a_teacher_that_lacks_what_a_student_has_is_refused() -> None:
    costliest = attainable(HYBRID, COST).high_arch
    with pytest.raises(ValueError, match=r"has no block\.0\.heads, block\.1\.heads, block\.2\.heads; leave"):
        SandwichPaths(HYBRID, COST, seed=0, teacher=costliest)
    shallow = HYBRID.pin({"block.count": 2, "block.*.kind": "mixed"})[0]
    with pytest.raises(ValueError, match=r"block\.2\.kind, block\.2\.kernel, block\.2\.width, block\.2\.heads"):
        SandwichPaths(HYBRID, COST, seed=0, teacher=shallow)
    with pytest.raises(ValueError, match="must be one of"):
        SandwichPaths(SPACE, COST, seed=0, teacher={**SPACE[0], "block.0.op": "other"})


def test_a_space_in_which_nobody_can_teach_all_is_refused() -> None:
    space = Space(block=repeat(Space(op=one_of({"conv": Space(kernel=one_of(3, 5)), "attn": Space(heads=2)})), 2))
    with pytest.raises(ValueError, match=r"no option of 'block\.0\.op' has all of heads, kernel; choose other paths"):
        SandwichPaths(space, COST, seed=0)


def test_glits_costliest_network_teaches_nobody() -> None:
    from recipes.glit.cost import macs
    from recipes.glit.space import TABLE2

    costliest = attainable(TABLE2, macs).high_arch
    with pytest.raises(ValueError, match="the teacher must have every choice"):
        SandwichPaths(TABLE2, macs, seed=0, teacher=costliest)
    teacher = SandwichPaths(TABLE2, macs, seed=0).teacher
    assert {part["global_heads"] for part in teacher.parts("block")} <= {1, 2}


def test_the_random_paths_of_a_sandwich_draw_every_choice_evenly_and_apart() -> None:
    paths = SandwichPaths(FLAT, COST, seed=0)
    pairs = [paths(step)[2:] for step in range(1600)]
    drawn = Counter((a["block.0.width"], b["block.0.width"]) for a, b in pairs)
    assert len(drawn) == 16
    assert chisquare(list(drawn.values())).pvalue > 1e-3


def test_fair_steps_hold_every_option_once_where_all_choices_have_as_many() -> None:
    space = Space(block=repeat(Space(op=one_of("a", "b", "c")), 4))
    paths = FairPaths(space, seed=0)
    for step in range(50):
        archs = paths(step)
        assert len(archs) == 3
        for name in archs[0]:
            assert sorted(str(arch[name]) for arch in archs) == ["a", "b", "c"]


def test_fair_rounds_are_exact_and_never_more_than_one_off() -> None:
    paths = FairPaths(FLAT, seed=5)
    values = {name: choice.values for name, choice in FLAT.walk()}
    assert len(paths(0)) == 4  # the most options of one choice
    seen: Counter[tuple[str, Value]] = Counter()
    for step in range(12):
        for arch in paths(step):
            seen.update(arch.items())
            for name, options in values.items():
                counts = [seen[name, option] for option in options]
                assert max(counts) - min(counts) <= 1
        if step % 3 == 2:  # lcm(2, 3, 4) = 12 paths are 3 steps
            for name, options in values.items():
                assert {seen[name, option] for option in options} == {4 * (step + 1) // len(options)}


def test_a_fair_path_is_uniform_over_architectures() -> None:
    space = Space(block=repeat(Space(op=one_of(1, 2, 3)), 2))
    paths = FairPaths(space, seed=0)
    for place in range(3):
        drawn = Counter(paths(step)[place] for step in range(900))
        assert chisquare([drawn[arch] for arch in space]).pvalue > 1e-3


def test_fair_paths_take_a_space_whose_branches_are_pinned() -> None:
    pinned = SPACE.pin({"block.count": 2, "block.*.op": "conv"})
    archs = FairPaths(pinned, seed=0)(0)
    assert all(arch in pinned for arch in archs)
    assert sorted(int(arch["block.1.width"]) for arch in archs) == [2, 4, 8]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (Space(block=repeat(BLOCK, 2)), "'block.0.op' open subspaces"),
        (Space(block=repeat(Space(op=one_of(1, 2)), one_of(1, 2))), "'block.count' is one of"),
    ],
)
def test_fair_paths_refuse_spaces_whose_architectures_differ_in_names(space: Space, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FairPaths(space, seed=0)


def test_paths_that_need_a_whole_space_refuse_a_budget() -> None:
    inside = SPACE.within(BUDGET)
    for make in (
        lambda: StratifiedPaths(inside, COST, bins=2, seed=0),
        lambda: SandwichPaths(inside, COST, seed=0),
        lambda: FairPaths(inside, seed=0),
    ):
        with pytest.raises(ValueError, match="need a whole space, but got Feasible"):
            make()


def test_a_space_without_alternatives_has_one_fair_path() -> None:
    assert FairPaths(Space(width=4), seed=0)(7) == (Arch({"width": 4}),)
