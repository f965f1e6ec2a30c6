"""Ordering the weights of a supernet so that slices hold the most important heads, neurons and channels.

A network trained as a whole has them in any order, so its prefixes are arbitrary. Permuted by importance, its outputs
are the same, and its slices are better starting points.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nasx.arch import Arch
from nasx.nn.layout import captured
from nasx.nn.naming import plain_name
from nasx.nn.supernet import Supernet
from nasx.train.batch import Unpack, Unpacked, move, unpack
from nasx.train.device import device_of
from nasx.train.modes import evaluating


@dataclass(frozen=True)
class Member:
    """Where a group's units lie in a tensor."""

    dim: int
    """The dimension along which they lie, counted from 0."""

    stacks: int = 1
    """Parts that are stacked along that dimension, each of which holds every unit: 3 for packed q, k and v."""


@dataclass(frozen=True)
class Units:
    """Units that may change places, such as the hidden neurons of a layer, and every tensor that they lie in.

    `members` maps patterns of parameter or module names to the dimension along which the units lie. `width` elements in
    a row make one unit: 1 for neurons, a head's width for heads. What the stars of a pattern match is the same in all
    tensors of one permutation, so `blocks.*` gives every block a permutation of its own; `together` makes it one for
    all, as channels need that a residual stream carries through the network. A tensor that several patterns match holds
    the units along all of their dimensions, as the weights of a square layer inside a residual stream do.
    """

    members: Mapping[str, int | Member]
    width: int = 1
    together: bool = False


def neurons(first: str, second: str) -> Units:
    """Return the group of the hidden neurons between two layers: rows of the first, columns of the second."""
    return Units({first: 0, f"{second}.weight": 1})


def heads(qkv: str, proj: str, width: int) -> Units:
    """Return the group of attention heads of a width.

    They lie in the rows of the layer `qkv`, once each in its queries, keys and values, and in the columns of the layer
    `proj`. Both may be patterns, such as `blocks.*.attn.qkv`.
    """
    return Units({qkv: Member(0, stacks=3), f"{proj}.weight": 1}, width)


def _inputs(batch: Any) -> Unpacked:
    """Take apart a batch as `nasx.train.unpack` does, or inputs alone."""
    if isinstance(batch, Tensor):
        return Unpacked((batch,), {}, None)
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return Unpacked(tuple(batch), {}, None)
    return unpack(batch)


def order_by_importance(
    supernet: Supernet,
    batches: Iterable[Any] | None = None,
    *,
    groups: Sequence[Units] | Units,
    arch: Arch | None = None,
    unpack: Unpack = _inputs,
) -> None:
    """Permute a supernet's weights in place so that the first units of all `groups`, or of one, are the most important.

    Without `batches` importance is magnitude: the norm of a unit's weights in all tensors of its group. With them it is
    what a unit contributes to the layers that read it: the mean square of each input times the squared norm of its
    weights, in the network of `arch`, by default the largest one. `unpack` takes a batch apart into what the network is
    called with and the targets, which are not used; without one, inputs alone are batches too.

    The largest network computes the same before and after, to rounding. With `batches` that is checked on the first: a
    group that leaves out a tensor is a ValueError, and the weights are as before. So is a pattern that matches nothing,
    a dimension that does not divide into units, or an `arch` whose network has only some of a group's units.
    """
    state = supernet.state_dict()
    several = [groups] if isinstance(groups, Units) else groups
    permuted = [found for group in several for found in _instances(group, state)]
    if batches is None:
        for members, width in permuted:
            _permute(state, members, width, _magnitudes(state, members, width))
        return
    arch = _largest(supernet) if arch is None else arch
    calls = [unpack(batch) for batch in batches]
    if not calls:
        raise ValueError("there are no batches to measure importance on")
    network = supernet.extract(arch)
    _refuse_partial(supernet, network, arch, permuted)
    squares = _input_squares(network, calls)
    before = {name: tensor.clone() for name, tensor in state.items()}
    expected = _outputs(supernet, arch, calls[0])
    try:
        for members, width in permuted:
            _permute(state, members, width, _contributions(state, members, width, squares))
        difference = max(map(_difference, expected, _outputs(supernet, arch, calls[0])))
        if not difference <= 1e-3:
            raise ValueError(
                f"the groups change what the network computes (by {difference:.3g}), so they leave out a tensor that "
                "their units lie in; name every one of them"
            )
    except BaseException:
        supernet.load_state_dict(before)
        raise


_Members = Mapping[str, Sequence[Member]]
"""The tensors of one permutation, with the dimensions along which its units lie."""

_Instance = tuple[_Members, int]
"""The tensors of one permutation, and the elements of a unit."""


def _instances(group: Units, state: Mapping[str, Tensor]) -> list[_Instance]:
    found: dict[tuple[str, ...], dict[str, list[Member]]] = {}
    for pattern, place in group.members.items():
        member = Member(place) if isinstance(place, int) else place
        matched = False
        for name, tensor in state.items():
            caught = captured(pattern, plain_name(name))
            if caught is None or member.dim >= max(1, tensor.ndim):
                continue
            matched = True
            if tensor.ndim:
                _add(found.setdefault(() if group.together else caught, {}).setdefault(name, []), name, member)
        if not matched:
            raise ValueError(f"the pattern {pattern!r} of a group matches no tensor of the supernet")
    for members in found.values():
        units = [(name, _units(name, state[name], member, group.width)) for name, member in _pairs(members)]
        if len({count for _, count in units}) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in units)
            raise ValueError(f"the tensors of a group hold different numbers of units: {counts}")
    return [(members, group.width) for members in found.values()]


