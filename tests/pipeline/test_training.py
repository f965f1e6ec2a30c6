"""Trainings that resume, and that go back once when losses are not finite."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from nasx.pipeline.errors import Diverged
from nasx.pipeline.metrics_file import HEADER, MetricsFile, read_metrics
from nasx.pipeline.training import TrainingState, loss_curve, resumable
from nasx.run import Interrupted
from nasx.run.checkpoints import Checkpoints
from nasx.train import Step, cosine_schedule, nesterov_sgd, train
from nasx.train import Training as Steps

TOTAL = 30


class Training:
    """A linear layer on fixed batches whose inputs are NaN at some steps."""

    def __init__(self, directory: Path, broken: tuple[int, ...] = ()) -> None:
        torch.manual_seed(0)
        self.directory, self.broken = directory, broken
        model = nn.Linear(4, 3)
        optimizer = nesterov_sgd(model, lr=0.1, weight_decay=0)
        self.state = TrainingState(model, optimizer, cosine_schedule(optimizer, steps=TOTAL))

    def batches(self, start: int, end: int = TOTAL) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for step in range(start, end):
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(8, 4, generator=generator)
            yield inputs * math.nan if step in self.broken else inputs, torch.randint(3, (8,), generator=generator)

    def run(self, stop_at: int | None = None) -> list[float]:
        state = self.state

        def steps_from(start: int) -> Steps:
            return train(
                state.model,
                self.batches(start),
                state.optimizer,
                schedule=state.schedule,
                start_step=start,
                max_skipped=1,
                recovery=state.recovery,
            )

        return resumable(
            Checkpoints(self.directory / "checkpoints"),
            state,
            steps_from,
            TOTAL,
            lambda step: step.step == stop_at,
            batches_of=self.batches,
            settings="some.lr",
            table=MetricsFile(self.directory / "metrics.csv", samples=8),
        )

    @property
    def weight(self) -> torch.Tensor:
        return next(self.state.model.parameters()).detach()


def test_data_that_are_not_finite_are_named_before_the_learning_rate(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"inputs or targets .* are not finite: correct such samples, or.*some\.lr"):
        Training(tmp_path, broken=tuple(range(TOTAL))).run()


@pytest.mark.parametrize("stop_at", [0, 7, 28])
def test_a_stopped_training_goes_on_with_the_same_bits(tmp_path: Path, stop_at: int) -> None:
    whole = Training(tmp_path / "whole")
    losses = whole.run()
    assert len(losses) == TOTAL
    with pytest.raises(Interrupted):
        Training(tmp_path / "stopped").run(stop_at)
    again = Training(tmp_path / "stopped")
    assert again.run() == losses
    assert torch.equal(again.weight, whole.weight)
    assert Training(tmp_path / "stopped").run() == losses  # and nothing is left to do


def test_a_request_at_the_last_step_ends_the_training(tmp_path: Path) -> None:
    assert len(Training(tmp_path).run(stop_at=TOTAL - 1)) == TOTAL


@pytest.mark.parametrize("first", [1, 10])
def test_losses_that_are_not_finite_send_the_training_back_once(
    tmp_path: Path, first: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        losses = Training(tmp_path / "broken", (first, first + 1)).run()
    assert "going back to the last checkpoint, once" in caplog.text
    assert len(losses) == TOTAL
    assert [step for step, loss in enumerate(losses) if math.isnan(loss)] == [first, first + 1]
    with pytest.raises(Diverged, match=r"lower some\.lr"):
        Training(tmp_path / "always", tuple(range(first, first + 4))).run()
    latest = Checkpoints(tmp_path / "always" / "checkpoints").latest()
    assert latest is not None
    assert all(tensor.isfinite().all() for tensor in latest.tensors.values())


@pytest.mark.parametrize("stop_at", [8, 11, 13, 20])
def test_a_training_that_went_back_is_interrupted_without_changing_a_bit(tmp_path: Path, stop_at: int) -> None:
    broken = (10, 11)
    whole = Training(tmp_path / "whole", broken)
    losses = whole.run()
    with pytest.raises(Interrupted):
        Training(tmp_path / "stopped", broken).run(stop_at)
    again = Training(tmp_path / "stopped", broken)
    assert repr(again.run()) == repr(losses)  # as text, in which NaN is NaN
    assert torch.equal(again.weight, whole.weight)


def test_losses_are_on_the_disk_while_a_network_trains(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        Training(tmp_path).run(stop_at=22)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == HEADER == "step,loss,lr,samples_per_second,memory_mib"
    assert len(lines) == 1 + 23
    losses = Training(tmp_path).run()
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert metrics.steps == tuple(range(TOTAL)), "no step twice"
    assert metrics.losses == pytest.approx(losses, rel=1e-5)
    assert float((tmp_path / "metrics.csv").read_text().splitlines()[1].split(",")[2]) == 0.1
    assert all(rate > 0 for rate in metrics.samples_per_second)
    assert all(memory > 10 for memory in metrics.memory_mib)


def test_rows_of_a_piece_have_its_speed_and_a_slow_training_writes_more_often(tmp_path: Path) -> None:
    now = 0.0
    table = MetricsFile(tmp_path / "metrics.csv", samples=10, clock=lambda: now)
    table.start(0)
    for step in range(5):
        now += 2.0
        table.add(Step(step, 1.0, 0.1))
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert metrics.steps == (0, 1, 2), "those of the first six seconds"
    assert metrics.samples_per_second == (5.0, 5.0, 5.0)
    table.start(2)
    assert read_metrics(tmp_path / "metrics.csv").steps == (0, 1)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("2,0.5,0.1,3")
    assert read_metrics(tmp_path / "metrics.csv").steps == (0, 1), "a row that is being written is not there yet"


def test_a_loss_curve_leaves_out_skipped_steps() -> None:
    losses = [4.0, math.nan, 2.0, math.nan, math.nan, 1.0]
    assert loss_curve(losses, points=3) == [(2, 4.0), (4, 2.0), (6, 1.0)]
    assert loss_curve([math.nan], points=3) == []
    assert loss_curve([3.0, 1.0, 5.0], points=2) == [(2, 2.0), (3, 5.0)]
