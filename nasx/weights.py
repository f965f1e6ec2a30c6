"""Weights from outside: reading files without running what they hold, and refusing in words what does not fit."""

import argparse
import math
import pickle
import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["Shapes", "fit_weights", "named_tensors", "ratio_of", "read_state_dict"]

_TORCH_CHECKPOINTS = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9"  # zip; before torch 1.6, a pickled magic number


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file from outside, on the CPU: safetensors or a torch checkpoint.

    The content decides which, not the name. A checkpoint's `model` entry is taken where it has one. Nothing in the file
    is executed: whatever is neither plain data nor tensors, or of another kind, is a ValueError.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(9)
        try:
            if _is_safetensors(start, path.stat().st_size):
                return named_tensors(load_file(path))
            if start.startswith(_TORCH_CHECKPOINTS):
                file.seek(0)
                # Training scripts keep their command line beside the weights, and a namespace is plain data. Given
                # the open file, torch does not look at the name.
                with torch.serialization.safe_globals([argparse.Namespace]):
                    return named_tensors(torch.load(file, map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{path} does not hold plain tensors and was not read ({reason}); convert it to safetensors where you "
                "trust it"
            ) from error
    raise ValueError(f"{path} is neither a safetensors file nor a torch checkpoint; it starts with {start[:8]!r}")


def named_tensors(state_dict: object) -> dict[str, Tensor]:
    """Return the names and tensors of a state dict, out of `{"model": ...}` where they are in one.

    Anything else is a ValueError.
    """
    if isinstance(state_dict, Mapping) and isinstance(state_dict.get("model"), Mapping):
        state_dict = state_dict["model"]
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise ValueError(f"a state dict maps names to tensors, but got {type(state_dict).__name__} without any")
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"a state dict maps names to tensors, but {name!r} is a {type(tensor).__name__}")
    return dict(state_dict)


class Shapes(dict[str, tuple[int, ...]]):
    """Shapes by name of a state dict, in which a missing one, or one of another rank, is refused in words."""

    def __init__(self, state_dict: Mapping[str, Any]) -> None:
        super().__init__({name: tuple(tensor.shape) for name, tensor in named_tensors(state_dict).items()})

    def of(self, name: str, rank: int) -> tuple[int, ...]:
        """Return a tensor's shape; a ValueError where it is missing, of another rank, or empty."""
        if name not in self:
            raise ValueError(f"the weights do not fit: {name!r} is missing; is this another model's state dict?")
        if len(self[name]) != rank or 0 in self[name]:
            raise self.refusal(name, f"it has {rank} dimensions, none of them 0")
        return self[name]

    def refusal(self, name: str, rule: str) -> ValueError:
        """Return the error of a tensor whose shape breaks a rule."""
        return ValueError(f"the weights do not fit: {name!r} has the shape {self[name]}, but {rule}")

    def side(self, positions: str) -> int:
        """Return how many patches lie along a side, from position embeddings (1, 1 + side², D)."""
        side = math.isqrt(max(0, self.of(positions, 3)[1] - 1))
        if not side or side**2 + 1 != self[positions][1]:
            raise self.refusal(positions, "its tokens are a class token and a square of patches")
        return side

    def depth(self, name: str) -> int:
        """Return how many parts `name.0`, `name.1`, ... there are from the first on, at least one.

        Parts after a gap do not count: `fit_weights` meets them as weights that have no place.
        """
        pattern = re.compile(rf"{re.escape(name)}\.(\d+)\.")
        found = {match[1] for key in self if (match := pattern.match(key))}
        depth = next(i for i in count() if str(i) not in found)
        if not depth:
            raise ValueError(f"the weights do not fit: '{name}.0' is missing; is this another model's state dict?")
        return depth


def fit_weights(
    state_dict: Mapping[str, Tensor], places: Mapping[str, tuple[str, tuple[int, ...]]]
) -> dict[str, Tensor]:
    """Return tensors under new names, every one in its place: `places` is old name -> (new name, shape).

    The first that is missing, has another shape or no place is a ValueError that names it.
    """
    for name, (_, expected) in places.items():
        if name not in state_dict:
            raise ValueError(f"the weights do not fit: {name!r} of shape {expected} is missing")
        if tuple(state_dict[name].shape) != expected:
            raise ValueError(
                f"the weights do not fit: {name!r} has the shape {tuple(state_dict[name].shape)}, not {expected}"
            )
    for name, tensor in state_dict.items():
        if name not in places:
            raise ValueError(f"the weights do not fit: {name!r} of shape {tuple(tensor.shape)} has no place here")
    return {new: state_dict[name] for name, (new, _) in places.items()}


def ratio_of(size: int, per: int) -> float:
    """Return the number, an int where that is whole, whose product with `per`, cut to an int, is a size."""
    if size % per == 0:
        return size // per
    ratio = size / per
    return ratio if int(per * ratio) == size else math.nextafter(ratio, math.inf)


def _is_safetensors(start: bytes, size: int) -> bool:
    header = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and 8 + header <= size
