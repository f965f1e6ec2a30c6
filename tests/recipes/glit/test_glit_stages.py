"""Stages on their own: an interrupted supernet training, and seeds."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from nasx.cli import BadInput, apply_settings
from nasx.pipeline.machine import Machine
from nasx.pipeline.problem import load_task
from nasx.pipeline.progress import Progress, silent
from nasx.pipeline.stages import Stages
from nasx.run import Interrupted, Journal, Stage, StageContext, StopFlag
from nasx.run.checkpoints import unflatten_state
from recipes.glit.config import DIGITS, Config
from recipes.glit.problem import GLiTProblem
from recipes.glit.space import heads_space
from recipes.glit.stages import plan_stages

CONFIG = apply_settings(
    DIGITS,
    [
        *("model.embed_dim=12", "supernet.epochs=1", "supernet.warmup_epochs=0.2"),
        *("budget.heads_at_most=1e9", "budget.details_at_least=null", "budget.details_at_most=null"),
    ],
)


def problem_of(config: Config) -> GLiTProblem:
    return GLiTProblem(config, load_task(config, None))


def stages_of(config: Config, progress: Progress = silent) -> list[Stage]:
    return plan_stages(Stages(problem_of(config), Machine(device="cpu", processes=1), progress))


def context(root: Path, stop: StopFlag, name: str, inputs: Mapping[str, Any] = {}) -> StageContext:
    directory = root / name
    directory.mkdir(parents=True, exist_ok=True)
    return StageContext(name, inputs, directory, root, Journal(directory / "journal.jsonl"), stop)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_interrupted_supernet_ends_with_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    config = apply_settings(CONFIG, [f"supernet.optimizer={optimizer}"])

    def train(root: Path, *, stop_at: int | None = None) -> object:
        stop = StopFlag()

        def progress(description: str, done: float, total: float, note: str = "") -> None:
            if done == stop_at:
                stop.request()

        (stage, *_) = stages_of(config, progress)
        return stage.work(context(root, stop, stage.name))

    whole = train(tmp_path / "whole")
    for stop_at in (5, 11):
        with pytest.raises(Interrupted):
            train(tmp_path / "stopped", stop_at=stop_at)
    assert train(tmp_path / "stopped") == whole
    states = []
    for name in ("whole", "stopped"):
        checkpoint = context(tmp_path / name, StopFlag(), "heads/supernet").checkpoints.latest()
        assert checkpoint is not None
        assert checkpoint.step == 17
        states.append(unflatten_state(checkpoint.tensors, checkpoint.state))
    assert all(torch.equal(states[0]["supernet"][k], states[1]["supernet"][k]) for k in states[0]["supernet"])
    assert states[0]["losses"] == states[1]["losses"]


@pytest.mark.parametrize("ema", ["null", "0.9"])
@pytest.mark.parametrize("processes", [1, 2])
def test_networks_interrupted_in_the_middle_end_with_the_same_bits(tmp_path: Path, processes: int, ema: str) -> None:
    config = apply_settings(
        CONFIG, ["method=random", "search.top_k=3", "retrain.epochs=1", f"retrain.ema={ema}", "retrain.drop_path=0.1"]
    )
    drawn = {"random/draw": {"best": [{"arch": dict(a)} for a in problem_of(config).joint.sample(0, 3)]}}

    def train(root: Path, processes: int, *, stop_at: float | None = None) -> object:
        stop = StopFlag()

        def progress(description: str, done: float, total: float, note: str = "") -> None:
            if stop_at is not None and done >= stop_at:
                stop.request()

        machine = Machine(device="cpu", processes=processes)
        stage = plan_stages(Stages(problem_of(config), machine, progress))[1]
        return stage.work(context(root, stop, stage.name, drawn))

    whole = train(tmp_path / "whole", 1)
    for stop_at in (0.2, 1.5):
        with pytest.raises(Interrupted):
            train(tmp_path / "stopped", processes, stop_at=stop_at)
    assert [path.name for path in (tmp_path / "stopped/random/retrain").glob("*/*-step*")] != []
    assert train(tmp_path / "stopped", processes) == whole
    for number in range(3):
        ours, theirs = (tmp_path / name / f"random/retrain/{number}.safetensors" for name in ("whole", "stopped"))
        assert ours.read_bytes() == theirs.read_bytes()
    assert not list((tmp_path / "stopped").glob("random/retrain/*/"))  # nothing of the checkpoints is left


def test_every_method_has_its_stages() -> None:
    names = {}
    for method in ("hierarchical", "spos", "random"):
        names[method] = [stage.name for stage in stages_of(CONFIG.model_copy(update={"method": method}))]
    assert names["hierarchical"] == [
        *("heads/supernet", "heads/search", "heads/retrain"),
        *("details/supernet", "details/search", "details/retrain"),
        *("baselines", "evaluation"),
    ]
    assert names["spos"] == ["joint/supernet", "joint/search", "joint/retrain", "baselines", "evaluation"]
    assert names["random"] == ["random/draw", "random/retrain", "baselines", "evaluation"]


def test_seeds_differ_by_stage_and_run_and_not_by_process() -> None:
    problem, other = problem_of(CONFIG), problem_of(CONFIG.model_copy(update={"seed": 1}))
    assert problem.seed("heads/search") == 1074567643
    assert len({p.seed(name) for p in (problem, other) for name in ("a", "b")}) == 4


def test_every_heads_of_stage_one_have_details_in_the_budget() -> None:
    tight = ["budget.heads_at_most=1.35e6", "budget.details_at_least=1.2e6", "budget.details_at_most=1.201e6"]
    problem = problem_of(apply_settings(DIGITS, tight))
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
    problem = problem_of(
        apply_settings(
            DIGITS,
            [
                "space.blocks=12",
                "budget.heads_at_most=null",
                "budget.details_at_least=null",
                "budget.details_at_most=null",
            ],
        ),
    )
    problem.check()
    assert problem.heads.size_bounds[1] == 4**12


@pytest.mark.parametrize("heads", [[0], [3], [1, 2]])
def test_a_search_may_offer_some_kinds_of_block_only(heads: list[int]) -> None:
    free = ["budget.heads_at_most=null", "budget.details_at_least=null", "budget.details_at_most=null"]
    problem = problem_of(apply_settings(DIGITS, [f"space.global_heads={heads}", *free]))
    problem.check()
    assert problem.heads.size == len(heads) ** 4


def test_a_disk_without_room_for_checkpoints_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[float] = []
    (stage, *_) = stages_of(CONFIG, lambda description, done, total, note="": steps.append(done))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**10))
    with pytest.raises(BadInput, match="but its file system has 0 MiB free"):
        stage.work(context(tmp_path, StopFlag(), stage.name))
    assert steps == []
