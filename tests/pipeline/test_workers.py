"""Jobs for other processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nasx import Arch
from nasx.pipeline.networks import NetworkJob
from nasx.pipeline.workers import IMPORTED, pickled_jobs, run_side_by_side
from nasx.train.jobs import Report


def test_messages_name_a_job_and_not_its_bytes() -> None:
    job = NetworkJob(Arch({"width": 3}), seed=7, weights=Path("0.safetensors"))
    packed = pickled_jobs(print, bytes(1000), [job])
    assert packed is not None
    assert repr(packed[0]) == repr(job)


def threads_of(shared: int, job: int, report: Report) -> int:
    return torch.get_num_threads()


@pytest.mark.parametrize("processes", [1, 2])
def test_jobs_have_as_many_threads_as_they_are_given(processes: int) -> None:
    found = run_side_by_side(
        threads_of,
        0,
        [1, 2],
        processes=processes,
        threads=2,
        on_progress=lambda *done: None,
        on_result=lambda *done: None,
        stopping=lambda: False,
    )
    assert found == [2, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked on Linux alone")
def test_what_workers_import_leaves_cuda_to_them() -> None:
    """A process that has asked CUDA anything cannot be forked into processes that use it."""
    code = (
        "import importlib, os, sys, torch\n"
        f"for name in {('nasx.train.fork_server', *IMPORTED)!r}: importlib.import_module(name)\n"
        "child = os.fork()\n"
        "if not child: os._exit(torch._C._cuda_isInBadFork())\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
