"""A finished run read back from its directory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nasx.arch import Arch
from nasx.pipeline.earlier import trained_supernet_of
from nasx.pipeline.records import (
    AGAIN,
    ARCH,
    REPORT,
    SUMMARY,
    WEIGHTS,
    read_arch,
    read_asked,
    read_summary,
    stage_results,
)
from nasx.pipeline.run_facts import FACTS
from nasx.pipeline.run_status import RecordedStage, read_stages
from nasx.run.checkpoints import unflatten_state
from nasx.run.files import read_checked, read_record

_NEEDED = (SUMMARY, ARCH, WEIGHTS)


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A finished run, read back: what it was asked for, the stages' results, the summary and the network it found.

    `asked` is what a command recorded beside the settings, such as the architecture that it trained.
    """

    directory: Path
    recipe: str
    asked: Mapping[str, Any]
    config: Mapping[str, Any]
    split: Mapping[str, Any]
    stages: Sequence[RecordedStage]
    results: Mapping[str, Any]
    summary: Mapping[str, Any]
    arch: Arch

    @property
    def weights(self) -> Path:
        """The file of the network's weights."""
        return self.directory / WEIGHTS

    @property
    def winner(self) -> Mapping[str, Any]:
        """The result of the network that was found, with its weights' digest."""
        last = [stage for stage in self.stages if stage.kind == "evaluation"][-1]
        found: Mapping[str, Any] = next(iter(self.results[last.name]["networks"].values()))
        return found

    def supernet(self, stage: str) -> dict[str, Any] | None:
        """Return the state dict of the supernet that a stage trained, or None where there is none any more."""
        if stage not in self.results:
            return None
        checkpoint = trained_supernet_of(self.directory, stage, self.results[stage])
        if checkpoint is None:
            return None
        state: dict[str, Any] = unflatten_state(checkpoint.tensors, checkpoint.state)["model"]
        return state


def read_run(directory: Path, recipe: str | None = None) -> FinishedRun:
    """Return a finished run; a ValueError says that it is none, not finished, damaged, or another recipe's."""
    asked = read_asked(directory)["config"]
    if recipe is not None and asked.get("recipe") != recipe:
        raise ValueError(f"{directory} is a run of the recipe {asked.get('recipe')!r}; read it with that one")
    if missing := [name for name in _NEEDED if not (directory / name).is_file()]:
        raise ValueError(f"the run in {directory} is not finished, for it has no {missing[0]}; continue it first")
    results = stage_results(directory)
    stages = read_stages(directory)
    evaluated = [stage.name for stage in stages if stage.kind == "evaluation" and stage.name in results]
    if not evaluated:
        raise ValueError(f"the run in {directory} is not finished, for it has evaluated no network; continue it first")
    networks = results[evaluated[-1]]["networks"]
    summary = read_summary(directory, networks)
    for key, ordered in (("networks", networks), ("stages", results)):  # the file's keys are sorted
        summary[key] = {name: summary[key][name] for name in ordered if name in summary[key]}
    return FinishedRun(
        directory=directory,
        recipe=str(asked.get("recipe")),
        asked={key: value for key, value in asked.items() if key not in ("recipe", "config", "split", "problem")},
        config=asked["config"],
        split=asked["split"],
        stages=stages,
        results=results,
        summary=summary,
        arch=read_arch(directory / ARCH),
    )


def is_whole(directory: Path, sha256: str) -> bool:
    """Return whether all that `write_outcome` wrote is there, with weights of a digest, and the report if it can be."""
    try:
        read_summary(directory)
        read_arch(directory / ARCH)
        read_record(directory / FACTS, AGAIN)
        read_checked(directory / WEIGHTS, sha256)
    except (OSError, ValueError):
        return False
    return (directory / REPORT).is_file() or not all(map(find_spec, ("jinja2", "matplotlib")))
