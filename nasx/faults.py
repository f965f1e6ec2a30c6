"""Does to runs what happens to runs: kills, cut power, full disks, damaged and malicious files, rivals for the lock.

`python -m nasx.faults --directory DIR` tries it all on the file system of DIR with a tiny model's run, and prints what
was tried and what failed; every suite is a function too. A suite works in a folder of its own, writes small units
(a checkpoint, a journal's record) that are committed one after the other, and after each fault asks: are the committed
units there and right, and does the work go on to its end? All calls that change the disk pass `nasx.run.files.os_call`,
which is where processes are ended and calls made to fail.
"""

import argparse
import base64
import contextlib
import copy
import errno
import functools
import hashlib
import io
import itertools
import json
import logging
import os
import pickle
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from nasx.cli import BAD_INPUT, DONE, print_json
from nasx.run import (
    Interrupted,
    Journal,
    JournalDamaged,
    RunDirectory,
    RunLock,
    RunLocked,
    Stage,
    StageContext,
    files,
    write_bytes,
)

if TYPE_CHECKING:
    from torch import Tensor

    from nasx.run.checkpoints import Checkpoints

__all__ = [
    "Outcome",
    "corruptions",
    "crash_points",
    "disk_errors",
    "lock_races",
    "main",
    "malicious_files",
    "power_losses",
]

WORKLOADS = ("file", "journal", "checkpoints", "run")
UNITS = 3  # of each kind, so that an old checkpoint is removed on the way
HALF = 2  # of them, done before something malicious is planted
KILLED, SECONDS = 7, 60  # the status of an ended process, and how long any may take
FAILED = 1

