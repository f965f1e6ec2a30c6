"""Ends a process, or fails a call, at every point where a writer touches the disk."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nasx.run import Journal, RunDirectory, Stage, StageContext, files, write_bytes
from nasx.run.checkpoints import Checkpoints

# Each argument's folder already holds the first state; a fork, of an interpreter without threads, writes the second
# and ends at the n-th call, which for a write or a removal is half done. Prints how many folders were worked on.
CRASH = """
import os, shutil, sys
from pathlib import Path
from nasx.run import files

def end_at(n):
    left = n
    def os_call(function, *args, **kwargs):
        nonlocal left
        left -= 1
        if left == 0:
            if function is os.write:
                os.write(args[0], args[1][: len(args[1]) // 2])
            if function is shutil.rmtree:
                next(path for path in args[0].iterdir() if path.is_file()).unlink()
            os._exit(7)
        return function(*args, **kwargs)
    files.os_call = os_call

%s
origin, work = Path(sys.argv[1]), Path(sys.argv[2])
for n in range(1, 1000):
    folder = work / str(n)
    shutil.copytree(origin, folder)
    pid = os.fork()
    if pid == 0:
        end_at(n)
        act(folder)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 7), status
    if status == 0:
        break
print(n)
"""


def crash_everywhere(tmp_path: Path, code: str, at_least: int) -> list[Path]:
    """Return the folders that a process left which ended at the 1st, 2nd, ... call; the last one saw no end."""
    command = [sys.executable, "-c", CRASH % code, str(tmp_path / "origin"), str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    points = int(done.stdout)
    assert points > at_least
    return [tmp_path / "work" / str(n) for n in range(1, points + 1)]


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    (tmp_path / "origin").mkdir()
    return tmp_path / "origin"


def test_a_file_is_old_or_new_wherever_its_writer_ended(tmp_path: Path, origin: Path) -> None:
    write_bytes(origin / "f", b"old" * 100)
    code = "def act(folder): files.write_bytes(folder / 'f', b'new' * 100)"
    *crashed, whole = crash_everywhere(tmp_path, code, at_least=5)
    states = [(folder / "f").read_bytes() for folder in crashed]
    assert {*states} == {b"old" * 100, b"new" * 100}
    assert (whole / "f").read_bytes() == b"new" * 100
    for folder in crashed:
        files.remove_leftovers(folder)
        assert [path.name for path in folder.iterdir()] == ["f"]


@pytest.mark.parametrize("before", [0, 3])
def test_a_journal_has_the_record_or_not_wherever_its_writer_ended(tmp_path: Path, origin: Path, before: int) -> None:
    journal = Journal(origin / "j")
    for n in range(before):
        journal.append({"n": n})
    code = "from nasx.run import Journal\ndef act(folder): Journal(folder / 'j').append({'n': 'new'})"
    *crashed, whole = crash_everywhere(tmp_path, code, at_least=2)
    old = [{"n": n} for n in range(before)]
    for folder in crashed:
        journal = Journal(folder / "j")
        assert list(journal) in (old, [*old, {"n": "new"}])
        journal.append({"n": "next"})
        assert list(Journal(folder / "j"))[-1] == {"n": "next"}
    assert list(Journal(whole / "j")) == [*old, {"n": "new"}]


@pytest.mark.parametrize("before", [0, 2])
def test_a_checkpoint_is_there_wherever_its_writer_ended(tmp_path: Path, origin: Path, before: int) -> None:
    for step in range(1, before + 1):
        Checkpoints(origin / "c").save(step, {"x": torch.full((9,), float(step))}, [step])
    code = (
        "import torch; from nasx.run.checkpoints import Checkpoints\n"
        "def act(folder): Checkpoints(folder / 'c').save(9, {'x': torch.full((9,), 9.0)}, [9])"
    )
    *crashed, whole = crash_everywhere(tmp_path, code, at_least=14)
    for folder in [*crashed, whole]:
        found = Checkpoints(folder / "c").latest()
        if found is None:
            assert before == 0
            assert folder != whole
        else:
            assert found.step in ({9} if folder == whole else {before, 9})
            assert found.state == [found.step]
            assert torch.equal(found.tensors["x"], torch.full((9,), float(found.step)))
        files.remove_leftovers(folder)
        left = list((folder / "c").iterdir()) if (folder / "c").exists() else []
        assert not [path for path in left if ".damaged" in path.name or ".partial" in path.name]
        Checkpoints(folder / "c").save(10, {}, [])
        assert len(list((folder / "c").iterdir())) <= 2


WORK = """
from nasx.run import RunDirectory, Stage, write_bytes
def first(context):
    for n in range(len(context.journal), 3):
        context.journal.append({"n": n})
    write_bytes(context.directory / "weights", b"w")
    return [record["n"] for record in context.journal]
def second(context):
    weights = (context.stage_directory("a/first") / "weights").read_bytes()
    return {"sum": sum(context.inputs["a/first"]), "weights": len(weights)}
STAGES = [Stage("a/first", first), Stage("second", second, ("a/first",))]
def act(folder):
    with RunDirectory.open(folder / "run", config={"seed": 1}, versions={}) as run:
        return run.execute(STAGES)
"""


def test_a_run_goes_on_wherever_it_ended(tmp_path: Path, origin: Path) -> None:
    def first(context: StageContext) -> Any:
        for n in range(len(context.journal), 3):
            context.journal.append({"n": n})
        write_bytes(context.directory / "weights", b"w")
        return [record["n"] for record in context.journal]

    def second(context: StageContext) -> Any:
        weights = (context.stage_directory("a/first") / "weights").read_bytes()
        return {"sum": sum(context.inputs["a/first"]), "weights": len(weights)}

    stages = [Stage("a/first", first), Stage("second", second, ("a/first",))]
    for folder in crash_everywhere(tmp_path, WORK, at_least=32):
        with RunDirectory.open(folder / "run", config={"seed": 1}, versions={}) as run:
            assert run.execute(stages) == {"a/first": [0, 1, 2], "second": {"sum": 3, "weights": 1}}
        assert not [path for path in folder.rglob("*") if path.name.endswith(".partial")]


def failing(n: int, monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> list[int]:
    """Make the n-th call fail as a full disk does, a write after half of it; returns a list with the calls left."""
    left = [n]

    def os_call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            if function is os.write:
                os.write(args[0], args[1][: len(args[1]) // 2])
            raise OSError(number, os.strerror(number))
        return function(*args, **kwargs)

    monkeypatch.setattr(files, "os_call", os_call)
    return left


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_loses_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write_bytes(tmp_path / "f", b"old")
    for n in range(1, 100):
        left = failing(n, monkeypatch, number)
        try:
            write_bytes(tmp_path / "f", b"new")
        except OSError as error:
            assert error.errno == number  # noqa: PT017
            assert str(tmp_path / "f") in str(error)  # noqa: PT017
        assert (tmp_path / "f").read_bytes() in (b"old", b"new")
        assert [path.name for path in tmp_path.iterdir()] == ["f"]
        if left[0] > 0:
            break
        monkeypatch.undo()
        write_bytes(tmp_path / "f", b"old")
    assert n > 5


def test_a_journal_goes_on_after_a_failed_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "j")
    journal.append({"n": 0})
    expected = [{"n": 0}]
    for n in range(1, 100):
        left = failing(n, monkeypatch)
        try:
            journal.append({"failed": n})
        except OSError as error:
            assert str(tmp_path / "j") in str(error)  # noqa: PT017
        monkeypatch.undo()
        if left[0] > 0:
            break
        assert list(journal) == list(Journal(tmp_path / "j")) == expected
        journal.append({"after": n})
        expected.append({"after": n})
        assert list(journal) == list(Journal(tmp_path / "j")) == expected
    assert n > 3


def test_a_journal_that_could_not_even_be_cut_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "j")
    journal.append({"n": 0})

    def broken(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if function in (os.write, os.ftruncate):
            if function is os.write:
                os.write(args[0], args[1][:20])
            raise OSError(errno.EIO, "broken")
        return function(*args, **kwargs)

    monkeypatch.setattr(files, "os_call", broken)
    with pytest.raises(OSError, match="broken"):
        journal.append({"n": 1})
    monkeypatch.undo()
    journal.append({"n": 2})
    assert list(Journal(tmp_path / "j")) == [{"n": 0}, {"n": 2}]


def test_a_checkpoint_that_does_not_fit_costs_none_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"x": torch.full((9,), float(step))}, [step])
    for n in range(1, 100):
        left = failing(n, monkeypatch)
        try:
            checkpoints.save(3, {"x": torch.full((9,), 3.0)}, [3])
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
            assert str(tmp_path) in str(error)  # noqa: PT017
        monkeypatch.undo()
        found = Checkpoints(tmp_path).latest()
        assert found
        assert found.step in (2, 3)
        assert torch.equal(found.tensors["x"], torch.full((9,), float(found.step)))
        if left[0] > 0:
            break
        if found.step == 2:
            assert len(list(tmp_path.iterdir())) == 2
    assert n > 14


def test_a_stage_whose_disk_is_full_says_so_and_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(context: StageContext) -> Any:
        failing(2, monkeypatch)
        context.journal.append({"n": 0})

    with RunDirectory.open(tmp_path, config={}, versions={}) as run:
        with pytest.raises(OSError, match=r"a/journal\.jsonl: No space left") as raised:
            run.execute([Stage("a", work)])
        assert raised.value.errno == errno.ENOSPC
        monkeypatch.undo()
        assert run.execute([Stage("a", lambda context: len(context.journal))]) == {"a": 0}
    assert json.loads((tmp_path / "run.json").read_text())["config"] == {}
