"""Checks of arguments that several modules take, and their spelling."""

import operator
from collections.abc import Mapping
from typing import Any

from nasx.arch import Arch, Value
from nasx.space import Space


def check_archs(space: object, call: str) -> None:
    """Refuse what is no set of architectures with a TypeError that says how a function is called, `call`."""
    if not isinstance(getattr(space, "space", None), Space):
        raise TypeError(f"`space` must be a Space or a part of one, but got {space!r}; write {call}")


def check_space(space: object, call: str) -> None:
    """Refuse a part of a space, too: what needs all of its choices takes the whole."""
    check_archs(space, call)
    if not isinstance(space, Space):
        raise TypeError(f"`space` must be a whole Space, but got {space!r}; pass its `.space`: {call}")


def whole_number(name: str, value: Any) -> int:
    """Return an integer of any kind, such as numpy's, as Python's; a ValueError says that the argument is none."""
    try:
        return int(operator.index(value))
    except TypeError:
        raise ValueError(f"`{name}` must be a whole number, but got {value!r}") from None


def checked_seed(seed: Any) -> int:
    """Return the seed of numpy generators as Python's int; a ValueError refuses what is none and negative ones."""
    found = whole_number("seed", seed)
    if found < 0:
        raise ValueError(f"a seed must not be negative, but got {found}")
    return found


def canonical_in(space: Space, arch: Mapping[str, Value]) -> Arch:
    """Return an architecture in a space's order and number types, and one of another space as it is.

    Equal architectures may be written with other types, such as 4.0 for 4 or 1 for True, which a builder or a cost need
    not take for the same.
    """
    try:
        return space.canonical(arch)
    except ValueError:
        return arch if isinstance(arch, Arch) else Arch(arch)
