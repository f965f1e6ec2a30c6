"""Workloads that faults are injected into: a file, a journal, checkpoints, and a run of all three.

Each continues from what is there to its end, and the content of its unit n is known beforehand.
"""

import copy
import functools
import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasx.faults.processes import described
from nasx.run import (
    Journal,
    RunDirectory,
    Stage,
    StageContext,
    files,
    write_bytes,
)

if TYPE_CHECKING:
    from torch import Tensor

    from nasx.run.checkpoints import Checkpoints


WORKLOADS = ("file", "journal", "checkpoints", "run")
UNITS = 3  # of each kind, so that an old checkpoint is removed on the way
HALF = 2  # of them, done before something malicious is planted

Commit = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Workload:
    """Work in a folder.

    `act` continues from what is there, and calls its second argument with the number of committed units, first at its
    start and then after each. `found` returns how many units are there, and raises where one is not what was written.
    """

    name: str
    act: Callable[[Path, Commit], None]
    found: Callable[[Path], int]
    units: int = UNITS


def workloads_named(names: Collection[str]) -> list[Workload]:
    """Return the workloads of some names."""
    trained()  # before anything forks
    return [workload for workload in (FILE, JOURNAL, CHECKPOINTS, RUN) if workload.name in names]


def _act_file(folder: Path, commit: Commit) -> None:
    files.remove_leftovers(folder)
    files.flush_directory(folder)  # for a writer that was killed before
    commit(found := _found_file(folder))
    for unit in range(found + 1, UNITS + 1):
        write_bytes(folder / "file", b"%d" % unit * 1000)
        commit(unit)


def _found_file(folder: Path) -> int:
    data = (folder / "file").read_bytes() if (folder / "file").exists() else b"0" * 1000
    return check_unit(int(data[:1]), data, b"%c" % data[0] * 1000)


def _act_journal(folder: Path, commit: Commit) -> None:
    journal = Journal(folder / "journal")
    commit(len(journal))
    for unit in range(len(journal) + 1, UNITS + 1):
        journal.append(record_of(unit))
        commit(unit)


def _found_journal(folder: Path) -> int:
    records = list(Journal(folder / "journal"))
    return check_unit(len(records), records, [record_of(unit) for unit in range(1, len(records) + 1)])


def _act_checkpoints(folder: Path, commit: Commit) -> None:
    from nasx.run.checkpoints import Checkpoints

    checkpoints = Checkpoints(folder / "checkpoints", identity="work")
    files.remove_leftovers(folder)
    commit(found := found_in(checkpoints))
    for unit in range(found + 1, UNITS + 1):
        checkpoints.save(unit, *trained()[unit])
        commit(unit)


def _found_checkpoints(folder: Path) -> int:
    from nasx.run.checkpoints import Checkpoints

    return found_in(Checkpoints(folder / "checkpoints", identity="work"))


def found_in(checkpoints: "Checkpoints") -> int:
    """Return the unit of the newest checkpoint that is whole, 0 for none."""
    latest = checkpoints.latest()
    if latest is None:
        return 0
    tensors, state = trained()[latest.step]
    same = {name: bool((latest.tensors[name] == tensor).all()) for name, tensor in tensors.items()}
    return check_unit(latest.step, (latest.state, same), (json.loads(json.dumps(state)), dict.fromkeys(tensors, True)))


def _act_run(folder: Path, commit: Commit) -> None:
    def work(context: StageContext) -> Any:
        step = found_in(context.checkpoints)
        commit(step + len(context.journal))
        for unit in range(1, UNITS + 1):
            if unit > step:
                context.checkpoints.save(unit, *trained()[unit])
                commit(2 * unit - 1)
            if unit > len(context.journal):
                context.journal.append(record_of(unit))
                commit(2 * unit)
        return list(context.journal)

    with RunDirectory.open(folder / "run", config={"seed": 0}, versions={}) as run:
        results = run.execute([Stage("work", work)])
        check_unit(UNITS, results["work"], [record_of(unit) for unit in range(1, UNITS + 1)])
        commit(2 * UNITS + 1)


def _found_run(folder: Path) -> int:
    from nasx.run.checkpoints import Checkpoints

    stage = folder / "run" / "work"
    records = list(Journal(stage / "journal.jsonl", identity="work"))
    check_unit(0, records, [record_of(unit) for unit in range(1, len(records) + 1)])
    finished = [r for r in Journal(folder / "run" / "journal.jsonl") if r["event"] == "stage_done"]
    return found_in(Checkpoints(stage / "checkpoints", identity="work")) + len(records) + len(finished)


def record_of(unit: int) -> dict[str, Any]:
    """Return what a journal holds of a unit."""
    return {"index": str(unit), "accuracy": 1 / unit}


@functools.cache
def trained() -> "list[tuple[dict[str, Tensor], Any]]":
    """Return the checkpoints of a tiny model's training, after 0, 1, ... steps."""
    import torch

    from nasx.run.checkpoints import flatten_state

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    states: list[tuple[dict[str, Tensor], Any]] = []
    losses: list[float] = []
    for _ in range(UNITS + 1):
        state = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses})
        states.append(flatten_state(state))
        loss = model(torch.ones(2, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return states


def check_unit(unit: int, found: object, expected: object) -> int:
    """Return the unit; a ValueError says that it is not what was written."""
    if found != expected:
        raise ValueError(f"unit {unit} is not what was written: {found!r:.200}")
    return unit


FILE = Workload("file", _act_file, _found_file)
JOURNAL = Workload("journal", _act_journal, _found_journal)
CHECKPOINTS = Workload("checkpoints", _act_checkpoints, _found_checkpoints)
RUN = Workload("run", _act_run, _found_run, 2 * UNITS + 1)


def fresh_folder(directory: Path) -> Path:
    """Return the emptied folder of the workloads; always the same one, because recorded calls name it."""
    folder = directory / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files that are left."""
    return [path for path in folder.rglob("*") if files.is_leftover(path.name)]


def error_after(workload: Workload, folder: Path, committed: int) -> str:
    """Return what was lost or is wrong in a folder after a fault, or once its work continued; "" for nothing."""
    try:
        found = workload.found(folder)
        if not committed <= found <= committed + 1:
            return f"{committed} units were committed, but {found} are there"
        if torn := [path.name for path in folder.rglob("*.damaged*")]:
            return f"not whole: {torn}"
        workload.act(folder, lambda unit: None)
        if workload.found(folder) != workload.units:
            return "it did not go on to the end"
        if left := [path.name for path in leftovers(folder)]:
            return f"left behind: {left}"
    except Exception as error:  # whatever a user would meet
        return described(error)
    return ""
