"""A run whose process is killed again and again, wherever it is, ends with the same bits as one that never was."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nasx.run import Journal
from nasx.run.checkpoints import Checkpoints
from recipes.glit.__main__ import main
from tests.recipes.glit.test_glit_cli import TINY_RUN

CHECKPOINT = re.compile(r"\d{6}-step")
SUPERNETS = ("heads/supernet", "details/supernet")
SEARCHES = ("heads/search", "details/search")

# What a run leaves on the disk on its way, in order: a folder or journal of its own, and how many entries it has by
# then; checkpoints are counted from the first, as later ones replace them.
MILESTONES = [
    *(("heads/supernet/checkpoints", n) for n in range(1, 10)),
    *(("heads/search/journal.jsonl", n) for n in range(1, 7)),
    *((f"heads/retrain/{network}", n) for network in (0, 1) for n in range(1, 7)),
    *(("details/supernet/checkpoints", n) for n in range(1, 10)),
    *(("details/search/journal.jsonl", n) for n in range(1, 7)),
    *((f"details/retrain/{network}", n) for network in (0, 1) for n in range(1, 7)),
    *((f"baselines/{network}", n) for network in (0, 1) for n in range(1, 7)),
]


def entries(path: Path) -> int:
    """Return how many checkpoints or records there have been; endless for a network that is done."""
    if path.with_suffix(".safetensors").exists():
        return 10**9
    if path.suffix == ".jsonl":
        return path.read_bytes().count(b"\n") if path.exists() else 0
    try:
        names = [entry.name for entry in path.iterdir()]
    except FileNotFoundError:
        return 0
    return max((int(name[:6]) for name in names if CHECKPOINT.match(name)), default=-1) + 1


def start(directory: Path) -> int:
    """Run the command in a fork of this process, which need not import anything again, and return its number."""
    child = os.fork()
    if child:
        return child
    try:
        os._exit(main(["--run-dir", str(directory), "--json", *TINY_RUN]))
    finally:
        os._exit(1)  # never back into the tests


def killed_at(directory: Path, milestone: tuple[str, int], delay: float) -> int:
    """Run until a milestone and a little longer, kill the process, and return its status."""
    child = start(directory)
    where, count = milestone
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while entries(directory / where) < count and os.waitid(os.P_PID, child, ended) is None:
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def history(directory: Path) -> dict[str, Any]:
    """Return all results of a run's stages, and its searches' records."""
    done = [record for record in Journal(directory / "journal.jsonl") if record["event"] == "stage_done"]
    assert len({record["stage"] for record in done}) == len(done)
    searches = {name: list(Journal(directory / name / "journal.jsonl", identity=name)) for name in SEARCHES}
    return {"results": {record["stage"]: record["result"] for record in done}, "searches": searches}


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """Return all weights that a run leaves, by file and name."""
    found = {
        f"{path.relative_to(directory)}:{name}": tensor
        for path in sorted(directory.rglob("*.safetensors"))
        if not CHECKPOINT.match(path.parent.name)
        for name, tensor in load_file(path).items()
    }
    for stage in SUPERNETS:
        latest = Checkpoints(directory / stage / "checkpoints", identity=stage).latest()
        assert latest
        found |= {f"{stage}:{name}": tensor for name, tensor in latest.tensors.items()}
    return found


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_with_the_same_bits(tmp_path: Path) -> None:
    random_, kills = random.Random(0), 20
    places = sorted(random_.sample(range(len(MILESTONES)), kills))
    for place in places:
        # the milestone may have passed with the last kill: then this one falls into the start
        status = killed_at(tmp_path / "killed", MILESTONES[place], random_.uniform(0, 0.05))
        assert status == -9, "it ended by itself"
    for name in ("killed", "whole"):
        assert os.waitpid(start(tmp_path / name), 0)[1] == 0
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert (killed / "arch.json").read_bytes() == (whole / "arch.json").read_bytes()
    networks = [json.loads((one / "summary.json").read_text())["networks"] for one in (killed, whole)]
    assert networks[0] == networks[1]
    assert history(killed) == history(whole)
    ours, theirs = weights(killed), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not [path for path in killed.rglob("*") if path.suffix in (".partial", ".damaged")]
