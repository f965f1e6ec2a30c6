"""A training that goes back to a checkpoint after losses that were not finite, with a runner of a few lines."""

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasx.train import NotFinite, Recovery, Step, cosine_schedule, nesterov_sgd, train

TOTAL, EVERY = 30, 10


class Runner:
    """Saves every ten steps, in memory, and resumes from what was saved last."""

    def __init__(self, saved: dict[str, Any] | None = None, bad: range = range(0), lr: float = 0.1) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(4, 3)
        optimizer = nesterov_sgd(self.model, lr=lr, weight_decay=0)
        self.recovery, self.bad = Recovery(), bad
        self.parts: dict[str, Any] = {
            "model": self.model,
            "optimizer": optimizer,
            "schedule": cosine_schedule(optimizer, steps=TOTAL),
            "recovery": self.recovery,
        }
        self.saved = saved or self.state(0, [])
        self.messages: list[str] = []

    def state(self, step: int, records: list[Step]) -> dict[str, Any]:
        parts = {name: copy.deepcopy(part.state_dict()) for name, part in self.parts.items()}
        json.dumps(parts["recovery"])
        return {"step": step, "records": list(records), **parts}

    def batches(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(first, TOTAL):
            rng = torch.Generator().manual_seed(step)
            x = torch.randn(8, 4, generator=rng)
            yield (x * math.nan if step in self.bad else x), torch.randint(3, (8,), generator=rng)

    def run(self, stop_after: int = TOTAL, killed: bool = False) -> list[Step]:
        error: NotFinite | None = None
        while True:
            for name, part in self.parts.items():
                part.load_state_dict(copy.deepcopy(self.saved[name]))
            if error is not None:
                self.messages.append(self.recovery.go_back(error, self.parts["optimizer"], self.parts["schedule"]))
            start, records = self.saved["step"], list(self.saved["records"])
            steps = train(
                self.model,
                self.batches(start),
                self.parts["optimizer"],
                schedule=self.parts["schedule"],
                start_step=start,
                recovery=self.recovery,
                max_skipped=2,
            )
            try:
                for step in steps:
                    records.append(step)
                    stop = len(records) == stop_after
                    if len(records) % EVERY == 0 or (stop and not killed):
                        self.saved = self.state(len(records), records)
                    if stop:
                        return records
                return records
            except NotFinite as found:
                if self.recovery.gone_back:
                    raise
                error = found


def test_the_second_pass_leaves_the_batches_out_and_takes_half_the_rate() -> None:
    plain, runner = Runner().run(), Runner(bad=range(12, 15))
    records = runner.run()
    assert [step.step for step in records] == list(range(TOTAL))
    assert [step.step for step in records if step.skipped] == [12, 13, 14]
    rates = [step.lr for step in plain]
    assert [step.lr for step in records] == pytest.approx([*rates[:10], *(lr / 2 for lr in rates[10:])])
    (message,) = runner.messages
    assert "3 steps in a row, the last of them 14" in message
    assert "steps 12 to 14 are left out, and the learning rate is halved" in message


@pytest.mark.parametrize("stop_after", [5, 10, 11, 18, 19, 20, 21, 25])
@pytest.mark.parametrize("killed", [True, False])
def test_an_interruption_at_any_time_changes_no_bit_of_it(stop_after: int, killed: bool) -> None:
    whole = Runner(bad=range(18, 21))  # a checkpoint lies between the steps that are left out
    expected = whole.run()
    assert whole.messages
    first = Runner(bad=range(18, 21))
    first.run(stop_after, killed)
    second = Runner(first.saved, bad=range(18, 21))
    assert [repr(step) for step in second.run()] == [repr(step) for step in expected]
    assert torch.equal(second.model.weight, whole.model.weight)


def test_a_training_that_breaks_down_again_ends() -> None:
    with pytest.raises(NotFinite) as caught:
        Runner(bad=range(12, 25)).run()
    assert caught.value.steps == range(15, 18)


def test_weights_that_ran_away_are_trained_again_with_the_lower_rate() -> None:
    runner = Runner(lr=1e38)  # the first step takes the weights beyond float32, so no later batch is finite
    with pytest.raises(NotFinite) as caught:
        runner.run()  # half of too much is still too much
    assert len(runner.messages) == 1
    assert caught.value.steps[0] > 0
