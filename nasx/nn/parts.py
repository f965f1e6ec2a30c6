"""Which module list of a network holds the repeated parts of its architecture."""

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from torch import nn

from nasx.space import Choice, Repeat, Space

Parts: TypeAlias = Mapping[str, str]
"""Module lists by the name of a repeat: `{"block": "encoder.layer"}`."""


def module_lists(network: nn.Module, space: Space, given: Parts) -> dict[str, str]:
    """Return the module list of every repeat of a space that has one.

    A repeat named `block` is the module list `block` or `blocks`, unless `given` says otherwise. A ValueError names an
    entry of `given` that is no repeat or no module list.
    """
    repeats = list(dict.fromkeys(repeat_names(space)))
    for name, path in given.items():
        if name not in repeats:
            known = f"its repeats are {', '.join(repeats)}" if repeats else "it has none"
            raise ValueError(f"`parts` names {name!r}, which is no repeat of the space; {known}")
        if not _is_list(network, path):
            raise ValueError(f"`parts` says that {name!r} is the module list {path!r}, but the network has none there")
    found = dict(given)
    for name in repeats:
        if name not in found:
            found.update((name, path) for path in (name, f"{name}s") if _is_list(network, path))
    return found


def repeat_names(space: Space, prefix: str = "") -> Iterator[str]:
    """Yield the names of a space's repeats, those of different branches included."""
    for key, node in space.nodes.items():
        match node:
            case Repeat():
                yield prefix + key
            case Space():
                yield from repeat_names(node, f"{prefix}{key}.")
            case Choice():
                for _, inner in node.options:
                    yield from repeat_names(inner, prefix)


def _is_list(network: nn.Module, path: str) -> bool:
    try:
        return isinstance(network.get_submodule(path), nn.ModuleList | nn.Sequential)
    except AttributeError:
        return False
