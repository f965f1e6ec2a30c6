import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nasx.run import ConfigChanged, Interrupted, JournalDamaged, RunDirectory, RunLocked, Stage, StageContext

CONFIG = {"search": {"population": 50, "seeds": [1, 2]}, "machine": {"threads": {"torch": 2}}, "name": "x"}
VERSIONS = {"torch": "2.15", "nasx": "0.1"}


def open_run(path: Path, config: Any = CONFIG, **options: Any) -> RunDirectory:
    return RunDirectory.open(path, config=config, versions=VERSIONS, **options)


class Recipe:
    """Three stages; the second scores ten candidates and journals each, and can be message where to stop."""

    clock = 0.0

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[str] = []
        self.stop_at = stop_at
        self.stages = [
            Stage("heads/supernet", self.train),
            Stage("heads/search", self.search, ("heads/supernet",)),
            Stage("report", self.report, ("heads/supernet", "heads/search")),
        ]

    def begin(self, context: StageContext) -> None:
        self.calls.append(context.name)
        Recipe.clock += 10

    def train(self, context: StageContext) -> Any:
        self.begin(context)
        (context.directory / "weights").write_text("w")
        return {"loss": 0.1 + 0.2, "path": ("a", 1), 3: None}

    def search(self, context: StageContext) -> Any:
        self.begin(context)
        assert (context.stage_directory("heads/supernet") / "weights").read_text() == "w"
        scored = {record["n"] for record in context.journal}
        for n in range(10):
            context.stop.raise_if_requested()
            if n not in scored:
                self.calls.append(f"score {n}")
                context.journal.append({"n": n})
            if n == self.stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
        context.inputs["heads/supernet"]["loss"] = "changed"
        return [record["n"] for record in context.journal]

    def report(self, context: StageContext) -> Any:
        self.begin(context)
        return {"inputs": dict(context.inputs)}


RESULTS = {
    "heads/supernet": {"loss": 0.1 + 0.2, "path": ["a", 1], "3": None},
    "heads/search": list(range(10)),
    "report": {
        "inputs": {"heads/supernet": {"loss": 0.1 + 0.2, "path": ["a", 1], "3": None}, "heads/search": list(range(10))}
    },
}


def test_stages_run_once_and_a_second_start_reads_the_same_results(tmp_path: Path) -> None:
    recipe = Recipe()
    events: list[Any] = []
    with open_run(tmp_path / "runs" / "r") as run:
        results = run.execute(
            recipe.stages,
            on_start=lambda stage: events.append(stage.name),
            on_done=lambda stage, seconds, skipped: events.append((stage.name, seconds >= 0, skipped)),
        )
        seconds = run.seconds
    assert results == RESULTS
    assert events == [e for s in recipe.stages for e in (s.name, (s.name, True, False))]
    again = Recipe()
    events.clear()
    with open_run(tmp_path / "runs" / "r") as run:
        results = run.execute(
            again.stages,
            on_start=lambda stage: events.append(stage.name),
            on_done=lambda stage, seconds, skipped: events.append((stage.name, seconds, skipped)),
        )
        assert run.seconds == seconds
    assert json.dumps(results) == json.dumps(RESULTS)
    assert again.calls == []
    assert events == [(stage.name, seconds[stage.name], True) for stage in again.stages]


def test_an_interrupted_stage_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: Recipe.clock)
    recipe = Recipe(stop_at=3)
    with open_run(tmp_path) as run:
        with pytest.raises(Interrupted, match="SIGTERM"):
            run.execute(recipe.stages)
        assert run.seconds == {"heads/supernet": 10.0}
        with pytest.raises(Interrupted):
            run.execute(Recipe(stop_at=7).stages)
    again = Recipe()
    with open_run(tmp_path) as run:
        assert run.execute(again.stages) == RESULTS
        assert run.seconds == {"heads/supernet": 10.0, "heads/search": 30.0, "report": 10.0}
    assert recipe.calls == ["heads/supernet", "heads/search", *(f"score {n}" for n in range(4))]
    assert again.calls == ["heads/search", "score 8", "score 9", "report"]


def test_a_wall_clock_that_goes_backwards_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    recipe = Recipe(stop_at=3)
    with open_run(tmp_path) as run, pytest.raises(Interrupted):
        run.execute(recipe.stages)
    for number, path in enumerate(sorted(tmp_path.rglob("*"))):
        os.utime(path, (10**9 - number, 10**9 - number))
    with open_run(tmp_path) as run:
        assert run.execute(Recipe().stages) == RESULTS
        assert all(seconds >= 0 for seconds in run.seconds.values())


def test_the_newest_checkpoint_is_the_last_one_saved_whatever_the_files_times_say(tmp_path: Path) -> None:
    from nasx.run.checkpoints import Checkpoints

    for step in (1, 2, 3):
        path = Checkpoints(tmp_path).save(step, {}, None)
        os.utime(path, (10**9 - step, 10**9 - step))
    latest = Checkpoints(tmp_path).latest()
    assert latest is not None
    assert latest.step == 3


