"""Ordering the weights of a supernet so that slices hold the most important heads, neurons and channels.

A network trained as a whole has them in any order, so its prefixes are arbitrary. Permuted by importance, its outputs
are the same, and its slices are better starting points.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

import torch
from torch import Tensor, nn

from nasx.arch import Arch
from nasx.nn.supernet import Supernet
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
    all, as channels need that a residual stream carries through the network.
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


def order_by_importance(
    supernet: Supernet,
    batches: Iterable[Any] | None = None,
    *,
    groups: Sequence[Units],
    arch: Arch | None = None,
) -> None:
    """Permute a supernet's weights in place so that the first units of all `groups` are the most important ones.

    Without `batches` importance is magnitude: the norm of a unit's weights in all tensors of its group. With them it is
    what a unit contributes to the layers that read it, on inputs such as (images, labels) or images alone: the mean
    square of each input times the squared norm of its weights, in the network of `arch`, by default the largest one.

    The largest network computes the same before and after, to rounding. With `batches` that is checked on the first: a
    group that leaves out a tensor is a ValueError, and the weights are as before. So is a pattern that matches nothing,
    or a dimension that does not divide into units.
    """
    state = supernet.state_dict()
    permuted = [found for group in groups for found in _instances(group, state)]
    if batches is None:
        for members, width in permuted:
            _permute(state, members, width, _magnitudes(state, members, width))
        return
    arch = _largest(supernet) if arch is None else arch
    inputs = [batch[0] if isinstance(batch, tuple | list) else batch for batch in batches]
    if not inputs:
        raise ValueError("there are no batches to measure importance on")
    squares = _input_squares(supernet.extract(arch), inputs)
    before = {name: tensor.clone() for name, tensor in state.items()}
    expected = _outputs(supernet, arch, inputs[0])
    for members, width in permuted:
        _permute(state, members, width, _contributions(state, members, width, squares))
    difference = float((_outputs(supernet, arch, inputs[0]) - expected).abs().max())
    if difference > 1e-3 * max(1.0, float(expected.abs().max())):
        supernet.load_state_dict(before)
        raise ValueError(
            f"the groups change what the network computes (by {difference:.3g}), so they leave out a tensor that their "
            "units lie in; name every one of them"
        )


_Instance = tuple[dict[str, Member], int]
"""The tensors of one permutation, and the elements of a unit."""


def _instances(group: Units, state: Mapping[str, Tensor]) -> list[_Instance]:
    found: dict[tuple[str, ...], dict[str, Member]] = {}
    for pattern, place in group.members.items():
        member = Member(place) if isinstance(place, int) else place
        expression = re.compile(_capturing(pattern))
        matched = False
        for name, tensor in state.items():
            caught = _match(expression, name)
            if caught is None or member.dim >= max(1, tensor.ndim):
                continue
            matched = True
            if tensor.ndim:
                found.setdefault(() if group.together else caught, {})[name] = member
        if not matched:
            raise ValueError(f"the pattern {pattern!r} of a group matches no tensor of the supernet")
    for members in found.values():
        units = {name: _units(name, state[name], member, group.width) for name, member in members.items()}
        if len(set(units.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in units.items())
            raise ValueError(f"the tensors of a group hold different numbers of units: {counts}")
    return [(members, group.width) for members in found.values()]


def _capturing(pattern: str) -> str:
    return translate(pattern).replace(".*", "(.*)")


def _match(expression: re.Pattern[str], name: str) -> tuple[str, ...] | None:
    segments = name.partition("@")[0].split(".")
    for end in range(len(segments), 0, -1):
        if match := expression.fullmatch(".".join(segments[:end])):
            return match.groups()
    return None


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


def _magnitudes(state: Mapping[str, Tensor], members: Mapping[str, Member], width: int) -> Tensor:
    floating = {name: member for name, member in members.items() if state[name].is_floating_point()}
    return sum(
        (_by_unit(state[name].double(), member, width).square().sum(dim=1) for name, member in floating.items()),
        start=torch.zeros(()),
    )


def _contributions(
    state: Mapping[str, Tensor], members: Mapping[str, Member], width: int, squares: Mapping[str, Tensor]
) -> Tensor:
    total = torch.zeros(())
    for name, member in members.items():
        module = name.rpartition(".")[0]
        if member.dim == 1 and state[name].ndim > 1 and module in squares:
            weights = state[name].double().square()
            weighted = weights * squares[module].view(1, -1, *(1,) * (weights.ndim - 2))
            total = total + _by_unit(weighted, member, width).sum(dim=1)
    if not total.ndim:  # no layer that reads the units ran
        return _magnitudes(state, members, width)
    return total


@torch.no_grad()
def _permute(state: Mapping[str, Tensor], members: Mapping[str, Member], width: int, importance: Tensor) -> None:
    order = torch.argsort(importance, descending=True, stable=True)
    done: set[int] = set()
    for name, member in members.items():
        tensor = state[name]
        if tensor.data_ptr() in done:  # tied to another name
            continue
        done.add(tensor.data_ptr())
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
def _outputs(supernet: Supernet, arch: Arch, inputs: Any) -> Tensor:
    with evaluating(supernet):
        outputs = supernet(inputs.to(device_of(supernet)), arch)
    return outputs.logits if hasattr(outputs, "logits") else outputs


@torch.no_grad()
def _input_squares(network: nn.Module, inputs: Sequence[Any]) -> dict[str, Tensor]:
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
        for batch in inputs:
            network(batch.to(device_of(network)))
    return {name: total / counts[name] for name, total in sums.items()}
