"""A run directory and the settings that it is continued with: what may change, and what is said where it may not."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nasx._nested import ABSENT, same_json, short_json
from nasx.pipeline.config import RunConfig
from nasx.pipeline.records import SETTINGS, read_asked, read_settings, stage_results
from nasx.pipeline.stages import RunStage
from nasx.run import write_json
from nasx.run.files import make_directories, rename
from nasx.run.stages import RUN


def note_settings(directory: Path, stage: RunStage, config: RunConfig, failure: str | None = None) -> None:
    """Write down what a stage runs with, or how it failed."""
    settings = _settings(stage, config)
    write_json(directory / SETTINGS, settings if failure is None else {**settings, "failure": failure})


def changeable_fields(directory: Path, stages: Sequence[RunStage], config: RunConfig) -> list[str]:
    """Return what may change of a run's record: settings, and the networks that a section's trainings learn from.

    Of a section that may change, the fields on which a stage that has begun, and did not fail, depends stay as they
    are.
    """
    if not (directory / RUN).is_file():
        return []
    begun, failed = begun_and_failed(directory, stages)
    sections = _changeable_sections(stages, begun, failed, _too_late(stages, begun, finished_stages(directory)))
    held = {field for stage in stages if stage.name in begun - failed for field in stage.fields}
    found = [f"problem.teachers.{section}" for section in sections]
    for section in sections:
        if not any(field.startswith(f"{section}.") for field in held):
            found.append(f"config.{section}")
            continue
        fields = (f"{section}.{name}" for name in type(getattr(config, section)).model_fields)
        found += [f"config.{field}" for field in fields if field not in held]
    return found


def _changeable_sections(
    stages: Sequence[RunStage], begun: Collection[str], failed: Collection[str], too_late: Collection[str]
) -> list[str]:
    """Return the sections of the settings that may change in a run: those of stages that failed, or have not begun.

    No stage may come that another, which has begun, would have read.
    """
    users: dict[str, list[RunStage]] = {}
    for stage in stages:
        for section in stage.sections:
            users.setdefault(section, []).append(stage)
    return [
        section
        for section, using in users.items()
        if not any(stage.name in too_late for stage in using)
        and (any(stage.name in failed for stage in using) or not any(stage.name in begun for stage in using))
    ]


def _too_late(stages: Sequence[RunStage], begun: Collection[str], finished: Collection[str]) -> set[str]:
    """Return the names of unfinished stages whose results a stage that has begun reads, itself or through others."""
    read = set[str]()
    for stage in reversed(stages):
        if stage.name in begun or stage.name in read:
            read.update(stage.inputs)
    return read - set(finished)


def begun_and_failed(directory: Path, stages: Sequence[RunStage]) -> tuple[set[str], set[str]]:
    """Return the names of the stages that have begun, and of those that failed the last time they ran."""
    begun, failed = set(finished_stages(directory)), set[str]()
    for stage in stages:
        if (directory / stage.name / SETTINGS).is_file():
            begun.add(stage.name)
            if "failure" in read_settings(directory / stage.name):
                failed.add(stage.name)
    return begun, failed


def finished_stages(directory: Path) -> list[str]:
    """Return the names of the stages whose results are in a run's journal."""
    return list(stage_results(directory))


def set_aside_changed(directory: Path, stages: Sequence[RunStage], config: RunConfig) -> None:
    """Move what unfinished stages did with other settings out of the way, so that they begin again; nothing is lost."""
    finished = finished_stages(directory)
    for stage in stages:
        folder = directory / stage.name
        if stage.name in finished or not (folder / SETTINGS).is_file():
            continue
        kept = {key: value for key, value in read_settings(folder).items() if key != "failure"}
        if kept != json.loads(json.dumps(_settings(stage, config))):
            number = next(n for n in range(1, 10_000) if not (directory / f"{stage.name}.before-{n}").exists())
            rename(folder, directory / f"{stage.name}.before-{number}")
            make_directories(folder)


