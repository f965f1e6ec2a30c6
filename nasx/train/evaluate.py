"""Scoring a network on labelled images."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from nasx.train.device import autocast, device_of
from nasx.train.modes import Batches, evaluating


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Top-1 accuracy in 0..1, mean cross-entropy in nats, on how many images, and which of them were right."""

    accuracy: float
    loss: float
    images: int
    hits: npt.NDArray[np.bool_] = field(repr=False, compare=False)
    """Of each image, in the order of the batches, whether the network was right."""


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches) -> Evaluation:
    """Return a model's accuracy and loss in evaluation mode; modes are restored.

    An image whose logits are not finite counts as wrong and makes the loss NaN.
    """
    device = device_of(model)
    correct: list[torch.Tensor] = []  # stays on the device until the end, so that no batch waits for the one before
    loss = torch.zeros((), dtype=torch.float64, device=device)
    with evaluating(model):
        for images, labels in batches:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with autocast(device):
                logits = model(images)
            logits = logits.float() if logits.dtype == torch.bfloat16 else logits
            correct.append((logits.argmax(dim=1) == labels) & logits.isfinite().all(dim=1))
            loss += F.cross_entropy(logits, labels, reduction="sum")
    hits = torch.cat(correct).cpu().numpy() if correct else np.zeros(0, bool)
    if not len(hits):
        raise ValueError("there are no images to evaluate on")
    return Evaluation(int(hits.sum()) / len(hits), float(loss) / len(hits), len(hits), hits)
