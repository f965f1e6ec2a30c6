"""Runs that are watched: events, logs, progress and status; and what their reports say, finished or not."""

import json
import math
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nasx.pipeline import Refused, report, run, status
from nasx.pipeline.events import (
    CandidateScored,
    Event,
    NetworkTested,
    NetworkTrained,
    StageFinished,
    StageStarted,
    StepTaken,
)
from nasx.pipeline.loggers import Ending, EventLog, Sink, TensorBoard, logging_to
from nasx.pipeline.progress import silent
from nasx.pipeline.run_report import report_of
from nasx.pipeline.run_status import ProgressFile, read_events, status_lines
from nasx.pipeline.search_record import read_search
from nasx.run import Interrupted
from nasx.space import Space, one_of, repeat
from tests.pipeline.searches import SEARCHES, SPACE
from tests.pipeline.test_run import MACHINE, STAGES, problem, searched, task


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Event]]:
    events: list[Event] = []
    directory = tmp_path_factory.mktemp("runs") / "run"
    return run(problem(), directory, machine=MACHINE, progress=silent, on_event=events.append), events


def test_events_tell_of_every_stage_step_candidate_and_network(watched: tuple[Any, list[Event]]) -> None:
    found, events = watched
    assert [e.stage for e in events if isinstance(e, StageStarted)] == list(STAGES)
    assert [e.stage for e in events if isinstance(e, StageFinished)] == list(STAGES)
    steps = [e for e in events if isinstance(e, StepTaken)]
    assert [e.step for e in steps] == list(range(steps[0].total))
    assert {e.samples for e in steps} == {16}
    candidates = [e for e in events if isinstance(e, CandidateScored)]
    summary = found.summary["searches"]["search"]
    assert [e.number for e in candidates] == list(range(summary["evaluations"]))
    assert all(e.arch in SPACE for e in candidates)
    assert [e.best for e in candidates] == [max(c.score for c in candidates[: n + 1]) for n in range(len(candidates))]
    trained = Counter(e.stage for e in events if isinstance(e, NetworkTrained))
    assert trained == {"retrain": 2, "baselines": 4}
    tested = {e.name: e.result["test_score"] for e in events if isinstance(e, NetworkTested)}
    assert tested == {name: row["test_score"] for name, row in found.summary["networks"].items()}


def test_watching_changes_no_result(watched: tuple[Any, list[Event]], tmp_path: Path) -> None:
    assert searched(tmp_path).summary["networks"] == watched[0].summary["networks"]


def test_a_run_that_goes_on_reports_each_candidate_once_and_counts_its_restarts(
    watched: tuple[Any, list[Event]], tmp_path: Path
) -> None:
    events: list[Event] = []

    def stopping(event: Event) -> None:
        events.append(event)
        if isinstance(event, CandidateScored) and event.number == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(problem(), tmp_path, machine=MACHINE, progress=silent, on_event=stopping)
    now = status(tmp_path)
    assert now.current is not None
    assert (now.current.name, now.current.best) == ("search", max(e.score for e in events if hasattr(e, "score")))
    assert not now.running
    page = report(tmp_path).read_text()
    assert "not finished: stopped in stage search" in page
    assert "All 4 candidates of search" in page

    again = run(problem(), tmp_path, machine=MACHINE, progress=silent, on_event=events.append)
    assert again.summary["networks"] == watched[0].summary["networks"]
    numbers = [e.number for e in events if isinstance(e, CandidateScored)]
    assert numbers == list(range(len(numbers)))
    assert status(tmp_path).restarts == 1
    assert any("continued 1 time; it had stopped in search" in sentence for sentence in report_of(tmp_path).incidents)


def test_the_candidates_of_a_search_are_read_back(watched: tuple[Any, list[Event]]) -> None:
    found, events = watched
    search = read_search(found.directory / "search", "search")
    assert search is not None
    scored = [e for e in events if isinstance(e, CandidateScored)]
    assert [(c.generation, c.arch, c.cost, c.score) for c in search.candidates] == [
        (e.generation, e.arch, e.macs, e.score) for e in scored
    ]
    assert search.best_kept == 2
    assert search.options["block.0.hidden"] == (4, 8, 16)


