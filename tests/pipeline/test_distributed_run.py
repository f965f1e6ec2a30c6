"""The real command under torchrun: shared work, one writer, stops and failures of single ranks."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.pipeline.processes import start as start_python
from tests.pipeline.processes import summary_of

TINY_RUN = [
    *("--set", "supernet.epochs=0.5", "--set", "supernet.warmup_epochs=0", "--set", "retrain.epochs=0.3"),
    *("--set", "retrain.warmup_epochs=0", "--set", "search.population=4", "--set", "search.generations=2"),
    *("--set", "search.parents=2", "--set", "search.recalibration_batches=1", "--set", "model.embed_dim=12"),
    *("--set", "budget.heads_at_most=1e9", "--set", "budget.details_at_least=1", "--set", "budget.details_at_most=1e9"),
    *("--method", "spos"),
]
TRUST = ("--set", "trust.n=5")


def start(processes: int, directory: Path, *more: str, restarts: int = 0) -> "subprocess.Popen[str]":
    words = ["-m", "recipes.glit", "run", *TINY_RUN, *more, "--run-dir", str(directory), "--json"]
    return start_python(words, processes, restarts=restarts)


def journal(directory: Path, stage: str) -> list[dict[str, Any]]:
    lines = (directory / stage / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def scored(directory: Path, stage: str) -> list[dict[str, Any]]:
    return [line for line in journal(directory, stage) if "score" in line["record"]]


def wait_for(process: "subprocess.Popen[str]", path: Path) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def ranks_of(launcher: "subprocess.Popen[str]") -> list[int]:
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True)
    return [int(child) for child in children.stdout.split()]


def test_two_ranks_share_a_run_and_one_continues_it(tmp_path: Path) -> None:
    both = summary_of(start(2, tmp_path / "two", *TRUST))
    assert list(both["networks"]) == ["searched", "deit_shaped", "random"]
    assert summary_of(start(1, tmp_path / "two", *TRUST)) == both, "one process finds the run finished"
    single = summary_of(start(1, tmp_path / "one", *TRUST))
    # the first rank's supernet differs from one process's by rounding, the networks trained alone not at all
    ours, theirs = (load_file(tmp_path / name / "baselines" / "0.safetensors") for name in ("one", "two"))
    assert all(bool((ours[name] == theirs[name]).all()) for name in ours)
    assert both["networks"]["deit_shaped"] == single["networks"]["deit_shaped"]


def test_any_number_of_ranks_gives_the_same_search_from_the_same_supernet(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    process = start(2, directory)
    wait_for(process, directory / "joint" / "search" / "journal.jsonl")
    ranks = ranks_of(process)
    process.kill()
    for rank in ranks:
        os.kill(rank, signal.SIGKILL)
    process.communicate()
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(directory), str(copy)], check=True)
    for one in (directory, copy):
        (one / "run.lock").unlink(missing_ok=True)
    two, one_rank = summary_of(start(2, directory)), summary_of(start(1, copy))
    assert two["networks"] == one_rank["networks"]
    scores = [
        {(r["record"]["index"], r["record"]["score"]) for r in scored(d, "joint/search")} for d in (directory, copy)
    ]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 8


def test_more_ranks_than_networks_train_one_network_together(tmp_path: Path) -> None:
    more = ("--method", "random", "--set", "search.top_k=1")
    summaries = [summary_of(start(processes, tmp_path / str(processes), *more)) for processes in (1, 2)]
    weights = [load_file(tmp_path / name / "random" / "retrain" / "0.safetensors") for name in ("1", "2")]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0]), "rounding differs"
    for name, tensor in weights[0].items():
        if tensor.ndim > 1:  # biases before a BatchNorm follow nothing but rounding
            assert (weights[1][name] - tensor).norm() < 0.02 * tensor.norm(), name
    assert summaries[0]["networks"]["random"] == summaries[1]["networks"]["random"], "two networks, one a rank"


def test_a_signal_to_the_launcher_stops_all_ranks_and_the_run_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    process = start(2, directory, "--set", "supernet.epochs=4")
    wait_for(process, directory / "joint" / "supernet" / "checkpoints")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "interrupted; the same command continues" in err
    steps = [int(path.name.split("step")[1]) for path in (directory / "joint/supernet/checkpoints").iterdir()]
    assert 0 < max(steps) < 68
    assert summary_of(start(2, directory, "--set", "supernet.epochs=4"))["networks"]


def test_batches_that_ranks_cannot_share_are_refused(tmp_path: Path) -> None:
    process = start(2, tmp_path / "run", "--set", "supernet.batch_size=63")
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert re.search(r"supernet.batch_size 63 does not divide among 2 processes", err)
    assert not (tmp_path / "run").exists()


def test_a_rank_killed_in_any_stage_ends_the_group_and_loses_nothing(tmp_path: Path) -> None:
    directory, more = tmp_path / "run", ("--set", "retrain.epochs=2", *TRUST)
    for rank, stage in enumerate(("joint/supernet", "joint/search", "joint/trust")):
        process = start(2, directory, *more)
        wait_for(process, directory / stage / "journal.jsonl" if rank else directory / stage / "checkpoints")
        os.kill(ranks_of(process)[rank % 2], signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode != 0
    summary = summary_of(start(2, directory, *more))
    assert len(scored(directory, "joint/search")) == 8, "no score is lost, none is computed twice"
    assert set(summary["networks"]) == {"searched", "deit_shaped", "random"}


def test_the_launcher_restarts_a_group_that_goes_on(tmp_path: Path) -> None:
    process = start(2, tmp_path, "--set", "supernet.epochs=2", restarts=1)
    wait_for(process, tmp_path / "joint" / "supernet" / "checkpoints")
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    assert summary_of(process)["networks"]
