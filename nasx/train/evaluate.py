"""Scoring a network on labelled images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from nasx.train.device import autocast, device_of
from nasx.train.loops import Batches


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Top-1 accuracy in 0..1, mean cross-entropy in nats, and on how many images."""

    accuracy: float
    loss: float
    images: int


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches) -> Evaluation:
    """Return a model's accuracy and loss in evaluation mode; its mode is restored."""
    device, was_training = device_of(model), model.training
    model.eval()
    correct = torch.zeros((), dtype=torch.long, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    seen = 0
    try:
        for images, labels in batches:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with autocast(device):
                logits = model(images).float()
            correct += (logits.argmax(dim=1) == labels).sum()
            loss += F.cross_entropy(logits, labels, reduction="sum")
            seen += labels.shape[0]
    finally:
        model.train(was_training)
    if not seen:
        raise ValueError("there are no images to evaluate on")
    return Evaluation(int(correct) / seen, float(loss) / seen, seen)
