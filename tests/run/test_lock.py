import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from nasx.run import RunLock, RunLocked

NO_NUMBER = json.dumps({"host": platform.node(), "pid": "../1", "started": "1"})

HOLD = """
import os, sys
from nasx.run import RunLock
lock = RunLock(sys.argv[1])
owner = os.getpid()
if sys.argv[2] != "fork" or os.fork() == 0:
    print(owner, flush=True)
if os.getpid() != owner:
    os.read(0, 1)  # outlives the owner
    os._exit(0)
os.read(0, 1)
os._exit(9)  # without releasing
"""


def hold(path: Path, how: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_living_owner_is_named_and_a_dead_one_taken_over(tmp_path: Path) -> None:
    with hold(tmp_path / "lock") as owner:
        assert owner.stdout
        pid = int(owner.stdout.readline())
        with pytest.raises(RunLocked, match=f"process {pid} on host {platform.node()}"):
            RunLock(tmp_path / "lock")
        owner.communicate("x")
    assert (tmp_path / "lock").read_text()  # it did not release
    with RunLock(tmp_path / "lock"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_worker_that_outlives_its_run_does_not_keep_it_locked(tmp_path: Path) -> None:
    with hold(tmp_path / "lock", "fork") as owner:  # the end of the block closes its input, which ends the worker
        assert owner.stdout
        owner.stdout.readline()
        owner.kill()
        owner.wait()
        RunLock(tmp_path / "lock").release()


def test_the_same_process_is_locked_out_too_until_the_release(tmp_path: Path) -> None:
    with RunLock(tmp_path / "lock") as lock:
        with pytest.raises(RunLocked, match=str(os.getpid())):
            RunLock(tmp_path / "lock")
        lock.release()
        RunLock(tmp_path / "lock").release()
        lock.release()


def test_an_owner_on_another_host_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 12, "started": "345"}))
    with pytest.raises(RunLocked, match=r"process 12 on host elsewhere.*delete .*lock"):
        RunLock(tmp_path / "lock")


def test_a_reused_process_number_is_not_the_owner(tmp_path: Path) -> None:
    parent = {"host": platform.node(), "pid": os.getppid(), "started": "1"}
    (tmp_path / "lock").write_text(json.dumps(parent))
    RunLock(tmp_path / "lock").release()


@pytest.mark.parametrize("text", ["", '{"host": "el', "[]", "\0\0\0", "[" * 9999, NO_NUMBER])
def test_a_torn_name_is_no_owner(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock").write_text(text)
    RunLock(tmp_path / "lock").release()


def test_a_link_is_no_lock_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the user's own")
    (tmp_path / "lock").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match=str(tmp_path / "lock")):
        RunLock(tmp_path / "lock")
    assert (tmp_path / "secret").read_text() == "of the user's own"
