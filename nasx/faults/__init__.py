"""Does to runs what happens to runs: kills, cut power, full disks, damaged and malicious files, rivals for the lock.

`python -m nasx.faults --directory DIR` tries it all on the file system of DIR with a tiny model's run, and prints what
was tried and what failed; every suite is a function too. A suite works in a folder of its own, writes small units
(a checkpoint, a journal's record) that are committed one after the other, and after each fault asks: are the committed
units there and right, and does the work go on to its end? All calls that change the disk pass `nasx.run.files.os_call`,
which is where processes are ended and calls made to fail.
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
