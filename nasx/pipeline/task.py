"""What networks learn: data, loss and metric."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, default_collate

from nasx.measure import Call
from nasx.pipeline.config import RunConfig, TrainingSettings
from nasx.pipeline.samples import Collate, EpochBatches, Indices, Part, Samples, StepBatches, class_labels, random_split
from nasx.train import Batches, Evaluation, Loss, Metric, Unpack, Unpacked, device_of, evaluate, unpack
from nasx.train.batch import finite_samples, move
from nasx.train.dataset_metrics import is_dataset_metric, metric_name, on_few_samples
from nasx.train.losses import (
    check_labels,
    check_trained,
    is_cross_entropy,
    logits_of,
    loss_of_labels,
    name_of,
    on_device,
)
from nasx.train.metrics import NAMED
from nasx.train.modes import evaluating

PartName = Literal["train", "val", "test"]

_SCORED: tuple[PartName, ...] = ("val", "test")

FEWEST_VALIDATION = 10
"""Validation samples without which no choice is made on them."""
_SOME = 256  # samples that tell metrics of a whole data set apart
_CHECKED = 1_000  # samples that are looked at together
_READ = 8  # samples that are looked at together where each may have to be read from a disk
_FEW = 7  # samples that are scored beside those that are not finite: a mean over nothing but masked targets is NaN
FEW_VALIDATION = 100
"""Validation samples below which a run says how coarse its scores are."""


class BaseTask(ABC):
    """What the stages of a run ask of a task; `Task` and `nasx.pipeline.images.ImageTask` are such tasks."""

    loss: Loss
    metric: Metric
    unpack: Unpack
    held_out_by: str = "data.val_images or data.val_fraction"
    """What decides how many samples are held out for the search."""
    unused_settings: frozenset[str] = frozenset()
    """Fields of a training that have no effect on this task: label_smoothing, mixup, cutmix, repeats, augment."""

    @property
    @abstractmethod
    def counts(self) -> Mapping[str, int]:
        """How many samples there are of each part that is known without reading it: train and val at least."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Return what a run records of its data, as JSON values: how they were split, and digests of the parts."""

    @abstractmethod
    def train_batches(
        self,
        training: TrainingSettings,
        *,
        seed: int,
        part: tuple[int, int] = (0, 1),
        workers: int = 0,
        with_validation: bool = False,
    ) -> StepBatches:
        """Return the batches that a training takes; `part=(rank, size)` gives one rank's rows of each.

        `with_validation` adds the validation samples to the training samples.
        """

    def check(self, training: TrainingSettings) -> None:  # noqa: B027 - not every task refuses something
        """Refuse settings of a training that its batches cannot be made with; a ValueError names them."""

    def check_recalibration(self, config: RunConfig) -> None:  # noqa: B027 - as above
        """Refuse settings that batches for BatchNorm statistics cannot be made with; a ValueError names them."""

    def check_samples(self, network: nn.Module) -> None:  # noqa: B027 - as above
        """Refuse samples that change, and those of which such networks can learn nothing, untrained on the CPU."""

    def scored_not_finite(self, network: nn.Module, config: RunConfig, *, seed: int, workers: int = 0) -> str | None:
        """Return the name of a sample that gives candidates of a search no finite score, None where none is known.

        Those are the validation samples, and what BatchNorm statistics are recomputed from by `seed`. The network is
        untrained and in evaluation mode.
        """
        return None

    def part_not_finite(self, network: nn.Module, part: PartName) -> str | None:
        """Return the name of a sample of a part with which a network has no finite loss, None where none is known."""
        return None

    def bytes_to_keep(self, limit: float) -> int:
        """Return the bytes of samples that a run will keep in memory and that are not there yet.

        `limit` bounds the bytes of each part that is kept.
        """
        return 0

    @abstractmethod
    def recalibration_batches(self, config: RunConfig, *, seed: int, workers: int = 0) -> StepBatches:
        """Return the training batches that BatchNorm statistics are recomputed from."""

    @abstractmethod
    def eval_batches(
        self, part: PartName, batch_size: int, *, indices: Indices | None = None, workers: int = 0
    ) -> Iterable[Any]:
        """Return the validation or test samples in order, all or those at some positions."""

    def first_batch(self, size: int) -> Any:
        """Return a batch of the first validation samples, as many as there are at most."""
        count = min(size, self.counts["val"])
        return next(iter(self.eval_batches("val", count, indices=np.arange(count))))

    def example(self, batch: int = 1) -> Unpacked:
        """Return the first validation samples taken apart, for costs and checks."""
        return self.unpack(self.first_batch(batch))

    @cached_property
    def call(self) -> Call:
        """What a network is called with for one sample."""
        args, kwargs, _ = self.example()
        return Call(args, kwargs)

    @property
    def metric_name(self) -> str:
        """What tables call the metric."""
        return metric_name(self.metric)

    @property
    def scores_accuracy(self) -> bool:
        """Whether the metric is the accuracy, by name."""
        return isinstance(self.metric, str) and self.metric == "accuracy"  # a metric of torchmetrics equals all things

    @cached_property
    def scores_hits(self) -> bool:
        """Whether a sample is right or wrong, and nothing between."""
        targets = self.example(2).targets
        return isinstance(self.metric, str) and getattr(targets, "ndim", 0) == 1

    @property
    def loss_name(self) -> str:
        """What messages call the loss."""
        return name_of(self.loss)

    def evaluate(self, network: nn.Module, batches: Batches) -> Evaluation:
        """Score a network; ValueError where its score is not a finite number."""
        scored = evaluate(network, batches, loss=self.loss, metric=self.metric, unpack=self.unpack)
        if math.isfinite(scored.score):
            return scored
        if math.isfinite(scored.loss):
            raise ValueError(
                f"the metric {self.metric_name} is {scored.score} for a network whose loss is finite; have it return a "
                "number there too, such as the worst there is; a run that has started continues with it under the same "
                "name"
            )
        with torch.no_grad(), evaluating(network):
            found = [self.part_not_finite(network, part) for part in _SCORED if part in self.counts]
        for sample in filter(None, found):
            raise ValueError(
                f"{sample} has values that are not finite, so that a network has no {self.metric_name}; correct it, "
                "and run the same command again"
            )
        raise ValueError(
            f"the loss of a network is not finite, so that it has no {self.metric_name}; correct inputs and targets "
            "that are not finite, or lower the learning rate of the training that it comes from, or set its clip_norm"
        )

    def score_of_some(self, network: nn.Module, part: PartName = "val") -> float:
        """Return the score of some samples of a part by a metric of a whole data set; NaN where they are not enough."""
        count = self.counts[part]
        some = np.unique(np.linspace(0, count - 1, _SOME, dtype=np.int64))
        batches = self.eval_batches(part, max(1, len(some) * 2 // 5), indices=some)  # the last one is smaller
        metric = on_few_samples(self.metric)
        return evaluate(network, batches, loss=self.loss, metric=metric, unpack=self.unpack).score

    def loss_of(self, training: TrainingSettings) -> Loss:
        """Return the loss of a training, with its label smoothing where it applies."""
        smoothing = 0.0 if "label_smoothing" in self.unused_settings else training.loss_smoothing
        return partial(F.cross_entropy, label_smoothing=smoothing) if smoothing else self.loss


class Task(BaseTask):
    """Any map-style datasets with a loss and a metric.

    - `train`, `val` and `test` are torch datasets, or anything with a length and samples at positions: tuples that end
      in the target, mappings with a key such as `labels` (`nasx.train.unpack`), tensors, texts with a `collate_fn`,
      Hugging Face datasets. They stay as they are given. Where `val` or `test` is missing, `val_fraction` of `train` is
      set aside for it, drawn by `seed`; the split is recorded. It takes the same share of each class where the class
      numbers are at hand: in a TensorDataset, in samples in a list, and in an attribute `targets`. What is set aside
      has the transforms of `train`; where those augment, give a `val` and a `test` that do not.
    - `loss(outputs, targets)` is the mean over a batch. It is called in evaluation mode, too.
    - `metric` is "accuracy", "top5", or a function of outputs and targets that returns a finite score for each sample,
      shape (batch,), higher is better; the mean is the score. Average over positions where a sample has several, and do
      not look at the other samples of the batch. Scores of a whole data set, such as F1, AUC or mIoU, are objects with
      `reset`, `update` and `compute`, as in torchmetrics, or functions in `nasx.train.over_dataset`; with them, all
      candidates see all samples (no racing), and reports give no intervals.
    - `collate_fn` makes a batch of a list of samples, `unpack` takes a batch apart.

    Transforms may draw from the global generators of Python, numpy and torch: they are seeded for every sample, so
    that batches are a function of (seed, step). Raises ValueError or TypeError for what is no such dataset.
    """

    held_out_by = "`val_fraction`, or samples of their own as `val`"

    def __init__(
        self,
        train: Samples,
        val: Samples | None = None,
        test: Samples | None = None,
        *,
        loss: Loss = F.cross_entropy,
        metric: Metric = "accuracy",
        collate_fn: Collate | None = None,
        unpack: Unpack = unpack,
        val_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        for name, dataset in (("train", train), ("val", val), ("test", test)):
            _check_dataset(name, dataset)
        if not callable(loss):
            raise TypeError(f"`loss` must be a function of outputs and targets, but got {loss!r}")
        check_trained(loss)
        check_metric(metric)
        if not 0 < val_fraction < 0.5:
            raise ValueError(f"`0 < val_fraction < 0.5` must hold, but got {val_fraction}")
        self.train, self.val, self.test = train, val, test
        self.loss, self.metric, self.unpack = loss, metric, unpack
        self.collate_fn, self.val_fraction, self.seed = collate_fn or default_collate, val_fraction, seed
        smooths = loss is F.cross_entropy
        self.unused_settings = frozenset({"mixup", "cutmix", "augment"} | (set() if smooths else {"label_smoothing"}))

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        """The training, validation and test samples of a run, each a part of one of the datasets given."""
        total = len(self.train)
        share = max(1, round(self.val_fraction * total))
        taken = [share if dataset is None else 0 for dataset in (self.test, self.val)]
        if sum(taken) >= total:
            raise ValueError(f"`train` has {total} samples, which cannot be split; pass `val` and `test`")
        test, val, train = random_split(total, taken, self.seed, self._labels)
        chosen = {"train": (self.train, train), "val": (self.train, val), "test": (self.train, test)}
        if self.val is not None:
            chosen["val"] = self.val, np.arange(len(self.val))
        if self.test is not None:
            chosen["test"] = self.test, np.arange(len(self.test))
        names = {"train": "training", "val": "validation", "test": "test"}
        return {key: Part(*dataset, self.collate_fn, names[key]) for key, dataset in chosen.items()}

    @property
    def counts(self) -> Mapping[str, int]:
        """How many training, validation and test samples there are."""
        return {name: len(part) for name, part in self.parts.items()}

    def record(self) -> dict[str, Any]:
        """Return how the data were split, with the number of samples and a digest of each part."""
        drawn = [name for name, given in (("val", self.val), ("test", self.test)) if given is None]
        shares = ", ".join(f"{name}: {len(self.parts[name])}" for name in drawn)
        how = "by seed" if self._labels is None else "the same share of each class, by seed"
        rule = f"{shares} of {len(self.train)} training samples, {how}" if drawn else "as given"
        provenance = {name: {"samples": len(part), "sha256": part.digest} for name, part in self.parts.items()}
        return {"seed": self.seed, "rule": rule, **provenance}

    def train_batches(
        self,
        training: TrainingSettings,
        *,
        seed: int,
        part: tuple[int, int] = (0, 1),
        workers: int = 0,
        with_validation: bool = False,
    ) -> EpochBatches:
        """Return shuffled batches of the training samples."""
        samples = self._joined if with_validation else self.parts["train"]
        return EpochBatches(samples, training.batch_size, seed, training.repeats, part, workers)

    def recalibration_batches(self, config: RunConfig, *, seed: int, workers: int = 0) -> EpochBatches:
        """Return shuffled batches of the training samples for BatchNorm statistics."""
        return EpochBatches(self.parts["train"], config.search.recalibration_batch_size, seed, workers=workers)

    def eval_batches(
        self, part: PartName, batch_size: int, *, indices: Indices | None = None, workers: int = 0
    ) -> Iterable[Any]:
        """Return the samples of a part in order, all or those at some positions."""
        return self.parts[part].in_order(batch_size, indices, workers)

    def check_samples(self, network: nn.Module) -> None:
        """Refuse samples that are others each time they are read, and, without a `collate_fn`, those of other keys.

        In tensors and lists, refuse labels without a class, and values with which the loss is not finite; of other
        datasets, such values in the first samples and in some spread over the part.
        """
        for part in self.parts.values():
            part.check_repeatable()
            part.check_keys(range(len(part)) if part.in_memory else self._looked_at(part))
        args, kwargs, _ = move(tuple(self.example()), device_of(network))
        classes = logits_of(network(*args, **kwargs)).shape[1] if is_cross_entropy(self.loss) else 0
        for part in self.parts.values():
            if not part.in_memory:
                _refuse(self._not_finite(network, part, np.array(self._looked_at(part))))
                continue
            for first in range(0, len(part), _CHECKED):
                positions = np.arange(first, min(first + _CHECKED, len(part)))
                (batch,) = part.in_order(_CHECKED, positions)
                unpacked = self.unpack(batch)
                if classes:
                    names = [_sample(part, position) for position in positions]
                    check_labels(self.loss, classes, unpacked.targets, names)
                _refuse(self._not_finite_of(network, part, positions, unpacked))

    @staticmethod
    def _looked_at(part: Part) -> list[int]:
        """Return the positions of samples that are looked at where each may have to be read from a disk."""
        return sorted({*range(min(_READ, len(part))), *part.spread})

    def scored_not_finite(self, network: nn.Module, config: RunConfig, *, seed: int, workers: int = 0) -> str | None:
        """Look through what is read from a disk; the rest was checked before the run."""
        val, train = self.parts["val"], self.parts["train"]
        found = None if val.in_memory else self._not_finite(network, val, np.arange(len(val)), workers=workers)
        if found is not None or train.in_memory or not config.search.recalibration_batches:
            return found
        batches = self.recalibration_batches(config, seed=seed)
        used = np.concatenate([batches.positions(step) for step in range(config.search.recalibration_batches)])
        return self._not_finite(network, train, np.unique(used), inputs_alone=True, workers=workers)

    def part_not_finite(self, network: nn.Module, part: PartName) -> str | None:
        """Look through a part that is read from a disk; others were checked before the run."""
        own = self.parts[part]
        return None if own.in_memory else self._not_finite(network, own, np.arange(len(own)))

    def _not_finite(
        self, network: nn.Module, part: Part, positions: Indices, *, inputs_alone: bool = False, workers: int = 0
    ) -> str | None:
        """Return the name of a sample of some that is not finite, and with which the loss is not; None without one."""
        for first, batch in enumerate(part.in_order(_READ, positions, workers)):
            few = positions[first * _READ : (first + 1) * _READ]
            found = self._not_finite_of(network, part, few, self.unpack(batch), inputs_alone=inputs_alone)
            if found is not None:
                return found
        return None

    def _not_finite_of(
        self, network: nn.Module, part: Part, positions: Indices, batch: Unpacked, *, inputs_alone: bool = False
    ) -> str | None:
        """Return the name of a sample that is not finite if the loss is so too, which a mask in it may prevent."""
        finite = finite_samples(batch, len(positions))
        if finite is None or finite.all():
            return None
        inputs = finite_samples(batch._replace(targets=()), len(positions))
        masked = inputs is None or bool(inputs.all())  # perhaps: only targets are not finite
        if masked and (inputs_alone or not (part.in_memory or finite.any())):  # a mean over masked targets alone is NaN
            return None
        whole = finite.numpy()
        blamed = inputs.numpy() if inputs_alone and inputs is not None else whole
        some, others = positions[whole][:_FEW], positions[~blamed][:_FEW]
        try:
            if self._has_finite_loss(network, part, np.append(some, others)):
                return None
        except Exception as error:
            error.add_note(f"with values that are not finite, which {_sample(part, others[0])} has")
            raise
        if len(some) and not self._has_finite_loss(network, part, some):
            return None
        for position in others:
            if not self._has_finite_loss(network, part, np.append(some, position)):
                return _sample(part, position)
        return None

    def _has_finite_loss(self, network: nn.Module, part: Part, positions: Indices) -> bool:
        (batch,) = part.in_order(len(positions), positions)
        device = device_of(network)
        args, kwargs, targets = move(tuple(self.unpack(batch)), device)
        return math.isfinite(loss_of_labels(on_device(self.loss, device), network(*args, **kwargs), targets))

    @cached_property
    def _labels(self) -> Indices | None:
        split = self.val is None or self.test is None
        return class_labels(self.train) if split and self.unpack is unpack else None

    @cached_property
    def _joined(self) -> Part:
        train, val = self.parts["train"], self.parts["val"]
        if self.val is None:
            return Part(self.train, np.sort(np.concatenate([train.indices, val.indices])), self.collate_fn)
        both: Any = ConcatDataset([cast("Any", self.train), cast("Any", self.val)])
        return Part(both, np.concatenate([train.indices, len(self.train) + val.indices]), self.collate_fn)


def _refuse(sample: str | None) -> None:
    if sample is not None:
        raise ValueError(
            f"{sample} has values that are not finite, and so the loss is not either; correct it, or leave it out"
        )


def _sample(part: Part, position: np.integer[Any]) -> str:
    return f"sample {part.indices[position]} of the {part.name} data"


def check_metric(metric: Any) -> None:
    """Refuse what is no metric, and one of which less is better, with a ValueError."""
    if isinstance(metric, type) or not (callable(metric) or is_dataset_metric(metric) or metric in NAMED):
        raise ValueError(
            "`metric` must be 'accuracy', 'top5', a function, or an object with `reset`, `update` and `compute`, but "
            f"got {metric!r}"
        )
    if getattr(metric, "higher_is_better", None) is False:  # as torchmetrics says
        name = metric_name(metric)
        raise ValueError(f"a metric must be higher for better networks, but {name} is lower; pass its negative")


def _check_dataset(name: str, dataset: object) -> None:
    if dataset is None and name != "train":
        return
    what = type(dataset).__name__
    if isinstance(dataset, DataLoader):
        raise TypeError(
            f"`{name}` must be a dataset, but got a {what}, whose items are batches; pass its `.dataset`, and its "
            "`collate_fn` as the argument of that name; batch sizes are settings"
        )
    if isinstance(dataset, Mapping) and 0 not in dataset:
        keys = ", ".join(map(repr, list(dataset)[:5]))
        raise TypeError(
            f"`{name}` must have samples at positions 0, 1, ..., but got a {what} with the keys {keys}; pass its "
            "datasets one by one, as `train`, `val` and `test`"
        )
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"`{name}` must be a map-style dataset, with a length and samples at positions, but got {what}; "
            "read the samples of an iterable one into a list"
        )
    if not len(dataset):
        raise ValueError(f"`{name}` has no samples")
