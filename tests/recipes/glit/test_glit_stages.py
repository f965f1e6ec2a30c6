"""The levels of GLiT's search, and the stages of its methods."""

import pytest

from nasx import Arch
from nasx.pipeline.run_facts import labels
from recipes.glit.problem import levels_of
from recipes.glit.space import heads_space
from tests.pipeline.problems import glit

FREE = ["budget.heads_at_most=null", "budget.details_at_least=null", "budget.details_at_most=null"]


def test_every_method_has_its_stages() -> None:
    names = {}
    for method in ("hierarchical", "spos", "random"):
        names[method] = [stage.name for stage in glit([f"method={method}"]).stages()]
    assert names["hierarchical"] == [
        *("heads/supernet", "heads/search", "heads/retrain"),
        *("details/supernet", "details/search", "details/retrain"),
        *("baselines", "evaluation"),
    ]
    assert names["spos"] == ["joint/supernet", "joint/search", "joint/retrain", "baselines", "evaluation"]
    assert names["random"] == ["random/retrain", "baselines", "evaluation"]


def test_seeds_differ_by_stage_and_run_and_not_by_process() -> None:
    problem, other = glit(), glit(["seed=1"])
    assert problem.seed("heads/search") == 1074567643
    assert len({p.seed(name) for p in (problem, other) for name in ("a", "b")}) == 4


def test_every_heads_of_stage_one_have_details_in_the_budget() -> None:
    tight = ["budget.heads_at_most=1.35e6", "budget.details_at_least=1.2e6", "budget.details_at_most=1.201e6"]
    problem = glit(tight)
    levels = levels_of(problem)
    inside = set(levels.heads)
    for arch in heads_space(levels.choices):
        feasible = levels.cost(arch) <= 1.35e6
        try:
            feasible &= levels.details({"heads/retrain": {"winner": dict(arch)}}).size > 0
        except ValueError:
            feasible = False
        assert (arch in inside) == feasible
    assert 0 < len(inside) < heads_space(levels.choices).size


def test_a_space_of_many_heads_is_counted_no_further_than_needed() -> None:
    problem = glit(["space.blocks=12", *FREE])
    problem.check()
    assert levels_of(problem).heads.size_bounds[1] == 4**12


@pytest.mark.parametrize("heads", [[0], [3], [1, 2]])
def test_a_search_may_offer_some_kinds_of_block_only(heads: list[int]) -> None:
    problem = glit([f"space.global_heads={heads}", *FREE])
    problem.check()
    assert levels_of(problem).heads.size == len(heads) ** 4


def test_the_second_level_keeps_the_heads_of_the_first(tmp_path: object) -> None:
    problem = glit(FREE)
    winner = problem.space.sample(3)
    heads = winner.only("block.*.global_heads")
    details = levels_of(problem).details({"heads/retrain": {"winner": dict(winner)}})
    assert {Arch(arch).only("block.*.global_heads") for arch in details.sample(0, 20)} == {heads}


def test_what_was_drawn_at_random_is_not_called_searched() -> None:
    for method, label in (("random", "best drawn"), ("spos", "searched")):
        assert labels(glit([f"method={method}"]))["searched"] == label
