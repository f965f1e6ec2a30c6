"""Architectures: immutable, hashable, ordered mappings from dotted names to plain values."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nasx._numbers import plain_scalar

Value = bool | int | float | str
"""What a choice can be: a JSON scalar. Numbers compare by value, so 4 equals 4.0."""


def check_value(value: Any) -> Value:
    """Return a choice's value as a plain Python scalar; anything else, NaN or infinity is refused."""
    value = plain_scalar(value)
    if not isinstance(value, Value):
        raise TypeError(
            f"a choice must be a bool, int, float or str, but got {value!r}; an architecture has one such value for "
            "each name"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a choice must be finite, but got {value!r}")
    return value


def matches(pattern: str, name: str) -> bool:
    """Whether a dotted name fits a pattern in which `*` stands for exactly one segment."""
    wanted, found = pattern.split("."), name.split(".")
    return len(wanted) == len(found) and all(w in ("*", f) for w, f in zip(wanted, found, strict=True))


def pattern_of(name: str) -> str:
    """Return a dotted name with `*` for the numbers of parts, the pattern of its likes in all parts."""
    return ".".join("*" if segment.isdigit() else segment for segment in name.split("."))


def split_name(name: str) -> tuple[str, int, str] | None:
    """Return the repeated part that a dotted name belongs to, its number, and the name inside; None outside of parts.

    The first segment that is a number marks the part: `block.3.mlp_ratio` gives ("block", 3, "mlp_ratio").
    """
    segments = name.split(".")
    at = next((i for i, segment in enumerate(segments) if segment.isdigit()), None)
    return None if at is None else (".".join(segments[:at]), int(segments[at]), ".".join(segments[at + 1 :]))


class MissingEntry(KeyError, ValueError):
    """The architecture `arch` was asked for the entry `name`, which it lacks: it is of another space."""

    def __init__(self, name: str, arch: "Arch") -> None:
        super().__init__(name)
        self.name, self.arch = name, arch

    def __str__(self) -> str:
        names = ", ".join(list(self.arch)[:5]) + (", ..." if len(self.arch) > 5 else "")
        return f"the architecture has no entry {self.name!r}, only {names or 'none'}; is it of another space?"


class Arch(Mapping[str, Value]):
    """One architecture: every choice that its network needs, by dotted name.

    Equality and hash ignore the order of the entries; iteration and JSON keep it. Architectures that a space
    hands out carry the space's own order, which makes their JSON canonical.
    """

    __slots__ = ("_entries", "_fragments", "_hash")
    _entries: dict[str, Value] | None
    _fragments: tuple[Mapping[str, Value], ...]
    _hash: int | None

    def __init__(self, entries: Mapping[str, Value] = {}) -> None:
        checked = {}
        for name, value in entries.items():
            if not isinstance(name, str) or not all(name.split(".")):
                raise ValueError(f"an entry's name must be non-empty segments joined by dots, but got {name!r}")
            checked[name] = check_value(value)
        self._set(checked, ())

    def _set(self, entries: dict[str, Value] | None, fragments: tuple[Mapping[str, Value], ...]) -> None:
        self._entries, self._fragments, self._hash = entries, fragments, None

    @classmethod
    def joined(cls, *fragments: Mapping[str, Value]) -> "Arch":
        """Return the union of checked, disjoint fragments, merged only when it is first read.

        Samplers return a hundred thousand architectures, and few of them are read.
        """
        arch = cls.__new__(cls)
        arch._set(None, fragments)
        return arch

    @property
    def _items(self) -> dict[str, Value]:
        if self._entries is None:
            merged: dict[str, Value] = {}
            for fragment in self._fragments:
                merged.update(fragment)
            self._entries, self._fragments = merged, ()
        return self._entries

    def __getitem__(self, name: str) -> Value:
        try:
            return self._items[name]
        except KeyError:
            raise MissingEntry(name, self) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Arch):
            return self._items == other._items
        return NotImplemented

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._items.items()))
        return self._hash

    def __reduce__(self) -> tuple[type["Arch"], tuple[dict[str, Value]]]:
        return Arch, (self._items,)

    def __repr__(self) -> str:
        return f"Arch({self._items!r})"

    def only(self, *patterns: str) -> "Arch":
        """Return the entries whose names fit one of the patterns (`*` is one segment), in order."""
        return Arch.joined({n: v for n, v in self.items() if any(matches(p, n) for p in patterns)})

    def at(self, prefix: str) -> "Arch":
        """Return the entries below a prefix with the prefix stripped: `at("block.0")["mlp_ratio"]`."""
        start = len(prefix) + 1
        return Arch.joined({n[start:]: v for n, v in self.items() if n.startswith(prefix + ".")})

    def parts(self, name: str, count: int | None = None) -> list["Arch"]:
        """Return the repeated parts `name.0`, `name.1`, ... in order, each with its prefix stripped.

        A ValueError says that a number is missing before the last one, or that they are not as many as `count`, where
        it is given.
        """
        found: dict[int, dict[str, Value]] = {}
        start = len(name) + 1
        for full, value in self.items():
            if full.startswith(name + "."):
                index, _, rest = full[start:].partition(".")
                if index.isdigit() and rest:
                    found.setdefault(int(index), {})[rest] = value
        if count is not None and sorted(found) != list(range(count)):
            wanted = {0: f"no part {name}.0", 1: f"the part {name}.0 alone"}.get(
                count, f"the {count} parts {name}.0 to {name}.{count - 1}"
            )
            raise ValueError(
                f"the architecture must have {wanted}, but has those with the "
                f"numbers {', '.join(map(str, sorted(found))) or 'none'}; it is of another space"
            )
        if found and max(found) >= len(found):
            missing = next(i for i in range(len(found)) if i not in found)
            raise ValueError(
                f"the architecture has the part {name}.{max(found)}, but no {name}.{missing}; number parts from 0 "
                "without gaps"
            )
        return [Arch.joined(found[i]) for i in sorted(found)]

    @classmethod
    def from_parts(cls, name: str, parts: Iterable[Mapping[str, Value]], shared: Mapping[str, Value] = {}) -> "Arch":
        """Return the architecture of shared entries and the repeated parts `name.0`, `name.1`, ...; undoes `parts`."""
        return cls({**shared, **{f"{name}.{i}.{key}": v for i, part in enumerate(parts) for key, v in part.items()}})

    def to_json(self) -> str:
        """Return one JSON object, an entry a line, in this architecture's order."""
        return json.dumps(self._items, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Arch":
        """Read what `to_json` wrote; a ValueError says what else was found."""
        entries = json.loads(text)
        if not isinstance(entries, dict):
            raise ValueError(f"an architecture is a JSON object of names and values, but got {type(entries).__name__}")
        try:
            return cls(entries)
        except TypeError as error:
            raise ValueError(str(error)) from None


def split(arch: Mapping[str, Value]) -> tuple[Arch, dict[tuple[str, int], Arch]]:
    """Return an architecture's shared entries, and the entries of each repeated part by (name, index).

    The first segment that is a number marks a part: `block.3.mlp_ratio` belongs to ("block", 3) as `mlp_ratio`.
    """
    shared: dict[str, Value] = {}
    parts: dict[tuple[str, int], dict[str, Value]] = {}
    for full, value in arch.items():
        if found := split_name(full):
            name, index, inner = found
            parts.setdefault((name, index), {})[inner] = value
        else:
            shared[full] = value
    return Arch.joined(shared), {key: Arch.joined(choices) for key, choices in parts.items()}
