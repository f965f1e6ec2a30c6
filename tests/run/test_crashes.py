"""What goes on in one process after a failed write; `nasx.faults` and its tests do the rest."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nasx.run import Journal, RunDirectory, Stage, StageContext, files


def failing(n: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the n-th call fail as a full disk does, a write after half of it; returns a list with the calls left."""
    left = [n]

    def os_call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            if function is os.write:
                os.write(args[0], args[1][: len(args[1]) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(*args, **kwargs)

    monkeypatch.setattr(files, "os_call", os_call)
    return left


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