def test_a_stop_between_stages_starts_no_further_one(tmp_path: Path) -> None:
    recipe = Recipe(stop_at=9)
    with open_run(tmp_path) as run, pytest.raises(Interrupted):
        run.execute(recipe.stages)
    assert recipe.calls[-1] == "score 9"
    with open_run(tmp_path) as run:
        assert run.seconds.keys() == {"heads/supernet", "heads/search"}


def test_a_failing_stage_is_named_and_can_be_run_again(tmp_path: Path) -> None:
    def fail(context: StageContext) -> Any:
        raise ArithmeticError("no")

    with open_run(tmp_path) as run:
        with pytest.raises(ArithmeticError) as raised:
            run.execute([Stage("a/b", fail)])
        assert "'a/b'" in raised.value.__notes__[0]
        for result in (object(), {"loss": float("nan")}):
            with pytest.raises((TypeError, ValueError), match="JSON"):
                run.execute([Stage("a/b", lambda context, result=result: result)])  # type: ignore[misc]
        assert run.execute([Stage("a/b", lambda context: 1)]) == {"a/b": 1}


def test_names_that_no_run_directory_can_have_are_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"link is a link to .*nowhere, which does not exist; make that directory"):
        open_run(link)
    with pytest.raises(ValueError, match=r"cannot have a NUL byte, but got '.*a\\x00b'; choose another path"):
        open_run(tmp_path / "a\0b")
    (tmp_path / "nowhere").mkdir()
    open_run(link).close()


def test_a_finished_run_can_be_read_where_nothing_is_written(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        results = run.execute(Recipe().stages)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}
    found = RunDirectory.read(tmp_path, config=CONFIG)
    assert found is not None
    with found:
        assert found.execute(Recipe().stages) == results
    assert {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))} == before
    assert RunDirectory.read(tmp_path, config={"other": 1}) is None
    assert RunDirectory.read(tmp_path / "none", config=CONFIG) is None


def test_a_changed_config_is_refused_with_its_fields(tmp_path: Path) -> None:
    open_run(tmp_path).close()
    changed = {"search": {"population": 40, "seeds": [1, 3]}, "machine": {"threads": {"torch": 2}}, "new": True}
    with pytest.raises(ConfigChanged) as raised:
        open_run(tmp_path, changed)
    message = str(raised.value)
    for part in ("search.population: 50 -> 40", "search.seeds: [1, 2] -> [1, 3]", 'name: "x" -> (absent)', "new: "):
        assert part in message
    assert "machine" not in message
    assert raised.value.fields == {
        "search.population": (50, 40),
        "search.seeds": ([1, 2], [1, 3]),
        "name": ("x", "(absent)"),
        "new": ("(absent)", True),
    }
    with pytest.raises(ConfigChanged, match=r"population: 50 -> 50\.0"):
        open_run(tmp_path, {**CONFIG, "search": {"population": 50.0, "seeds": [1, 2]}})
    open_run(tmp_path, json.loads(json.dumps(CONFIG, sort_keys=True))).close()  # the lock is free again


def test_the_order_of_a_configs_fields_is_no_change(tmp_path: Path) -> None:
    open_run(tmp_path, {"levels": [{"space": "heads", "depth": {"min": 1, "max": 2}}], "name": "x"}).close()
    open_run(tmp_path, {"name": "x", "levels": [{"depth": {"max": 2, "min": 1}, "space": "heads"}]}).close()
    with pytest.raises(ConfigChanged, match="levels"):
        open_run(tmp_path, {"name": "x", "levels": [{"depth": {"max": 3, "min": 1}, "space": "heads"}]})


def test_a_description_says_what_was_asked_for_and_when(tmp_path: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    open_run(tmp_path).close()
    described = json.loads((tmp_path / "run.json").read_text())
    assert (described["config"], described["versions"]) == (CONFIG, VERSIONS)
    assert before <= datetime.fromisoformat(described["started"]) <= datetime.now(UTC)
    open_run(tmp_path).close()
    assert json.loads((tmp_path / "run.json").read_text()) == described


@pytest.mark.parametrize("pattern", ["machine", "machine.threads.torch", "*.threads.*", "*.threads"])
def test_changeable_fields_may_change_and_the_change_is_kept(tmp_path: Path, pattern: str) -> None:
    open_run(tmp_path).close()
    first = json.loads((tmp_path / "run.json").read_text())
    changed = {**CONFIG, "machine": {"threads": {"torch": 8}}}
    with pytest.raises(ConfigChanged):
        open_run(tmp_path, changed, changeable=["*.torch", "machine.*.other", "search"])
    open_run(tmp_path, changed, changeable=["other", pattern]).close()
    assert json.loads((tmp_path / "run.json").read_text()) == {**first, "config": changed}
    assert '"machine.threads.torch":[2,8]' in (tmp_path / "journal.jsonl").read_text()
    open_run(tmp_path, changed).close()


def test_other_versions_are_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_run(tmp_path).close()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            RunDirectory.open(tmp_path, config=CONFIG, versions={**VERSIONS, "torch": "3.0"}).close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "torch 2.15 -> 3.0" in caplog.text


def test_what_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        open_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="is a file"):
        open_run(tmp_path / "thesis.tex")
    with pytest.raises(ValueError, match=r"thesis\.tex/run cannot be made .*; choose another path"):
        open_run(tmp_path / "thesis.tex" / "run")
    (tmp_path / "empty").mkdir()
    open_run(tmp_path / "empty").close()


