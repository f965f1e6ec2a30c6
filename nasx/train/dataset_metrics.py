"""Metrics of a whole data set, such as F1, AUC, mIoU and mAP, which are no means over samples."""

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nasx._names import callable_name
from nasx._numbers import real_number
from nasx.train.batch import batch_size, mapped, with_fields


class DatasetMetric(Protocol):
    """A score of a whole data set, such as F1, AUC, mIoU or mAP; each metric of `torchmetrics` has this form.

    Evaluations work on copies, so that nothing is left of one in the next. `nasx.train.over_dataset` makes one of a
    function of all outputs and targets.
    """

    def reset(self) -> object:
        """Forget all samples."""

    def update(self, outputs: Any, targets: Any) -> object:
        """Take a batch of samples on the network's device, outputs of half precision as float32."""

    def compute(self) -> Any:
        """Return the score of all samples since the last reset: one number, or a tensor of one element."""


def over_dataset(function: Callable[[Any, Any], Any]) -> DatasetMetric:
    """Return the metric that a function computes once, from all outputs and targets of a data set.

    `function(outputs, targets)` returns one number. It gets tensors joined along their first dimension, on the CPU and
    half precisions as float32, in the tuples, lists, mappings and dataclasses that the network and the data give them;
    of a list with an entry for each sample, such as detections, the entries of all samples. Anything else comes as a
    list with what each batch had. For two classes
    `over_dataset(lambda outputs, targets: roc_auc_score(targets, outputs[:, 1] - outputs[:, 0]))` is the area under the
    ROC curve. All outputs are kept in memory until then; where they are large, as in segmentation, or differ in shape
    from batch to batch, write a `DatasetMetric` that adds up what it needs. Raises ValueError for what is no such
    function, such as one of scikit-learn's, which take the targets first.
    """
    if isinstance(function, type) or not callable(function) or is_dataset_metric(function):
        raise ValueError(f"over_dataset takes a function of all outputs and targets, but got {function!r}")
    name = metric_name(function)
    if next(iter(_parameters(function)), "") in ("y_true", "labels_true"):
        raise ValueError(
            f"{name} takes the targets first, but a metric takes the outputs first; write over_dataset(lambda outputs, "
            f"targets: {name}(targets, outputs)), and the negative where less is better"
        )
    return _OverDataset(function)


def is_dataset_metric(metric: object) -> TypeGuard[DatasetMetric]:
    """Return whether a metric is of a whole data set."""
    return all(callable(getattr(metric, name, None)) for name in ("reset", "update", "compute"))


def metric_name(metric: object) -> str:
    """Return what tables and messages call a metric."""
    return metric if isinstance(metric, str) else callable_name(metric, "metric")


def metric_settings(metric: object) -> dict[str, Any]:
    """Return the plain values that a metric was made with: arguments of its class, keywords of a partial function."""
    if isinstance(metric, _OverDataset):
        metric = metric.function
    found = dict(metric.keywords) if isinstance(metric, partial) else {}
    if is_dataset_metric(metric):
        makers = [vars(base)["__init__"] for base in type(metric).__mro__[:-1] if "__init__" in vars(base)]
        names = {name for maker in makers for name in _parameters(maker)}
        found = {name: getattr(metric, name) for name in sorted(names) if hasattr(metric, name)}
    return {name: value for name, value in found.items() if isinstance(value, bool | int | float | str | None)}


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some that are written in C have none
        return ()


class _OverDataset:
    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function
        self.__name__ = metric_name(function)
        self.outputs: list[Any] = []
        self.targets: list[Any] = []

    def reset(self) -> None:
        self.outputs, self.targets = [], []

    def update(self, outputs: Any, targets: Any) -> None:
        self.outputs.append(mapped(_kept, outputs))
        self.targets.append(mapped(_kept, targets))

    def compute(self) -> Any:
        sizes = [batch_size(targets) for targets in self.targets]
        return self.function(_joined(self.outputs, sizes), _joined(self.targets, sizes))


