"""Stages on their own: an interrupted supernet training, and seeds."""

import math
from pathlib import Path

import pytest
import torch

from nasx.cli import apply_settings
from nasx.run import Interrupted, Journal, StageContext, StopFlag
from nasx.run.checkpoints import unflatten_state
from recipes.glit.config import DIGITS, Machine
from recipes.glit.problem import load_problem
from recipes.glit.retrain import loss_curve
from recipes.glit.space import heads_space
from recipes.glit.stages import heads_level, plan_stages, stage_seed, train_level

CONFIG = apply_settings(
    DIGITS,
    [
        *("model.embed_dim=12", "supernet.epochs=1", "supernet.warmup_epochs=0.2"),
        *("budget.heads_at_most=1e9", "budget.details_at_least=null", "budget.details_at_most=null"),
    ],
)


def context(root: Path, stop: StopFlag) -> StageContext:
    directory = root / "heads" / "supernet"
    directory.mkdir(parents=True, exist_ok=True)
    return StageContext("heads/supernet", {}, directory, root, Journal(directory / "journal.jsonl"), stop)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_interrupted_supernet_ends_with_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    problem = load_problem(apply_settings(CONFIG, [f"supernet.optimizer={optimizer}"]), None)

    def train(root: Path, *, stop_at: int | None = None) -> object:
        stop = StopFlag()

        def progress(description: str, done: float, total: float, note: str = "") -> None:
            if done == stop_at:
                stop.request()

        return train_level(
            context(root, stop), problem=problem, machine=Machine(device="cpu"), progress=progress, level=heads_level
        )

    whole = train(tmp_path / "whole")
    for stop_at in (5, 11):
        with pytest.raises(Interrupted):
            train(tmp_path / "stopped", stop_at=stop_at)
    assert train(tmp_path / "stopped") == whole
    states = []
    for name in ("whole", "stopped"):
        checkpoint = context(tmp_path / name, StopFlag()).checkpoints.latest()
        assert checkpoint is not None
        assert checkpoint.step == 17
        states.append(unflatten_state(checkpoint.tensors, checkpoint.state))
    assert all(torch.equal(states[0]["supernet"][k], states[1]["supernet"][k]) for k in states[0]["supernet"])
    assert states[0]["losses"] == states[1]["losses"]


def test_every_method_has_its_stages() -> None:
    names = {}
    for method in ("hierarchical", "spos", "random"):
        problem = load_problem(CONFIG.model_copy(update={"method": method}), None)
        names[method] = [stage.name for stage in plan_stages(problem, Machine(), lambda *state: None)]
    assert names["hierarchical"] == [
        *("heads/supernet", "heads/search", "heads/retrain"),
        *("details/supernet", "details/search", "details/retrain"),
        *("baselines", "evaluation"),
    ]
    assert names["spos"] == ["joint/supernet", "joint/search", "joint/retrain", "baselines", "evaluation"]
    assert names["random"] == ["random/draw", "random/retrain", "baselines", "evaluation"]


def test_seeds_differ_by_stage_and_run_and_not_by_process() -> None:
    problem = load_problem(CONFIG, None)
    other = load_problem(CONFIG.model_copy(update={"seed": 1}), None)
    assert stage_seed(problem, "heads/search") == 1074567643
    assert len({stage_seed(p, name) for p in (problem, other) for name in ("a", "b")}) == 4


def test_every_heads_of_stage_one_have_details_in_the_budget() -> None:
    tight = ["budget.heads_at_most=1.35e6", "budget.details_at_least=1.2e6", "budget.details_at_most=1.201e6"]
    problem = load_problem(apply_settings(DIGITS, tight), None)
    inside = set(problem.heads)
    for arch in heads_space(problem.axes):
        feasible = problem.cost(arch) <= 1.35e6
        try:
            feasible &= problem.details(arch).size > 0
        except ValueError:
            feasible = False
        assert (arch in inside) == feasible
    assert 0 < len(inside) < heads_space(problem.axes).size


def test_a_space_of_many_heads_is_counted_no_further_than_needed() -> None:
    problem = load_problem(
        apply_settings(
            DIGITS,
            [
                "space.blocks=12",
                "budget.heads_at_most=null",
                "budget.details_at_least=null",
                "budget.details_at_most=null",
            ],
        ),
        None,
    )
    problem.check()
    assert problem.heads.size_bounds[1] == 4**12


@pytest.mark.parametrize("heads", [[0], [3], [1, 2]])
def test_a_search_may_offer_some_kinds_of_block_only(heads: list[int]) -> None:
    free = ["budget.heads_at_most=null", "budget.details_at_least=null", "budget.details_at_most=null"]
    problem = load_problem(apply_settings(DIGITS, [f"space.global_heads={heads}", *free]), None)
    problem.check()
    assert problem.heads.size == len(heads) ** 4


def test_a_loss_curve_leaves_out_skipped_steps() -> None:
    losses = [4.0, math.nan, 2.0, math.nan, math.nan, 1.0]
    assert loss_curve(losses, points=3) == [(2, 4.0), (4, 2.0), (6, 1.0)]
    assert loss_curve([math.nan], points=3) == []
    assert loss_curve([3.0, 1.0, 5.0], points=2) == [(2, 2.0), (3, 5.0)]
