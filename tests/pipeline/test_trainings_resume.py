"""Trainings of stages that are interrupted end with the same bits; disks without room are refused."""

import shutil
from pathlib import Path

import pytest
import torch

from nasx.pipeline.errors import NotEnoughSpace
from nasx.pipeline.metrics_file import read_metrics
from nasx.run import Interrupted, StopFlag
from nasx.run.checkpoints import unflatten_state
from tests.pipeline.problems import context_of, glit, stage_of

SETTINGS = [
    *("model.embed_dim=12", "supernet.epochs=1", "supernet.warmup_epochs=0.2"),
    *("budget.heads_at_most=1e9", "budget.details_at_least=null", "budget.details_at_most=null"),
]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_interrupted_supernet_ends_with_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    problem = glit([*SETTINGS, f"supernet.optimizer={optimizer}"])
    stage = stage_of(problem, "heads/supernet")

    def train(root: Path, *, stop_at: int | None = None) -> object:
        stop = StopFlag()

        def progress(description: str, done: float, total: float, note: str = "") -> None:
            if done == stop_at:
                stop.request()

        return stage.work(context_of(problem, root, stage.name, stop=stop, progress=progress))

    whole = train(tmp_path / "whole")
    for stop_at in (5, 11):
        with pytest.raises(Interrupted):
            train(tmp_path / "stopped", stop_at=stop_at)
    assert train(tmp_path / "stopped") == whole
    states = []
    for name in ("whole", "stopped"):
        checkpoint = context_of(problem, tmp_path / name, stage.name).checkpoints.latest()
        assert checkpoint is not None
        assert checkpoint.step == 17
        states.append(unflatten_state(checkpoint.tensors, checkpoint.state))
    assert all(torch.equal(states[0]["model"][k], states[1]["model"][k]) for k in states[0]["model"])
    assert states[0]["losses"] == states[1]["losses"]
    tables = [read_metrics(tmp_path / name / stage.name / "metrics.csv") for name in ("whole", "stopped")]
    assert tables[0].losses == tables[1].losses
    assert tables[0].steps == tables[1].steps == tuple(range(17))


@pytest.mark.parametrize(("processes", "ema"), [(1, "0.9"), (2, "null")])
def test_networks_interrupted_in_the_middle_end_with_the_same_bits(tmp_path: Path, processes: int, ema: str) -> None:
    more = ["method=random", "search.top_k=3", "retrain.epochs=1", "retrain.warmup_epochs=0.2", f"retrain.ema={ema}"]
    problem = glit([*SETTINGS, *more, "retrain.drop_path=0.1"])
    stage = stage_of(problem, "random/retrain")

    def train(root: Path, processes: int, *, stop_at: float | None = None) -> object:
        stop = StopFlag()

        def progress(description: str, done: float, total: float, note: str = "") -> None:
            if stop_at is not None and done >= stop_at:
                stop.request()

        return stage.work(context_of(problem, root, stage.name, stop=stop, progress=progress, processes=processes))

    whole = train(tmp_path / "whole", 1)
    for stop_at in (0.2, 1.5):
        with pytest.raises(Interrupted):
            train(tmp_path / "stopped", processes, stop_at=stop_at)
    assert [path.name for path in (tmp_path / "stopped/random/retrain").glob("*/*-step*")] != []
    assert train(tmp_path / "stopped", processes) == whole
    for number in range(3):
        for file in (f"{number}.safetensors", f"{number}.val.npy"):
            ours, theirs = (tmp_path / name / "random/retrain" / file for name in ("whole", "stopped"))
            assert ours.read_bytes() == theirs.read_bytes(), file
        tables = [
            read_metrics(tmp_path / name / "random/retrain" / f"{number}.metrics.csv") for name in ("whole", "stopped")
        ]
        assert (tables[0].steps, tables[0].losses) == (tables[1].steps, tables[1].losses)
    assert not list((tmp_path / "stopped").glob("random/retrain/*/"))  # nothing of the checkpoints is left


def test_a_disk_without_room_for_checkpoints_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[float] = []
    problem = glit(SETTINGS)
    stage = stage_of(problem, "heads/supernet")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**10))

    def progress(description: str, done: float, total: float, note: str = "") -> None:
        steps.append(done)

    with pytest.raises(NotEnoughSpace, match="but its file system has 1 KiB free"):
        stage.work(context_of(problem, tmp_path, stage.name, progress=progress))
    assert steps == []
