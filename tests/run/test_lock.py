import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from nasx.run import RunLock, RunLocked, mounts

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


ELSEWHERE = json.dumps({"host": "elsewhere", "pid": 12, "started": "345"})
NFS = "vers=4.2,rsize=1048576,proto=tcp,clientaddr=10.0.0.2"


def mounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, options: str = "rw") -> Path:
    """Let the system say that a folder lies on some file system; return the folder."""
    root = tmp_path / "with space"
    root.mkdir()
    table = tmp_path / "mountinfo"
    point = str(root).replace(" ", "\\040")
    table.write_text(
        f"21 1 8:1 / / rw,relatime shared:1 - unheardof /dev/sda1 rw\n"
        f"36 21 0:33 / {point} rw,relatime shared:2 - {kind} server:/export {options}\n"
        f"37 21 0:34 / {point}er rw - ext4 /dev/sdb rw\n"
    )
    monkeypatch.setattr(mounts, "MOUNTS", table)
    return root


@pytest.mark.parametrize(
    ("kind", "options", "reach"),
    [
        ("ext4", "rw", True),
        ("overlay", "rw,lowerdir=/a,upperdir=/b", True),  # a container that was started again under another name
        ("nfs4", f"rw,{NFS},local_lock=none", True),
        ("nfs", f"rw,{NFS}", True),
        ("nfs", f"rw,{NFS},local_lock=flock", False),
        ("nfs", f"rw,{NFS},local_lock=all", False),
        ("nfs", f"rw,{NFS},nolock,local_lock=none", False),
        ("lustre", "rw,flock,lazystatfs", True),
        ("lustre", "rw,localflock", False),
        ("lustre", "rw", False),
        ("ceph", "rw", True),
        ("fuse.sshfs", "rw", False),
        ("beegfs", "rw", False),
    ],
)
def test_a_dead_owner_on_another_host_is_taken_over_where_a_free_lock_means_that(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    options: str,
    reach: bool,
) -> None:
    root = mounted(monkeypatch, tmp_path, kind, options)
    (root / "lock").write_text(ELSEWHERE)
    if not reach:
        with pytest.raises(RunLocked, match=r"process 12 on host elsewhere.*does not tell .*delete .*lock"):
            RunLock(root / "lock")
        assert (root / "lock").read_text() == ELSEWHERE
        return
    with RunLock(root / "lock"):
        assert json.loads((root / "lock").read_text())["pid"] == os.getpid()
    assert "left by process 12 on host elsewhere, which has ended; it is continued here" in caplog.text


def test_a_living_owner_on_another_host_is_never_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock is held, which is what counts; here another process stands for it."""
    root = mounted(monkeypatch, tmp_path, "nfs4", f"rw,{NFS},local_lock=none")
    with hold(root / "lock") as owner:
        assert owner.stdout
        owner.stdout.readline()
        (root / "lock").write_text(ELSEWHERE)
        with pytest.raises(RunLocked, match="is in use by process 12 on host elsewhere"):
            RunLock(root / "lock")


def test_where_the_system_does_not_name_its_mounts_nobody_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "absent")
    (tmp_path / "lock").write_text(ELSEWHERE)
    with pytest.raises(RunLocked, match=r"delete .*lock"):
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
