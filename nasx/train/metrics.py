"""Metrics: one score a sample, higher is better."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from nasx.train.batch import batch_size
from nasx.train.losses import logits_of

Metric = Literal["accuracy", "top5"] | Callable[[Any, Any], Tensor]
"""A metric by name, or a function of outputs and targets that returns a finite score for each sample, (B,)."""


def sample_scores(metric: Metric, outputs: Any, targets: Any, counted: Tensor | None = None) -> Tensor:
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
        raise ValueError(f"the metric must return a tensor with one score a sample, but got {type(scores).__name__}")
    if scores.shape != (samples,):
        raise ValueError(
            f"the metric must return one score for each sample, shape ({samples},), but got shape "
            f"{tuple(scores.shape)}; average over all other dimensions"
        )
    if scores.is_complex() or not (scores.is_floating_point() or scores.dtype == torch.bool):
        raise ValueError(f"the scores of a metric must be floating-point numbers, but got {scores.dtype}")
    return scores.detach().float() if scores.dtype != torch.float64 else scores.detach()


def _hits(name: str, logits: Tensor, targets: Any, counted: Tensor | None) -> Tensor:
    if name not in ("accuracy", "top5"):
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
