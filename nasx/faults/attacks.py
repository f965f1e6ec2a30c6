"""Malicious files that would execute code, escape, overflow or block, and how a run that meets them ends."""

import base64
import contextlib
import functools
import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nasx.faults.workloads import HALF, RUN, check_unit, trained
from nasx.run import (
    Interrupted,
    RunLocked,
    files,
)


class _Executes:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


Attack = Callable[[Path], object]


def all_attacks(outside: Path, executed: Path) -> dict[str, Attack]:
    """Return every attack on a half finished run, by name."""
    import numpy as np
    import safetensors.torch
    import torch

    payload = _Executes(executed)
    data = {f"pickle, protocol {n}": pickle.dumps(payload, protocol=n) for n in range(pickle.HIGHEST_PROTOCOL + 1)}
    for name, zipped in (("torch.save", True), ("torch.save of old", False)):
        torch.save(payload, buffer := io.BytesIO(), _use_new_zipfile_serialization=zipped)
        data[name] = buffer.getvalue()
    np.save(buffer := io.BytesIO(), np.array([payload], dtype=object), allow_pickle=True)
    data["numpy.save"] = buffer.getvalue()
    data["script"] = f"#!/bin/sh\nmkdir {executed}\n".encode()
    data["source"] = f"import os; os.mkdir({str(executed)!r})\n".encode()
    data["zip bomb"] = _zip("tensors.safetensors", bytes(10**7))
    data["zip that escapes"] = _zip("../../../../../outside/secret", b"changed")
    data["header of 2**63 bytes"] = struct.pack("<Q", 2**63) + b"{}"
    data["header nested deep"] = struct.pack("<Q", 99_999) + b"[" * 99_999
    data["tensor of 2**60 numbers"] = _header({"dtype": "F32", "shape": [2**60], "data_offsets": [0, 4]})
    data["tensor outside its file"] = _header({"dtype": "F32", "shape": [1], "data_offsets": [2**40, 2**40 + 4]})
    hidden = {"pickle": base64.b64encode(pickle.dumps(payload)).decode()}
    data["tensors that name a pickle"] = safetensors.torch.save(trained()[HALF][0], hidden)
    attacks: dict[str, Attack] = {
        f"{name} as tensors": functools.partial(_forge, "tensors.safetensors", content)
        for name, content in data.items()
    }
    attacks |= {f"{name} as weights from outside": functools.partial(_bring, content) for name, content in data.items()}
    texts = {name: data[name] for name in ("pickle, protocol 0", "pickle, protocol 4", "zip bomb")}
    for name, content in {**texts, "JSON nested deep": b"[" * 99_999}.items():
        attacks[f"{name} as state.json"] = functools.partial(_forge, "state.json", content)
        for file in (*RUN_FILES, "NEWEST/manifest.json"):
            attacks[f"{name} as {file}"] = functools.partial(_replace, file, content)
    for file in ("NEWEST/evil.pkl", "sitecustomize.py", "work/__init__.py"):
        attacks[f"{file} beside the others"] = functools.partial(_replace, file, data["source"])
    for name in ("../../../../../outside/secret", str(outside / "secret")):
        attacks[f"manifest of {name}"] = functools.partial(_forge_name, name)
    for file in RUN_FILES:
        attacks[f"{file} a link"] = functools.partial(_link, file, outside / "secret")
    for file in ("/tensors.safetensors", "/state.json", "/manifest.json", ""):
        attacks[f"NEWEST{file} a link"] = functools.partial(_link, f"NEWEST{file}", Path(f"{outside}/checkpoint{file}"))
    for file in (*RUN_FILES, "NEWEST/tensors.safetensors", "NEWEST/state.json", "NEWEST/manifest.json"):
        attacks[f"{file} a named pipe"] = functools.partial(_pipe, file)
    return attacks


WEIGHTS = "weights.pth"
RUN_FILES = ("run.json", "journal.jsonl", "run.lock", "work/journal.jsonl")


def newest_checkpoint(folder: Path) -> Path:
    """Return the folder of a run's newest checkpoint."""
    return max((folder / "run" / "work" / "checkpoints").iterdir())


def _removed(folder: Path, name: str) -> Path:
    """Return the path of a run's file, or of its newest checkpoint's, where there is nothing now."""
    path = folder / "run" / name.replace("NEWEST", str(newest_checkpoint(folder)))
    files.remove(path)
    return path


def _replace(name: str, content: bytes, folder: Path) -> None:
    _removed(folder, name).write_bytes(content)


def _bring(content: bytes, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(content)


def _link(name: str, target: Path, folder: Path) -> None:
    _removed(folder, name).symlink_to(target)


def _pipe(name: str, folder: Path) -> None:
    os.mkfifo(_removed(folder, name))


def _forge(name: str, content: bytes, folder: Path) -> None:
    """Replace a file of the newest checkpoint and describe it as a manifest would."""
    manifest = json.loads((newest_checkpoint(folder) / "manifest.json").read_bytes())
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    _replace(f"NEWEST/{name}", content, folder)
    _replace("NEWEST/manifest.json", json.dumps(manifest).encode(), folder)


def _forge_name(name: str, folder: Path) -> None:
    text = (newest_checkpoint(folder) / "manifest.json").read_text()
    _replace("NEWEST/manifest.json", text.replace('"state.json"', json.dumps(name)).encode(), folder)


def _zip(name: str, content: bytes) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def _header(tensor: Mapping[str, Any]) -> bytes:
    text = json.dumps({"x": tensor}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4)


def run_half(folder: Path) -> None:
    """Run the first half of a run."""

    def stop(units: int) -> None:
        if units == 2 * HALF:
            raise Interrupted("half done")

    folder.mkdir()
    with contextlib.suppress(Interrupted):
        RUN.act(folder, stop)


def continue_or_refuse(folder: Path, send: Callable[[bytes], object]) -> None:
    """Read the weights from outside, if any, and continue the run; send whether it was refused or went on."""
    from nasx.weights import read_state_dict

    try:
        if (folder / WEIGHTS).exists():
            read_state_dict(folder / WEIGHTS)
        RUN.act(folder, lambda unit: None)
    except (ValueError, OSError, RunLocked):
        send(b"refused")
    else:
        check_unit(RUN.units, RUN.found(folder), RUN.units)
        send(b"went on")
