"""The JSON files of a run read back: what is damaged is a DamagedFile, whose message names the file and the mend."""

from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Any

from nasx.arch import Arch
from nasx.run import Journal
from nasx.run.directory import LOST
from nasx.run.files import DamagedFile, read_record
from nasx.run.stages import JOURNAL, RUN

SUMMARY, ARCH, WEIGHTS, REPORT = "summary.json", "arch.json", "model.safetensors", "report.html"
SETTINGS = "settings.json"
"""In a stage's folder: the settings that it ran with, and how it failed."""

AGAIN = "start the run's own command again, which writes it anew"
"""What to do about a file that a run makes of its results."""

_SCORED = ("params", "macs", "val_score", "test_score")


def read_asked(directory: Path, **more: type | UnionType) -> dict[str, Any]:
    """Return what run.json holds: `config`, which names recipe, settings and data, and `more` fields.

    A ValueError says that the directory is no run.
    """
    if not (directory / RUN).is_file():
        raise ValueError(f"{directory} is no run directory; name one that `run` or `train` has filled")
    found = read_record(directory / RUN, LOST, config=dict, **more)
    for name in ("config", "split"):
        if not isinstance(found["config"].get(name), dict):
            raise DamagedFile(
                f"{directory / RUN} is damaged ('config.{name}' is missing, or not what a run writes); {LOST}"
            )
    return found


def stage_results(directory: Path) -> dict[str, Any]:
    """Return the results of a run's finished stages by name, in order; none where there is no journal.

    The journal stays as it is, for another process may append to it.
    """
    path = directory / JOURNAL
    records = Journal(path, read_only=True) if path.is_file() else ()
    return {record["stage"]: record["result"] for record in records if record.get("event") == "stage_done"}


def read_summary(directory: Path, networks: Iterable[str] = ()) -> dict[str, Any]:
    """Return what summary.json holds; it must name `networks`."""
    path = directory / SUMMARY
    found = read_record(path, AGAIN, networks=dict, stages=dict, labels=dict, drawings=dict)
    for name in networks:
        network = found["networks"].get(name)
        if not isinstance(network, dict) or not network.keys() >= set(_SCORED):
            raise DamagedFile(f"{path} is damaged (it does not say what the network {name!r} is); {AGAIN}")
    return found


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings that a stage ran with, and how it failed."""
    return read_record(folder / SETTINGS, "remove it, and start the run's own command again with the same settings")


def read_arch(path: Path) -> Arch:
    """Return the architecture in a file, of a run or from elsewhere."""
    try:
        return Arch.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        mend = AGAIN if (path.parent / RUN).is_file() else "name a file that a run or `export` wrote"
        raise DamagedFile(f"{path} holds no architecture ({error}); {mend}") from error
