"""Fault injection for runs: killed processes, power loss, full disks, damaged and malicious files, contended locks.

`python -m nasx.faults --directory DIR` runs every suite on the file system of DIR with a tiny model's run, and prints
how many cases each tried and which failed; every suite is also a function. A suite works in a folder of its own and
writes small units (a checkpoint, a journal record), which are committed one after the other. After each fault it checks
that the committed units are there and right, and that the work continues to its end. All calls that change the disk go
through `nasx.run.files.os_call`, which is where processes are killed and calls made to fail.
"""

from nasx.faults.command import main
from nasx.faults.suites import (
    Outcome,
    corruptions,
    crash_points,
    disk_errors,
    lock_races,
    malicious_files,
    power_losses,
)

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
