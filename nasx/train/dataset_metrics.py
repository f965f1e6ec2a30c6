"""Metrics of a whole data set, such as F1, AUC, mIoU and mAP, which are no means over samples."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nasx.train.batch import move


class DatasetMetric(Protocol):
    """A score of a whole data set, such as F1, AUC, mIoU or mAP; each metric of `torchmetrics` has this form.

    Evaluations work on copies, so that nothing is left of one in the next. `nasx.train.over_dataset` makes one of a
    function of all outputs and targets.
    """

    def reset(self) -> object:
        """Forget all samples."""

    def update(self, outputs: Any, targets: Any) -> object:
        """Take a batch of samples."""

    def compute(self) -> Any:
        """Return the score of all samples since the last reset: one number, or a tensor of one element."""


def over_dataset(function: Callable[[Any, Any], Any]) -> DatasetMetric:
    """Return the metric that a function computes once, from all outputs and targets of a data set.

    `function(outputs, targets)` gets them joined along their first dimension, on the CPU, half precisions as float32,
    in the structure that the network and the data give them, and returns one number: for two classes
    `over_dataset(lambda outputs, targets: roc_auc_score(targets, outputs[:, 1] - outputs[:, 0]))` is the area under the
    ROC curve. All outputs are kept in memory until then; where they are large, as in segmentation, write a
    `DatasetMetric` that adds up what it needs.
    """
    return _OverDataset(function)


def is_dataset_metric(metric: object) -> TypeGuard[DatasetMetric]:
    """Return whether a metric is of a whole data set."""
    return all(callable(getattr(metric, name, None)) for name in ("reset", "update", "compute"))


def metric_name(metric: object) -> str:
    """Return what tables and messages call a metric."""
    if isinstance(metric, str):
        return metric
    while isinstance(metric, partial):
        metric = metric.func
    return str(getattr(metric, "__name__", type(metric).__name__))


class _OverDataset:
    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function
        self.__name__ = metric_name(function)
        self.batches: list[tuple[Any, Any]] = []

    def reset(self) -> None:
        self.batches = []

    def update(self, outputs: Any, targets: Any) -> None:
        self.batches.append(move((outputs, targets), torch.device("cpu")))

    def compute(self) -> Any:
        outputs, targets = _joined(self.batches)
        return self.function(outputs, targets)


def _joined(parts: Sequence[Any]) -> Any:
    """Return nested values of batches as one, tensors joined along their first dimension and lists end to end."""
    first = parts[0]
    if isinstance(first, Tensor):
        joined = torch.cat([part if part.ndim else part[None] for part in parts])
        return joined.float() if joined.dtype in (torch.float16, torch.bfloat16) else joined
    if isinstance(first, Mapping):
        return {key: _joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple):
        inner = [_joined(column) for column in zip(*parts, strict=True)]
        return type(first)(*inner) if hasattr(first, "_fields") else tuple(inner)
    if isinstance(first, list):
        return [value for part in parts for value in part]
    return first


class DatasetScore:
    """Gives a copy of a metric of a whole data set its batches, in this process alone."""

    def __init__(self, metric: DatasetMetric, device: torch.device) -> None:
        self._metric = copy.deepcopy(metric)
        self._failure: Exception | None = None
        if isinstance(self._metric, nn.Module):
            self._metric.to(device)
            for module in self._metric.modules():
                if hasattr(module, "distributed_available_fn"):  # torchmetrics would add up what all processes have
                    vars(module)["distributed_available_fn"] = _alone
        self._metric.reset()

    def add(self, outputs: Any, targets: Any, counted: Tensor | None) -> None:
        """Take a batch."""
        if self._failure is None:
            try:
                self._metric.update(outputs, targets)
            except Exception as error:  # whatever it says of outputs that are not finite
                self._failure = error

    def result(self, loss: float) -> tuple[float, npt.NDArray[np.float64]]:
        """Return the score, NaN where the mean loss is not finite, and no scores of samples.

        Raises ValueError where the metric fails though the loss is finite.
        """
        of_samples = np.zeros(0)
        if not math.isfinite(loss):
            return math.nan, of_samples
        name = metric_name(self._metric)
        try:
            if self._failure is not None:
                raise self._failure
            value = self._metric.compute()
        except Exception as error:
            raise ValueError(f"the metric {name} failed: {type(error).__name__}: {error}") from error
        return _one_number(value, name), of_samples


def on_few_samples(metric: Any) -> Any:
    """Return a metric that is NaN where a few samples are not enough for it, as for the AUC of a single class."""
    return _OnFewSamples(metric) if is_dataset_metric(metric) else metric


class _OnFewSamples(nn.Module):
    def __init__(self, metric: DatasetMetric) -> None:
        super().__init__()
        self.metric = metric
        self.failed = False

    def reset(self) -> None:
        self.failed = False
        self.metric.reset()

    def update(self, outputs: Any, targets: Any) -> None:
        with self._tolerant():
            self.metric.update(outputs, targets)

    def compute(self) -> Any:
        value = math.nan
        with self._tolerant():
            value = self.metric.compute()
        return math.nan if self.failed else value

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except Exception:  # whatever it says
            self.failed = True


def _alone() -> bool:
    return False


def _one_number(value: Any, name: str) -> float:
    if isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int | float):
        return float(value)
    what = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else f"a {type(value).__name__}"
    if isinstance(value, Mapping):
        what += f" with {', '.join(map(repr, list(value)[:5]))}"
    raise ValueError(
        f"the metric {name} must compute one number for a whole data set, but got {what}; give a metric whose "
        "`compute` returns the one that is to be searched for"
    )
