"""Counted costs of a space's networks: a table that adds up over repeated parts, or a cache of whole networks."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nasx.arch import Arch, Value
from nasx.cost import AdditiveCost
from nasx.run.files import write_json

_FORMAT = 1

Place = tuple[str, int, Arch]
"""A part's name, its number (0 where that does not matter), and the shared choices that matter to it."""

PartKey = tuple[str, int, Arch, Arch]
"""A part's place and its own choices."""


@dataclass(frozen=True)
class CountedCost(AdditiveCost):
    """A cost as a table: what stands around the repeated parts, and every part that the space has.

    `counted` makes one. An architecture of another space is a ValueError.
    """

    fixed_counts: Mapping[Arch, int] = field(repr=False)
    """The cost outside the repeated parts, by the shared choices."""

    part_counts: Mapping[PartKey, int] = field(repr=False)
    """The cost of a repeated part, by its name, its number, the shared choices and its own."""

    by_index: bool = False
    """Whether parts of equal choices cost different amounts at different places."""
    own_counts: frozenset[str] = field(default=frozenset(), repr=False)
    """Counts, by their full names, that matter to the parts of their own repeat alone."""
    unit: str = ""
    """What is counted, in words, such as `MACs`."""

    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the cost outside the repeated parts."""
        return _found(self.fixed_counts, Arch(shared), shared)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the cost of one part."""
        key = *self.place(name, index, shared), Arch(choices)
        return _found(self.part_counts, key, {**shared, **choices})

    def place(self, name: str, index: int, shared: Mapping[str, Value]) -> Place:
        """Return what the cost of a part goes by beside its own choices, as in `part_counts`."""
        others = self.own_counts - {f"{name}.count"}
        seen = {entry: value for entry, value in shared.items() if entry not in others}
        return name, index if self.by_index else 0, Arch(seen)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON; `load` reads it."""
        fixed = [{"shared": dict(shared), "count": count} for shared, count in self.fixed_counts.items()]
        parts = [
            {"name": name, "index": index, "shared": dict(shared), "choices": dict(choices), "count": count}
            for (name, index, shared, choices), count in self.part_counts.items()
        ]
        settings = {"unit": self.unit, "by_index": self.by_index, "own_counts": sorted(self.own_counts)}
        write_json(path, {"counted": _FORMAT, **settings, "fixed": fixed, "parts": parts})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CountedCost":
        """Read what `save` wrote; a ValueError says what else was found."""
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.get("counted") != _FORMAT:
            raise ValueError(f"{os.fspath(path)} holds no counted cost of format {_FORMAT}")
        try:
            return cls(
                {Arch(row["shared"]): int(row["count"]) for row in document["fixed"]},
                {
                    (row["name"], int(row["index"]), Arch(row["shared"]), Arch(row["choices"])): int(row["count"])
                    for row in document["parts"]
                },
                bool(document["by_index"]),
                frozenset(map(str, document["own_counts"])),
                str(document["unit"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)} holds no counted cost: {error!r}") from error


@dataclass(frozen=True)
class CachedCost:
    """A cost that is counted for each architecture that is asked for, once; it can filter, but not count a space."""

    unit: str
    """What is counted, in words, such as `bytes`."""

    count: Callable[[Arch], int] = field(repr=False)
    """Returns an architecture's cost."""

    known: dict[Arch, int] = field(default_factory=dict, repr=False, compare=False)
    """The costs counted so far."""

    def __call__(self, arch: Arch) -> int:
        """Return the architecture's cost."""
        if arch not in self.known:
            self.known[arch] = self.count(arch)
        return self.known[arch]


def _found(counts: Mapping[Any, int], key: Any, choices: Mapping[str, Value]) -> int:
    if key not in counts:
        raise ValueError(f"no network of the counted space has {dict(choices)}; count its own space")
    return counts[key]
