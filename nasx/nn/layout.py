"""Which elements of a supernet's largest tensor a network uses, dimension by dimension.

A rule maps the largest and the wanted shape of a tensor to one index per dimension. Without a rule a network uses
prefixes: the first channels, the first hidden neurons. Tensors in which several parts are stacked along one dimension
(queries, keys and values; the two halves of a GLU; the four gates of an LSTM) need `stacked`, so that each part keeps
its own prefix.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from nasx._devices import to_device
from nasx.arch import Value

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Stack:
    """An index into a dimension of `count` equal parts: the same `inner` index in each of them."""

    count: int
    inner: "Index"


Index: TypeAlias = slice | Tensor | Stack
"""Elements of one dimension: a slice, a one-dimensional tensor of positions, or the same of each part of a stack."""

Rule: TypeAlias = Callable[[str, Shape, Shape, Mapping[str, Value]], Sequence[Index]]
"""`rule(name, largest, wanted, choices)`: one index per dimension for a tensor's name and two shapes.

`choices` are those of the part of the architecture that the tensor belongs to, and the shared ones.
"""

Layout: TypeAlias = Mapping[str, "Rule | Mapping[int, Rule]"]
"""Rules by pattern of parameter or module names, for the whole tensor or by dimension."""


class SliceRule(ABC):
    """A rule that is defined for a single dimension and says which dimensions of a whole tensor it applies to."""

    @abstractmethod
    def along(self, largest: int, wanted: int) -> Index:
        """Return the index of `wanted` elements among `largest`; a ValueError says why there is none."""

    def dims(self, name: str, shape: Shape) -> Sequence[int]:
        """Return the dimensions that the rule applies to; the others are prefixes."""
        return range(len(shape))

    def __call__(self, name: str, largest: Shape, wanted: Shape, choices: Mapping[str, Value]) -> tuple[Index, ...]:
        """Return one index per dimension."""
        chosen = {dim % len(largest) for dim in self.dims(name, largest) if -len(largest) <= dim < len(largest)}
        sizes = enumerate(zip(largest, wanted, strict=True))
        return tuple(self.along(*pair) if dim in chosen else prefix.along(*pair) for dim, pair in sizes)


@dataclass(frozen=True)
class _Prefix(SliceRule):
    def along(self, largest: int, wanted: int) -> slice:
        return slice(0, wanted)


@dataclass(frozen=True)
class _Suffix(SliceRule):
    def along(self, largest: int, wanted: int) -> slice:
        return slice(largest - wanted, largest)


@dataclass(frozen=True)
class _Centred(SliceRule):
    def along(self, largest: int, wanted: int) -> slice:
        if (largest - wanted) % 2:
            raise ValueError(
                f"{wanted} elements have no place in the centre of {largest}: both must be odd or both even"
            )
        start = (largest - wanted) // 2
        return slice(start, start + wanted)

    def dims(self, name: str, shape: Shape) -> Sequence[int]:
        if len(shape) < 3:
            raise ValueError(
                f"`centred` slices kernel dimensions, from the third on, but {name!r} has the shape {shape}; "
                "name a dimension: {dim: centred}"
            )
        return range(2, len(shape))


@dataclass(frozen=True)
class _Stacked(SliceRule):
    count: int
    inner: SliceRule
    dim: int

    def along(self, largest: int, wanted: int) -> Stack:
        if largest % self.count or wanted % self.count:
            raise ValueError(f"{wanted} of {largest} elements are no stack of {self.count} equal parts")
        return Stack(self.count, self.inner.along(largest // self.count, wanted // self.count))

    def dims(self, name: str, shape: Shape) -> Sequence[int]:
        return (self.dim,)


prefix: SliceRule = _Prefix()
"""The first elements of every dimension; the rule of all tensors for which none is given."""
suffix: SliceRule = _Suffix()
"""The last elements of every dimension."""
centred: SliceRule = _Centred()
"""Kernel dimensions (from the third on) centred, the others prefixes."""


def stacked(count: int, inner: SliceRule = prefix, *, dim: int = 0) -> SliceRule:
    """Return the rule for `count` equal parts stacked along `dim`, with `inner` picking elements of each.

    Rules nest: `stacked(3, stacked(heads))` is for queries, keys and values of several heads whose width varies.
    Other dimensions are prefixes, and so are tensors without `dim`, such as the bias of a layer whose inputs are
    stacked.
    """
    if count < 1:
        raise ValueError(f"a stack has at least one part, but got {count}")
    if not isinstance(inner, SliceRule):
        raise TypeError(f"inside a stack stands a rule of one dimension, such as `suffix`, but got {inner!r}")
    return _Stacked(count, inner, dim)


def rule_of(layout: Layout, name: str) -> Rule:
    """Return the rule whose pattern matches a parameter's name, or that of a module that holds it; else prefixes.

    In patterns `*` stands for any characters, dots included. Of several that match, the one with the most other
    characters is taken.
    """
    pattern = most_exact(layout, name)
    if pattern is None:
        return prefix
    rule = layout[pattern]
    rules: list[Any] = list(rule.values()) if isinstance(rule, Mapping) else [rule]
    if not all(map(callable, rules)):
        raise TypeError(
            f"the layout of {pattern!r} is a rule or {{dim: rule}}, but got {rule!r}; rules are prefix, suffix, "
            "centred, stacked(n) and functions of your own"
        )
    if stacked in rules:
        raise TypeError(f"the layout of {pattern!r} does not say how many parts are stacked; write stacked(3) of three")
    return _by_dimension(rule) if isinstance(rule, Mapping) else rule


def most_exact(patterns: Iterable[str], name: str) -> str | None:
    """Return the pattern with the most characters beside `*` among those that match a name, or None."""
    fitting = (pattern for pattern in patterns if names(pattern, name))
    return max(fitting, key=lambda pattern: len(pattern.replace("*", "")), default=None)


def names(pattern: str, name: str) -> bool:
    """Return whether a pattern matches a parameter's name or the name of a module that holds it."""
    return captured(pattern, name) is not None


