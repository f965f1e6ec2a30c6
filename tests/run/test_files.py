import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nasx.run import DamagedFile, check_space, files, read_checked, write_bytes, write_json, write_text


def test_writes_replace_what_is_there_and_leave_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_bytes(path, b"\x00\xff" * 1000)
    assert path.read_bytes() == b"\x00\xff" * 1000
    write_text(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    write_json(path, {"b": [1.5, None], "a": "x"})
    assert json.loads(path.read_text()) == {"a": "x", "b": [1.5, None]}
    assert path.read_text().index('"a"') < path.read_text().index('"b"')
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_names_that_are_no_utf_8_are_written_as_escapes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_text(tmp_path / "page", f"<p>{name}</p>")
    write_json(tmp_path / "json", {"name": name})
    assert (tmp_path / "page").read_text(encoding="utf-8") == r"<p>caf\udce9</p>"
    assert json.loads((tmp_path / "json").read_text(encoding="utf-8")) == {"name": name}


def test_json_without_a_number_is_refused_and_the_file_is_as_before(tmp_path: Path) -> None:
    write_json(tmp_path / "a", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a", {"loss": float("nan")})
    assert json.loads((tmp_path / "a").read_text()) == 1


def test_data_is_on_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def recorded(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        calls.append(function.__name__)
        return function(*args, **kwargs)

    monkeypatch.setattr(files, "os_call", recorded)
    write_bytes(tmp_path / "a", b"data")
    assert calls == ["open", "write", "fsync", "replace", "open", "fsync"]


def test_a_system_that_writes_a_byte_at_a_time_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def grudging(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if function is os.write:
            return os.write(args[0], args[1][:1])
        return function(*args, **kwargs)

    monkeypatch.setattr(files, "os_call", grudging)
    write_bytes(tmp_path / "a", bytes(range(100)))
    assert (tmp_path / "a").read_bytes() == bytes(range(100))


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_file_system_that_flushes_no_directories_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, passes: bool
) -> None:
    def without(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if function is os.fsync and stat.S_ISDIR(os.fstat(args[0]).st_mode):
            raise OSError(number, os.strerror(number))
        return function(*args, **kwargs)

    monkeypatch.setattr(files, "os_call", without)
    with contextlib.nullcontext() if passes else pytest.raises(OSError, match=os.strerror(number)):
        write_bytes(tmp_path / "a", b"data")


def test_only_leftovers_are_removed(tmp_path: Path) -> None:
    kept = [tmp_path / "a.partial", tmp_path / ".hidden", tmp_path / "s" / ".partial"]
    leftovers = [files.temporary_beside(tmp_path / "s" / "a.json"), files.temporary_beside(tmp_path / "000001-step7")]
    (tmp_path / "s").mkdir()
    for path in (*kept, leftovers[0]):
        path.write_text("x")
    leftovers[1].mkdir()
    (leftovers[1] / "state.json").write_text("{}")
    (tmp_path / "outside").symlink_to(leftovers[1])
    files.remove_leftovers(tmp_path)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in leftovers)
    assert (tmp_path / "outside").is_symlink()


def test_a_leftover_that_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leftover = files.temporary_beside(tmp_path / "checkpoint")
    leftover.mkdir()

    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "tensors.safetensors")

    monkeypatch.setattr(shutil, "rmtree", refused)
    with pytest.raises(OSError, match=re.escape(f"could not write {leftover}: Permission denied")):
        files.remove_leftovers(tmp_path)


def test_a_file_of_a_run_is_read_where_it_is_what_was_written(tmp_path: Path) -> None:
    path, content = tmp_path / "model.safetensors", b"weights" * 100
    sha256 = hashlib.sha256(content).hexdigest()
    write_bytes(path, content)
    assert read_checked(path, sha256) == content
    for damaged in (content[:-1] + b"S", content[:-1], content + b"x", b""):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFile, match=r"model\.safetensors is not what was written: .*put it back from a copy"):
            read_checked(path, sha256)
    path.unlink()
    with pytest.raises(DamagedFile, match=r"model\.safetensors is missing; put it back"):
        read_checked(path, sha256)
    path.symlink_to(tmp_path / "other")
    with pytest.raises(DamagedFile, match="is no plain file"):
        read_checked(path, sha256)


def test_space_that_is_not_there_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "runs" / "new"
    check_space(directory, shutil.disk_usage(tmp_path).free // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1500))
    with pytest.raises(ValueError, match=r"needs about 2 KiB, but its file system has 1 KiB free"):
        check_space(directory, 2048)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=rf"{directory} needs about .* MiB, but its file system has .* MiB free"):
        check_space(directory, 2**62)
    assert not list(tmp_path.iterdir())