def recorded_run(directory: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the config and the versions that a run was started with, empty where there is none.

    A ValueError says that the file is damaged.
    """
    if not (directory / RUN).exists():
        return {}, {}
    found = read_asked(directory, versions=dict)
    return found["config"], found["versions"]


def explain_changes(
    directory: Path, fields: Mapping[str, tuple[Any, Any]], before: Mapping[str, Any], asked: Mapping[str, Any]
) -> str:
    """Return in words why a run cannot be continued, whose record differs from what is asked for in `fields`."""
    found = list(_explained(fields, before, asked)) or [_another(name, *values) for name, values in fields.items()]
    return (
        f"the run in {directory} was started with {'; '.join(found)}; continue it with the same, or choose another run "
        "directory"
    )


def _explained(
    fields: Mapping[str, tuple[Any, Any]], before: Mapping[str, Any], asked: Mapping[str, Any]
) -> Iterator[str]:
    for key in dict.fromkeys(name.partition(".")[0] for name in fields):
        if key not in ("config", "problem", "split"):
            yield _another(key, before.get(key, ABSENT), asked.get(key, ABSENT))
    for name, (old, new) in fields.items():
        if name.startswith("config."):
            yield _another(name.removeprefix("config."), old, new)
    yield from _other_teachers(fields, before, asked)
    yield from _other_problem(before.get("problem", {}), asked["problem"])
    yield from _other_data(before.get("split", {}), asked["split"])


def _another(name: str, old: Any, new: Any) -> str:
    was, now = ("absent" if value is ABSENT else short_json(value, 60) for value in (old, new))
    return f"another {name} ({was}, now {now})"


def _other_teachers(
    fields: Mapping[str, tuple[Any, Any]], before: Mapping[str, Any], asked: Mapping[str, Any]
) -> Iterator[str]:
    """Say which trainings learn from another network, where no setting says it already."""
    for section, teacher in asked["problem"]["teachers"].items():
        changed = any(f"{name}.".startswith(f"problem.teachers.{section}.") for name in fields)
        if changed and f"config.{section}.teacher" not in fields:
            old = before.get("problem", {}).get("teachers", {}).get(section)
            was = "no teacher" if old is None else "a teacher"
            now = "none" if teacher is None else "one" if old is None else "another"
            yield f"{was} in {section}, now {now}"


def _other_problem(before: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    other_space = not same_json(before.get("space"), asked["space"])
    if other_space:
        sizes = [_approximate(problem.get("space", {}).get("size")) for problem in (before, asked)]
        yield f"another search space ({sizes[0]} architectures, now {sizes[1]})"
    bounds = ["; ".join(problem.get("budget", {}).get("bounds", ())) or "none" for problem in (before, asked)]
    # another space has other networks to compare the costs of
    if bounds[0] != bounds[1] or (not other_space and not same_json(before.get("budget"), asked["budget"])):
        yield f"another budget ({bounds[0]}, now {bounds[1] if bounds[0] != bounds[1] else 'with other costs'})"
    if not other_space and not same_json(before.get("network"), asked["network"]):
        builders = [
            f"{network.get('tensors')} tensors and {network.get('parameters'):,} parameters"
            for network in (problem.get("network", {}) for problem in (before, asked))
        ]
        now = "other modules" if builders[0] == builders[1] else builders[1]
        yield f"a builder of other networks (one of {builders[0]}, now {now})"
    alike = all(same_json(before.get(key), asked[key]) for key in ("space", "network"))
    if alike and not same_json(before.get("sharing"), asked["sharing"]):
        yield "a supernet that shares weights otherwise (its `separate`, `layout` or `parts`)"
    for key in ("loss", "metric"):
        if before.get(key) != asked[key]:
            yield f"another {key} ({before.get(key)}, now {asked[key]})"
    if all(same_json(before.get(key), asked[key]) for key in asked if key not in ("untrained", "teachers")):
        yield from _other_outputs(before.get("untrained", ()), asked["untrained"])


def _other_outputs(before: Sequence[Mapping[str, Any]], asked: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say where the first of a fingerprint's untrained networks computes something else."""
    modes = {"loss": "", "score": "", "training loss": " in training mode"}
    for old, new in zip(before, asked, strict=False):
        for key, mode in modes.items():
            if not same_json(old.get(key), new[key]):
                yield (
                    f"networks, samples, a loss or a metric that compute something else ({key.split()[-1]} of an "
                    f"untrained network{mode} {_rounded(old.get(key))}, now {_rounded(new[key])})"
                )
                return


def _rounded(value: Any) -> str:
    return "unknown" if value is None else f"{float(value):.4g}"


def _other_data(before: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    names = {"train": "training", "val": "validation", "test": "test"}
    for part, name in names.items():
        old, new = before.get(part) or {}, asked.get(part) or {}
        if same_json(old, new):
            continue
        counts = [found.get("images", found.get("samples")) for found in (old, new)]
        if counts[0] != counts[1]:
            yield f"other {name} data ({counts[0]:,}, now {counts[1]:,})"
        else:
            yield f"other {name} data (as many, but not the same)"
    rest = [{k: v for k, v in split.items() if k not in names} for split in (before, asked)]
    if not same_json(*rest) and all(same_json(before.get(part), asked.get(part)) for part in names):
        yield f"another split ({short_json(rest[0], 60)}, now {short_json(rest[1], 60)})"


def _settings(stage: RunStage, config: RunConfig) -> dict[str, Any]:
    dumped = json.loads(config.model_dump_json())
    return {section: dumped[section] for section in stage.sections if section in dumped}


def _approximate(size: str | None) -> str:
    return "unknown" if size is None else f"{int(size):,}" if len(size) < 13 else f"{int(size):.3g}"
