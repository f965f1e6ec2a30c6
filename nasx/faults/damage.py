"""Damage to the files of checkpoints and journals."""

import random
import shutil
from pathlib import Path

from nasx.faults.workloads import UNITS, record_of, trained
from nasx.run import (
    Journal,
)


def damage_checkpoint(folder: Path, foreign: Path, generator: random.Random) -> str:
    """Damage the checkpoints of a folder and return how."""
    saved = sorted((folder / "checkpoints").iterdir())
    newest = saved[-1]
    kind = generator.choice(("bytes", "bytes", "bytes", "bytes", "lost", "folders exchanged", "another's folder"))
    if kind == "folders exchanged":
        for path, name in zip(saved, ("aside", *(path.name for path in saved)), strict=False):
            path.rename(path.with_name(name))
        (folder / "checkpoints" / "aside").rename(newest)
    elif kind == "another's folder":
        shutil.rmtree(newest)
        shutil.copytree(foreign / "checkpoints" / newest.name, newest)
    else:
        victim = generator.choice([path for path in sorted((folder / "checkpoints").rglob("*")) if path.is_file()])
        if kind == "lost":
            victim.unlink()
        else:
            other = generator.choice(sorted((*folder.rglob(victim.name), *foreign.rglob(victim.name))))
            kind, data = _damaged(victim.read_bytes(), other.read_bytes(), generator)
            victim.write_bytes(data)
    return kind


def damage_journal(folder: Path, foreign: Path, generator: random.Random) -> str:
    """Damage the journal of a folder and return how."""
    path, other = folder / "journal", foreign / "journal"
    lines = path.read_bytes().splitlines(keepends=True)
    if generator.random() < 0.2:
        one, two = generator.sample(range(len(lines)), 2)
        lines[one], lines[two] = lines[two], generator.choice(lines)
        kind, data = "lines exchanged", b"".join(lines)
    else:
        kind, data = _damaged(path.read_bytes(), other.read_bytes(), generator)
    path.write_bytes(data)
    return kind


def _damaged(data: bytes, other: bytes, generator: random.Random) -> tuple[str, bytes]:
    kind = generator.choice(
        ("truncated", "bit flipped", "three bytes changed", "exchanged", "extended", "blanked", "cut")
    )
    at = generator.randrange(len(data))
    end = at + generator.randint(1, 200)
    changed = bytearray(data)
    match kind:
        case "truncated":
            del changed[at:]
        case "bit flipped":
            changed[at] ^= 1 << generator.randrange(8)
        case "three bytes changed":
            for n in (at, at // 2, at // 3):
                changed[n] ^= generator.randrange(1, 256)
        case "exchanged":
            changed[:] = other
        case "extended":
            changed += generator.choice((b" ", b"\n", b"{}\n", other))
        case "blanked":
            changed[at:end] = bytes(len(changed[at:end]))
        case "cut":
            del changed[at:end]
    return kind, bytes(changed) if changed != data else data[:at]


def write_foreign(folder: Path) -> None:
    """Write the files of another stage: the same names and steps, other contents."""
    from nasx.run.checkpoints import Checkpoints

    folder.mkdir()
    journal = Journal(folder / "journal", identity="foreign")
    for unit in range(1, UNITS + 1):
        tensors, state = trained()[unit]
        tensors = {name: tensor + 1 for name, tensor in tensors.items()}
        Checkpoints(folder / "checkpoints", identity="foreign").save(unit, tensors, state)
        journal.append(record_of(unit + 1))
