"""Batches of any map-style dataset, each a pure function of (seed, step), so that any process can make any of them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from nasx.data.readers import now_reading, read_ahead
from nasx.data.seeding import derived_seed, globals_kept, seed_globals
from nasx.train import unpack

Indices = NDArray[np.int64]
Collate = Callable[[list[Any]], Any]

_ORDER, _SAMPLE = range(2)  # what a seed is used for
_HASHED = 32  # samples of a part that its digest covers where each may have to be read from a disk


class Samples(Protocol):
    """A map-style dataset: as long as it says, with a sample at every position."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int, /) -> Any:
        """Return a sample: a tuple that ends in the target, or a mapping that holds it."""


class StepBatches(Protocol):
    """Training batches by step."""

    @property
    def steps_per_epoch(self) -> int:
        """How many steps an epoch has."""

    def steps(self, start: int, stop: int) -> Iterator[Any]:
        """Yield the batches of steps start to stop - 1."""


@dataclass(frozen=True)
class Part:
    """Some samples of a dataset, and what makes a batch of them."""

    dataset: Samples
    indices: Indices
    collate: Collate = default_collate
    name: str = "training"

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def in_memory(self) -> bool:
        """Whether samples need not be read from a disk, as far as their dataset tells."""
        return isinstance(self.dataset, TensorDataset | list | tuple)

    def batch(self, positions: Indices, seeds: Sequence[Sequence[int]]) -> Any:
        """Return the batch of the samples at some positions, each read with a seed of its own.

        Random transforms that draw from Python's, numpy's or torch's global generator then give the same sample
        wherever it is read.
        """
        chosen = self.indices[positions]
        if isinstance(self.dataset, TensorDataset) and self.collate is default_collate:
            rows = torch.from_numpy(chosen)
            return tuple(tensor[rows] for tensor in self.dataset.tensors)
        samples = []
        with globals_kept():
            for index, seed in zip(chosen.tolist(), seeds, strict=True):
                now_reading(index)
                seed_globals(derived_seed(*seed))
                try:
                    samples.append(self.dataset[index])
                except Exception as error:
                    error.add_note(f"while reading sample {index} of the {self.name} data")
                    raise
        try:
            return self.collate(samples)
        except KeyError:
            if self.collate is default_collate:
                self._check_keys(dict(zip(chosen.tolist(), samples, strict=True)))
            raise

    def in_order(self, batch_size: int, indices: Indices | None = None, workers: int = 0) -> Iterator[Any]:
        """Yield all samples, or those at some positions, in order; the last batch may be short."""
        chosen = np.arange(len(self)) if indices is None else indices
        parts = [chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size)]
        yield from read_ahead(self._in_order, parts, workers)

    def _in_order(self, positions: Indices) -> Any:
        return self.batch(positions, [(0, _SAMPLE, 0, position) for position in positions.tolist()])

    @property
    def spread(self) -> list[int]:
        """Positions of up to 32 samples, evenly spaced."""
        places = np.linspace(0, len(self) - 1, min(_HASHED, len(self)))
        return np.unique(places.astype(np.int64)).tolist()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the number of samples and their contents: all in tensors and lists, up to 32 spread elsewhere.

        Other datasets may read each sample from a disk.
        """
        found = hashlib.sha256(f"{len(self)}\n".encode())
        if isinstance(self.dataset, TensorDataset):
            rows = torch.from_numpy(self.indices)
            for tensor in self.dataset.tensors:
                add_to(found, tensor[rows])
            return found.hexdigest()
        for position in range(len(self)) if self.in_memory else self.spread:
            add_to(found, self._read(position))
        return found.hexdigest()

    def check_keys(self, positions: Iterable[int]) -> None:
        """Raise ValueError where mappings in some samples have other keys, which torch would leave out of a batch."""
        if self.collate is default_collate and _has_mapping(self._read(0)):
            self._check_keys({int(self.indices[position]): self._read(position) for position in positions})

    def _check_keys(self, samples: Mapping[int, Any]) -> None:
        (first, expected), *others = samples.items()
        for index, sample in others:
            for has, lacks, key in _other_keys((first, expected), (index, sample)):
                raise ValueError(
                    f"sample {lacks} of the {self.name} data lacks the key {key!r}, which sample {has} has; give all "
                    "samples the same keys, or pass a `collate_fn`"
                )

    def check_repeatable(self) -> None:
        """Raise ValueError where the first sample is another each time it is read."""
        if self.in_memory:
            return
        first, again = hashlib.sha256(), hashlib.sha256()
        add_to(first, self._read(0))
        add_to(again, self._read(0))
        if first.digest() != again.digest():
            raise ValueError(
                f"sample {int(self.indices[0])} of the {self.name} data is another each time it is read, so that no "
                "run could be continued; draw from the global generators of random, numpy or torch, which are seeded "
                "for every sample"
            )

    def _read(self, position: int) -> Any:
        index = int(self.indices[position])
        with globals_kept():
            seed_globals(derived_seed(0, _SAMPLE, 0, position))
            try:
                return self.dataset[index]
            except Exception as error:
                error.add_note(f"while reading sample {index} of the {self.name} data")
                raise


@dataclass(frozen=True)
class EpochBatches:
    """Shuffled training batches: epoch `step // steps_per_epoch` has an order of its own, from (seed, epoch).

    An incomplete last batch is dropped. With `repeats` above 1 every sample comes that many times in a row, each read
    with a seed of its own. `part=(rank, size)` yields one rank's rows of every batch.
    """

    samples: Part
    batch_size: int
    seed: int
    repeats: int = 1
    part: tuple[int, int] = (0, 1)
    workers: int = 0
    steps_per_epoch: int = field(init=False)

    def __post_init__(self) -> None:
        rank, size = self.part
        if not 1 <= self.batch_size <= len(self.samples):
            raise ValueError(f"a batch holds 1 to {len(self.samples)} training samples, but got {self.batch_size}")
        if self.batch_size % size:
            raise ValueError(f"a batch of {self.batch_size} does not divide among {size} processes; choose a multiple")
        if not 0 <= rank < size:
            raise ValueError(f"part is (rank, size) with 0 <= rank < size, but got {self.part}")
        object.__setattr__(self, "steps_per_epoch", len(self.samples) // self.batch_size)

    def steps(self, start: int, stop: int) -> Iterator[Any]:
        """Yield the batches of steps start to stop - 1."""
        yield from read_ahead(self._read, range(start, stop), self.workers)

    def positions(self, step: int) -> Indices:
        """Return where the samples of a step's batch are in their part."""
        return self._drawn(step)[0]

    def _read(self, step: int) -> Any:
        positions, copies = self._drawn(step)
        epoch = step // self.steps_per_epoch
        seeds = [
            (self.seed, _SAMPLE, 1 + epoch, position, copy)
            for position, copy in zip(positions.tolist(), copies.tolist(), strict=True)
        ]
        return self.samples.batch(positions, seeds)

    def _drawn(self, step: int) -> tuple[Indices, Indices]:
        """Return the positions of a step's samples, and which of its repeats each is."""
        epoch, within = divmod(step, self.steps_per_epoch)
        rank, size = self.part
        share = self.batch_size // size
        rows = within * self.batch_size + np.arange(rank * share, (rank + 1) * share)
        places, copies = np.divmod(rows, self.repeats)
        return epoch_order(len(self.samples), self.seed, epoch)[places], copies


