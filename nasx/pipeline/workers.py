"""Work in other processes: jobs are sent as bytes, whatever builder, loss or dataset they hold.

What a program or a notebook defines itself exists in its own process only; cloudpickle sends it whole. Workers do not
import the program's main module, so a script without a `__main__` guard, or a program on standard input, starts no
second run.
"""

import hashlib
import logging
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from nasx.train import run_jobs
from nasx.train.jobs import Report, prepare_workers

Shared = TypeVar("Shared")
Job = TypeVar("Job")
Result = TypeVar("Result")

IMPORTED = "nasx.pipeline.networks", "nasx.pipeline.images"
"""What workers need, to be imported once for all of them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PickledJob:
    """A job as bytes: the function with what all jobs share, and what is the job's own; messages show `what`."""

    shared: bytes
    own: bytes
    what: str

    def __repr__(self) -> str:
        return self.what


def run_side_by_side(
    function: Callable[[Shared, Job, Report], Result],
    shared: Shared,
    jobs: Sequence[Job],
    *,
    processes: int,
    threads: int = 1,
    on_progress: Callable[[int, int, int], None],
    on_result: Callable[[int, Result], None],
    stopping: Callable[[], bool],
) -> list[Result]:
    """Run `function(shared, job, report)` for each job, in several processes where all of it can be sent to them.

    Otherwise the jobs run in this process, one after the other, and a warning says why. All else is `run_jobs`'s.
    """
    packed = pickled_jobs(function, shared, jobs) if min(processes, len(jobs)) > 1 else None
    how: dict[str, Any] = {
        "threads": threads,
        "on_progress": on_progress,
        "on_result": on_result,
        "stopping": stopping,
    }
    if packed is None:

        def here(job: Job, report: Report) -> Result:
            return function(shared, job, report)

        return run_jobs(here, jobs, processes=1, **how)
    with main_module_hidden():
        prepare_workers(*IMPORTED)
        return run_jobs(run_pickled_job, packed, processes=processes, **how)


def pickled_jobs(
    function: Callable[[Shared, Job, Report], Result], shared: Shared, jobs: Sequence[Job]
) -> list[PickledJob] | None:
    """Return jobs as bytes, or None, with a warning that says why, where other processes could not read them."""
    dumps: Callable[[Any], bytes] = pickle.dumps
    if find_spec("cloudpickle"):
        dumps = import_module("cloudpickle").dumps
    try:
        common, own = dumps((function, shared)), [dumps(job) for job in jobs]
    except Exception as error:  # whatever a user's dataset or builder holds
        reason = f"{type(error).__name__}: {error}"
    else:
        if find_spec("cloudpickle") or b"__main__" not in common:
            return [PickledJob(common, content, repr(job)) for content, job in zip(own, jobs, strict=True)]
        reason = "the program itself defines a part of it, which only cloudpickle can send: pip install cloudpickle"
    logger.warning("networks are trained one after the other, in one process, because %s", reason)
    return None


def run_pickled_job(job: PickledJob, report: Report) -> Any:
    """Run a job in a worker."""
    function, shared = _unpacked(job.shared)
    return function(shared, pickle.loads(job.own), report)


_last: tuple[str, Any] | None = None


def _unpacked(content: bytes) -> Any:
    """Return what jobs share; the last is kept, because a worker trains several networks on the same data."""
    global _last
    digest = hashlib.sha256(content).hexdigest()
    if _last is None or _last[0] != digest:
        _last = digest, pickle.loads(content)
    return _last[1]


@contextmanager
def main_module_hidden() -> Iterator[None]:
    """Let processes start without importing this program's main module, which `multiprocessing` does otherwise."""
    main = sys.modules["__main__"]
    kept = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    for name in kept:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)
