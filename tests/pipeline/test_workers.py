"""Jobs for other processes."""

from pathlib import Path

from nasx import Arch
from nasx.pipeline.networks import NetworkJob
from nasx.pipeline.workers import pickled_jobs


def test_messages_name_a_job_and_not_its_bytes() -> None:
    job = NetworkJob(Arch({"width": 3}), seed=7, weights=Path("0.safetensors"))
    packed = pickled_jobs(print, bytes(1000), [job])
    assert packed is not None
    assert repr(packed[0]) == repr(job)
