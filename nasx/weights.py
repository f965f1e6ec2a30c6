"""Weights from outside: reading files without running what they hold, and refusing in words what does not fit."""

import argparse
import json
import logging
import math
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

__all__ = [
    "Note",
    "Shapes",
    "StateDict",
    "assumed_heads",
    "fit_weights",
    "log_assumption",
    "named_tensors",
    "ratio_of",
    "read_state_dict",
]

Note = Callable[[str], object]
"""Called with a sentence on each assumption that is made about weights."""

INDEX = "model.safetensors.index.json"
"""What Hugging Face calls the file that says which tensor is in which of several safetensors files."""

_TORCH_CHECKPOINTS = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9"  # zip; before torch 1.6, a pickled magic number
_PREFERRED = ("state_dict_ema", "model_ema", "state_dict", "model")  # averaged weights first, as timm does
_WRAPPERS = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile, Lightning
_TRUNCATED = ("central directory", "unexpected EOF", "incomplete metadata", "header", "zip archive")  # what causes say
_HALF = (torch.float16, torch.bfloat16)


logger = logging.getLogger(__name__)


class StateDict(dict[str, Tensor]):
    """Names and tensors of a state dict, and how they were found.

    Tensors are on the CPU as they come out of a file, those of 16 bits as float32; all that are floating are finite.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], *, entry: str | None = None, entries: Sequence[str] = (), prefix: str = ""
    ) -> None:
        super().__init__(tensors)
        self.entry = entry
        """The entry of the checkpoint that was taken; None where the tensors are not in one."""
        self.entries = tuple(entries)
        """All entries of the checkpoint that hold tensors."""
        self.prefix = prefix
        """What stood before every name and was removed."""
        self.remarks: tuple[str, ...] = tuple(self._remarks(tensors))
        """What was chosen or changed, in sentences that people should read."""
        for name, tensor in tensors.items():
            self[name] = tensor.float() if tensor.dtype in _HALF else tensor
        _refuse_bad_numbers(self)

    def _remarks(self, tensors: Mapping[str, Tensor]) -> Iterator[str]:
        others = [repr(entry) for entry in self.entries if entry != self.entry]
        if others:
            yield f"weights are taken from {self.entry!r}; there are also {', '.join(others)} (choose by key)"
        if self.prefix:
            yield f"{self.prefix!r} is removed from every name"
        half = sorted({str(tensor.dtype) for tensor in tensors.values() if tensor.dtype in _HALF})
        if half:
            yield f"weights are stored as {' and '.join(half)}, and become torch.float32"


def read_state_dict(path: str | Path, *, key: str | None = None) -> StateDict:
    """Return the tensors of a weights file from outside: safetensors, in one file or several, or a torch checkpoint.

    The content decides which, not the name; a folder or index of several safetensors files is read as Hugging Face
    writes them. Where a checkpoint holds several state dicts, `key` names the one to take; by default it is the first
    there is of `state_dict_ema`, `model_ema`, `state_dict` and `model`. Prefixes that wrappers put before every name
    (`module.`, `_orig_mod.`, `model.`) are removed. `StateDict.remarks` says what was chosen.

    Nothing in the file is executed: whatever is neither plain data nor tensors, or of another kind, is a ValueError
    that begins with the file's name. So is a file that is truncated, and a number that is not finite.
    """
    path = Path(path)
    try:
        return named_tensors(_content(path), key=key)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error


def named_tensors(state_dict: object, *, key: str | None = None) -> StateDict:
    """Return the names and tensors of a state dict, or of a checkpoint that holds some, as `read_state_dict` does.

    Anything else is a ValueError.
    """
    if isinstance(state_dict, StateDict) and key is None:
        return state_dict
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise ValueError(f"a state dict maps names to tensors, but got {type(state_dict).__name__} without any")
    keys = tuple(name for name, value in state_dict.items() if isinstance(name, str) and _is_state_dict(value))
    if key is not None:
        if key not in keys:
            raise ValueError(f"there is no state dict under key={key!r} (--key); there are {', '.join(keys) or 'none'}")
        chosen: str | None = key
    else:
        chosen = next((name for name in _PREFERRED if name in keys), keys[0] if len(keys) == 1 else None)
        if chosen is None and keys:
            raise ValueError(f"several state dicts are there: {', '.join(keys)}; choose one with key= (--key)")
    tensors = state_dict if chosen is None else state_dict[chosen]
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"a state dict maps names to tensors, but {name!r} is a {type(tensor).__name__}")
    tensors, prefix = _unwrapped(tensors)
    return StateDict(tensors, entry=chosen, entries=keys, prefix=prefix)


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

    def square_patch(self, name: str) -> tuple[int, int, int]:
        """Return width, channels and patch size of a patch embedding's convolution (D, C, P, P)."""
        width, channels, patch, across = self.of(name, 4)
        if patch != across:
            raise self.refusal(name, "patches are square")
        return width, channels, patch

    def kernel_size(self, name: str, rank: int) -> int:
        """Return the size of a convolution's kernel, which must be odd."""
        size = self.of(name, rank)[-1]
        if size % 2 == 0:
            raise self.refusal(name, "its kernel is odd")
        return size

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

    The first that is missing, has another shape, is no floating number or has no place is a ValueError that names it.
    """
    for name, (_, expected) in places.items():
        if name not in state_dict:
            raise ValueError(f"the weights do not fit: {name!r} of shape {expected} is missing")
        if tuple(state_dict[name].shape) != expected:
            raise ValueError(
                f"the weights do not fit: {name!r} has the shape {tuple(state_dict[name].shape)}, not {expected}"
            )
        if not state_dict[name].is_floating_point() and not name.endswith("num_batches_tracked"):
            raise ValueError(
                f"the weights do not fit: {name!r} holds {state_dict[name].dtype} and no floating numbers; are they "
                "quantised? give the weights before that"
            )
    for name, tensor in state_dict.items():
        if name not in places:
            raise ValueError(f"the weights do not fit: {name!r} of shape {tuple(tensor.shape)} has no place here")
    return {new: state_dict[name] for name, (new, _) in places.items()}


def log_assumption(sentence: str) -> None:
    """Log an assumption as a warning, which Python shows on standard error unless logging is configured otherwise."""
    logger.warning(sentence)


def assumed_heads(
    width: int, depth: int, num_heads: int | None, *, published: Mapping[tuple[int, int], tuple[str, int]], note: Note
) -> int:
    """Return how many attention heads share a width, which no weights say: `num_heads`, or those of a published size.

    `published` maps width and depth to the name of a size and its number of heads; that it is assumed goes to `note`.
    A ValueError says that `num_heads` does not divide the width, or asks for it where no published size is met.
    """
    if num_heads is not None:
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"num_heads (--heads) must divide the width of {width} channels, but got {num_heads}")
        return num_heads
    if (width, depth) not in published:
        raise ValueError(
            f"the weights do not say how many heads share the {width} channels, and no published size has that width "
            f"and {depth} blocks; say it with num_heads (--heads)"
        )
    size, heads = published[width, depth]
    note(
        f"assuming {heads} heads, as {size} has them ({width} channels, {depth} blocks); give num_heads (--heads) "
        "where these weights have another number"
    )
    return heads


def ratio_of(size: int, per: int) -> float:
    """Return the number, an int where that is whole, whose product with `per`, cut to an int, is a size."""
    if size % per == 0:
        return size // per
    ratio = size / per
    return ratio if int(per * ratio) == size else math.nextafter(ratio, math.inf)


def _content(path: Path) -> object:
    if path.is_dir():
        if not (path / INDEX).is_file():
            raise ValueError(f"{path} is a folder without {INDEX}; name a weights file")
        path = path / INDEX
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file; name a weights file")
    with path.open("rb") as file:
        start = file.read(9)
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and (8 + header <= path.stat().st_size or not start.startswith(b"{")):
        return _read(load_file, path)
    if start.startswith(_TORCH_CHECKPOINTS):
        return _read(_load_checkpoint, path)
    if start.lstrip().startswith(b"{"):
        return _of_several_files(path)
    if not start:
        raise ValueError(f"{path} is empty; copy or download it again")
    raise ValueError(f"{path} is neither a safetensors file nor a torch checkpoint; it starts with {start[:8]!r}")


def _load_checkpoint(path: Path) -> Any:
    # Training scripts keep their command line beside the weights, and a namespace is plain data. Given the open file,
    # torch does not look at its name.
    with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(file, map_location="cpu", weights_only=True)


def _read(load: Callable[[Path], Any], path: Path) -> Any:
    """Return what a file holds; a ValueError begins with its name and the cause."""
    try:
        return load(path)
    except MemoryError:
        raise  # says nothing about the file
    except Exception as error:  # damage can surface as nearly anything in the readers
        raise ValueError(f"{path} {_cause(error)}") from error


def _of_several_files(index: Path) -> dict[str, Tensor]:
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        by_file: dict[str, list[str]] = {}
        for name, file in places.items():
            by_file.setdefault(file, []).append(name)
        if any(Path(file).name != file for file in by_file):
            raise ValueError("a file of another folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of safetensors files ({error!r}): it needs a weight_map") from error
    tensors: dict[str, Tensor] = {}
    for file, names in by_file.items():
        path = index.with_name(file)
        if not path.is_file():
            raise ValueError(f"{path} is missing, in which {index.name} has {len(names)} tensors; copy it there")
        found = _read(load_file, path)
        if missing := [name for name in names if name not in found]:
            raise ValueError(f"{path} does not hold {missing[0]!r}, which {index.name} has in it; copy both again")
        tensors |= {name: found[name] for name in names}
    return tensors


def _cause(error: Exception) -> str:
    """Return why a file could not be read, to follow its name."""
    reason = " ".join(str(error).split())
    if found := re.search(r"Unsupported (?:global: GLOBAL|class|operand) (\S+)", reason):
        kind = "numpy objects" if found[1].startswith("numpy") else "Python objects"
        return (
            f"holds {kind} beside tensors ({found[1]}) and was not read, because that could execute code; where you "
            "trust it, load it with torch and save its state dict alone"
        )
    reason = reason[:150] or type(error).__name__
    understood = isinstance(error, pickle.UnpicklingError | SafetensorError | RuntimeError)
    if not understood or any(sign in reason for sign in _TRUNCATED):
        return f"is truncated or damaged and was not read ({reason}); copy or download it again"
    return f"does not hold plain tensors and was not read ({reason}); where you trust it, convert it to safetensors"


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _unwrapped(tensors: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], str]:
    """Return tensors without what wrappers put before every name, and what that was."""
    prefix = ""
    while True:
        found = next((w for w in _WRAPPERS if tensors and all(name.startswith(w) for name in tensors)), None)
        if found is None:
            break
        prefix += found
        tensors = {name.removeprefix(found): tensor for name, tensor in tensors.items()}
    inner = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}  # single blocks compiled
    return (inner if len(inner) == len(tensors) else tensors), prefix


def _refuse_bad_numbers(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_quantized or tensor.is_complex() or tensor.layout != torch.strided:
            kind = "quantised" if tensor.is_quantized else "complex" if tensor.is_complex() else "sparse"
            raise ValueError(f"the weights do not fit: {name!r} is {kind}; give dense floating-point weights")
        exact = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
        if tensor.is_floating_point() and not torch.isfinite(exact).all():
            bad = int((~torch.isfinite(exact)).sum())
            raise ValueError(
                f"the weights do not fit: {name!r} holds NaN or infinity in {bad:,} of {tensor.numel():,} numbers; the "
                "training that left them diverged, or the file is damaged"
            )
