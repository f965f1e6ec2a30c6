"""Independent training jobs side by side on one machine.

Two processes of one thread train small networks faster than one process of two threads. Each job runs with the same
number of threads wherever it runs, so its result does not depend on how many processes there are.
"""

import multiprocessing
import os
import pickle
import queue
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from typing import Any, TypeVar

from nasx._memory import keep_freed_memory
from nasx._processes import end_with_parent
from nasx.run.signals import SIGNALS, Interrupted
from nasx.train.device import use_threads

Job = TypeVar("Job")
Result = TypeVar("Result")
Report = Callable[[int, int], bool]
"""Called by a job with the steps done and their total; returns whether the job is to save and raise Interrupted."""

_reports: Any = None  # a worker's end of the queue
_stop: Any = None  # the event that asks all workers to stop


def run_jobs(
    function: Callable[[Job, Report], Result],
    jobs: Sequence[Job],
    *,
    processes: int,
    threads: int = 1,
    on_progress: Callable[[int, int, int], None] | None = None,
    on_result: Callable[[int, Result], None] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> list[Result]:
    """Run `function(job, report)` for each job and return the results in order.

    At most `processes` jobs run at a time, each with `threads` CPU threads. `on_progress(job_number, done, total)` and
    `on_result(job_number, result)` are called in this process. An exception, a job's or one that a callback raises,
    ends all jobs. Once `stopping()` is true no further job starts, those that run learn it from their next report, and
    when all have ended Interrupted is raised. Jobs and results must be picklable; `function` must be importable. One
    process runs the jobs here, one after the other.
    """
    progress = on_progress or (lambda job, done, total: None)
    finished = on_result or (lambda job, result: None)
    results: dict[int, Result] = {}
    if processes <= 1 or len(jobs) <= 1:
        with use_threads(threads):
            for number, job in enumerate(jobs):
                if stopping():
                    raise Interrupted(f"stopped before job {number} of {len(jobs)}")

                def report(done: int, total: int, number: int = number) -> bool:
                    progress(number, done, total)
                    return stopping()

                results[number] = function(job, report)
                finished(number, results[number])
        return [results[number] for number in range(len(jobs))]

    context = _Forking() if prepare_workers() else _Spawning()
    reports, stop = context.Queue(), context.Event()
    started_with = reports, stop, threads, dict(os.environ)
    pool = ProcessPoolExecutor(min(processes, len(jobs)), context, initializer=_start, initargs=started_with)
    try:
        waiting = {pool.submit(_run, function, number, job): number for number, job in enumerate(jobs)}
        while waiting:
            ended, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            _forward(reports, progress)
            if stopping() and not stop.is_set():
                stop.set()
                waiting = {future: number for future, number in waiting.items() if not future.cancel()}
            for future in ended:
                number = waiting.pop(future)
                try:
                    results[number] = pickle.loads(future.result())
                except Interrupted:
                    continue
                except Exception as error:
                    error.add_note(f"in job {number} of {len(jobs)}: {jobs[number]!r:.500}")
                    raise
                finished(number, results[number])
        if len(results) < len(jobs):
            raise Interrupted(f"stopped with {len(results)} of {len(jobs)} jobs done")
    except BaseException:
        for process in context.started:  # and no other child of this program's
            if process.is_alive():
                process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    else:
        pool.shutdown()
        _forward(reports, progress)
    finally:
        reports.close()
        reports.cancel_join_thread()
    return [results[number] for number in range(len(jobs))]


def prepare_workers(*modules: str) -> bool:
    """Import modules in a process that workers will be forked from, beside what goes on here.

    Workers then start in an instant and share the memory of what is imported. That process computes nothing and has no
    threads: a forked copy of this one could hang. It ends with this one. Returns whether there is such a process: on
    Linux, unless this program is itself a fork of one that has it. Workers import all themselves where there is none.
    """
    if sys.platform != "linux":
        return False
    # without the program's main module, which would be imported otherwise
    multiprocessing.set_forkserver_preload([f"{__package__}.fork_server", *modules])
    resource_tracker.ensure_running()  # which would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        forkserver.ensure_running()  # with signals blocked
    except ChildProcessError:
        return False
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return True


class _Starting:
    """Starts processes, and knows which."""

    kind: type[ForkServerProcess | SpawnProcess]

    def __init__(self) -> None:
        super().__init__()
        self.started: list[ForkServerProcess | SpawnProcess] = []

    def Process(self, *args: Any, **named: Any) -> ForkServerProcess | SpawnProcess:  # noqa: N802
        """Make a process, which the caller starts."""
        process = self.kind(*args, **named)
        self.started.append(process)
        return process


class _Spawning(_Starting, SpawnContext):  # type: ignore[misc]  # its Process is a class
    kind = SpawnProcess


class _Forking(_Starting, ForkServerContext):  # type: ignore[misc]
    kind = ForkServerProcess


def _start(reports: Any, stop: Any, threads: int, environment: Mapping[str, str]) -> None:
    global _reports, _stop
    _reports, _stop = reports, stop
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)  # a terminal or scheduler tells the whole group; the parent ends workers
    end_with_parent()  # which cannot end it when it is killed, and a run that starts again must find nobody writing
    os.environ.clear()
    os.environ.update(environment)  # as it is now, and not when the process was started that workers are forked from
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()


def _run(function: Callable[[Job, Report], Result], number: int, job: Job) -> bytes:
    # as bytes: torch would send tensors as open files, which run out with a few hundred of them
    return pickle.dumps(function(job, partial(_report, number)))


def _report(number: int, done: int, total: int) -> bool:
    _reports.put((number, done, total))
    return bool(_stop.is_set())


def _forward(reports: Any, progress: Callable[[int, int, int], None]) -> None:
    latest: dict[int, tuple[int, int]] = {}
    while True:
        try:
            number, done, total = reports.get_nowait()
        except queue.Empty:
            break
        latest[number] = done, total
    for number, (done, total) in latest.items():
        progress(number, done, total)