@pytest.mark.parametrize("content", [b"", b'{"config": ', b"[" * 99_999, b"[]", b"\xff\xfe"])
def test_a_damaged_description_is_refused(tmp_path: Path, content: bytes) -> None:
    open_run(tmp_path).close()
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.json"):
        open_run(tmp_path)


def test_a_damaged_journal_is_refused_and_frees_the_lock(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.execute(Recipe().stages)
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole.replace(b"0.30000000000000004", b"0.20000000000000004", 1))
    for _ in range(2):
        with pytest.raises(JournalDamaged, match="line 1 of "):
            open_run(tmp_path)
    journal.write_bytes(whole)
    open_run(tmp_path).close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with open_run(tmp_path), pytest.raises(RunLocked, match=f"process {os.getpid()} on host"):
        open_run(tmp_path)
    open_run(tmp_path).close()


@pytest.mark.parametrize(
    ("stages", "rule"),
    [
        ([Stage("a", lambda c: 1), Stage("a", lambda c: 1)], "'a' is used twice"),
        ([Stage("b", lambda c: 1, ("a",)), Stage("a", lambda c: 1)], "'b' reads 'a'"),
        ([Stage("a", lambda c: 1, ("a",))], "'a' reads 'a'"),
        *(
            ([Stage(name, lambda c: 1)], "name is a folder")
            for name in (
                "",
                "/a",
                "a/",
                "../a",
                "a/../b",
                ".",
                "a//b",
                "a/checkpoints",
                "journal.jsonl",
                "a b",
                "run.json",
            )
        ),
    ],
)
def test_stages_that_cannot_be_are_refused_before_work(tmp_path: Path, stages: list[Stage], rule: str) -> None:
    started: list[str] = []
    with open_run(tmp_path) as run, pytest.raises(ValueError, match=rule):
        run.execute([Stage("first", lambda c: started.append(c.name)), *stages])
    assert started == []


def test_only_inputs_folders_are_handed_out(tmp_path: Path) -> None:
    stages = [Stage("a", lambda c: 1), Stage("b", lambda c: str(c.stage_directory("a")))]
    with open_run(tmp_path) as run, pytest.raises(ValueError, match="'b' reads only"):
        run.execute(stages)


def test_checkpoints_lie_in_the_stages_folder(tmp_path: Path) -> None:
    def work(context: StageContext) -> Any:
        return str(context.checkpoints.save(3, {}, {}).relative_to(tmp_path))

    with open_run(tmp_path) as run:
        assert run.execute([Stage("a/b", work)])["a/b"].startswith("a/b/checkpoints/")


def test_a_checkpoint_moved_to_another_stage_is_not_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def save(context: StageContext) -> Any:
        context.checkpoints.save(3, {}, context.name)

    def read(context: StageContext) -> Any:
        with pytest.raises(ValueError, match="'read' reads only"):
            context.checkpoints_of("other")
        found = [context.checkpoints_of(name).latest() for name in ("a", "b")]
        return [checkpoint and checkpoint.state for checkpoint in found]

    with open_run(tmp_path) as run:
        run.execute([Stage("a", save), Stage("b", save)])
        shutil.rmtree(tmp_path / "b" / "checkpoints")
        shutil.copytree(tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints")
        stages = [Stage("a", save), Stage("b", save), Stage("read", read, ("a", "b"))]
        assert run.execute(stages)["read"] == ["a", None]
    assert "it belongs to 'a', not to 'b'" in caplog.text


KILLED = """
import os, sys
from nasx.run import RunDirectory, Stage
def work(context):
    for n in range(len(context.journal), 5):
        context.journal.append({"n": n})
        print(n, flush=True)
        if len(sys.argv) > 2:
            sys.stdin.read(1)
    return [record["n"] for record in context.journal]
with RunDirectory.open(sys.argv[1], config={}, versions={}) as run:
    print(run.execute([Stage("a", work)]))
"""


def test_a_killed_run_is_taken_over_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen([*command, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout
        assert killed.stdout.readline() == "0\n"
        killed.kill()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stdout == "1\n2\n3\n4\n{'a': [0, 1, 2, 3, 4]}\n", again.stderr
