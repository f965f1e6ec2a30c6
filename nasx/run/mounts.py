"""Whether all hosts that share a file system see each other's locks on it."""

import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")

_OF_ONE_HOST = ("apfs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs")
_COHERENT = ("ceph", "gpfs", "ocfs2", "gfs2")


def locks_reach_all_hosts(path: Path) -> bool:
    """Whether a lock (flock) on a file is seen by every host that can open the file; False where that is not known.

    A disk of one host is seen by nobody else. NFS passes locks to its server unless it is mounted with `nolock` or with
    a `local_lock` that keeps them, and Lustre passes them where it is mounted with `flock`.
    """
    kind, options = _mount_of(path)
    if kind in ("nfs", "nfs4"):
        kept = [option for option in options if option.startswith("local_lock=")]
        return "nolock" not in options and not any(option in ("local_lock=all", "local_lock=flock") for option in kept)
    if kind == "lustre":
        return "flock" in options
    return kind in (*_OF_ONE_HOST, *_COHERENT)


def _mount_of(path: Path) -> tuple[str, list[str]]:
    """Return the type and options of the file system that a path lies on; "" where the system does not say."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return "", []
    resolved = path.resolve()
    found: tuple[int, str, list[str]] = (-1, "", [])
    for line in lines:
        mount, _, source = line.partition(" - ")
        fields, details = mount.split(), source.split()
        if len(fields) < 6 or len(details) < 3:
            continue
        point = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), fields[4]))
        # the deepest mount point counts, and of several on one place the last
        if resolved.is_relative_to(point) and len(point.parts) >= found[0]:
            found = len(point.parts), details[0], [*fields[5].split(","), *details[2].split(",")]
    return found[1], found[2]