def test_a_report_says_what_was_found_how_sure_that_is_and_how_to_repeat_it(watched: tuple[Any, list[Event]]) -> None:
    made = report_of(watched[0].directory)
    found = watched[0].summary["networks"]["searched"]
    assert made.state == "finished"
    assert made.networks[0].test_accuracy == found["test_score"]
    interval = made.networks[0].test_interval
    assert interval is not None
    assert interval.low < found["test_score"] < interval.high
    assert all(network.versus_found is not None for network in made.networks[1:])
    assert any("95 % interval" in sentence for sentence in made.found)
    assert any("12 architectures" in sentence for sentence in made.searched)
    assert made.hardware["processor"]
    assert "nasx.pipeline.run" in made.command
    assert {curve.panel for curve in made.curves} == {"supernet", "retrain", "baselines"}
    assert any(curve.label.startswith("searched: ") for curve in made.curves)
    assert (watched[0].directory / "figures" / "architecture.svg").is_file()


@pytest.mark.parametrize("name", ["regression", "tokens"])
def test_reports_are_made_of_any_problem(name: str, tmp_path: Path) -> None:
    run(SEARCHES[name](), tmp_path, machine=MACHINE, progress=silent)
    made = report_of(tmp_path)
    assert made.metric in ("negative_squared_error", "tag_accuracy")
    assert made.networks[0].test_interval is not None
    assert f"test {made.metric}" in (tmp_path / "report.html").read_text()


