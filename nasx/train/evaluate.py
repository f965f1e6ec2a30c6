"""Scoring a network on labelled images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from nasx.train.device import autocast, device_of
from nasx.train.modes import Batches, evaluating


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Top-1 accuracy in 0..1, mean cross-entropy in nats, and on how many images."""

    accuracy: float
    loss: float
    images: int


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches) -> Evaluation:
    """Return a model's accuracy and loss in evaluation mode; modes are restored.

    An image whose logits are not finite counts as wrong and makes the loss NaN.
    """
    device, seen = device_of(model), 0
    correct = torch.zeros((), dtype=torch.long, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    with evaluating(model):
        for images, labels in batches:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with autocast(device):
                logits = model(images)
            logits = logits.float() if logits.dtype == torch.bfloat16 else logits
            hits = (logits.argmax(dim=1) == labels) & logits.isfinite().all(dim=1)
            correct += hits.sum()
            loss += F.cross_entropy(logits, labels, reduction="sum")
            seen += labels.shape[0]
    if not seen:
        raise ValueError("there are no images to evaluate on")
    return Evaluation(int(correct) / seen, float(loss) / seen, seen)
