"""Runs in processes of their own: one, or several that torchrun starts."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def start(words: Sequence[str], processes: int = 1, *, restarts: int = 0) -> "subprocess.Popen[str]":
    """Start Python with some words, on the CPU, in as many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launcher += ["--max-restarts", str(restarts)]
    return subprocess.Popen(
        [sys.executable, "-W", "error", *(launcher if processes > 1 else []), *words],
        cwd=ROOT,
        env={**os.environ, "NASX_PROCESSES": "1", "NASX_DEVICE": "cpu", "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def summary_of(process: "subprocess.Popen[str]", *, seconds: float = 240) -> dict[str, Any]:
    """Wait for a process to succeed, and return the document that it printed."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found
