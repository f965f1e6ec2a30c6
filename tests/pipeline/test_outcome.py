"""Finished runs are read back: their report is written again, and what is no run is refused."""

import json
from pathlib import Path

import pytest

from nasx.pipeline.outcome import read_run
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


def test_a_report_is_written_again_from_the_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NASX_PROCESSES", "1")
    run = tmp_path / "run"
    assert main(["run", "--run-dir", str(run), "--json", *TINY_RUN]) == 0
    summary = json.loads(capsys.readouterr().out)
    finished = read_run(run, "glit")
    assert dict(finished.arch) == summary["networks"]["searched"]["arch"]
    assert finished.summary == summary
    assert len(summary["normalisation"]["mean"]) == 1
    assert finished.supernet("joint/supernet") is None
    assert finished.winner["arch"] == dict(finished.arch)

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