def _add(members: list[Member], name: str, member: Member) -> None:
    other = next((other for other in members if other.dim == member.dim), None)
    if other is None:
        members.append(member)
    elif other != member:
        raise ValueError(
            f"a group has {name!r} along dimension {member.dim} in {other.stacks} and in {member.stacks} stack(s); let "
            "only one of its patterns match this tensor"
        )


def _pairs(members: _Members) -> Iterator[tuple[str, Member]]:
    return ((name, member) for name, of_tensor in members.items() for member in of_tensor)


def _refuse_partial(supernet: Supernet, network: nn.Module, arch: Arch, permuted: Sequence[_Instance]) -> None:
    shapes = {slot.key: (slot.holder[slot.leaf].shape, slot.whole.shape) for slot in supernet._slots(network, arch)}
    for members, _ in permuted:
        for name, member in _pairs(members):
            own, whole = (shape[member.dim] for shape in shapes[name]) if name in shapes else (0, 0)
            if own < whole:
                raise ValueError(
                    f"the network of `arch` has {own} of the {whole} elements of {name!r} along dimension "
                    f"{member.dim}, so it shows nothing of some units; give an architecture that has all of them, such "
                    "as the largest one"
                )


def _units(name: str, tensor: Tensor, member: Member, width: int) -> int:
    size = tensor.shape[member.dim]
    if size % (member.stacks * width):
        raise ValueError(
            f"{name!r} has {size} elements along dimension {member.dim}, which are no {member.stacks} stack(s) of "
            f"units of {width}"
        )
    return size // (member.stacks * width)


def _by_unit(tensor: Tensor, member: Member, width: int) -> Tensor:
    """Return a tensor as (units, everything else)."""
    parts = torch.unflatten(tensor, member.dim, (member.stacks, -1, width))
    return parts.movedim(member.dim + 1, 0).flatten(1)


def _magnitudes(state: Mapping[str, Tensor], members: _Members, width: int) -> Tensor:
    floating = [(name, member) for name, member in _pairs(members) if state[name].is_floating_point()]
    return sum(
        (_by_unit(state[name].double(), member, width).square().sum(dim=1) for name, member in floating),
        start=torch.zeros(()),
    )


def _contributions(state: Mapping[str, Tensor], members: _Members, width: int, squares: Mapping[str, Tensor]) -> Tensor:
    total = torch.zeros(())
    for name, member in _pairs(members):
        module = name.rpartition(".")[0]
        if member.dim == 1 and state[name].ndim > 1 and module in squares:
            weights = state[name].double().square()
            weighted = weights * squares[module].view(1, -1, *(1,) * (weights.ndim - 2))
            total = total + _by_unit(weighted, member, width).sum(dim=1)
    if not total.ndim:  # no layer that reads the units ran
        return _magnitudes(state, members, width)
    return total


@torch.no_grad()
def _permute(state: Mapping[str, Tensor], members: _Members, width: int, importance: Tensor) -> None:
    order = torch.argsort(importance, descending=True, stable=True)
    done: set[tuple[int, int]] = set()
    for name, member in _pairs(members):
        tensor = state[name]
        place = tensor.data_ptr(), member.dim
        if place in done:  # tied to another name
            continue
        done.add(place)
        parts = torch.unflatten(tensor, member.dim, (member.stacks, -1, width))
        reordered = parts.index_select(member.dim + 1, order.to(tensor.device))
        tensor.copy_(reordered.flatten(member.dim, member.dim + 2))


def _largest(supernet: Supernet) -> Arch:
    if supernet.largest is None:
        raise ValueError(
            "no network of the space has every tensor at its largest size; say with `arch` which one to measure on, or "
            "order by magnitude, without batches"
        )
    return supernet.largest


@torch.no_grad()
def _outputs(supernet: Supernet, arch: Arch, call: Unpacked) -> list[Tensor]:
    args, kwargs = move((call.args, call.kwargs), device_of(supernet))
    with evaluating(supernet):
        outputs = supernet(*args, arch=arch, **kwargs)
    outputs = getattr(outputs, "logits", outputs)
    found = [value for value in tree_leaves(outputs) if isinstance(value, Tensor)]
    if not found:
        raise TypeError(f"the networks return no tensor that could be compared, but {type(outputs).__name__}")
    return found


def _difference(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference, relative to the largest finite value or to 1; infinities must be the same."""
    finite = expected.isfinite() & found.isfinite()
    if not torch.equal(expected[~finite], found[~finite]):
        return math.inf
    difference, largest = ((x[finite].abs().max() if finite.any() else 0.0) for x in (found - expected, expected))
    return float(difference) / max(1.0, float(largest))


@torch.no_grad()
def _input_squares(network: nn.Module, calls: Sequence[Unpacked]) -> dict[str, Tensor]:
    """Return the mean square of every input channel of every linear layer and convolution, by its name."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def record(name: str, dim: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].double().movedim(dim, -1).flatten(0, -2)
            sums[name] = sums.get(name, 0) + x.square().sum(dim=0)
            counts[name] = counts.get(name, 0) + len(x)

        return hook

    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(record(name, -1))
        elif isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1:
            module.register_forward_pre_hook(record(name, 1))
    with evaluating(network):
        for call in calls:
            args, kwargs = move((call.args, call.kwargs), device_of(network))
            network(*args, **kwargs)
    return {name: total / counts[name] for name, total in sums.items()}
