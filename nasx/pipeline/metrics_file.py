"""`metrics.csv`: what a training does, step by step, on the disk while it works."""

import contextlib
import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nasx.pipeline.machine import memory_mib
from nasx.run.files import write_text
from nasx.train import Step

METRICS = "metrics.csv"
HEADER = "step,loss,lr,samples_per_second,memory_mib"

_STEPS, _SECONDS = 20, 5.0  # of a piece that is appended at once, at most


class MetricsFile:
    """The steps of a training as a CSV file: step, loss, learning rate, samples per second, memory in MiB.

    Rows are appended in pieces, and those of a piece share its speed and its memory, which is the device's on CUDA and
    this process's elsewhere. After an interruption the rows of steps that are taken again are replaced. It is for
    people and displays: what counts is in the checkpoints.
    """

    def __init__(
        self,
        path: Path | None,
        samples: int = 0,
        device: torch.device | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.samples, self.device, self._clock = path, samples, device or torch.device("cpu"), clock
        self._waiting: list[Step] = []
        self._since = clock()

    def start(self, step: int) -> None:
        """Keep the rows of the steps before this one."""
        self._waiting.clear()
        self._since = self._clock()
        if self.path is None:
            return
        kept = [HEADER]
        if step and self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()[1:]
            kept += [line for line in lines if line.partition(",")[0].isdigit() and int(line.partition(",")[0]) < step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, "\n".join(kept) + "\n")

    def add(self, step: Step) -> None:
        """Note a step, and write down what was noted now and then."""
        self._waiting.append(step)
        if len(self._waiting) == _STEPS or self._clock() - self._since > _SECONDS:
            self.write()

    def write(self) -> None:
        """Write what was noted."""
        now = self._clock()
        if self.path is not None and self._waiting:
            rate = self.samples * len(self._waiting) / max(now - self._since, 1e-9)
            rest = f"{rate:.6g},{memory_mib(self.device):.1f}\n"
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{step.step},{step.loss:.6g},{step.lr:.6g},{rest}" for step in self._waiting)
        self._waiting.clear()
        self._since = now


@dataclass(frozen=True, slots=True)
class Metrics:
    """The rows of a metrics file, a column each."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    samples_per_second: tuple[float, ...]
    memory_mib: tuple[float, ...]


def read_metrics(path: Path) -> Metrics:
    """Return the complete rows of a metrics file, which a training may be appending to."""
    rows: list[tuple[int, float, float, float]] = []
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):
            with contextlib.suppress(KeyError, TypeError, ValueError):
                rows.append(
                    (int(row["step"]), float(row["loss"]), float(row["samples_per_second"]), float(row["memory_mib"]))
                )
    columns: list[Any] = [tuple(column) for column in zip(*rows, strict=True)] or [()] * 4
    return Metrics(*columns)