OsCall = Callable[..., Any]
Commit = Callable[[int], object]
Pipe = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a suite tried: how often, how it ended by kind, and a line for each failure."""

    name: str
    tried: int
    failures: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Workload:
    """Work in a folder: `act` goes on from what is there, and tells how many units are committed, at first and then.

    `found` returns how many units are there, and raises where one is not what was written.
    """

    name: str
    act: Callable[[Path, Commit], None]
    found: Callable[[Path], int]
    units: int = UNITS


Fault = Callable[[Workload, Path, int], tuple[int, str, bool]]
"""Works with a fault at the n-th call; returns what was committed, what was wrong, and whether there was that call."""


def crash_points(directory: Path, workloads: Collection[str] = WORKLOADS) -> Outcome:
    """End a process at each of its calls that change the disk, writes and removals half done, and go on after it."""
    return _at_every_call("crash points", directory, workloads, {"killed": _killed})


def disk_errors(directory: Path, workloads: Collection[str] = WORKLOADS) -> Outcome:
    """Fail each call once for want of space (ENOSPC) or by the device (EIO), or leave the disk full from there on.

    The error has to say what could not be written, and no temporary file may stay.
    """
    once, again = functools.partial(_failed, stays=False), functools.partial(_failed, stays=True)
    kinds: dict[str, Fault] = {
        "ENOSPC": functools.partial(once, errno.ENOSPC),
        "EIO": functools.partial(once, errno.EIO),
        "full": functools.partial(again, errno.ENOSPC),
    }
    return _at_every_call("disk errors", directory, workloads, kinds)


def power_losses(directory: Path, images: int = 500, seed: int = 0) -> Outcome:
    """Cut the power somewhere in a workload, or in its continuation after a kill or a cut, and go on from the disk.

    Of data that was not flushed a disk may hold a part, zeros or nothing; of names that were not, any choice.
    """
    counts: Counter[str] = Counter()
    failures = []
    recorded = [(workload, _recorded(workload, _fresh(directory))) for workload in _workloads(WORKLOADS)]
    names = itertools.count()
    with _calls(_without_flushing), mock.patch("secrets.token_hex", lambda size: f"{next(names):0{2 * size}x}"):
        for image in range(images):
            generator = random.Random(f"{seed} {image}")
            workload, calls = recorded[image % len(recorded)]
            before = generator.choice(("nothing", "a kill", "a cut"))
            try:
                error = _cut_power(workload, calls, before, _fresh(directory), generator)
            except Exception as met:
                error = _told(met)
            counts[f"{workload.name} after {before}"] += 1
            if error:
                failures.append(f"{workload.name} after {before}, image {image} of seed {seed}: {error}")
    return Outcome("power losses", images, tuple(failures), dict(counts))


def corruptions(directory: Path, count: int = 1000, seed: int = 0) -> Outcome:
    """Truncate, flip bits of, exchange, extend, blank or lose files of checkpoints, and journals or their lines.

    What is read then is right or refused; "not needed" are those that hit an old checkpoint only.
    """
    counts: Counter[str] = Counter()
    failures = []
    foreign = directory / "foreign"
    with _calls(_without_flushing):
        for workload in (CHECKPOINTS, JOURNAL):
            (directory / workload.name).mkdir()
            workload.act(directory / workload.name, lambda unit: None)
        _write_foreign(foreign)
        for number in range(count):
            generator = random.Random(f"{seed} {number}")
            workload, damage = ((CHECKPOINTS, _damage_checkpoint), (JOURNAL, _damage_journal))[number % 2]
            shutil.rmtree(directory / "work", ignore_errors=True)
            folder = Path(shutil.copytree(directory / workload.name, directory / "work"))
            kind = damage(folder, foreign, generator)
            try:
                found = workload.found(folder)
                refused = workload is CHECKPOINTS and not found
            except JournalDamaged:
                refused = True
            except Exception as error:
                failures.append(f"{workload.name}, {kind}, number {number} of seed {seed}: {_told(error)}")
                continue
            counts["refused" if refused else "recovered" if found < UNITS else "not needed"] += 1
    return Outcome("corruptions", count, tuple(failures), dict(counts))


def malicious_files(directory: Path) -> Outcome:
    """Plant files that would execute, escape, overflow or block in a run that is then continued, or as its weights.

    Nothing is executed, nothing outside the run changes, and the run is refused or goes on to the right end.
    """
    counts: Counter[str] = Counter()
    failures = []
    run, origin, outside = directory / "work", directory / "origin", directory / "outside"
    outside.mkdir()
    (outside / "secret").write_text("of the user's own")
    _run_half(origin)
    shutil.copytree(_newest(origin), outside / "checkpoint")
    before = _contents(outside)
    attacks = _attacks(outside, directory / "executed")
    for name, plant in attacks.items():
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(origin, run)
        plant(run)
        status, told = _forked(lambda tell: _continue_or_refuse(run, tell))
        counts[told.decode() if status == 0 else "failed"] += 1
        if (directory / "executed").exists():
            failures.append(f"{name}: executed")
            (directory / "executed").rmdir()
        elif _contents(outside) != before:
            failures.append(f"{name}: changed {outside}")
            before = _contents(outside)
        elif status:
            failures.append(f"{name}: ended with {status}: {told.decode()}")
    return Outcome("malicious files", len(attacks), tuple(failures), dict(counts))


def lock_races(directory: Path, rounds: int = 50, processes: int = 10) -> Outcome:
    """Let processes ask for one lock at the same moment: exactly one gets it, round after round."""
    failures = []
    for number in range(rounds):
        start, tried, end = os.pipe(), os.pipe(), os.pipe()

        def ask(start: Pipe = start, tried: Pipe = tried, end: Pipe = end) -> None:
            os.close(start[1])
            os.close(end[1])
            os.read(start[0], 1)  # returns when the parent closes its end: for all at once
            try:
                lock = RunLock(directory / "run.lock")
                os.write(tried[1], b"w")
            except RunLocked:
                os.write(tried[1], b"l")
            os.read(end[0], 1)  # the winner holds the lock until all have tried
            del lock

        children = [_fork(ask) for _ in range(processes)]
        os.close(start[1])
        os.close(tried[1])
        told = b""
        while len(told) < processes and (answers := os.read(tried[0], processes)):
            told += answers
        os.close(end[1])
        for child in children:
            os.waitpid(child, 0)
        for descriptor in (start[0], tried[0], end[0]):
            os.close(descriptor)
        if sorted(told) != sorted(b"w" + b"l" * (processes - 1)):
            failures.append(f"round {number}: {told.count(b'w')} won and {told.count(b'l')} lost of {processes}")
    return Outcome("lock races", rounds, tuple(failures), {"processes": rounds * processes})


def _at_every_call(name: str, directory: Path, workloads: Collection[str], kinds: Mapping[str, Fault]) -> Outcome:
    counts: Counter[str] = Counter()
    failures = []
    for (kind, fault), workload in itertools.product(kinds.items(), _workloads(workloads)):
        for n in itertools.count(1):
            folder = _fresh(directory)
            committed, error, met = fault(workload, folder, n)
            with _calls(_without_flushing):
                error = error or _error_after(workload, folder, committed)
            counts[f"{workload.name} {kind}"] += met
            if error:
                failures.append(f"{workload.name}, {kind} at call {n}: {error}")
            if not met:
                break
    return Outcome(name, counts.total(), tuple(failures), dict(counts))


def _killed(workload: Workload, folder: Path, n: int) -> tuple[int, str, bool]:
    def work(tell: Callable[[bytes], object]) -> None:
        with _calls(_at_call(n, lambda path: os._exit(KILLED))):
            workload.act(folder, lambda units: tell(bytes([units])))

    status, told = _forked(work)
    if status in (0, KILLED):
        return max(told, default=0), "", status == KILLED
    return 0, f"ended with {status}: {told.decode(errors='replace')}", False


def _failed(number: int, workload: Workload, folder: Path, n: int, *, stays: bool) -> tuple[int, str, bool]:
    committed = met = 0
    told = ""

    def commit(unit: int) -> None:
        nonlocal committed
        committed = unit

    def fail(path: Path | None) -> None:
        nonlocal met
        met += 1
        raise OSError(number, os.strerror(number), *([str(path)] if path else []))

    try:
        with _calls(_at_call(n, fail, stays)):
            workload.act(folder, commit)
    except Exception as error:
        if not met or not isinstance(error, OSError):
            told = _told(error)
        elif error.errno != number or str(folder.parent) not in str(error):
            told = f"the error does not say what could not be written: {error}"
    left = [path.name for path in _leftovers(folder)]
    return committed, told or (f"left behind: {left}" if left else ""), met > 0


def _cut_power(workload: Workload, calls: "Recorded", before: str, folder: Path, generator: random.Random) -> str:
    disk = _Disk(folder, _Folder())
    committed = disk.run(calls, generator.randrange(len(calls) + 1))
    if before != "nothing":
        disk.top.write_image(folder, generator if before == "a cut" else None)
        if before == "a cut":
            disk = _Disk(folder, _Folder.read(folder))
        calls = _recorded(workload, folder)
        committed = max(committed, disk.run(calls, generator.randrange(len(calls) + 1)))
    disk.top.write_image(_fresh(folder.parent), generator)
    return _error_after(workload, folder, committed)


def _at_call(n: int, happen: Callable[[Path | None], None], stays: bool = False) -> OsCall:
    """Let something happen at the n-th call, half way through a write or a removal; or also where space is needed."""
    calls = 0

    def os_call(function: OsCall, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == n or (stays and calls > n and function in (os.write, os.pwrite, os.mkdir)):
            if function is os.write:
                os.write(args[0], args[1][: len(args[1]) // 2])
            elif function is shutil.rmtree:
                next(path for path in args[0].iterdir() if path.is_file()).unlink()
            happen(args[0] if isinstance(args[0], Path) else None)
        return _without_flushing(function, *args, **kwargs)

    return os_call


def _without_flushing(function: OsCall, *args: Any, **kwargs: Any) -> Any:
    """Spare the disk where only this process could lose something, and with it most of the time."""
    return None if function is os.fsync else function(*args, **kwargs)


def _calls(os_call: OsCall) -> AbstractContextManager[object]:
    return mock.patch.object(files, "os_call", os_call)


def _error_after(workload: Workload, folder: Path, committed: int) -> str:
    """Say what was lost or is wrong in a folder after a fault, or when its work goes on; "" for nothing."""
    try:
        found = workload.found(folder)
        if not committed <= found <= committed + 1:
            return f"{committed} units were committed, but {found} are there"
        if torn := [path.name for path in folder.rglob("*.damaged*")]:
            return f"not whole: {torn}"
        workload.act(folder, lambda unit: None)
        if workload.found(folder) != workload.units:
            return "it did not go on to the end"
        if left := [path.name for path in _leftovers(folder)]:
            return f"left behind: {left}"
    except Exception as error:  # whatever it is, it is what a user would meet
        return _told(error)
    return ""


def _fresh(directory: Path) -> Path:
    """Return the empty folder that workloads have; always the same, as recorded calls name it."""
    folder = directory / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if files.is_leftover(path.name)]


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _fork(work: Callable[[], object]) -> int:
    """Do work in a forked process, which ends with status 0 or 1, or by the alarm; return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, of which the work needs none
        child = os.fork()
    if child:
        return child
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        work()
        os._exit(0)
    finally:
        os._exit(1)


