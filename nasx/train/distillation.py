"""Learning from a teacher's outputs beside the labels (Hinton et al. 2015; DeiT, section 4)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx.train.batch import Unpacked
from nasx.train.device import device_of
from nasx.train.losses import (
    Loss,
    compute_loss,
    is_cross_entropy,
    labelled,
    logits_of,
    name_of,
    takes_outputs,
    targets_like,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """A teacher, and how much of what a network learns comes from it.

    The loss becomes `(1 - weight) * loss + weight * distillation`. `soft` is the Kullback-Leibler divergence from the
    teacher's probabilities to the network's, both at a temperature T, times T squared, so that its gradients stay
    comparable to those of the labels whatever the temperature; `hard` is the cross-entropy with the teacher's first
    choices (DeiT, equations 2 and 3), which no temperature changes. Both are means over the samples, and over the
    positions of outputs that have some, but for those that a cross-entropy ignores. With torch's regression losses and
    its binary cross-entropy the teacher's values or probabilities take the place of the targets instead.

    The teacher sees the same augmented inputs.
    """

    teacher: nn.Module | Callable[..., Any] = field(kw_only=False)
    """A network, or a function of what the network is called with; its outputs, or their `logits`, have the shape of
    the network's. A module is put into evaluation mode and must be on the network's device."""
    kind: Literal["soft", "hard"] = "soft"
    """Whether the network learns from the teacher's probabilities or from its first choices."""
    weight: float = 0.5
    """Share of the loss in 0..1; 0.5 is DeiT's."""
    temperature: float = 1.0
    """What logits are divided by before the softmax, above 0; 1 with hard distillation."""

    def __post_init__(self) -> None:
        if self.kind not in ("soft", "hard"):
            raise ValueError(f"`kind` must be 'soft' or 'hard', but got {self.kind!r}")
        if not 0 < self.weight <= 1:
            raise ValueError(f"`0 < weight <= 1` must hold, but got {self.weight}; without a teacher leave it out")
        if not self.temperature > 0:
            raise ValueError(f"`temperature > 0` must hold, but got {self.temperature}")
        if self.kind == "hard" and self.temperature != 1:
            raise ValueError(f"a temperature changes nothing in hard distillation, but got {self.temperature}")

    def prepare(self, device: torch.device, criterion: Loss = F.cross_entropy) -> None:
        """Put a module into evaluation mode.

        A ValueError says that it lies on another device than the network, or that the loss of the labels, `criterion`,
        has no such distillation.
        """
        check_distillation(criterion, self.kind, self.temperature)
        if not isinstance(self.teacher, nn.Module):
            return
        self.teacher.eval()
        if next(self.teacher.parameters(), None) is not None and device_of(self.teacher).type != device.type:
            raise ValueError(f"the teacher is on {device_of(self.teacher)}, the network on {device}; move the teacher")

    @torch.no_grad()
    def outputs(self, batch: Unpacked) -> Tensor:
        """Return the teacher's logits for the inputs of a batch."""
        return logits_of(self.teacher(*batch.args, **batch.kwargs)).detach()

    def loss(
        self, loss: Tensor, outputs: Any, taught: Tensor, criterion: Loss = F.cross_entropy, targets: Any = None
    ) -> Tensor:
        """Return the loss of a network's outputs, given that of the labels and the teacher's logits.

        `criterion` and `targets` are what `loss` was computed with. A ValueError names outputs of another shape than
        the teacher's, or says that it is unknown what a teacher's outputs mean to the loss: one of your own, whose
        targets are no class numbers.
        """
        logits = logits_of(outputs)
        if logits.shape != taught.shape:
            raise ValueError(
                f"the teacher must return as many classes as the network, but its outputs are {tuple(taught.shape)} "
                f"and the network's {tuple(logits.shape)}"
            )
        if takes_outputs(criterion):
            other = compute_loss(criterion, outputs, targets_like(criterion, taught))
        elif not is_cross_entropy(criterion) and not _are_classes(targets, logits):
            raise ValueError(
                f"it is unknown what a teacher's outputs mean to {name_of(criterion)}, whose targets are no class "
                "numbers; pass one of torch's losses, or no teacher"
            )
        else:
            each = self._by_position(logits, taught)
            counted = labelled(criterion, targets)
            other = each.mean() if counted is None else (each * counted).sum() / counted.sum().clamp(min=1)
        return (1 - self.weight) * loss + self.weight * other

    def _by_position(self, logits: Tensor, taught: Tensor) -> Tensor:
        """Return how far logits are from a teacher's, (B, ...) of (B, classes, ...)."""
        if self.kind == "hard":
            return F.cross_entropy(logits, taught.argmax(dim=1), reduction="none")
        own = F.log_softmax(_at_least_single(logits) / self.temperature, dim=1)
        goal = F.log_softmax(_at_least_single(taught) / self.temperature, dim=1)
        return F.kl_div(own, goal, reduction="none", log_target=True).sum(dim=1) * self.temperature**2


def check_distillation(criterion: Loss, kind: str, temperature: float) -> None:
    """Raise ValueError where a loss of labels has no distillation of a kind or at a temperature."""
    if takes_outputs(criterion) and (kind == "hard" or temperature != 1):
        met = "kind='hard'" if kind == "hard" else f"temperature={temperature:g}"
        raise ValueError(
            f"{met} is for classes, but {name_of(criterion)} takes the teacher's outputs as they are; leave it out"
        )


def _are_classes(targets: Any, logits: Tensor) -> bool:
    integers = isinstance(targets, Tensor) and not targets.is_floating_point()
    several = logits.ndim > 1 and logits.shape[1] > 1  # one logit says yes or no, and a softmax over it says nothing
    return integers and several and targets.shape == logits.shape[:1] + logits.shape[2:]


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
