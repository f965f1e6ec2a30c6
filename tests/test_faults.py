"""The suites of `nasx.faults` pass here, and fail where something is broken on purpose."""

import contextlib
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from nasx.faults import (
    Outcome,
    corruptions,
    crash_points,
    disk_errors,
    lock_races,
    main,
    malicious_files,
    power_losses,
)
from nasx.run import files

ROOT = Path(__file__).parent.parent
LEAST = {
    "lock races": 10,
    "crash points": 150,  # every call of three checkpoints, three records and a run
    "power losses": 150,
    "disk errors": 450,
    "corruptions": 300,
    "malicious files": 25,
}


def tried(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "nasx.faults", "--json", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    return {suite["name"]: suite for suite in document["suites"]}


def test_nothing_fails_on_this_file_system(tmp_path: Path) -> None:
    suites = tried("--directory", str(tmp_path))
    assert suites.keys() == LEAST.keys()
    for name, suite in suites.items():
        assert suite["failures"] == []
        assert suite["tried"] >= LEAST[name], name
    assert {"recovered", "refused"} <= suites["corruptions"]["counts"].keys()
    assert suites["malicious files"]["counts"].keys() == {"refused", "went on"}
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_nothing_fails_in_the_long_run_of_another_seed(tmp_path: Path) -> None:
    suites = tried("--directory", str(tmp_path), "--long", "--seed", "1")
    assert (suites["power losses"]["tried"], suites["corruptions"]["tried"]) == (500, 1000)
    assert suites["lock races"]["counts"] == {"processes": 500}


def test_what_failed_is_printed_and_is_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(directory: Path, **options: Any) -> Outcome:
        return Outcome("any", 2, ("the second",))

    for suite in LEAST:
        monkeypatch.setattr(f"nasx.faults.command.{suite.replace(' ', '_')}", found)
    assert main(["--directory", str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("  the second\n") == len(LEAST)
    assert main(["--directory", str(tmp_path / "absent")]) == 2


def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "flush_directory", lambda path: None)


def no_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    same = hashlib.sha256()
    monkeypatch.setattr(hashlib, "sha256", lambda data=b"": same)


def everything_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(data: bytes) -> Any:
        with contextlib.suppress(pickle.UnpicklingError, UnicodeDecodeError, EOFError, KeyError, IndexError):
            return pickle.loads(data)
        raise ValueError("no pickle")

    monkeypatch.setattr(safetensors.torch, "load", load)
    monkeypatch.setattr(os, "O_NOFOLLOW", 0)


def everyone_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nasx.faults.suites.RunLock", lambda path: path)


def removed_before_it_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(source: Path, target: Path) -> None:
        files.remove(target)
        files.os_call(os.replace, source, target)

    monkeypatch.setattr(files, "rename", rename)


def nothing_tidied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "removed_on_error", lambda path: contextlib.nullcontext())


@pytest.mark.parametrize(
    ("suite", "broken", "expected"),
    [
        (lambda directory: crash_points(directory, ["file"]), removed_before_it_is_replaced, ["killed at call"]),
        (lambda directory: power_losses(directory, 60), no_flush, ["were committed, but"]),
        (lambda directory: disk_errors(directory, ["file"]), nothing_tidied, ["left behind"]),
        (lambda directory: corruptions(directory, 40), no_digest, ["not what was written"]),
        (malicious_files, everything_trusted, ["as tensors: executed", "run.lock a link: changed"]),
        (lambda directory: lock_races(directory, 2), everyone_wins, ["10 won and 0 lost"]),
    ],
)
def test_what_is_broken_is_found(
    suite: Callable[[Path], Outcome],
    broken: Callable[[pytest.MonkeyPatch], None],
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken(monkeypatch)
    outcome = suite(tmp_path)
    for part in expected:
        assert any(part in failure for failure in outcome.failures), outcome.failures[:9]
