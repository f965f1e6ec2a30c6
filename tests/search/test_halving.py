import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasx.search import Halving, Rung


def test_the_better_half_goes_on_and_the_shares_double() -> None:
    plan = Halving(16, 2)
    assert plan.rungs == (Rung(16, 0.125), Rung(8, 0.25), Rung(4, 0.5), Rung(2, 1.0))
    assert plan.trainings == 5.0  # 16 * 1/8, then 8, 4 and 2 for what is added


def drive(plan: Halving, quality: dict[str, float]) -> tuple[list[str], float]:
    """Train as a stage would: every candidate from where it was, to the share that its rung ends at."""
    reached = dict.fromkeys(quality, 0.0)
    names, spent = list(quality), 0.0
    for number, rung in enumerate(plan.rungs):
        for name in names:
            spent += rung.share - reached[name]
            reached[name] = rung.share
        names = plan.going_on(number, {name: quality[name] for name in names})
    return names, spent


@given(st.integers(1, 40), st.integers(1, 40), st.floats(1.05, 5), st.one_of(st.none(), st.floats(0.01, 1)))
def test_what_a_plan_costs_is_known_beforehand(candidates: int, keep: int, factor: float, first: float | None) -> None:
    keep = min(keep, candidates)
    plan = Halving(candidates, keep, factor=factor, first_share=first)
    quality = {str(i): float(i * 7919 % candidates) for i in range(candidates)}
    names, spent = drive(plan, quality)
    assert names == sorted(quality, key=lambda name: -quality[name])[:keep]
    assert spent == pytest.approx(plan.trainings)
    assert plan.trainings <= candidates + 1e-9
    counts, shares = [rung.candidates for rung in plan.rungs], [rung.share for rung in plan.rungs]
    assert counts[0] == candidates
    assert counts[-1] == keep
    assert counts == sorted(set(counts), reverse=True)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    if first is not None and len(shares) > 1:
        assert shares[0] == pytest.approx(first)


def test_failures_never_go_on_and_ties_go_to_the_first() -> None:
    plan = Halving(4, 1)
    assert plan.going_on(0, {"a": math.nan, "b": 0.5, "c": 0.5, "d": 0.5}) == ["b", "c"]
    assert plan.going_on(1, {"b": math.nan}) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0}, "keep=0, candidates=8"),
        ({"keep": 9}, "keep=9, candidates=8"),
        ({"factor": 1.0}, "factor > 1"),
        ({"first_share": 0.0}, "first_share <= 1"),
    ],
)
def test_impossible_plans_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Halving(**({"candidates": 8, "keep": 2} | settings))  # type: ignore[arg-type]


def test_scores_of_another_rung_are_refused() -> None:
    plan = Halving(4, 1)
    with pytest.raises(ValueError, match="rung 1 has 2 candidates, but got 4 scores"):
        plan.going_on(1, dict.fromkeys("abcd", 0.5))
    with pytest.raises(ValueError, match="rungs 0 to 2, but got 3"):
        plan.going_on(3, {"a": 0.5})
    with pytest.raises(ValueError, match="got 0 scores"):
        plan.going_on(0, {})
