"""Trainings that resume, and that go back once when losses are not finite."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from nasx.recipe.training import Stateful, loss_curve, resumable
from nasx.run import Interrupted
from nasx.run.checkpoints import Checkpoints
from nasx.train import NotFinite, nesterov_sgd, train
from nasx.train import Training as Steps


class Training:
    """A linear layer on fixed batches whose images are NaN at some steps, as often as `broken` says."""

    def __init__(self, directory: Path, broken: dict[int, int] | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(4, 3)
        self.optimizer = nesterov_sgd(self.model, lr=0.1, weight_decay=0)
        self.checkpoints = Checkpoints(directory)
        self.broken = broken or {}

    def batches(self, start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for step in range(start, 30):
            generator = torch.Generator().manual_seed(step)
            images = torch.randn(8, 4, generator=generator)
            if self.broken.get(step, 0):
                self.broken[step] -= 1
                images = images * math.nan
            yield images, torch.randint(3, (8,), generator=generator)

    def run(self, stop_at: int | None = None) -> list[float]:
        def steps_from(start: int) -> Steps:
            return train(self.model, self.batches(start), self.optimizer, start_step=start, max_skipped=1)

        parts: dict[str, Stateful] = {"model": self.model, "optimizer": self.optimizer}
        return resumable(self.checkpoints, parts, steps_from, 30, lambda step: step.step == stop_at)


@pytest.mark.parametrize("stop_at", [0, 7, 28])
def test_a_stopped_training_goes_on_with_the_same_bits(tmp_path: Path, stop_at: int) -> None:
    whole = Training(tmp_path / "whole")
    losses = whole.run()
    assert len(losses) == 30
    with pytest.raises(Interrupted):
        Training(tmp_path / "stopped").run(stop_at)
    again = Training(tmp_path / "stopped")
    assert again.run() == losses
    assert torch.equal(again.model.weight, whole.model.weight)
    assert Training(tmp_path / "stopped").run() == losses  # and nothing is left to do


def test_a_request_at_the_last_step_ends_the_training(tmp_path: Path) -> None:
    assert len(Training(tmp_path).run(stop_at=29)) == 30


@pytest.mark.parametrize("first", [1, 10])
def test_losses_that_are_not_finite_send_the_training_back_once(tmp_path: Path, first: int) -> None:
    losses = Training(tmp_path / "sound").run()
    assert Training(tmp_path / "broken", {first: 1, first + 1: 1}).run() == losses
    with pytest.raises(NotFinite) as caught:
        Training(tmp_path / "always", {first: 9, first + 1: 9}).run()
    assert any("going back" in note for note in caught.value.__notes__)
    latest = Checkpoints(tmp_path / "always").latest()
    assert latest is not None
    assert all(tensor.isfinite().all() for tensor in latest.tensors.values())


def test_a_loss_curve_leaves_out_skipped_steps() -> None:
    losses = [4.0, math.nan, 2.0, math.nan, math.nan, 1.0]
    assert loss_curve(losses, points=3) == [(2, 4.0), (4, 2.0), (6, 1.0)]
    assert loss_curve([math.nan], points=3) == []
    assert loss_curve([3.0, 1.0, 5.0], points=2) == [(2, 2.0), (3, 5.0)]
