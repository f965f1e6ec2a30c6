import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nasx.data.readers import read_ahead
from nasx.run import Interrupted
from nasx.train import nesterov_sgd, run_jobs, train

Report = Callable[[int, int], bool]


def train_one(seed: int, report: Report) -> tuple[list[float], int]:
    if seed < 0:
        raise ArithmeticError(f"seed {seed} is negative")
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 5))
    batches = [(torch.randn(64, 32), torch.randint(5, (64,))) for _ in range(6)]
    for step in train(model, batches, nesterov_sgd(model, lr=0.1, weight_decay=1e-4)):
        report(step.step + 1, len(batches))
    return [float(p.detach().sum()) for p in model.parameters()], torch.get_num_threads()


def test_results_are_the_same_bits_in_job_order_whatever_the_number_of_processes() -> None:
    seeds = [5, 1, 4]
    alone: list[tuple[int, int, int]] = []
    results: dict[int, object] = {}
    one = run_jobs(train_one, seeds, processes=1, on_progress=lambda *progress: alone.append(progress))
    two = run_jobs(train_one, seeds, processes=2, on_result=lambda job, result: results.update({job: result}))
    assert one == two
    assert [results[i] for i in range(3)] == two
    assert one != run_jobs(train_one, [1, 4, 5], processes=1)
    assert {threads for _, threads in two} == {1}
    assert alone == [(job, done, 6) for job in range(3) for done in range(1, 7)]


def test_threads_are_restored_after_jobs_in_this_process() -> None:
    before = torch.get_num_threads()
    ((_, threads),) = run_jobs(train_one, [0], processes=1, threads=before + 1)
    assert (threads, torch.get_num_threads()) == (before + 1, before)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_jobs_exception_reaches_the_caller(processes: int) -> None:
    with pytest.raises(ArithmeticError, match="seed -3"):
        run_jobs(train_one, [-3, 1], processes=processes)


def test_no_jobs_no_results() -> None:
    assert run_jobs(train_one, [], processes=2) == []


def many_tensors(seed: int, report: Report) -> list[torch.Tensor]:
    report(1, 1)
    return [torch.full((2,), float(seed)) for _ in range(400)]


def test_results_may_hold_many_tensors_and_the_last_report_arrives() -> None:
    reported: set[int] = set()
    results = run_jobs(many_tensors, range(6), processes=2, on_progress=lambda job, done, total: reported.add(job))
    assert [float(tensors[399][1]) for tensors in results] == [0, 1, 2, 3, 4, 5]
    assert reported == set(range(6))


def test_an_exception_says_in_which_job() -> None:
    with pytest.raises(ArithmeticError) as caught:
        run_jobs(train_one, [1, -3], processes=2)
    assert any("job 1 of 2: -3" in note for note in caught.value.__notes__)


def test_a_failing_job_ends_no_other_process_of_the_program() -> None:
    others: list[Any] = []

    def start_another() -> bool:  # as another thread may, while jobs run
        if not others:
            others.append(multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,)))
            others[0].start()
        return False

    with pytest.raises(ArithmeticError):
        run_jobs(train_one, [1, -3], processes=2, stopping=start_another)
    others[0].join(timeout=0.5)  # long enough for a signal
    exitcode = others[0].exitcode
    others[0].kill()
    others[0].join()
    assert exitcode is None


def surroundings(name: str, report: Report) -> tuple[str | None, bool]:
    if name == "signalled":
        os.kill(os.getppid(), signal.SIGTERM)  # as a scheduler does that tells all processes of a run
        time.sleep(0.1)
    return os.environ.get(name), "torch._dynamo" in sys.modules


@pytest.mark.skipif(sys.platform != "linux", reason="workers start from scratch elsewhere")
def test_workers_are_forked_from_a_process_that_outlives_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    run_jobs(surroundings, ["NASX_FIRST"] * 2, processes=2)
    monkeypatch.setenv("NASX_LATER", "1")
    found = run_jobs(surroundings, ["signalled", "NASX_LATER", "signalled"], processes=2)
    assert found == [(None, True), ("1", True), (None, True)], "with the environment of now"


def test_jobs_run_in_a_fork_of_a_program_that_has_run_some() -> None:
    expected = run_jobs(train_one, [1, 2], processes=2)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(
        target=lambda: theirs.send(run_jobs(train_one, [1, 2], processes=2))
    )
    child.start()
    theirs.close()
    assert ours.recv() == expected
    child.join()


def lasting(folder: str, report: Report) -> None:
    while True:
        for process in (os.getpid(), *([os.getppid()] if sys.platform == "linux" else [])):
            (Path(folder) / str(process)).write_text("")
        report(0, 1)
        time.sleep(0.05)


def noted(folder: Path, index: int) -> int:
    (folder / str(os.getpid())).write_text("")
    return index


def reading_ahead(folder: str, report: Report) -> None:
    """A job whose samples are read ahead by processes of its own."""
    for _ in read_ahead(partial(noted, Path(folder)), range(100_000), 1):
        lasting(folder, report)


@pytest.mark.parametrize(("job", "processes"), [("lasting", 2), ("reading_ahead", 4)])
def test_workers_end_with_a_parent_that_is_killed(job: str, processes: int, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\nsys.path[:0] = " + repr([str(Path(__file__).parent)]) + "\n"
        f"from test_jobs import {job}, run_jobs\n"
        f"if __name__ == '__main__':\n    run_jobs({job}, [{str(tmp_path)!r}] * 2, processes=2)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    started: set[int] = set()
    while len(started) < processes + (sys.platform == "linux"):
        started = {int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()}
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in started):
        assert time.monotonic() < deadline, "workers outlived their parent"
        time.sleep(0.1)


def heeding(seed: int, report: Callable[[int, int], bool]) -> int:
    for step in range(2000):
        if report(step + 1, 2000):
            raise Interrupted(f"saved at {step + 1}")
        time.sleep(0.005)
    return seed


@pytest.mark.parametrize("processes", [1, 2])
def test_jobs_are_asked_to_stop_and_no_further_one_starts(processes: int) -> None:
    started: set[int] = set()

    def on_progress(job: int, done: int, total: int) -> None:
        started.add(job)

    with pytest.raises(Interrupted):
        run_jobs(heeding, range(9), processes=processes, on_progress=on_progress, stopping=lambda: bool(started))
    assert len(started) <= 2 * processes