def captured(pattern: str, name: str) -> tuple[str, ...] | None:
    """Return what each `*` stands for in the first module of a name that a pattern matches, or in the parameter."""
    expression, segments = _expression(pattern), name.split(".")
    for end in range(1, len(segments) + 1):
        if match := expression.fullmatch(".".join(segments[:end])):
            return match.groups()
    return None


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    # fnmatch's expression of a whole pattern has no groups; one of a part ends in \Z, or \z from Python 3.14 on
    parts = (translate(part)[len("(?s:") : -len(r")\Z")] for part in pattern.split("*"))
    return re.compile("(.*)".join(parts), re.DOTALL)


def _by_dimension(rules: Mapping[int, Rule]) -> Rule:
    def rule(name: str, largest: Shape, wanted: Shape, choices: Mapping[str, Value]) -> tuple[Index, ...]:
        if outside := [dim for dim in rules if not -len(largest) <= dim < len(largest)]:
            raise ValueError(f"the layout names dimension {outside[0]}, but {name!r} has the shape {largest}")
        of_dim = {dim % len(largest): own for dim, own in rules.items()}
        found: list[Index] = []
        for dim, (whole, part) in enumerate(zip(largest, wanted, strict=True)):
            own = of_dim.get(dim, prefix)
            found.append(
                own.along(whole, part) if isinstance(own, SliceRule) else own(name, (whole,), (part,), choices)[0]
            )
        return tuple(found)

    return rule


def is_whole(index: Index, size: int) -> bool:
    """Return whether an index picks every element of a dimension in order."""
    if isinstance(index, Stack):
        return size % index.count == 0 and is_whole(index.inner, size // index.count)
    if isinstance(index, slice):
        return index.indices(size) == (0, size, 1)
    return torch.equal(index, torch.arange(size))


def take(tensor: Tensor, indices: Sequence[Index | None]) -> Tensor:
    """Return the elements of a tensor at one index per dimension (None: all); a view where all indices are slices."""
    slices = tuple(index if isinstance(index, slice) else slice(None) for index in indices)
    taken = tensor[slices]
    for dim, index in enumerate(indices):
        if isinstance(index, Stack | Tensor):
            taken = _along(taken, dim, index)
    return taken


def _along(tensor: Tensor, dim: int, index: Index) -> Tensor:
    match index:
        case slice():
            start, stop, _ = index.indices(tensor.shape[dim])
            return tensor.narrow(dim, start, stop - start)
        case Stack():
            parts = torch.unflatten(tensor, dim, (index.count, tensor.shape[dim] // index.count))
            return _along(parts, dim + 1, index.inner).flatten(dim, dim + 1)
        case _:
            return tensor.index_select(dim, _on(tensor.device, index))


_moved: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Copies of indices on other devices, by index."""


def _on(device: torch.device, index: Tensor) -> Tensor:
    if index.device == device:
        return index
    if index not in _moved:
        _moved[index] = {}
    copies: dict[torch.device, Tensor] = _moved[index]
    if device not in copies:
        with torch.inference_mode(False):  # a backward pass could not keep it otherwise
            copies[device] = to_device(index, device)
    return copies[device]


def put(tensor: Tensor, indices: Sequence[Index | None], values: Tensor) -> None:
    """Write values into the elements of a tensor at one index per dimension, in place."""
    if any(isinstance(index, Stack | Tensor) for index in indices):
        positions = take(torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape), indices)
        tensor.view(-1)[positions.flatten()] = values.to(tensor).flatten()
    else:
        take(tensor, indices).copy_(values)