def _forked(work: Callable[[Callable[[bytes], object]], object]) -> tuple[int, bytes]:
    """Do work in a forked process that can tell bytes; return its status and what it told."""
    reader, writer = os.pipe()

    def tell(told: bytes) -> int:
        return os.write(writer, told)

    def telling() -> None:
        try:
            work(tell)
        except BaseException as error:
            tell(_told(error).encode())
            raise

    child = _fork(telling)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told


# The workloads: a file, a journal, checkpoints, and a run of all three. Unit n of each is known beforehand.


def _workloads(names: Collection[str]) -> list[Workload]:
    _trained()  # before anything forks
    return [workload for workload in (FILE, JOURNAL, CHECKPOINTS, RUN) if workload.name in names]


def _act_file(folder: Path, commit: Commit) -> None:
    files.remove_leftovers(folder)
    files.flush_directory(folder)  # for a writer that was killed before
    commit(found := _found_file(folder))
    for unit in range(found + 1, UNITS + 1):
        write_bytes(folder / "file", b"%d" % unit * 1000)
        commit(unit)


def _found_file(folder: Path) -> int:
    data = (folder / "file").read_bytes() if (folder / "file").exists() else b"0" * 1000
    return _expected(int(data[:1]), data, b"%c" % data[0] * 1000)