@lru_cache(maxsize=4)
def epoch_order(samples: int, seed: int, epoch: int) -> Indices:
    """Return the order of an epoch's samples."""
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(samples)


def random_split(samples: int, sizes: Sequence[int], seed: int, labels: Indices | None = None) -> list[Indices]:
    """Return sorted indices of parts of some sizes, drawn without overlap, and last those of what is left.

    With `labels`, a part has the same share of each label as what it is drawn from, rounded up or down.
    """
    generator = np.random.default_rng(seed)
    order, parts = generator.permutation(samples), []
    for size in sizes:
        places = np.arange(size)
        if labels is not None and size:  # systematic sampling: evenly spaced places, samples of a label side by side
            order = order[np.argsort(labels[order], kind="stable")]
            places = (places * len(order) + generator.integers(len(order))) // size
        parts.append(np.sort(order[places]))
        order = np.delete(order, places)
    return [*parts, np.sort(order)]


def class_labels(dataset: Samples) -> Indices | None:
    """Return the class number of each sample where it is known without reading samples, None elsewhere.

    It is known of a TensorDataset, of samples in a list or tuple, and of datasets with `targets` as torchvision has.
    """
    if isinstance(dataset, TensorDataset):
        labels: Any = dataset.tensors[-1]
    elif isinstance(dataset, list | tuple):
        try:
            labels = [unpack(sample).targets for sample in dataset]
        except ValueError:
            return None
    else:
        labels = getattr(dataset, "targets", None)
    return _whole_numbers(labels, len(dataset))


def _whole_numbers(labels: Any, count: int) -> Indices | None:
    try:
        found = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    except (TypeError, ValueError):  # of different shapes
        return None
    return found.astype(np.int64) if found.shape == (count,) and found.dtype.kind in "iub" else None


def _has_mapping(sample: Any) -> bool:
    return isinstance(sample, Mapping) or (isinstance(sample, tuple | list) and any(map(_has_mapping, sample)))


def _other_keys(one: tuple[int, Any], other: tuple[int, Any]) -> Iterator[tuple[int, int, Any]]:
    """Yield which of two samples, given with their indices, has a key and which lacks it, and the key."""
    (first, a), (second, b) = one, other
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        yield from ((first, second, key) for key in a if key not in b)
        yield from ((second, first, key) for key in b if key not in a)
        a, b = ([values[key] for key in a if key in b] for values in (a, b))
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        for inner, its in zip(a, b, strict=False):
            yield from _other_keys((first, inner), (second, its))


def add_to(digest: "hashlib._Hash", value: Any) -> None:
    """Add what a value holds to a digest; of values without contents that can be read, their type."""
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous()
        digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            add_to(digest, value[key])
    elif isinstance(value, tuple | list):
        for inner in value:
            add_to(digest, inner)
    elif isinstance(value, str | bytes | int | float | bool | np.generic) or value is None:
        digest.update(repr(value).encode())
    elif hasattr(value, "tobytes"):  # a PIL image
        digest.update(value.tobytes())
    else:
        digest.update(type(value).__qualname__.encode())
    digest.update(b"\n")
