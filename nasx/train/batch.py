"""Batches of any structure: what a network is called with, what its outputs are held against, and where both lie."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nasx._devices import to_device

Batches = Iterable[Any]
"""Batches of any structure that an `Unpack` function takes apart."""

_SHOWN = 3  # entries of a sequence that messages describe
TARGET_KEYS = ("labels", "label", "targets", "target")
"""Keys of a mapping that hold the targets; the first that is present counts."""


class Unpacked(NamedTuple):
    """A batch taken apart: the network is called as `network(*args, **kwargs)`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Any
    """What loss and metric compare the outputs with; the first dimension counts the samples."""


Unpack = Callable[[Any], Unpacked]
"""Takes a batch apart, as `unpack` does by default."""


def unpack(batch: Any) -> Unpacked:
    """Take apart a batch as data loaders give it.

    `(inputs, targets)` calls the network with `inputs`, `(a, b, ..., targets)` with `a, b, ...`, and a mapping with
    keyword arguments, its targets left out: the first present of `labels`, `label`, `targets` and `target`. What is
    `Unpacked` is returned unchanged. Anything else is a ValueError; pass a function of your own as `unpack` for it.
    """
    if isinstance(batch, Unpacked):
        return batch
    if isinstance(batch, Mapping):
        key = next((key for key in TARGET_KEYS if key in batch), None)
        if key is None:
            raise ValueError(
                f"the batch has the keys {', '.join(map(repr, batch))}, but none of {', '.join(TARGET_KEYS)}; "
                "name the targets so, or pass `unpack`"
            )
        return Unpacked((), {name: value for name, value in batch.items() if name != key}, batch[key])
    if isinstance(batch, tuple | list):
        if len(batch) < 2:
            raise ValueError(f"a batch needs inputs and targets, but this one has {len(batch)} entries; pass `unpack`")
        return Unpacked(tuple(batch[:-1]), {}, batch[-1])
    raise ValueError(
        f"a batch must be a tuple (inputs, targets) or a mapping, but got {type(batch).__name__}; pass `unpack`"
    )


def move(value: Any, device: torch.device) -> Any:
    """Return a nested value with every tensor on a device, and anything else that has a method `to`.

    Tuples, lists, mappings and dataclasses keep their structure; everything else is unchanged. Copies from the CPU to
    CUDA go through pinned memory, so that they wait for nothing that the device still computes.
    """

    def moved(inner: Any) -> Any:
        if isinstance(inner, Tensor):
            return to_device(inner, device)
        return inner.to(device) if hasattr(inner, "to") else inner

    return mapped(moved, value)


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Return a nested value with a function applied to every tensor, and to all that is no structure of others."""
    if isinstance(value, Tensor) or hasattr(value, "to"):
        return function(value)
    if _is_instance_of_dataclass(value):  # before mappings, for outputs of `transformers` are both
        inner = {part.name: mapped(function, getattr(value, part.name)) for part in fields(value) if part.init}
        return with_fields(value, inner)
    if isinstance(value, Mapping):
        return {key: mapped(function, inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        entries = [mapped(function, inner) for inner in value]
        return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
    if isinstance(value, list):
        return [mapped(function, inner) for inner in value]
    return function(value)


def with_fields(value: Any, changed: Mapping[str, Any]) -> Any:
    """Return a dataclass's instance with other fields, also where its class has an `__init__` of its own."""
    same = copy.copy(value)
    for name, found in changed.items():
        object.__setattr__(same, name, found)
        if isinstance(same, MutableMapping) and name in same:
            same[name] = found
    return same


def in_float32(value: Any) -> Any:
    """Return a nested value with tensors of half precision as float32."""
    halves = torch.float16, torch.bfloat16
    return mapped(lambda inner: inner.float() if isinstance(inner, Tensor) and inner.dtype in halves else inner, value)


def described(value: Any) -> str:
    """Return what a nested value holds, as messages say it: shapes and types of tensors, types of what is none."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {described(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, tuple | list):
        shown = [described(inner) for inner in value[:_SHOWN]] + ["..."] * (len(value) > _SHOWN)
        return ("({})" if isinstance(value, tuple) else "[{}]").format(", ".join(shown))
    return type(value).__name__


def batch_size(targets: Any) -> int:
    """Return how many samples targets are of: the first dimension of the first tensor in them.

    A list or tuple of mappings or dataclasses has one for each sample, as in detection, where a sample may have no
    objects.
    """
    if isinstance(targets, tuple | list) and targets and all(map(_is_record, targets)):
        return len(targets)
    first = next(_tensors(targets), None)
    if first is None or not first.ndim:
        what = "a single number" if first is not None else f"no tensor ({type(targets).__name__})"
        raise ValueError(f"the targets of a batch must have a first dimension for its samples, but are {what}")
    return len(first)


def finite_samples(batch: Any, count: int) -> Tensor | None:
    """Return which of a batch's `count` samples have finite values alone; None where no tensor tells samples apart."""
    found = [
        tensor.isfinite().reshape(count, tensor[0].numel()).all(dim=1).cpu()
        for tensor in _tensors(tuple(batch))
        if _may_be_infinite(tensor) and tensor.ndim and len(tensor) == count
    ]
    return torch.stack(found).all(dim=0) if found else None


def all_finite(value: Any) -> bool:
    """Return whether all tensors in a nested value have finite values alone; it waits for the device that has them."""
    return all(bool(tensor.isfinite().all()) for tensor in _tensors(value) if _may_be_infinite(tensor))


def is_empty(batch: Unpacked) -> bool:
    """Return whether a batch has no samples: neither targets nor inputs."""
    inputs = next(_tensors((batch.args, batch.kwargs)), None)
    return not batch_size(batch.targets) and (inputs is None or not inputs.ndim or not len(inputs))


def _may_be_infinite(tensor: Tensor) -> bool:
    dense = tensor.layout is torch.strided and not tensor.is_nested
    return dense and (tensor.is_floating_point() or tensor.is_complex())


def _is_record(target: Any) -> bool:
    return isinstance(target, Mapping) or _is_instance_of_dataclass(target)


def _is_instance_of_dataclass(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif _is_instance_of_dataclass(value):
        for part in fields(value):
            yield from _tensors(getattr(value, part.name))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _tensors(inner)
