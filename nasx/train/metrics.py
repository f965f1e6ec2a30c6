"""Metrics, of which higher is better: one score a sample, or one of a whole data set."""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nasx.train.batch import batch_size
from nasx.train.dataset_metrics import DatasetMetric
from nasx.train.losses import logits_of

Floats = npt.NDArray[np.float64]
SampleMetric = Literal["accuracy", "top5"] | Callable[[Any, Any], Tensor]

Metric = SampleMetric | DatasetMetric
"""A metric by name, a function of outputs and targets that returns a finite score for each sample, (B,), or a
DatasetMetric."""


NAMED = ("accuracy", "top5")
"""The metrics that have a name."""
_OF_ALL = "for one number of a whole data set, pass nasx.train.over_dataset(metric)"


class SampleScores:
    """Collects the scores of samples, whose mean is the score of all."""

    def __init__(self, metric: SampleMetric) -> None:
        self._metric = metric
        self._found: list[Tensor] = []  # stays on the device until the end, so that no batch waits for the one before

    def add(self, outputs: Any, targets: Any, counted: Tensor | None) -> None:
        """Take a batch; `counted` says which positions a named metric looks at."""
        self._found.append(sample_scores(self._metric, outputs, targets, counted))

    def result(self, loss: float) -> tuple[float, Floats]:
        """Return the mean and each sample's score; ValueError where one is not finite though the mean loss is."""
        scores = torch.cat(self._found).double().cpu().numpy()
        broken = np.flatnonzero(~np.isfinite(scores))
        if len(broken) and math.isfinite(loss):
            raise ValueError(
                f"the metric must be finite, but got {scores[broken[0]]} for sample {broken[0]}, whose loss is finite"
            )
        return float(scores.mean()), scores


def sample_scores(metric: SampleMetric, outputs: Any, targets: Any, counted: Tensor | None = None) -> Tensor:
    """Return the score of each sample of a batch, (B,), floating.

    By name a score is 1 where the sample's class is the network's first choice (`accuracy`) or among its first five
    (`top5`), else 0, and 0 where an output is not finite. Outputs (B, classes, ...) with further dimensions score the
    share of positions that are right, of those that are `counted`, (B, ...), where it is given; 0 where none is. Raises
    ValueError for another name, for targets that are no class numbers, and where a function returns anything but one
    real number for each sample.
    """
    if isinstance(metric, str):
        return _hits(metric, logits_of(outputs), targets, counted)
    scores = metric(outputs, targets)
    samples = batch_size(targets)
    if not isinstance(scores, Tensor):
        raise ValueError(
            f"the metric must return a tensor with one score a sample, but got {type(scores).__name__}; {_OF_ALL}"
        )
    if scores.shape != (samples,):
        mend = "average over all other dimensions" if scores.ndim else _OF_ALL
        raise ValueError(
            f"the metric must return one score for each sample, shape ({samples},), but got shape "
            f"{tuple(scores.shape)}; {mend}"
        )
    if scores.is_complex() or not (scores.is_floating_point() or scores.dtype == torch.bool):
        raise ValueError(f"the scores of a metric must be floating-point numbers, but got {scores.dtype}")
    return scores.detach().float() if scores.dtype != torch.float64 else scores.detach()


def _hits(name: str, logits: Tensor, targets: Any, counted: Tensor | None) -> Tensor:
    if name not in NAMED:
        raise ValueError(f"a metric must be 'accuracy', 'top5' or a function, but got {name!r}")
    if not isinstance(targets, Tensor) or targets.is_floating_point() or logits.ndim < 2:
        what = f"{tuple(targets.shape)} {targets.dtype}" if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            f"the metric {name!r} needs outputs (batch, classes) and class numbers, but got outputs "
            f"{tuple(logits.shape)} and targets {what}; pass a function as `metric`"
        )
    if targets.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"the metric {name!r} needs a class number for each sample, but got outputs {tuple(logits.shape)} and "
            f"targets {tuple(targets.shape)}; pass a function as `metric`"
        )
    if name == "accuracy":
        hits = logits.argmax(dim=1) == targets
    else:
        hits = (logits.topk(min(5, logits.shape[1]), dim=1).indices == targets.unsqueeze(1)).any(dim=1)
    hits &= logits.isfinite().all(dim=1)
    if counted is None:
        return hits.float() if hits.ndim == 1 else hits.flatten(1).float().mean(dim=1)
    hits &= counted
    return hits.float() if hits.ndim == 1 else hits.flatten(1).sum(dim=1) / counted.flatten(1).sum(dim=1).clamp(min=1)