def _act_journal(folder: Path, commit: Commit) -> None:
    journal = Journal(folder / "journal")
    commit(len(journal))
    for unit in range(len(journal) + 1, UNITS + 1):
        journal.append(_scored(unit))
        commit(unit)


def _found_journal(folder: Path) -> int:
    records = list(Journal(folder / "journal"))
    return _expected(len(records), records, [_scored(unit) for unit in range(1, len(records) + 1)])


def _act_checkpoints(folder: Path, commit: Commit) -> None:
    from nasx.run.checkpoints import Checkpoints

    checkpoints = Checkpoints(folder / "checkpoints", identity="work")
    files.remove_leftovers(folder)
    commit(found := _found_in(checkpoints))
    for unit in range(found + 1, UNITS + 1):
        checkpoints.save(unit, *_trained()[unit])
        commit(unit)


def _found_checkpoints(folder: Path) -> int:
    from nasx.run.checkpoints import Checkpoints

    return _found_in(Checkpoints(folder / "checkpoints", identity="work"))


def _found_in(checkpoints: "Checkpoints") -> int:
    latest = checkpoints.latest()
    if latest is None:
        return 0
    tensors, state = _trained()[latest.step]
    same = {name: bool((latest.tensors[name] == tensor).all()) for name, tensor in tensors.items()}
    return _expected(latest.step, (latest.state, same), (json.loads(json.dumps(state)), dict.fromkeys(tensors, True)))


def _act_run(folder: Path, commit: Commit) -> None:
    def work(context: StageContext) -> Any:
        step = _found_in(context.checkpoints)
        commit(step + len(context.journal))
        for unit in range(1, UNITS + 1):
            if unit > step:
                context.checkpoints.save(unit, *_trained()[unit])
                commit(2 * unit - 1)
            if unit > len(context.journal):
                context.journal.append(_scored(unit))
                commit(2 * unit)
        return list(context.journal)

    with RunDirectory.open(folder / "run", config={"seed": 0}, versions={}) as run:
        results = run.execute([Stage("work", work)])
        _expected(UNITS, results["work"], [_scored(unit) for unit in range(1, UNITS + 1)])
        commit(2 * UNITS + 1)


