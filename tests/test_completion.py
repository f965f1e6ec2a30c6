"""What a first stage may choose so that a second one can still meet its budget, against brute force."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasx import Arch, Budget, Space, one_of, repeat
from nasx.completion import completable
from nasx.feasible import Feasible
from nasx.space import EmptySet
from recipes.glit.cost import Macs, macs
from recipes.glit.model import GLiTConfig
from recipes.glit.space import GLiTSpace, heads_space, reduced
from tests.strategies import ToyCost, archs

# Each block has a kind, which opens details; stage one holds the details, stage two decides them.
DETAILS = {0: Space(k=one_of(1, 2, 3)), 1: Space(k=one_of(2, 5), z=one_of(1, 4)), 2: None}
BLOCK = Space(kind=one_of(DETAILS))
JOINT = Space(width=one_of(1, 2), block=repeat(BLOCK, one_of(2, 3)))
FIRST = JOINT.pin({"block.*.k": 2, "block.*.z": 1})
DECIDED = ("width", "block.count", "block.*.kind")


def _completed(first: list[Arch], then: list[Arch], patterns: tuple[str, ...]) -> set[Arch]:
    decided = {frozenset(arch.only(*patterns).items()) for arch in then}
    return {arch for arch in first if frozenset(arch.only(*patterns).items()) in decided}


@settings(max_examples=80)
@given(
    st.integers(0, 99),
    st.sampled_from([5, 40]),
    st.sampled_from([DECIDED, ("block.*.kind",), ("width", "block.*.kind")]),
    st.data(),
)
def test_what_can_be_completed_is_found_by_brute_force(
    seed: int, spread: int, patterns: tuple[str, ...], data: st.DataObject
) -> None:
    cost = ToyCost(seed, spread)
    totals = sorted(map(cost, archs(JOINT)))
    bounds = sorted(data.draw(st.tuples(st.sampled_from(totals), st.sampled_from(totals))))
    held = data.draw(st.sampled_from(sorted(map(cost, archs(FIRST)))))
    then = JOINT.within(Budget(cost, *bounds))
    first = FIRST.within(Budget(cost, at_most=held))
    if patterns == DECIDED:
        expected = _completed(list(first), list(then), patterns)
    else:  # a prefix of another depth agrees where both have a name
        expected = {
            arch
            for arch in first
            if any(
                all(other.get(name, value) == value for name, value in arch.only(*patterns).items()) for other in then
            )
        }
    if not expected:
        with pytest.raises(EmptySet):
            completable(first, then, *patterns)
        return
    found = completable(first, then, *patterns)
    assert set(found) == expected
    assert set(found.sample(seed, 20)) <= expected
    assert found.budgets[0] == first.budgets[0]


OPTIONAL = Space(
    op=one_of({"deep": Space(block=repeat(BLOCK, one_of(1, 2))), "flat": None}),
    stage=repeat(Space(inner=repeat(Space(k=one_of(1, 4)), 2)), 1),
)
FREE = Space(op=one_of({"deep": None, "flat": Space(block=repeat(Space(z=one_of(1, 2)), one_of(1, 2)))}))
DEEP = OPTIONAL.pin({"op": "deep", "block.count": 2})


@settings(max_examples=40)
@given(
    st.integers(0, 99),
    st.sampled_from(
        [
            (OPTIONAL, OPTIONAL, ("op", "block.count")),
            (OPTIONAL, OPTIONAL, ("op", "block.count", "block.*.kind")),
            (OPTIONAL, DEEP, ("block.*.kind",)),  # completions have parts that some architectures lack
            (OPTIONAL, DEEP, ("stage.*.inner.0.k",)),
            (DEEP, OPTIONAL, ("op", "block.count", "block.*.k")),
            (FREE, OPTIONAL, ("op", "block.count")),  # a count that not every architecture decides
            (Space(op=one_of("deep", "flat"), x=one_of(1, 2)), OPTIONAL.pin({"block.count": 2}), ("*",)),
        ]
    ),
    st.data(),
)
def test_parts_of_options_are_completed_as_pins_complete_them(
    seed: int, case: tuple[Space, Space, tuple[str, ...]], data: st.DataObject
) -> None:
    first, joint, patterns = case
    cost = ToyCost(seed, 40)
    totals = sorted(map(cost, archs(joint)))
    then = joint.within(Budget(cost, *sorted(data.draw(st.tuples(st.sampled_from(totals), st.sampled_from(totals))))))
    names = {name for name, _ in joint.walk()}
    decided = {arch: arch.only(*patterns) for arch in archs(first)}
    expected = {
        arch
        for arch, kept in decided.items()
        if names.issuperset(kept)
        and any(all(other.get(name, value) == value for name, value in kept.items()) for other in then)
    }
    if not expected:
        with pytest.raises(EmptySet):
            completable(first, then, *patterns)
    else:
        found = completable(first, then, *patterns)
        assert set(found) == expected
        assert set(found.sample(seed, 10)) <= expected


def test_gaps_between_sums_are_seen() -> None:
    """Extremes alone would let pass what no completion hits."""
    joint = Space(block=repeat(Space(a=one_of({0: Space(k=one_of(0, 10)), 1: Space(k=one_of(0, 3))})), 2))

    class Sum(ToyCost):
        def part(self, name, index, shared, choices):  # type: ignore[no-untyped-def]
            return int(choices["k"])

        def fixed(self, shared):  # type: ignore[no-untyped-def]
            return 0

    then = joint.within(Budget(Sum(), 12, 14))
    found = completable(joint.pin({"block.*.k": 0}), then, "block.*.a")
    assert {tuple(arch.only("block.*.a").values()) for arch in found} == {(0, 1), (1, 0)}  # 10 + 3


def test_further_budgets_and_predicates_of_the_completions_count() -> None:
    cost = ToyCost(3, 40)
    budget = Budget(cost, at_most=sorted(map(cost, archs(JOINT)))[400])

    def few(arch: Arch) -> bool:
        return sum(value == 5 for value in arch.values()) == 1

    then = JOINT.within(budget).where(few)
    assert set(completable(FIRST, then, *DECIDED)) == _completed(archs(FIRST), list(then), DECIDED)


def test_stage_one_of_glit_keeps_heads_that_reach_the_budget() -> None:
    then = reduced().within(Budget(macs, at_least="1.38G", at_most="1.40G"))
    heads = completable(heads_space().within(Budget(macs, at_most="1.5G")), then, "block.*.global_heads")
    assert isinstance(heads, Feasible)
    for arch in heads.sample(0, 5):
        assert macs(arch) <= 1.5e9
        assert then.pin(arch.only("block.*.global_heads")).size > 0
    all_local = Arch({f"block.{i}.{n}": v for i in range(12) for n, v in _LOCAL.items()})
    assert all_local in heads_space()
    assert all_local not in heads  # its costliest details stay below the budget


_LOCAL = {"global_heads": 0, "kernel_size": 31, "expansion": 4, "mlp_ratio": 4}


def test_budgets_of_two_stages_that_do_not_meet_are_refused_with_what_is_attainable() -> None:
    then = reduced().within(Budget(macs, at_least="2.0G", names=("budget.details", "budget.most")))
    first = heads_space().within(Budget(macs, at_most="1.2G", names=("budget.heads_least", "budget.heads")))
    with pytest.raises(
        EmptySet, match=r"MACs in the costliest completion are attainable; change budget\.details or budget\.heads$"
    ):
        completable(first, then, "block.*.global_heads")


def test_the_only_heads_of_ten_to_the_twelve_that_have_details_in_the_budget_are_found() -> None:
    choices = GLiTSpace(num_heads=12, global_heads=tuple(range(13)), kernel_size=(3, 5, 9), held_kernel_size=5)
    cost = Macs(GLiTConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=48, num_heads=12))
    last = reduced(choices).within(Budget(cost, at_least="10M", at_most="11M"))
    heads = completable(heads_space(choices).within(Budget(cost, at_most="6M")), last, "block.*.global_heads")
    assert heads.space.size == 13**12
    assert {tuple(arch.only("block.*.global_heads").values()) for arch in heads.sample(0, 3)} == {(12,) * 12}
    with pytest.raises(EmptySet, match=r"in the costliest completion are attainable"):
        completable(heads_space(choices).within(Budget(cost, at_most="5.9M")), last, "block.*.global_heads")


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'block\.\*\.heads' matches no name.*block\.\*\.kind"):
        completable(FIRST, JOINT, "block.*.heads")


def test_the_set_can_be_sent_to_another_process() -> None:
    found = completable(FIRST, JOINT.within(Budget(ToyCost(3, 40), at_most=60)), *DECIDED)
    again = pickle.loads(pickle.dumps(found))
    assert list(again.sample(0, 5)) == list(found.sample(0, 5))
