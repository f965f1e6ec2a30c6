"""Numbers of any library as Python's."""

import math
import operator
from collections.abc import Mapping
from numbers import Real
from typing import Any, SupportsFloat

import numpy as np

_NARROW = {"float32": np.float32, "float16": np.float16}


def plain_scalar(value: Any) -> Any:
    """Return a scalar of numpy or torch as Python's, and any other value as it is.

    A number of 32 or 16 bits becomes the shortest decimal that it stands for: 0.1, not 0.10000000149.
    """
    if not hasattr(value, "item") or getattr(value, "ndim", None) != 0:
        return value
    plain = value.item()
    narrow = _NARROW.get(str(value.dtype).removeprefix("torch.")) if isinstance(plain, float) else None
    return plain if narrow is None else float(str(narrow(plain)))


def real_number(value: Any) -> Any:
    """Return a real number, or that of an array or tensor of one element, as Python's; None for any other value.

    What no float can hold, such as 10**400, is no number here; NaN and infinity are.
    """
    try:
        alone = hasattr(value, "item") and math.prod(getattr(value, "shape", (0,))) == 1
        number = value.item() if alone else value
        as_float = float(number) if isinstance(number, SupportsFloat) else None
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return number if isinstance(number, Real) else as_float


def finite_number(value: Any) -> Any:
    """Return a number as `real_number` does; None for infinity and NaN too."""
    number = real_number(value)
    return number if number is not None and math.isfinite(number) else None


def check_probabilities(given: float | Mapping[str, float], name: str, *, positive: bool = False) -> None:
    """Raise ValueError where a probability, or one by its pattern, is outside of 0..1, or 0 though it is `positive`."""
    if isinstance(given, Mapping) and not given:
        raise ValueError(f"{name} has no pattern; give one number for all genes")
    for pattern, value in (given if isinstance(given, Mapping) else {"": given}).items():
        if not 0 <= value <= 1 or (positive and value == 0):
            where = f" for {pattern!r}" if pattern else ""
            raise ValueError(f"`0 {'<' if positive else '<='} {name} <= 1` must hold, but got {value}{where}")


def checked_count(n: Any) -> int | None:
    """Return how many architectures to draw, None for a single one; a ValueError says that it is no such number."""
    if n is None:
        return None
    try:
        found = operator.index(n)
    except TypeError:
        found = -1
    if found < 0:
        raise ValueError(
            f"`n`, the number of architectures to draw, must be a whole number of 0 or more, but got {n!r}"
        )
    return found
