"""Short names of architectures for legends and tables: what tells them apart, and nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from nasx.arch import pattern_of
from nasx.report.formats import ABSENT

LONGEST = 44
"""Characters of a short name."""


def value_text(value: Any) -> str:
    """Return an option as people write it: 4.0 is "4"."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def short_labels(archs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a short, unique name for each architecture: its values of the choices in which any two differ.

    Values of repeated parts stand in their order, joined by "·", or once where all parts have the same.
    """
    names = list(dict.fromkeys(name for arch in archs for name in arch))
    different = [name for name in names if len({value_text(arch.get(name, ABSENT)) for arch in archs}) > 1]
    shown = dict.fromkeys(pattern_of(name) for name in different or names)
    members = {pattern: [name for name in names if pattern_of(name) == pattern] for pattern in shown}
    keys = _keys(list(members))
    found: dict[str, int] = {}
    labels = []
    for arch in archs:
        words = []
        for pattern, own in members.items():
            values = [value_text(arch[name]) if name in arch else ABSENT for name in own]
            if any(value != ABSENT for value in values):
                words.append(f"{keys[pattern]} {values[0] if len(set(values)) == 1 else '·'.join(values)}")
        label = ", ".join(words) or "network"
        label = label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"
        found[label] = found.get(label, 0) + 1
        labels.append(label if found[label] == 1 else f"{label} ({found[label]})")
    return labels


def full_text(arch: Mapping[str, Any]) -> str:
    """Return all values of an architecture, those of repeated parts together."""
    members: dict[str, list[str]] = {}
    for name, value in arch.items():
        members.setdefault(pattern_of(name), []).append(value_text(value))
    return ", ".join(f"{pattern} {'·'.join(values)}" for pattern, values in members.items())


def _keys(patterns: Sequence[str]) -> dict[str, str]:
    """Return the last word of each pattern, or more of it where two end alike."""
    found = {}
    for pattern in patterns:
        words = [word for word in pattern.split(".") if word != "*"] or [pattern]
        alike = [other for other in patterns if other != pattern and other.split(".")[-1] == words[-1]]
        found[pattern] = ".".join(words) if alike else words[-1]
    return found
