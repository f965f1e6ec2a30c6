"""Nested JSON values as one level of dotted names: what they hold, and where two of them differ."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

ABSENT = "(absent)"


def flattened(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings by their dotted names; an empty mapping is a value."""
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Return the values that differ by their dotted names, `ABSENT` for one that is on one side alone."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return {} if same_json(old, new) else {"": (old, new)}
    before, after = dict(flattened(old)), dict(flattened(new))
    both = {name: (before.get(name, ABSENT), after.get(name, ABSENT)) for name in (*before, *after)}
    return {name: pair for name, pair in both.items() if not same_json(*pair)}


def same_json(old: Any, new: Any) -> bool:
    """Return whether two values are the same JSON: 1, 1.0 and true are three."""
    return _text(old) == _text(new)


def short_json(value: Any, length: int = 80) -> str:
    """Return a value as JSON, cut where it is longer than `length`."""
    text = value if value is ABSENT else _text(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