def _found_run(folder: Path) -> int:
    from nasx.run.checkpoints import Checkpoints

    stage = folder / "run" / "work"
    records = list(Journal(stage / "journal.jsonl", identity="work"))
    _expected(0, records, [_scored(unit) for unit in range(1, len(records) + 1)])
    finished = [r for r in Journal(folder / "run" / "journal.jsonl") if r["event"] == "stage_done"]
    return _found_in(Checkpoints(stage / "checkpoints", identity="work")) + len(records) + len(finished)


def _scored(unit: int) -> dict[str, Any]:
    return {"index": str(unit), "accuracy": 1 / unit}


@functools.cache
def _trained() -> "list[tuple[dict[str, Tensor], Any]]":
    """Return the checkpoints of a tiny model's training, after 0, 1, ... steps."""
    import torch

    from nasx.run.checkpoints import flatten_state

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    states: list[tuple[dict[str, Tensor], Any]] = []
    losses: list[float] = []
    for _ in range(UNITS + 1):
        state = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses})
        states.append(flatten_state(state))
        loss = model(torch.ones(2, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return states


def _expected(unit: int, found: object, expected: object) -> int:
    if found != expected:
        raise ValueError(f"unit {unit} is not what was written: {found!r:.200}")
    return unit


FILE = Workload("file", _act_file, _found_file)
JOURNAL = Workload("journal", _act_journal, _found_journal)
CHECKPOINTS = Workload("checkpoints", _act_checkpoints, _found_checkpoints)
RUN = Workload("run", _act_run, _found_run, 2 * UNITS + 1)


# A model of a disk: what is flushed stays, of the rest a loss of power leaves a choice.


@dataclass(slots=True)
class _File:
    flushed: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # (offset, data), or (length, None) for a cut

    def flush(self) -> None:
        self.flushed, self.pending = self.now(), []

    def now(self) -> bytes:
        return functools.reduce(_changed, self.pending, self.flushed)

    def image(self, generator: random.Random) -> bytes:
        """Return what a disk may hold: changes in order up to one that is there in part, data perhaps as zeros."""
        content = self.flushed
        whole = generator.randint(0, len(self.pending))
        for number, (offset, data) in enumerate(self.pending[: whole + 1]):
            if data is not None:
                at = generator.randint(0, len(data))
                blank = bytes(len(data))
                data = generator.choice((data, data, blank, data[:at] + blank[at:], blank[:at] + data[at:]))
                data = data[:at] if number == whole else data
            elif number == whole:
                continue
            content = _changed(content, (offset, data))
        return content


def _changed(content: bytes, change: tuple[int, bytes | None]) -> bytes:
    offset, data = change
    return content[:offset].ljust(offset, b"\0") + (b"" if data is None else data + content[offset + len(data) :])


@dataclass(slots=True)
class _Folder:
    flushed: "dict[str, _File | _Folder]" = field(default_factory=dict)
    pending: "list[dict[str, _File | _Folder | None]]" = field(default_factory=list)  # each is atomic; None: removed

    @classmethod
    def read(cls, path: Path) -> "_Folder":
        return cls({e.name: cls.read(e) if e.is_dir() else _File(e.read_bytes()) for e in sorted(path.iterdir())})

    def names(self, changes: "Sequence[Mapping[str, _File | _Folder | None]]") -> "dict[str, _File | _Folder]":
        merged: dict[str, _File | _Folder | None] = {**self.flushed}
        for change in changes:
            merged |= change
        return {name: node for name, node in merged.items() if node is not None}

    def flush(self) -> None:
        self.flushed, self.pending = self.names(self.pending), []

    def remove_all(self) -> None:
        for name, node in self.names(self.pending).items():
            if isinstance(node, _Folder):
                node.remove_all()
            self.pending.append({name: None})

    def write_image(self, path: Path, generator: random.Random | None) -> None:
        """Write what a disk may hold after a loss of power; without a generator, what the system shows before."""
        likely = generator.choice((0.0, 0.5, 1.0)) if generator else 1.0
        changes = [change for change in self.pending if generator is None or generator.random() < likely]
        for name, node in self.names(changes).items():
            if isinstance(node, _File):
                (path / name).write_bytes(node.image(generator) if generator else node.now())
            else:
                (path / name).mkdir()
                node.write_image(path / name, generator)


Recorded = list[tuple[OsCall, tuple[Any, ...], Any] | int]
"""Calls with arguments and result, and between them the numbers of the units that were committed."""


def _recorded(workload: Workload, folder: Path) -> Recorded:
    calls: Recorded = []
    call = files.os_call

    def os_call(function: OsCall, *args: Any, **kwargs: Any) -> Any:
        result = call(function, *args, **kwargs)
        calls.append((function, tuple(bytes(arg) if isinstance(arg, memoryview) else arg for arg in args), result))
        return result

    with _calls(os_call):
        workload.act(folder, calls.append)
    return calls


class _Disk:
    def __init__(self, root: Path, top: _Folder) -> None:
        self.root, self.top = root, top
        self.opened: dict[int, _File | _Folder] = {}

    def run(self, calls: Recorded, end: int) -> int:
        """Do the first of recorded calls; return how many units were committed among them."""
        committed = 0
        for entry in calls[:end]:
            if isinstance(entry, int):
                committed = entry
            else:
                self._call(*entry)
        return committed

    def _call(self, function: OsCall, args: tuple[Any, ...], result: Any) -> None:
        if function is os.open:
            self.opened[result] = self._node(args[0]) or self._change(args[0], _File())
        elif function is os.mkdir:
            self._change(args[0], _Folder())
        elif function is os.unlink:
            self._change(args[0], None)
        elif function is os.replace:
            source, target = args
            assert source.parent == target.parent
            self._folder(source).pending.append({source.name: None, target.name: self._node(source)})
        elif function is shutil.rmtree:
            node = self._node(args[0])
            assert isinstance(node, _Folder)
            node.remove_all()
            self._change(args[0], None)
        elif function is os.fsync:
            self.opened[args[0]].flush()
        else:
            file = self.opened[args[0]]
            assert isinstance(file, _File)
            assert function in (os.write, os.pwrite, os.ftruncate), f"unknown to this model: {function}"
            if function is os.ftruncate:
                file.pending.append((args[1], None))
            else:
                file.pending.append((args[2] if function is os.pwrite else len(file.now()), args[1]))

    def _change(self, path: Path, node: Any) -> Any:
        self._folder(path).pending.append({path.name: node})
        return node

    def _folder(self, path: Path) -> _Folder:
        folder = self._node(path.parent)
        assert isinstance(folder, _Folder)
        return folder

    def _node(self, path: Path) -> _File | _Folder | None:
        if path == self.root.parent:  # it is there already
            return _Folder()
        node: _File | _Folder | None = self.top
        for part in path.relative_to(self.root).parts:
            assert isinstance(node, _Folder)
            node = node.names(node.pending).get(part)
        return node


# Corruptions.


def _damage_checkpoint(folder: Path, foreign: Path, generator: random.Random) -> str:
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


def _damage_journal(folder: Path, foreign: Path, generator: random.Random) -> str:
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


def _write_foreign(folder: Path) -> None:
    """Write what another stage would have: the same names and steps, other contents."""
    from nasx.run.checkpoints import Checkpoints

    folder.mkdir()
    journal = Journal(folder / "journal", identity="foreign")
    for unit in range(1, UNITS + 1):
        tensors, state = _trained()[unit]
        tensors = {name: tensor + 1 for name, tensor in tensors.items()}
        Checkpoints(folder / "checkpoints", identity="foreign").save(unit, tensors, state)
        journal.append(_scored(unit + 1))


# Malicious files.


class _Executes:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


Attack = Callable[[Path], object]


def _attacks(outside: Path, executed: Path) -> dict[str, Attack]:
    """Return what to do to a half done run, by what it is called."""
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
    data["tensors that name a pickle"] = safetensors.torch.save(_trained()[HALF][0], hidden)
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


def _newest(folder: Path) -> Path:
    return max((folder / "run" / "work" / "checkpoints").iterdir())


def _removed(folder: Path, name: str) -> Path:
    """Return the path of a run's file, or of its newest checkpoint's, where there is nothing now."""
    path = folder / "run" / name.replace("NEWEST", str(_newest(folder)))
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
    manifest = json.loads((_newest(folder) / "manifest.json").read_bytes())
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    _replace(f"NEWEST/{name}", content, folder)
    _replace("NEWEST/manifest.json", json.dumps(manifest).encode(), folder)


def _forge_name(name: str, folder: Path) -> None:
    text = (_newest(folder) / "manifest.json").read_text()
    _replace("NEWEST/manifest.json", text.replace('"state.json"', json.dumps(name)).encode(), folder)


def _zip(name: str, content: bytes) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def _header(tensor: Mapping[str, Any]) -> bytes:
    text = json.dumps({"x": tensor}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4)


def _run_half(folder: Path) -> None:
    def stop(units: int) -> None:
        if units == 2 * HALF:
            raise Interrupted("half done")

    folder.mkdir()
    with contextlib.suppress(Interrupted):
        RUN.act(folder, stop)


def _continue_or_refuse(folder: Path, tell: Callable[[bytes], object]) -> None:
    from nasx.weights import read_state_dict

    try:
        if (folder / WEIGHTS).exists():
            read_state_dict(folder / WEIGHTS)
        RUN.act(folder, lambda unit: None)
    except (ValueError, OSError, RunLocked):
        tell(b"refused")
    else:
        _expected(RUN.units, RUN.found(folder), RUN.units)
        tell(b"went on")


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Try everything, print what was tried and what failed, and return 0, or 1 where anything failed."""
    parser = argparse.ArgumentParser(prog="python -m nasx.faults", description=main.__doc__)
    parser.add_argument("--directory", type=Path, help="where to try it, which chooses the file system (the system's)")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--long", action="store_true", help="more races, losses of power and corruptions")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    options = parser.parse_args(arguments)
    races, images, damages = (50, 500, 1000) if options.long else (10, 150, 300)
    suites: dict[str, Callable[[Path], Outcome]] = {
        "lock races": functools.partial(lock_races, rounds=races),  # first, as it needs no torch
        "crash points": crash_points,
        "power losses": functools.partial(power_losses, images=images, seed=options.seed),
        "disk errors": disk_errors,
        "corruptions": functools.partial(corruptions, count=damages, seed=options.seed),
        "malicious files": malicious_files,
    }
    if options.directory and not options.directory.is_dir():
        print(f"error: --directory must be an existing directory, but {options.directory} is none", file=sys.stderr)
        return BAD_INPUT
    logging.getLogger("nasx").addHandler(logging.NullHandler())  # damaged checkpoints are meant to be met
    document: dict[str, Any] = {"seed": options.seed, "suites": []}
    with tempfile.TemporaryDirectory(prefix="nasx-faults-", dir=options.directory) as scratch:
        for name, suite in suites.items():
            start = time.monotonic()
            (directory := Path(scratch).resolve() / name.replace(" ", "-")).mkdir()
            outcome = suite(directory)
            document["suites"].append({**asdict(outcome), "seconds": round(time.monotonic() - start, 1)})
            if not options.json:
                _print(outcome, document["suites"][-1]["seconds"])
    document["failed"] = sum(len(suite["failures"]) for suite in document["suites"])
    if options.json:
        print_json(document)
    return FAILED if document["failed"] else DONE


def _print(outcome: Outcome, seconds: float) -> None:
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.counts.items()))
    print(f"{outcome.name:<16}{outcome.tried:>6,} tried {len(outcome.failures):>4} failed {seconds:>6.1f} s  {counts}")
    for failure in outcome.failures:
        print(f"  {failure}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