def _kept(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


def _joined(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Return nested values of batches, which have so many samples each, as one."""
    first = parts[0]
    if isinstance(first, Tensor):
        try:
            return torch.cat([part if part.ndim else part[None] for part in parts])
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(part.shape)) for part in parts[:3])
            raise ValueError(
                f"tensors of several batches cannot be joined, because they have the shapes {shapes}; pad all samples "
                "alike, or write a metric with `update` and `compute`"
            ) from error
    if is_dataclass(first) and not isinstance(first, type):
        names = [part.name for part in fields(first) if part.init]
        return with_fields(first, {name: _joined([getattr(part, name) for part in parts], sizes) for name in names})
    if isinstance(first, Mapping):
        return {key: _joined([part[key] for part in parts], sizes) for key in first}
    if isinstance(first, tuple | list):
        if _one_for_each_sample(parts, sizes):
            return [entry for part in parts for entry in part]
        columns = [_joined(column, sizes) for column in zip(*parts, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    return None if all(part is None for part in parts) else list(parts)


def _one_for_each_sample(parts: Sequence[Sequence[Any]], sizes: Sequence[int]) -> bool:
    """Return whether sequences hold an entry for each sample, rather than tensors with a row for each."""

    def has_rows(entry: Any, size: int) -> bool:
        return isinstance(entry, Tensor) and entry.ndim > 0 and len(entry) == size

    sized = list(zip(parts, sizes, strict=True))
    if any(len(part) != size for part, size in sized):
        return False
    return not all(has_rows(entry, size) for part, size in sized for entry in part)


class MetricFailed(ValueError):
    """A metric of a whole data set raised something."""


class DatasetScore:
    """Gives a copy of a metric of a whole data set its batches, in this process alone."""

    def __init__(self, metric: DatasetMetric, device: torch.device) -> None:
        self._name = metric_name(metric)
        try:
            self._metric = copy.deepcopy(metric)
        except Exception as error:
            raise ValueError(
                f"the metric {self._name} cannot be copied, as each evaluation does: {type(error).__name__}: {error}"
            ) from error
        self._failure: Exception | None = None
        for inner in _modules(self._metric, set()):
            inner.to(device)
            if hasattr(inner, "distributed_available_fn"):  # torchmetrics would add up what all processes have
                vars(inner)["distributed_available_fn"] = _alone
        self._metric.reset()

    def add(self, outputs: Any, targets: Any, counted: Tensor | None) -> None:
        """Take a batch."""
        if self._failure is None:
            try:
                self._metric.update(outputs, targets)
            except torch.OutOfMemoryError:  # which smaller batches may mend
                raise
            except Exception as error:  # whatever it says of outputs that are not finite
                self._failure = error

    def result(self, loss: float) -> tuple[float, npt.NDArray[np.float64]]:
        """Return the score, NaN where the mean loss is not finite, and no scores of samples.

        Raises MetricFailed for what the metric raised though the loss is finite, ValueError where it is not one number.
        """
        of_samples = np.zeros(0)
        if not math.isfinite(loss):
            return math.nan, of_samples
        try:
            if self._failure is not None:
                raise self._failure
            value = self._metric.compute()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise MetricFailed(f"the metric {self._name} failed: {type(error).__name__}: {error}") from error
        return _one_number(value, self._name), of_samples


def on_few_samples(metric: Any) -> Any:
    """Return a metric that is NaN where a few samples are not enough for it, as for the AUC of a single class."""
    return _OnFewSamples(metric) if is_dataset_metric(metric) else metric


class _OnFewSamples:
    def __init__(self, metric: DatasetMetric) -> None:
        self.metric = metric
        self.__name__ = metric_name(metric)
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
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever it says
            self.failed = True


def _modules(value: Any, seen: set[int]) -> Iterator[nn.Module]:
    """Yield the modules that a metric is or holds, those of torchmetrics in other modules too."""
    if id(value) in seen or isinstance(value, Tensor | type | str | bytes):
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield value
    if isinstance(value, Mapping):
        inner: Sequence[Any] = list(value.values())
    elif isinstance(value, tuple | list | set):
        inner = list(value)
    else:
        inner = list(vars(value).values()) if hasattr(value, "__dict__") and not inspect.isroutine(value) else []
    for entry in inner:
        yield from _modules(entry, seen)


def _alone() -> bool:
    return False


def _one_number(value: Any, name: str) -> float:
    number = real_number(value)
    if number is not None:
        return float(number)
    shape = tuple(getattr(value, "shape", ()))
    what = f"shape {shape}" if shape else f"a {type(value).__name__}"
    if isinstance(value, Mapping):
        what += f" with {', '.join(map(repr, list(value)[:5]))}"
    raise ValueError(
        f"the metric {name} must compute one number for a whole data set, but got {what}; give a metric whose "
        "`compute` returns the one that is to be searched for"
    )
