"""Any sequence of steps, saves, evaluations, kills, damage and resumptions keeps what was committed, once."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nasx.run import Journal, RunDirectory, RunLocked, files
from nasx.run.checkpoints import Checkpoints


class Killed(BaseException):
    """The process has ended: nothing may catch this and go on."""


def ending_at(n: int | None) -> Callable[..., Any]:
    """Do as the system does up to the n-th call, which is half done, and nothing after it."""
    calls = 0

    def os_call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if function is os.fsync:  # only the end of processes is tried here, which loses nothing that was written
            return None
        if n is None or calls < n:
            return function(*args, **kwargs)
        if calls == n and function is os.write:
            os.write(args[0], args[1][: len(args[1]) // 2])
        if function is os.ftruncate:  # in clean-ups, which a dead process has not, and which must not stop here
            return None
        raise Killed

    return os_call


KILLS = st.none() | st.integers(1, 24)


class Run(RuleBasedStateMachine):
    """A run of one stage that trains, saves and scores, and the model of what must be there."""

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="nasx-machine-"))
        self.saves = 0  # tried so far; each has a number
        self.kept: list[int] = []  # committed, not damaged, and not to be replaced yet
        self.damaged: set[Path] = set()
        self.scored: list[int] = []  # committed
        self.pending_save: int | None = None
        self.pending_score: int | None = None
        self.run: RunDirectory | None = None
        self.resume(None)

    @property
    def stage(self) -> Path:
        return self.root / "run" / "work"

    def running(self) -> bool:
        return self.run is not None

    def do(self, work: Callable[[], object], kill_at: int | None) -> bool:
        """Return whether the process came to the end of some work."""
        try:
            with mock.patch.object(files, "os_call", ending_at(kill_at)):
                work()
        except Killed:
            self.kill()
            return False
        return True

    @precondition(running)
    @rule()
    def kill(self) -> None:
        if self.run is not None:
            with mock.patch.object(files, "os_call", ending_at(1)):  # the system unlocks, but nothing is tidied
                self.run.close()
        self.run = None

    @precondition(running)
    @rule()
    def stop(self) -> None:
        assert self.run
        self.run.close()
        self.run = None

    @precondition(lambda self: not self.running())
    @rule(kill_at=KILLS)
    def resume(self, kill_at: int | None) -> None:
        def work() -> None:
            self.run = RunDirectory.open(self.root / "run", config={"seed": 0}, versions={})
            self.stage.mkdir(exist_ok=True)
            self.checkpoints = Checkpoints(self.stage / "checkpoints", identity="work")
            self.journal = Journal(self.stage / "journal.jsonl", identity="work")
            latest = self.checkpoints.latest()
            found = latest.state["number"] if latest else None
            assert found in {self.pending_save, self.kept[-1] if self.kept else None}
            if found is not None and found == self.pending_save:
                self.kept = [*self.kept, found][-2:]
            self.step = latest.step if latest else 0
            records = [record["index"] for record in self.journal]
            assert records in (self.scored, [*self.scored, self.pending_score])
            self.scored = records
            self.pending_save = self.pending_score = None

        self.do(work, kill_at)

    @precondition(running)
    @rule(kill_at=KILLS)
    def train_and_save(self, kill_at: int | None) -> None:
        self.step, self.saves = self.step + 1, self.saves + 1
        number, tensors = self.saves, {"x": torch.full((5,), float(self.saves))}
        self.pending_save = number
        if self.do(lambda: self.checkpoints.save(self.step, tensors, {"number": number}), kill_at):
            self.kept, self.pending_save = self._after_save(number), None

    def _after_save(self, number: int) -> list[int]:
        present = self.present()
        return [kept for kept in (*self.kept, number) if kept in present]

    @precondition(running)
    @rule(index=st.integers(0, 9), kill_at=KILLS)
    def score(self, index: int, kill_at: int | None) -> None:
        if index in {record["index"] for record in self.journal}:
            return
        self.pending_score = index
        if self.do(lambda: self.journal.append({"index": index, "accuracy": 1 / (index + 1)}), kill_at):
            self.scored, self.pending_score = [*self.scored, index], None

    @precondition(lambda self: len(self.kept) >= 2 and self.pending_save is None)
    @rule(which=st.sampled_from([-1, -1, -2]), file=st.integers(0, 2), at=st.floats(0, 1, exclude_max=True))
    def damage(self, which: int, file: int, at: float) -> None:
        path = self.present()[self.kept.pop(which)]
        victim = sorted(path.iterdir())[file]
        data = bytearray(victim.read_bytes())
        data[int(at * len(data))] ^= 4
        victim.write_bytes(data)
        self.damaged.add(path)

    def present(self) -> dict[int, Path]:
        """Return the undamaged checkpoints on the disk by number."""
        paths = [path for path in self.stage.glob("checkpoints/0*") if path not in self.damaged and not path.suffix]
        return {json.loads((path / "state.json").read_bytes())["number"]: path for path in paths}

    @precondition(running)
    @rule()
    def second_process(self) -> None:
        before = sorted(self.root.rglob("*"))
        with pytest.raises(RunLocked):
            RunDirectory.open(self.root / "run", config={"seed": 0}, versions={})
        assert sorted(self.root.rglob("*")) == before

    @invariant()
    def a_verified_checkpoint_is_there_and_every_score_once(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copytree(self.stage, Path(folder) / "copy")) if self.stage.is_dir() else Path(folder)
            with mock.patch.object(files, "os_call", ending_at(None)):
                latest = Checkpoints(copy / "checkpoints", identity="work").latest()
                indices = [record["index"] for record in Journal(copy / "journal.jsonl", identity="work")]
        if self.kept:
            assert latest
            assert latest.state["number"] in (self.kept[-1], self.pending_save)
            assert torch.equal(latest.tensors["x"], torch.full((5,), float(latest.state["number"])))
        assert indices in (self.scored, [*self.scored, self.pending_score])
        assert len(set(indices)) == len(indices)

    def teardown(self) -> None:
        self.kill()
        shutil.rmtree(self.root)


TestRun = Run.TestCase
TestRun.settings = settings(max_examples=60, stateful_step_count=30)
