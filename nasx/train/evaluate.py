"""Scoring a network on labelled data."""

from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx.train.batch import Batches, Unpack, Unpacked, batch_size, in_float32, is_empty, move, unpack
from nasx.train.batchnorm import recalibrate
from nasx.train.dataset_metrics import DatasetScore, is_dataset_metric
from nasx.train.device import autocast, device_of
from nasx.train.losses import (
    Loss,
    check_mean,
    check_scalar,
    check_targets,
    compute_loss,
    label_weight,
    labelled,
    on_device,
)
from nasx.train.metrics import Floats, Metric, SampleMetric, SampleScores
from nasx.train.modes import evaluating


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A network's score on some data, its loss, and on how many samples."""

    score: float
    """Mean of the metric over samples, for `accuracy` and `top5` the share that is right, in 0..1; of a metric of the
    whole data set its value."""
    loss: float
    """Mean loss; of cross-entropy in nats."""
    samples: int
    scores: Floats = field(repr=False, compare=False)
    """The metric of each sample (samples,), in the order of the batches; empty for one of the whole data set."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    loss: Loss = F.cross_entropy,
    metric: Metric = "accuracy",
    unpack: Unpack = unpack,
) -> Evaluation:
    """Return a model's score and loss in evaluation mode; modes are restored.

    `metric` is `"accuracy"`, `"top5"`, or a function of outputs and targets that returns a finite score for each
    sample, (B,), higher is better; the score is their mean. Loss and score weigh samples, not batches. A
    `DatasetMetric`, such as those of `torchmetrics`, is given all batches and computes the score itself; it may be NaN.
    Positions that a cross-entropy ignores (`ignore_index`) count neither in the loss nor in the score of their sample
    by the named metrics, by which a sample without any label is wrong. One whose outputs are not finite is wrong too,
    and makes the loss NaN, as it makes the score of a `DatasetMetric`. Raises ValueError for targets that do not fit
    the loss or the metric, for a loss of torch's that is a sum, for scores of samples that are not finite where the
    loss is, and for what a `DatasetMetric` raises. Metrics are given outputs of half precision as float32.
    """
    check_mean(loss)
    device = device_of(model)
    loss = on_device(loss, device)
    scores = DatasetScore(metric, device) if is_dataset_metric(metric) else SampleScores(cast("SampleMetric", metric))
    seen = 0
    total, weight = torch.zeros(2, dtype=torch.float64, device=device)
    with evaluating(model):
        for batch in batches:
            args, kwargs, targets = unpack(batch)
            if is_empty(Unpacked(args, kwargs, targets)):
                continue
            samples = batch_size(targets)
            args, kwargs, moved = move((args, kwargs, targets), device)
            with autocast(device):
                outputs = model(*args, **kwargs)
                if not seen:
                    check_targets(outputs, targets, loss)
                value = compute_loss(loss, outputs, moved)
            check_scalar(value)
            counted = labelled(loss, moved)
            if counted is None:
                total += value.double() * samples
                weight += samples
            else:
                share = label_weight(loss, moved, counted)
                total += torch.where(share > 0, value.double() * share, 0.0)  # a mean over nothing is NaN
                weight += share
            seen += samples
            scores.add(in_float32(outputs), moved, counted)
    if not seen:
        raise ValueError("there is no data to evaluate on: the batches hold no samples")
    mean_loss = float(total / weight)
    score, of_samples = scores.result(mean_loss)
    return Evaluation(score, mean_loss, seen, of_samples)


def recalibrate_and_evaluate(
    model: nn.Module,
    recalibration: Batches,
    batches: Batches,
    *,
    loss: Loss = F.cross_entropy,
    metric: Metric = "accuracy",
    unpack: Unpack = unpack,
) -> tuple[Evaluation, dict[str, Tensor]]:
    """Recompute BatchNorm statistics from `recalibration` and score a model on `batches`, without gradients.

    `loss`, `metric` and `unpack` are as for `evaluate`; returns what `evaluate` and `recalibrate` return. It runs in
    torch's inference mode, which saves the bookkeeping of views: tensors that the model makes in it and keeps, such as
    a table that is filled in by its first call, cannot be trained with afterwards. Give both kinds of batches from
    `load_into_memory` where several models are scored.
    """
    with torch.inference_mode():
        statistics = recalibrate(model, recalibration, unpack=unpack)
        scored = evaluate(model, batches, loss=loss, metric=metric, unpack=unpack)
    with torch.no_grad():
        return scored, {name: tensor.clone() for name, tensor in statistics.items()}
