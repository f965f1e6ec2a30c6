"""Numbers that come as scalars of numpy or torch, as Python's."""

import math
import operator
from typing import Any

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


def only_number(value: Any) -> Any:
    """Return the number in an array or tensor of one element, and any other value as it is."""
    return value.item() if hasattr(value, "item") and math.prod(getattr(value, "shape", (0,))) == 1 else value


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