def test_runs_are_compared_on_the_same_test_samples(
    watched: tuple[Any, list[Event]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = watched[0].directory
    path = report(directory, directory)
    assert path == Path("comparison.html")
    assert "no difference that this data can show" in path.read_text()
    with pytest.raises(ValueError, match="no run directory"):
        report(directory, tmp_path)


def test_progress_counts_the_candidates_that_there_are(tmp_path: Path) -> None:
    """A filter leaves their number open; where they are few, they are counted."""
    shown: list[tuple[float, float]] = []

    def progress(description: str, done: float, total: float, note: str = "") -> None:
        if description == "search":
            shown.append((done, total))

    inside = Space(block=repeat(Space(hidden=one_of(4, 8, 16)), one_of(1, 2))).where(
        lambda arch: sum(int(value) for name, value in arch.items() if name.endswith("hidden")) <= 12
    )
    own = problem()
    own.inside = inside
    run(own, tmp_path, machine=MACHINE, progress=progress)
    exact = sum(1 for _ in inside)
    assert exact < 8
    assert {total for _, total in shown} == {exact}
    assert shown[-1] == (exact, exact)


def test_progress_is_written_now_and_then(tmp_path: Path) -> None:
    now = 0.0
    seen: list[float] = []

    def shown(description: str, done: float, total: float, note: str = "") -> None:
        seen.append(done)

    progress = ProgressFile(tmp_path, "supernet", shown, clock=lambda: now)
    for step in range(1, 9):
        now += 1.0
        progress("supernet", step, 10)
    assert seen == list(range(1, 9)), "what is shown stays as it was"
    written = json.loads((tmp_path / "progress.json").read_text())
    assert written == {"stage": "supernet", "done": 5, "total": 10, "note": "", "per_second": 1.0}


def test_a_status_names_loss_speed_memory_and_what_is_left(tmp_path: Path) -> None:
    def stopping(event: Event) -> None:
        if isinstance(event, StepTaken) and event.step == 15:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(problem(), tmp_path, machine=MACHINE, progress=silent, on_event=stopping)
    stage = status(tmp_path).stages[0]
    assert (stage.state, stage.kind, stage.done) == ("begun", "supernet", 16)
    assert stage.loss is not None
    assert math.isfinite(stage.loss)
    assert stage.samples_per_second is not None
    assert stage.steps_per_second == pytest.approx(stage.samples_per_second / 16)
    assert stage.memory_mib is not None
    lines = list(status_lines(status(tmp_path)))
    assert "stopped" in lines[0]
    assert "samples/s" in lines[1]


def test_a_stage_that_ends_while_it_is_looked_at_is_done(
    watched: tuple[Any, list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = watched[0].directory
    written = read_events(directory)
    ends = [number for number, event in enumerate(written) if event.get("event") == "stage_done"]
    looks = iter([written[: ends[0]], written[: ends[1]]])  # the first stage was at work, and then a later one
    monkeypatch.setattr("nasx.pipeline.run_status.read_events", lambda directory: next(looks))
    found = status(directory)
    assert [stage.state for stage in found.stages[:2]] == ["done", "begun"]
    assert found.current == found.stages[1]


def test_no_time_is_left_where_all_steps_are_taken(watched: tuple[Any, list[Event]], tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(watched[0].directory, directory)
    steps = next(event.total for event in watched[1] if isinstance(event, StepTaken))
    journal = (directory / "journal.jsonl").read_text().splitlines(keepends=True)
    (directory / "journal.jsonl").write_text("".join(journal[:1]))  # no stage is done
    noted = {"stage": "supernet", "done": 1, "total": steps, "note": "", "per_second": 1.0}
    (directory / "progress.json").write_text(json.dumps(noted))
    stage = status(directory).stages[0]
    assert (stage.done, stage.total, stage.remaining) == (steps, steps, None)


def test_what_a_hook_raises_ends_the_run_which_then_goes_on(tmp_path: Path) -> None:
    def failing(event: Event) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(problem(), tmp_path, machine=MACHINE, progress=silent, on_event=failing)
    assert searched(tmp_path).summary["networks"]


def test_tensorboard_gets_the_losses_and_the_scores(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(problem(), tmp_path, machine=MACHINE, progress=silent, log="tensorboard")
    written = {}
    for stage in ("supernet", "search", "retrain/0", "evaluation"):
        events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / stage))
        events.Reload()
        written[stage] = {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert written["supernet"]["loss"] == [19, 23]
    assert written["search"]["score"] == list(range(len(written["search"]["score"])))
    assert written["retrain/0"]["loss"]
    assert written["evaluation"]["searched/test_score"] == [0]


def test_weights_and_biases_are_logged_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with logging_to("wandb", tmp_path, {"seed": 0}) as hook:
        assert hook is not None
        hook(CandidateScored("search", 0, 0, SPACE[0], 5.0, 0.5, 0.5))
    known = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert list(tmp_path.glob(f"wandb/offline-run-*-{known}/run-{known}.wandb"))


def test_an_active_run_of_weights_and_biases_is_logged_into_and_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(project="mine", dir=str(tmp_path), config={"seed": "of mine"}) as mine:
        with logging_to("wandb", tmp_path, {"seed": 0, "threads": 2}) as hook:
            assert hook is not None
            hook(CandidateScored("search", 0, 0, SPACE[0], 5.0, 0.5, 0.5))
        assert wandb.run is mine
        assert dict(mine.config) == {"seed": "of mine", "threads": 2}
        mine.log({"own": 1})
    assert not (tmp_path / "wandb.json").exists()


@pytest.mark.parametrize(("error", "code"), [(Interrupted("stopped"), 1), (KeyError("mine"), 1), (None, 0)])
def test_weights_and_biases_know_whether_a_run_finished(
    error: Exception | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    codes, finish = [], wandb.Run.finish

    def noted(run: Any, exit_code: int | None = None, **more: Any) -> None:
        codes.append(exit_code)
        finish(run, exit_code, **more)

    monkeypatch.setattr(wandb.Run, "finish", noted)
    with suppress(Interrupted, KeyError), logging_to("wandb", tmp_path, {}):
        if error is not None:
            raise error
    assert codes == [code]


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Any:
    for module in ("sqlalchemy", "alembic"):
        pytest.importorskip(module)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return pytest.importorskip("mlflow")


def client_of(mlflow: Any, directory: Path) -> Any:
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{directory / 'mlflow.db'}")


of_mlflow = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of mlflow's own calls


@of_mlflow
def test_mlflow_is_logged_into_the_run_directory(mlflow: Any, tmp_path: Path) -> None:
    for number in range(2):
        with logging_to("mlflow", tmp_path, {"seed": 0, "search": {"population": 4}}) as hook:
            assert hook is not None
            hook(CandidateScored("search", 0, number, SPACE[0], 5.0, 0.5, 0.5))
    known = json.loads((tmp_path / "mlflow.json").read_text())["id"]
    client = client_of(mlflow, tmp_path)
    history = client.get_metric_history(known, "search/score")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.5), (1, 0.5)]
    assert client.get_run(known).data.params == {"seed": "0", "search.population": "4"}
    assert client.get_run(known).info.status == "FINISHED"
    assert not (Path.cwd() / "mlruns").exists()


@of_mlflow
def test_each_run_of_a_process_has_its_own_log_of_mlflow_whose_state_stays(
    mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        with logging_to("mlflow", tmp_path / name, {"seed": 0}):
            pass
    for name in ("first", "second"):
        client = client_of(mlflow, tmp_path / name)
        experiment = client.get_experiment_by_name("mine").experiment_id
        assert [started.info.run_name for started in client.search_runs([experiment])] == [name]
    assert "MLFLOW_TRACKING_URI" not in os.environ


@of_mlflow
@pytest.mark.parametrize(("error", "status"), [(Interrupted("stopped"), "KILLED"), (KeyError("mine"), "FAILED")])
def test_mlflow_knows_how_a_run_ended(error: Exception, status: str, mlflow: Any, tmp_path: Path) -> None:
    with pytest.raises(type(error)), logging_to("mlflow", tmp_path, {}):
        raise error
    known = json.loads((tmp_path / "mlflow.json").read_text())["id"]
    assert client_of(mlflow, tmp_path).get_run(known).info.status == status


@of_mlflow
def test_an_active_run_of_mlflow_is_logged_into_and_stays_open(
    mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'own.db'}")
    with mlflow.start_run() as mine:
        mlflow.log_param("seed", "of mine")
        with logging_to("mlflow", tmp_path, {"seed": 0, "threads": 2}) as hook:
            assert hook is not None
            hook(CandidateScored("search", 0, 0, SPACE[0], 5.0, 0.5, 0.5))
        assert mlflow.active_run().info.run_id == mine.info.run_id
    found = mlflow.MlflowClient().get_run(mine.info.run_id)
    assert found.data.params == {"seed": "of mine", "threads": "2"}
    assert found.data.metrics["search/score"] == 0.5
    assert not (tmp_path / "mlflow.json").exists()


class Server(Sink):
    """Fails at some calls, all of which it counts."""

    def __init__(self, failing: range) -> None:
        self.failing, self.calls, self.written = failing, 0, list[float]()

    def write(self, stage: str, values: Mapping[str, float], step: int) -> None:
        self.calls += 1
        if self.calls - 1 in self.failing:
            raise RuntimeError("503 Service Unavailable.\nRetry later")
        self.written.append(values["score"])

    def close(self, ending: Ending) -> None:
        if self.calls - 1 in self.failing:
            raise RuntimeError("503")


@pytest.mark.parametrize(
    ("failing", "written", "warnings"),
    [(range(1, 3), [0, 3, 4, 5], 2), (range(1, 9), [0], 4)],
    ids=["for a moment", "for good"],
)
def test_a_server_that_fails_while_a_run_goes_on_ends_no_run(
    failing: range, written: list[float], warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(failing)
    events = EventLog(server)
    for number in range(6):
        events(CandidateScored("search", 0, number, SPACE[0], 5.0, float(number), 0.5))
    events.close()
    assert server.written == written
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == warnings
    assert messages[0] == "CandidateScored could not be logged (503 Service Unavailable. Retry later)"
    if warnings == 4:
        assert messages[2].endswith("; nothing more is logged")
        assert messages[3] == "the end of the log could not be written (503)"
        assert server.calls == 4


def test_a_run_whose_log_fails_finds_the_same(
    watched: tuple[Any, list[Event]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: TensorBoard, stage: str, values: Mapping[str, float], step: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoard, "write", full)
    found = run(problem(), tmp_path, machine=MACHINE, progress=silent, log="tensorboard")
    assert found.summary["networks"] == watched[0].summary["networks"]


@pytest.mark.parametrize(
    ("log", "module"),
    [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow"), ("mlflow", "sqlalchemy")],
)
def test_a_missing_library_is_named_before_anything_starts(
    log: Any, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Refused, match=rf"pip install 'nasx\[{log}\]'"):
        run(problem(task=task()), tmp_path / "run", machine=MACHINE, log=log)
    assert not (tmp_path / "run").exists()
    with pytest.raises(Refused, match="log must be one of tensorboard, wandb, mlflow"):
        run(problem(task=task()), tmp_path / "run", machine=MACHINE, log="notebook")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("online", "No API key configured"), ("bogus", r"mode: Input should be 'online', .*, but got 'bogus'\)")],
)
def test_weights_and_biases_that_do_not_start_are_refused_before_anything_starts(
    mode: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # which read the environment once
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    mend = "log in with `wandb login`, or set WANDB_MODE=offline"
    with pytest.raises(Refused, match=rf"--log wandb cannot start \({reason}.*; {mend}"):
        run(problem(task=task()), tmp_path / "run", machine=MACHINE, log="wandb")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("log", ["tensorboard", "mlflow"])
def test_a_library_that_does_not_start_is_refused(log: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("no server\nanswers")

    monkeypatch.setattr("nasx.pipeline.loggers._library", lambda module, extra: Failing())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://nowhere")
    monkeypatch.setattr("nasx.pipeline.loggers.TensorBoard", lambda directory: Failing().library)
    with (
        pytest.raises(Refused, match=rf"--log {log} cannot start \(no server answers\); (install|correct MLFLOW_)"),
        logging_to(log, tmp_path, {}),
    ):
        pass
