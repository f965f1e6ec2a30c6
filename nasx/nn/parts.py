"""Which module list of a network holds the repeated parts of its architecture."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import TypeAlias

from torch import nn

from nasx.arch import Arch, Value
from nasx.nn.skeleton import Make, build_skeleton
from nasx.space import Choice, Repeat, Space

Parts: TypeAlias = Mapping[str, str]
"""Module lists by the name of a repeat: `{"block": "encoder.layer"}`."""


def module_lists(make: Make, space: Space, given: Parts) -> dict[str, str]:
    """Return the module list of every repeat of a space that has one, seen in networks that have parts of it.

    A repeat named `block` is the module list `block` or `blocks`, unless `given` says otherwise. A ValueError names an
    entry of `given` that is no repeat or no module list.
    """
    repeats = list(dict.fromkeys(repeat_names(space)))
    for name in given:
        if name not in repeats:
            known = f"its repeats are {', '.join(repeats)}" if repeats else "it has none"
            raise ValueError(f"`parts` names {name!r}, which is no repeat of the space; {known}")
    built = cache(lambda arch: build_skeleton(make, arch))
    found: dict[str, str] = {}
    for name, arch in _with_parts(space):
        if name not in found:
            paths = (given[name],) if name in given else (name, f"{name}s")
            found.update((name, path) for path in paths if _is_list(built(arch), path))
    for name, path in given.items():
        if name not in found:
            raise ValueError(f"`parts` says that {name!r} is the module list {path!r}, but the network has none there")
    return found


def every_module_list(make: Make, space: Space, given: Parts, done: str, otherwise: str = "") -> dict[str, str]:
    """Return the module lists of all repeats; a ValueError says what cannot be `done` to the parts of one without."""
    lists = module_lists(make, space, given)
    if missing := [name for name in repeat_names(space) if name not in lists]:
        raise ValueError(
            f"the repeat {missing[0]!r} is no module list of the network, so its parts cannot be {done}; say which "
            f"it is, such as parts={{{missing[0]!r}: 'encoder.layer'}}{otherwise}"
        )
    return lists


def repeat_names(space: Space) -> Iterator[str]:
    """Yield the names of a space's repeats, those of different branches included."""
    return (name for name, _ in _repeats(space, "", {}))


def _with_parts(space: Space) -> Iterator[tuple[str, Arch]]:
    """Yield repeats with an architecture that has parts of them; one comes again in each branch that has it."""
    for name, pins in _repeats(space, "", {}):
        yield name, space.pin(pins)[0]


def _repeats(space: Space, prefix: str, pins: Mapping[str, Value]) -> Iterator[tuple[str, Mapping[str, Value]]]:
    """Yield the names of repeats with the choices that an architecture must have for parts of them."""
    for key, node in space.nodes.items():
        match node:
            case Repeat():
                some = {} if node.counts[0] else {f"{prefix}{key}.count": max(node.counts)}
                yield prefix + key, {**pins, **some}
            case Space():
                yield from _repeats(node, f"{prefix}{key}.", pins)
            case Choice():
                for value, inner in node.options:
                    yield from _repeats(inner, prefix, {**pins, f"{prefix}{key}": value})


def _is_list(network: nn.Module, path: str) -> bool:
    try:
        return isinstance(network.get_submodule(path), nn.ModuleList | nn.Sequential)
    except AttributeError:
        return False
