"""The suites, each a function: killed processes, failing disks, power losses, damage, malicious files, lock races."""

import errno
import functools
import itertools
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from nasx.faults.attacks import all_attacks, continue_or_refuse, newest_checkpoint, run_half
from nasx.faults.calls import at_call, calling, without_flushing
from nasx.faults.damage import damage_checkpoint, damage_journal, write_foreign
from nasx.faults.disk import Disk, Folder, Recorded, record
from nasx.faults.processes import KILLED, described, fork, forked
from nasx.faults.workloads import (
    CHECKPOINTS,
    JOURNAL,
    UNITS,
    WORKLOADS,
    Workload,
    error_after,
    fresh_folder,
    leftovers,
    workloads_named,
)
from nasx.run import (
    JournalDamaged,
    RunLock,
    RunLocked,
)

Pipe = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a suite: how many cases it tried, how they ended by kind, and a line for each failure."""

    name: str
    tried: int
    failures: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


Fault = Callable[[Workload, Path, int], tuple[int, str, bool]]
"""Runs a workload with a fault at the n-th call; returns the committed units, the error, and whether that call came."""


def crash_points(directory: Path, workloads: Collection[str] = WORKLOADS) -> Outcome:
    """Kill a process at each call that changes the disk, with writes and removals half done, and continue its work."""
    return _at_every_call("crash points", directory, workloads, {"killed": _killed})


def disk_errors(directory: Path, workloads: Collection[str] = WORKLOADS) -> Outcome:
    """Make each call fail once, for lack of space (ENOSPC) or with a device error (EIO), or fill the disk for good.

    The error must say what could not be written, and no temporary file may be left.
    """
    once, again = functools.partial(_failed, stays=False), functools.partial(_failed, stays=True)
    kinds: dict[str, Fault] = {
        "ENOSPC": functools.partial(once, errno.ENOSPC),
        "EIO": functools.partial(once, errno.EIO),
        "full": functools.partial(again, errno.ENOSPC),
    }
    return _at_every_call("disk errors", directory, workloads, kinds)


def power_losses(directory: Path, images: int = 500, seed: int = 0) -> Outcome:
    """Simulate a power loss at a random point of a workload, or of its continuation, and continue from the disk.

    Of data that was not flushed the disk may hold a part, zeros or nothing; of renames that were not, any subset.
    """
    counts: Counter[str] = Counter()
    failures = []
    recorded = [(workload, record(workload, fresh_folder(directory))) for workload in workloads_named(WORKLOADS)]
    names = itertools.count()
    with calling(without_flushing), mock.patch("secrets.token_hex", lambda size: f"{next(names):0{2 * size}x}"):
        for image in range(images):
            generator = random.Random(f"{seed} {image}")
            workload, calls = recorded[image % len(recorded)]
            before = generator.choice(("nothing", "a kill", "a cut"))
            try:
                error = _cut_power(workload, calls, before, fresh_folder(directory), generator)
            except Exception as met:
                error = described(met)
            counts[f"{workload.name} after {before}"] += 1
            if error:
                failures.append(f"{workload.name} after {before}, image {image} of seed {seed}: {error}")
    return Outcome("power losses", images, tuple(failures), dict(counts))


def corruptions(directory: Path, count: int = 1000, seed: int = 0) -> Outcome:
    """Truncate, flip bits in, exchange, extend, blank or delete files of checkpoints and journals, or journal lines.

    What is read afterwards must be right or refused; "not needed" counts damage to an old checkpoint only.
    """
    counts: Counter[str] = Counter()
    failures = []
    foreign = directory / "foreign"
    with calling(without_flushing):
        for workload in (CHECKPOINTS, JOURNAL):
            (directory / workload.name).mkdir()
            workload.act(directory / workload.name, lambda unit: None)
        write_foreign(foreign)
        for number in range(count):
            generator = random.Random(f"{seed} {number}")
            workload, damage = ((CHECKPOINTS, damage_checkpoint), (JOURNAL, damage_journal))[number % 2]
            shutil.rmtree(directory / "work", ignore_errors=True)
            folder = Path(shutil.copytree(directory / workload.name, directory / "work"))
            kind = damage(folder, foreign, generator)
            try:
                found = workload.found(folder)
                refused = workload is CHECKPOINTS and not found
            except JournalDamaged:
                refused = True
            except Exception as error:
                failures.append(f"{workload.name}, {kind}, number {number} of seed {seed}: {described(error)}")
                continue
            counts["refused" if refused else "recovered" if found < UNITS else "not needed"] += 1
    return Outcome("corruptions", count, tuple(failures), dict(counts))


def malicious_files(directory: Path) -> Outcome:
    """Plant malicious files in a run that is then continued, or as weights from outside.

    Nothing may be executed, nothing outside the run may change, and the run must be refused or end with the right
    result.
    """
    counts: Counter[str] = Counter()
    failures = []
    run, origin, outside = directory / "work", directory / "origin", directory / "outside"
    outside.mkdir()
    (outside / "secret").write_text("of the user's own")
    run_half(origin)
    shutil.copytree(newest_checkpoint(origin), outside / "checkpoint")
    before = _contents(outside)
    attacks = all_attacks(outside, directory / "executed")
    for name, plant in attacks.items():
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(origin, run)
        plant(run)
        status, sent = forked(lambda send: continue_or_refuse(run, send))
        counts[sent.decode() if status == 0 else "failed"] += 1
        if (directory / "executed").exists():
            failures.append(f"{name}: executed")
            (directory / "executed").rmdir()
        elif _contents(outside) != before:
            failures.append(f"{name}: changed {outside}")
            before = _contents(outside)
        elif status:
            failures.append(f"{name}: ended with {status}: {sent.decode()}")
    return Outcome("malicious files", len(attacks), tuple(failures), dict(counts))


def lock_races(directory: Path, rounds: int = 50, processes: int = 10) -> Outcome:
    """Let several processes acquire one lock at the same moment: exactly one must get it in every round."""
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

        children = [fork(ask) for _ in range(processes)]
        os.close(start[1])
        os.close(tried[1])
        answers = b""
        while len(answers) < processes and (received := os.read(tried[0], processes)):
            answers += received
        os.close(end[1])
        for child in children:
            os.waitpid(child, 0)
        for descriptor in (start[0], tried[0], end[0]):
            os.close(descriptor)
        if sorted(answers) != sorted(b"w" + b"l" * (processes - 1)):
            won, lost = answers.count(b"w"), answers.count(b"l")
            failures.append(f"round {number}: {won} won and {lost} lost of {processes}")
    return Outcome("lock races", rounds, tuple(failures), {"processes": rounds * processes})


def _at_every_call(name: str, directory: Path, workloads: Collection[str], kinds: Mapping[str, Fault]) -> Outcome:
    counts: Counter[str] = Counter()
    failures = []
    for (kind, fault), workload in itertools.product(kinds.items(), workloads_named(workloads)):
        for n in itertools.count(1):
            folder = fresh_folder(directory)
            committed, error, met = fault(workload, folder, n)
            with calling(without_flushing):
                error = error or error_after(workload, folder, committed)
            counts[f"{workload.name} {kind}"] += met
            if error:
                failures.append(f"{workload.name}, {kind} at call {n}: {error}")
            if not met:
                break
    return Outcome(name, counts.total(), tuple(failures), dict(counts))


def _killed(workload: Workload, folder: Path, n: int) -> tuple[int, str, bool]:
    def work(send: Callable[[bytes], object]) -> None:
        with calling(at_call(n, lambda path: os._exit(KILLED))):
            workload.act(folder, lambda units: send(bytes([units])))

    status, sent = forked(work)
    if status in (0, KILLED):
        return max(sent, default=0), "", status == KILLED
    return 0, f"ended with {status}: {sent.decode(errors='replace')}", False


def _failed(number: int, workload: Workload, folder: Path, n: int, *, stays: bool) -> tuple[int, str, bool]:
    committed = met = 0
    wrong = ""

    def commit(unit: int) -> None:
        nonlocal committed
        committed = unit

    def fail(path: Path | None) -> None:
        nonlocal met
        met += 1
        raise OSError(number, os.strerror(number), *([str(path)] if path else []))

    try:
        with calling(at_call(n, fail, stays)):
            workload.act(folder, commit)
    except Exception as error:
        if not met or not isinstance(error, OSError):
            wrong = described(error)
        elif error.errno != number or str(folder.parent) not in str(error):
            wrong = f"the error does not say what could not be written: {error}"
    left = [path.name for path in leftovers(folder)]
    return committed, wrong or (f"left behind: {left}" if left else ""), met > 0


def _cut_power(workload: Workload, calls: "Recorded", before: str, folder: Path, generator: random.Random) -> str:
    disk = Disk(folder, Folder())
    committed = disk.run(calls, generator.randrange(len(calls) + 1))
    if before != "nothing":
        disk.top.write_image(folder, generator if before == "a cut" else None)
        if before == "a cut":
            disk = Disk(folder, Folder.read(folder))
        calls = record(workload, folder)
        committed = max(committed, disk.run(calls, generator.randrange(len(calls) + 1)))
    disk.top.write_image(fresh_folder(folder.parent), generator)
    return error_after(workload, folder, committed)


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
