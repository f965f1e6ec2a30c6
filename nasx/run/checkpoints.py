"""Checkpoints: tensors and JSON in a folder that appears whole, is verified when read, and is never unpickled.

A checkpoint is the folder `<serial>-step<step>` of `tensors.safetensors`, `state.json` and `manifest.json`, which
holds the folder's name, whose checkpoint it is, and the sizes and SHA-256 digests of the others. It is written under
a temporary name, flushed to the disk and renamed, and only then are older ones removed, so at any moment the new one
or the one before is there. `latest` trusts nothing that the manifest does not confirm: a damaged checkpoint is set
aside as `<name>.damaged` and the one before is used.
"""

import hashlib
import json
import logging
import math
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from nasx.run import files
from nasx.run.files import Json

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
NAME = re.compile(r"(\d{6,})-step(\d+)")
MAPPINGS: dict[str, Any] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds; tensors are on the CPU."""

    step: int
    tensors: dict[str, Tensor]
    state: Json


class Checkpoints:
    """The last `keep` checkpoints of a directory, which is created by the first `save`.

    One process writes at a time. Each checkpoint is signed with `identity`, and one that is signed otherwise counts
    as damaged; without an identity all are read.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int = 2, *, identity: str = "") -> None:
        if keep < 1:
            raise ValueError(f"at least one checkpoint must be kept, but got keep={keep}")
        self.directory = Path(directory)
        self.keep = keep
        self.identity = identity

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Json) -> Path:
        """Keep tensors and a JSON value durably, remove all but the last ones, and return the checkpoint's folder.

        Raises ValueError for a negative step, for a tensor with NaN or infinity (naming the first) and for a state
        that JSON cannot hold; OSError where the disk is full or fails. What was saved before is then still there.
        """
        if step < 0:
            raise ValueError(f"a step counts from 0, but got {step}")
        contents = {TENSORS: _encode(tensors), STATE: json.dumps(state, allow_nan=False).encode()}
        path = self.directory / f"{self._next_serial():06d}-step{step}"
        contents[MANIFEST] = json.dumps(_manifest(path.name, self.identity, contents), indent=1).encode()
        temporary = files.temporary_beside(path)
        with files.naming_the_file(path), files.removed_on_error(temporary):
            files.make_directories(self.directory)
            files.remove_leftovers(self.directory)
            files.os_call(os.mkdir, temporary)
            for name, data in contents.items():
                files.write_new(temporary / name, data)
            files.flush_directory(temporary)
            files.rename(temporary, path)
            for old in self._found()[: -self.keep]:
                # aside first, so that a half removed one is never met as a checkpoint
                aside = files.temporary_beside(old)
                with files.removed_on_error(aside):
                    files.rename(old, aside)
                    files.remove(aside)
        return path

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is undamaged, or None; damaged ones are set aside with a warning."""
        found = self._found()
        if found:
            files.flush_directory(self.directory)  # a writer that was killed may not have come to it
        for path in reversed(found):
            try:
                return _load(path, self.identity)
            except (ValueError, FileNotFoundError) as error:
                damaged = _unused(path.with_name(f"{path.name}.damaged"))
                logger.warning("checkpoint %s is damaged (%s); set aside as %s", path, error, damaged.name)
                files.rename(path, damaged)
        return None

    def _found(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        named = [(NAME.fullmatch(path.name), path) for path in self.directory.iterdir()]
        return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]

    def _next_serial(self) -> int:
        # damaged ones count too: a serial is never used again
        names = [path.name for path in self.directory.iterdir()] if self.directory.is_dir() else []
        return max((int(match[1]) for name in names if (match := NAME.match(name))), default=-1) + 1


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Json]:
    """Split a `state_dict()` into its tensors by name and a JSON value that says where they belong.

    Holds None, bools, ints, floats (infinite and NaN too), strings, tensors, lists, tuples, and dicts, OrderedDicts
    and Counters with keys of those; anything else is a TypeError that says where it is. Tensors are not copied.
    """
    tensors: dict[str, Tensor] = {}

    def flatten(value: Any, path: tuple[str, ...]) -> Json:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str(value)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"float": repr(float(value))}
        if isinstance(value, Tensor):
            name = ".".join(path) or "tensor"
            while name in tensors or name == "__metadata__":  # the name that safetensors keeps for itself
                name += "'"
            tensors[name] = value
            return {"tensor": name}
        if type(value) in (list, tuple):
            items = [flatten(item, (*path, str(i))) for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        for kind, mapping in MAPPINGS.items():
            if type(value) is mapping:
                return {kind: [[flatten(k, path), flatten(v, (*path, str(k)))] for k, v in value.items()]}
        where = ".".join(path) or "the top"
        raise TypeError(f"a state holds plain values and tensors, but at {where} it holds a {type(value).__name__}")

    return tensors, flatten(state, ())


def unflatten_state(tensors: Mapping[str, Tensor], state: Json) -> Any:
    """Return what `flatten_state` was given; a missing tensor or another JSON value is a ValueError."""
    match state:
        case {"float": str(text)}:
            return float(text)
        case {"tensor": str(name)}:
            if name not in tensors:
                raise ValueError(f"the state needs the tensor {name!r}, which is not among the {len(tensors)} given")
            return tensors[name]
        case {"tuple": list(items)}:
            return tuple(unflatten_state(tensors, item) for item in items)
        case list(items):
            return [unflatten_state(tensors, item) for item in items]
        case dict():
            ((kind, pairs),) = state.items() if len(state) == 1 else ((None, None),)
            if kind not in MAPPINGS or not isinstance(pairs, list):
                raise ValueError(f"not a state that flatten_state made: {state!r:.80}")
            try:
                plain = {unflatten_state(tensors, k): unflatten_state(tensors, v) for k, v in pairs}
            except TypeError as error:  # no pairs, or keys that no mapping has
                raise ValueError(f"not a state that flatten_state made: {state!r:.80}") from error
            return plain if kind == "dict" else MAPPINGS[kind](plain)
    return state


def _encode(tensors: Mapping[str, Tensor]) -> bytes:
    owned: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if (tensor.is_floating_point() or tensor.is_complex()) and not _is_finite(tensor):
            raise ValueError(
                f"tensor {name!r} holds NaN or infinity, which is not saved; the checkpoint before is still there"
            )
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if plain.untyped_storage().data_ptr() in storages:
            plain = plain.clone()  # the format has no aliases
        storages.add(plain.untyped_storage().data_ptr())
        owned[name] = plain
    return safetensors.torch.save(owned)


def _is_finite(tensor: Tensor) -> bool:
    exact = tensor.float() if tensor.element_size() == 1 else tensor  # isfinite knows no 8-bit floats
    return bool(torch.isfinite(exact).all())


def _manifest(name: str, identity: Json, contents: Mapping[str, bytes]) -> dict[str, Json]:
    described = {
        file: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for file, data in contents.items()
    }
    return {"checkpoint": name, "identity": identity, "files": described}


def _load(path: Path, identity: str) -> Checkpoint:
    match = NAME.fullmatch(path.name)
    assert match
    if path.is_symlink() or not path.is_dir():
        raise ValueError("not a folder")
    # Only these names are ever opened, whatever the manifest says, and never through a link.
    contents = {name: files.read_plain(path / name) for name in (TENSORS, STATE)}
    manifest = files.parse_json(files.read_plain(path / MANIFEST))
    signed = manifest.get("identity") if isinstance(manifest, dict) else None
    if manifest != _manifest(path.name, signed, contents):
        raise ValueError("its files are not those that its manifest describes")
    if identity and signed != identity:
        raise ValueError(f"it belongs to {signed!r}, not to {identity!r}")
    try:
        tensors = safetensors.torch.load(contents[TENSORS])
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:  # headers that torch cannot follow
        raise ValueError(f"{TENSORS} holds no tensors that can be read: {error}") from error
    return Checkpoint(int(match[2]), tensors, files.parse_json(contents[STATE]))


def _unused(path: Path) -> Path:
    names = (path.with_name(f"{path.name}{number or ''}") for number in count())
    return next(name for name in names if not os.path.lexists(name))
