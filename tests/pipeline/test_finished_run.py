"""Finished runs are read back: their report is written again, and what is no run is refused."""

import json
import shutil
from pathlib import Path

import pytest

from nasx.__main__ import main as nasx_main
from nasx.pipeline.finished_run import read_run
from nasx.pipeline.records import stage_results
from nasx.pipeline.stage_reports import supernet_report
from nasx.run import Journal
from recipes.glit.__main__ import main

TINY_RUN = [
    *(
        "--method",
        "random",
        "--set",
        "search.top_k=1",
        "--set",
        "retrain.epochs=0.2",
        "--set",
        "retrain.warmup_epochs=0",
    ),
    *("--set", "model.embed_dim=12", "--set", "budget.heads_at_most=null"),
    *("--set", "budget.details_at_least=null", "--set", "budget.details_at_most=null"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a finished run; to be copied, not changed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main(["run", "--run-dir", str(run), "--json", *TINY_RUN]) == 0
    return run


def test_what_a_run_that_was_killed_at_its_end_lacks_is_written_by_the_same_command(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    weights = (run / "model.safetensors").read_bytes()
    (run / "report.html").unlink()
    (run / "model.safetensors").write_bytes(weights[:-64] + bytes(64))
    assert main(["run", "--run-dir", str(run), *TINY_RUN]) == 0
    assert "nothing was trained" in capsys.readouterr().out
    assert (run / "report.html").is_file()
    assert (run / "model.safetensors").read_bytes() == weights


def test_a_report_is_written_again_from_the_journal(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    assert main(["run", "--run-dir", str(run), "--json", *TINY_RUN]) == 0
    summary = json.loads(capsys.readouterr().out)
    found = read_run(run, "glit")
    assert dict(found.arch) == summary["networks"]["searched"]["arch"]
    assert found.summary == summary
    assert len(summary["normalisation"]["mean"]) == 1
    assert found.supernet("joint/supernet") is None
    assert found.winner["arch"] == dict(found.arch)

    report = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["report", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(run / "report.html")}
    again = (run / "report.html").read_bytes()
    assert sorted(again.split()) == sorted(report.split()), "the same, but for the order of the record's entries"
    assert again[:20_000] == report[:20_000], "tables and figures come first, in one order"
    assert all(path.read_bytes() == content for path, content in files.items())

    with pytest.raises(ValueError, match="a run of the recipe 'glit'"):
        read_run(run, "autoformer")
    (run / "summary.json").unlink()
    with pytest.raises(ValueError, match="continue it first"):
        read_run(run)
    assert main(["report", str(tmp_path)]) == 2
    assert "no run directory" in capsys.readouterr().err


NOT_JSON, NOTHING = "x", "{}"


def test_a_damaged_record_is_named_with_the_mend(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command that reads it ends with status 2 and one message."""
    readers = {
        "summary.json": ("evaluate", "report"),
        "arch.json": ("evaluate", "export"),
        "problem.json": ("report",),
        "stages.json": ("evaluate", "status", "report"),
        "run.json": ("evaluate", "status", "report"),
    }
    nothing_said = {"summary.json": '{"networks": {}}', "run.json": '{"config": 3}', "arch.json": "[]"}
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for name, commands in readers.items():
        for text in (NOT_JSON, *({nothing_said[name], "[]"} if name in nothing_said else {"[3]"})):
            (run / name).write_text(text)
            for command in commands:
                more = ["--out", str(tmp_path / "out")] if command == "export" else []
                assert nasx_main([command, str(run), *more]) == 2, (name, text, command)
                error = capsys.readouterr().err
                assert error.count("\n") == 1, error
                assert f"{run / name} " in error
                assert "start a new run directory" in error if name == "run.json" else "writes it anew" in error
        (run / name).write_bytes((finished / name).read_bytes())


def test_the_same_command_writes_a_damaged_summary_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    kept = (run / "journal.jsonl").read_bytes()
    for name, text in (
        ("summary.json", NOT_JSON),
        ("summary.json", '{"networks": {}}'),
        ("arch.json", NOT_JSON),
        ("problem.json", NOT_JSON),
        ("stages.json", NOT_JSON),
    ):
        (run / name).write_text(text)
        assert main(["run", "--run-dir", str(run), *TINY_RUN]) == 0
        assert "nothing was trained" in capsys.readouterr().out
        assert (run / name).read_bytes() == (finished / name).read_bytes()
    assert (run / "journal.jsonl").read_bytes() == kept


def test_a_run_that_recorded_nothing_is_not_compared_with_what_is_asked(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    for text in (NOTHING, '{"config": {}, "versions": {}}'):
        (tmp_path / "run" / "run.json").write_text(text)
        assert main(["run", "--run-dir", str(tmp_path / "run"), *TINY_RUN]) == 2
        error = capsys.readouterr().err
        assert "run.json is damaged" in error
        assert "(absent)" not in error


def test_damaged_settings_of_a_stage_are_named_and_progress_is_only_shown(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    journal = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join(journal[:1]))  # as it was before the first stage was done
    (run / "progress.json").write_text(NOT_JSON)
    assert nasx_main(["status", str(run)]) == 0
    settings = run / "random" / "retrain" / "settings.json"
    settings.write_text(NOT_JSON)
    capsys.readouterr()
    for command in (["status", str(run)], ["report", str(run)]):
        assert nasx_main(command) == 2
        assert f"{settings} is damaged" in capsys.readouterr().err


def test_a_damaged_journal_is_named(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    journal = run / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"stage_done", b"stage_gone", 1))
    for command in (["glit", "run", "--run-dir", str(run), *TINY_RUN], ["status", str(run)], ["evaluate", str(run)]):
        assert nasx_main(command) == 2
        assert str(journal) in capsys.readouterr().err


def test_results_are_read_while_another_process_writes_a_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for stage in ("supernet", "search"):
        journal.append({"event": "stage_done", "stage": stage, "result": {"steps": 3}})
    half_a_line = journal.path.read_bytes()[:-20]
    journal.path.write_bytes(half_a_line)
    assert stage_results(tmp_path) == {"supernet": {"steps": 3}}
    assert journal.path.read_bytes() == half_a_line


def test_counts_of_one_have_their_noun_in_the_singular() -> None:
    for steps, words in ((1, "1 step"), (1200, "1,200 steps")):
        assert supernet_report({"steps": steps, "skipped_steps": 0}).detail == words
