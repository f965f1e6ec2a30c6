"""Losses that are not finite: when they end a training, and how it continues from a checkpoint."""

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch.optim.lr_scheduler import LRScheduler

_SLOWER = 0.5


class NotFinite(ArithmeticError):
    """Losses or gradients were not finite several steps in a row; `steps` says which."""

    def __init__(self, steps: range) -> None:
        super().__init__(
            f"loss or gradient was not finite in {len(steps)} steps in a row, the last of them {steps[-1]}"
        )
        self.steps = steps

    def __reduce__(self) -> tuple[type[Self], tuple[range]]:
        return type(self), (self.steps,)


class Recovery:
    """What a resumable training does differently after `NotFinite` sent it back to its last checkpoint.

    On a CPU the same steps would give the same losses again. So the second time the batches of the steps that were not
    finite are left out, and the learning rate is half of what it was from the checkpoint on: losses that stay broken
    over several batches mostly mean weights that have run away, which leaving batches out does not mend. It is done
    once. A runner saves and restores it with the model, and

    1. trains with `train(..., recovery=recovery)`;
    2. on NotFinite reads `gone_back`: where it holds, the training ends with the error;
    3. restores the last checkpoint, calls `go_back(error, optimizer, schedule)`, logs what that returns, and trains on.

    An interruption at any time then changes no bit.
    """

    def __init__(self, skip_steps: Iterable[int] = ()) -> None:
        self.skip_steps = frozenset(skip_steps)
        """Steps whose batches are left out."""
        self.broken_in_a_row = 0
        """Steps directly before the next one that were not finite; the training keeps it."""
        self.gone_back = False
        """Whether the training has gone back to a checkpoint."""

    def go_back(self, error: NotFinite, optimizer: torch.optim.Optimizer, schedule: LRScheduler | None) -> str:
        """Change a training whose checkpoint has just been restored, and return what to tell about it."""
        self.skip_steps |= frozenset(error.steps)
        self.broken_in_a_row, self.gone_back = 0, True
        for group in optimizer.param_groups:
            for name in ("lr", "initial_lr"):
                if name in group:
                    group[name] *= _SLOWER
        if schedule is not None:
            schedule.base_lrs = [lr * _SLOWER for lr in schedule.base_lrs]
        return (
            f"{error}; going back to the last checkpoint, once: the batches of steps {error.steps[0]} to "
            f"{error.steps[-1]} are left out, and the learning rate is halved"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as JSON values."""
        return {
            "skip_steps": sorted(self.skip_steps),
            "broken_in_a_row": self.broken_in_a_row,
            "gone_back": self.gone_back,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state back."""
        self.skip_steps = frozenset(state_dict["skip_steps"])
        self.broken_in_a_row, self.gone_back = state_dict["broken_in_a_row"], state_dict["gone_back"]
