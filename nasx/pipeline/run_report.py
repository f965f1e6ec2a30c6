"""The report of a run, finished or not, from its directory alone; and of several runs side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasx._words import number_of
from nasx.comparison import Difference, Interval, paired_difference, score_interval
from nasx.pipeline.metrics_file import METRICS, read_metrics
from nasx.pipeline.outputs import check_output
from nasx.pipeline.records import AGAIN, REPORT, SUMMARY, read_asked, read_summary
from nasx.pipeline.run_facts import FACTS
from nasx.pipeline.run_status import RecordedStage, read_events, read_stages, status
from nasx.pipeline.search_record import read_search
from nasx.pipeline.stage_reports import report_of_stage
from nasx.pipeline.training import loss_curve
from nasx.pipeline.trust import ranking_plot
from nasx.report import (
    BlockDrawing,
    ComparedRun,
    Curve,
    Highlight,
    NetworkRow,
    Report,
    SearchHistory,
    StageRow,
    duration,
    large,
    score,
    short_labels,
    si,
)
from nasx.run import Journal
from nasx.run.files import DamagedFile, read_record
from nasx.run.stages import JOURNAL

COMPARISON = "comparison.html"

_TRAINING_KINDS = ("retrain", "finetune", "refit")


@dataclass(frozen=True)
class RunReader:
    """What a run's directory holds for a report; it may be at work."""

    directory: Path

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """The records of the run's journal."""
        return read_events(self.directory)

    @cached_property
    def asked(self) -> Mapping[str, Any]:
        """What the run was started with: recipe, settings, data."""
        asked: dict[str, Any] = read_asked(self.directory)["config"]
        return asked

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings."""
        config: dict[str, Any] = self.asked["config"]
        return config

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What is searched (`run_facts`)."""
        return self.json(FACTS)

    @cached_property
    def stages(self) -> Sequence[RecordedStage]:
        """The stages in their order."""
        return read_stages(self.directory)

    @cached_property
    def done(self) -> Mapping[str, Mapping[str, Any]]:
        """The records of the stages that are done, by name."""
        return {record["stage"]: record for record in self.events if record.get("event") == "stage_done"}

    @cached_property
    def searches(self) -> Sequence[SearchHistory]:
        """The searches that have begun; DamagedFile where a finished one has lost candidates."""
        found = []
        for stage in self.stages:
            if stage.kind == "search":
                folder = self.directory / stage.name
                search = read_search(folder, stage.name)
                there = 0 if search is None else len(search.candidates)
                scored = self.done[stage.name]["result"]["evaluations"] if stage.name in self.done else there
                if there != scored:
                    raise DamagedFile(
                        f"{folder} has {there} of the {scored} candidates that its search scored, so its files were "
                        "damaged or removed; put it back from a copy, or start a new run directory"
                    )
                found += [] if search is None else [search]
        return found

    @property
    def evaluation(self) -> Mapping[str, Any] | None:
        """The result of the last evaluation, None before it."""
        last = [stage.name for stage in self.stages if stage.kind == "evaluation"][-1:]
        result: Mapping[str, Any] | None = self.done[last[0]]["result"] if last and last[0] in self.done else None
        return result or None

    @property
    def networks(self) -> Mapping[str, Mapping[str, Any]]:
        """The networks of the last evaluation by name, what was found first."""
        return self.evaluation["networks"] if self.evaluation else {}

    def json(self, name: str) -> Any:
        """Return a JSON object of the run; a ValueError says that it is missing or damaged."""
        path = self.directory / name
        if not path.is_file():
            raise ValueError(f"{self.directory} has no {name}; continue the run with its own command")
        return read_record(path, AGAIN)

    def scores(self, network: Mapping[str, Any], part: str) -> NDArray[np.float64] | None:
        """Return a tested network's score of every sample of a part, None where they are not kept."""
        name = network.get(f"{part}_scores")
        path = self.directory / name if name else None
        return np.load(path, allow_pickle=False).astype(float) if path and path.is_file() else None


def report(directory: str | Path, *others: str | Path, output: str | Path | None = None) -> Path:
    """Write the report of a run, finished or not, and return its path; of several runs, a page that compares them.

    The page of one run is `report.html` in its directory, with its figures in `figures/` beside it; that of several is
    `comparison.html` in the current directory; `output` is another path. A ValueError says which directory is no run,
    or what is wrong with the output; a FileExistsError that it lies in a run directory.
    """
    own = Path(directory) / REPORT
    path = Path(output or COMPARISON) if others or output is not None else own
    if others or path.resolve() != own.resolve():
        check_output(path, "output", (".html",))
    if not others:
        return write_run_report(Path(directory), path)
    from nasx.report.html import write_comparison

    write_comparison(path, compared([Path(directory), *map(Path, others)]))
    return path


def write_run_report(directory: Path, output: Path | None = None) -> Path:
    """Write the report of a run, and return its path."""
    from nasx.report.html import write_report

    path = output or directory / REPORT
    write_report(path, report_of(directory))
    return path


def report_of(directory: str | Path) -> Report:
    """Return what the report of the run in a directory says; a ValueError says that there is no run."""
    run = RunReader(Path(directory))
    now = status(run.directory)  # which says so where there is no run
    rows = tuple(_network_rows(run))
    current = now.current
    state = "finished"
    if not now.finished:
        part = f" at {current.done / current.total:.0%}" if current and current.done and current.total else ""
        where = f"in stage {current.name}{part}" if current else "between two stages"
        state = f"not finished: {'at work' if now.running else 'stopped'} {where}"
    starts = [record for record in run.events if record.get("event") == "started"]
    one_network = "arch" in run.asked  # nothing was searched
    method = f", {run.config['method']}" if "method" in run.config and not one_network else ""
    return Report(
        title=f"{run.facts['title']}: {run.config['preset']}{method}, seed {run.config['seed']}",
        state=state,
        networks=rows,
        highlights=tuple(_highlights(run, rows)),
        searched=tuple(_searched(run)),
        found=tuple(_found(run, rows)),
        stages=tuple(_stage_rows(run)),
        curves=tuple(_curves(run)),
        searches=tuple(run.searches),
        rankings=tuple(ranking_plot(s.name, run.done[s.name]["result"]) for s in _finished(run, "trust")),
        incidents=tuple(_incidents(run)),
        config=run.config,
        split=run.asked["split"],
        versions=starts[-1]["versions"] if starts else read_asked(run.directory, versions=dict)["versions"],
        hardware=starts[-1]["hardware"] if starts else {},
        command=_command(run, starts),
        seed=run.config["seed"],
        shade_legend=run.facts["legend"],
        metric=run.facts["metric"],
    )


def compared(directories: Sequence[Path]) -> list[ComparedRun]:
    """Return runs side by side, each found network's difference from the first run's on the same test samples."""
    names = _distinct(directories)
    readers = [RunReader(directory) for directory in directories]
    found = []
    for name, run in zip(names, readers, strict=True):
        made = report_of(run.directory)
        difference = None
        if run is not readers[0] and _same_test(readers[0], run):
            difference = _difference(run, _first(run), readers[0], _first(readers[0]))
        found.append(ComparedRun(name, made, difference))
    return found


def _network_rows(run: RunReader) -> Iterator[NetworkRow]:
    drawings = read_summary(run.directory)["drawings"] if (run.directory / SUMMARY).is_file() else {}
    for number, (name, network) in enumerate(run.networks.items()):
        yield NetworkRow(
            run.facts["labels"].get(name, name),
            network["params"],
            network["macs"],
            network["val_score"],
            network["test_score"],
            _interval(run.scores(network, "val")),
            _interval(run.scores(network, "test")),
            _difference(run, network, run, _first(run)) if number else None,
            tuple(BlockDrawing(b["title"], b["shade"], tuple(b["lines"])) for b in drawings.get(name, ())),
            network.get("budget_costs", {}),
        )


def _highlights(run: RunReader, rows: Sequence[NetworkRow]) -> Iterator[Highlight]:
    space, metric = run.facts["space"], run.facts["metric"]
    low, high = (int(bound) for bound in space["inside"])
    inside = large(high) if low == high else f"at most {large(high)}"
    yield Highlight("architectures to choose from", inside, f"of {large(int(space['size']))} in the space")
    if run.searches:
        count = sum(len(search.candidates) for search in run.searches)
        generations = sum(len({c.generation for c in search.candidates}) for search in run.searches)
        yield Highlight("candidates scored", f"{count:,}", f"in {number_of(generations, 'generation')}")
    if rows:
        found = rows[0]
        note = _between(found.test_interval, metric) if found.test_interval else ""
        yield Highlight(f"test {metric} of the network found", score(found.test_accuracy, metric), note)
        yield Highlight("its MACs", si(found.macs), f"{si(found.params)} parameters")
    else:
        best = max((search.best for search in run.searches if search.best), key=lambda c: c.score or 0, default=None)
        if best is not None:
            note = f"{si(best.cost)} MACs; with the supernet's weights"
            yield Highlight(f"best validation {metric} so far", score(best.score, metric), note)
    seconds = sum(record["seconds"] for record in run.done.values())
    if seconds:
        yield Highlight("time", duration(seconds), f"{len(run.done)} of {len(run.stages)} stages done")


def _searched(run: RunReader) -> Iterator[str]:
    facts, space = run.facts, run.facts["space"]
    low, high = (int(bound) for bound in space["inside"])
    sentence = f"The space holds {large(int(space['size']))} architectures"
    if facts["reach"]:
        least, most, unit = facts["reach"]
        sentence += f", from {si(least)} to {si(most)} {unit}"
    if facts["budgets"]:
        inside = large(high) if low == high else f"at most {large(high)}"
        bounds = " and ".join(budget["text"] for budget in facts["budgets"])
        yield f"{sentence}. The budget is {bounds}; {inside} architectures are inside."
    else:
        yield f"{sentence}. No budget was set, so all of them were searched."
    samples = facts["samples"]
    counts = [f"{samples[part]:,} {name}" for part, name in _PARTS.items() if part in samples]
    listed = f"{', '.join(counts[:-1])} and {counts[-1]}"
    classes = f" of {facts['classes']:,} classes" if "classes" in facts else ""
    yield (
        f"The data are {listed} samples{classes}. Networks learn with the loss {facts['loss']} and are "
        f"scored by {facts['metric']}; validation samples choose, and test samples are read once, at the end."
    )
    config = run.config["search"]
    for search in run.searches:
        failed = len(search.candidates) - len(search.scored)
        generations = len({candidate.generation for candidate in search.candidates})
        and_failed = f"; {failed} failed" if failed else ""
        yield (
            f"{_capital(search.name)}: {config['method']} scored {number_of(len(search.candidates), 'candidate')} in "
            f"{number_of(generations, 'generation')}, with the weights of one supernet{and_failed}."
        )


_PARTS = {"train": "training", "val": "validation", "test": "test"}


def _found(run: RunReader, rows: Sequence[NetworkRow]) -> Iterator[str]:
    metric = run.facts["metric"]
    if not rows:
        for search in run.searches:
            if search.best is not None:
                yield (
                    f"So far the best candidate of {search.name} has a validation {metric} of "
                    f"{score(search.best.score, metric)} with the supernet's weights, at {si(search.best.cost)} MACs."
                )
        return
    found = rows[0]
    first = _first(run)
    tested = run.scores(first, "test") if first else None
    sure = ""
    if found.test_interval and tested is not None:
        sure = f" (95 % interval {_between(found.test_interval, metric)}, {len(tested):,} samples)"
    yield (
        f"The network found has {si(found.params)} parameters and {si(found.macs)} MACs. Its test {metric} is "
        f"{score(found.test_accuracy, metric)}{sure}."
    )
    for row in rows[1:]:
        if (against := row.versus_found) is not None:
            of_found = replace(against, value=-against.value, low=-against.high, high=-against.low)
            yield f"{_capital(of_found.sentence('the network found', row.label))}."


def _between(found: Interval, metric: str) -> str:
    return f"{score(found.low, metric)} to {score(found.high, metric)}"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _stage_rows(run: RunReader) -> Iterator[StageRow]:
    for stage in status(run.directory).stages:
        if stage.name in run.done:
            detail = report_of_stage(stage.kind, run.done[stage.name]["result"]).detail
            yield StageRow(stage.name, stage.seconds, detail)
        else:
            yield StageRow(
                stage.name, None, {"begun": "at work", "failed": "failed", "waiting": "waiting"}[stage.state]
            )


def _curves(run: RunReader) -> Iterator[Curve]:
    named = {network["weights"]: run.facts["labels"].get(name, name) for name, network in run.networks.items()}
    for stage in run.stages:
        folder, result = run.directory / stage.name, run.done.get(stage.name, {}).get("result")
        if stage.kind == "supernet":
            losses = result["losses"] if result else loss_curve(read_metrics(folder / METRICS).losses)
            if losses:
                yield _curve(stage.name, "supernet", losses)
        elif stage.kind in _TRAINING_KINDS:
            yield from _network_curves(stage.name, folder, result, named)


def _network_curves(
    stage: str, folder: Path, result: Mapping[str, Any] | None, named: Mapping[str, str]
) -> Iterator[Curve]:
    if result is not None:
        networks = result["networks"]
        trained = dict(enumerate(networks.values() if isinstance(networks, Mapping) else networks))
    else:
        records = Journal(folder / JOURNAL, identity=stage, read_only=True)
        trained = {record["number"]: record["network"] for record in records if "number" in record}
    labels = dict(zip(trained, short_labels([network["arch"] for network in trained.values()]), strict=True))
    for number, network in trained.items():
        if network["losses"]:
            name = named.get(f"{stage}/{number}.safetensors")
            yield _curve(f"{name}: {labels[number]}" if name else labels[number], stage, network["losses"])
    for path in sorted(folder.glob(f"*.{METRICS}")) if result is None else ():
        number = int(path.name.partition(".")[0])
        losses = loss_curve(read_metrics(path).losses)
        if number not in trained and losses:
            yield _curve(f"network {number + 1}, in training", stage, losses)


def _curve(label: str, panel: str, losses: Sequence[Sequence[float]]) -> Curve:
    return Curve(label, tuple(int(step) for step, _ in losses), tuple(loss for _, loss in losses), panel)


def _incidents(run: RunReader) -> Iterator[str]:
    facts = run.facts
    yield from facts.get("remarks", ())
    if facts.get("broken"):
        yield (
            f"{number_of(facts['broken'], 'training image')} could not be read and "
            f"{'was' if facts['broken'] == 1 else 'were'} passed over, such as "
            f"{'; '.join(facts['broken_named'][:3])}."
        )
    for stage in _finished(run, "supernet"):
        if skipped := run.done[stage.name]["result"]["skipped_steps"]:
            left_out = number_of(skipped, "step was", "steps were")
            yield f"In {stage.name}, {left_out} left out, because loss or gradient was not finite."
    for search in run.searches:
        if failed := len(search.candidates) - len(search.scored):
            candidates = number_of(failed, "candidate")
            yield f"In {search.name}, {candidates} failed: outputs were not finite, or memory ran out."
    starts = sum(record.get("event") == "started" for record in run.events)
    stopped = [record["stage"] for record in run.events if record.get("event") == "stage_interrupted"]
    if starts > 1:
        where = f"; it had stopped in {', '.join(dict.fromkeys(stopped))}" if stopped else ""
        yield f"The run was continued {starts - 1} time{'' if starts == 2 else 's'}{where}. That changes no result."
    for record in run.events:
        if record.get("event") == "changed":
            for field, (before, after) in record["config"].items():
                yield f"{field.removeprefix('config.')} was changed from {before} to {after} on the way."
    for seen in status(run.directory).stages:
        if seen.state == "failed":
            yield f"{seen.name} failed: {seen.note}"


def _command(run: RunReader, starts: Sequence[Mapping[str, Any]]) -> str:
    given = next((record["command"] for record in starts if record["command"]), "")
    return given or f'nasx.pipeline.run(problem, "{run.directory.name}")  # with the same problem and settings'


def _finished(run: RunReader, kind: str) -> list[RecordedStage]:
    return [stage for stage in run.stages if stage.kind == kind and stage.name in run.done]


def _first(run: RunReader) -> Mapping[str, Any] | None:
    return next(iter(run.networks.values()), None)


def _interval(scores: NDArray[np.float64] | None) -> Interval | None:
    if scores is None or len(scores) < 2 or not np.isfinite(scores).all():
        return None
    return score_interval(scores)


def _difference(
    run: RunReader, network: Mapping[str, Any] | None, other_run: RunReader, other: Mapping[str, Any] | None
) -> Difference | None:
    """Return how much better a network is than another on the same test samples, None where that is not known."""
    if network is None or other is None:
        return None
    own, theirs = run.scores(network, "test"), other_run.scores(other, "test")
    if own is None or theirs is None or len(own) != len(theirs) or len(own) < 2:
        return None
    if not (np.isfinite(own).all() and np.isfinite(theirs).all()):
        return None
    return paired_difference(own, theirs)


def _same_test(one: RunReader, other: RunReader) -> bool:
    parts = [run.asked["split"].get("test") for run in (one, other)]
    return parts[0] is not None and parts[0] == parts[1] and one.facts["metric"] == other.facts["metric"]


def _distinct(directories: Sequence[Path]) -> list[str]:
    """Return the folders' names, or their whole paths where two have the same."""
    names = [directory.resolve().name for directory in directories]
    return names if len(set(names)) == len(names) else [str(directory) for directory in directories]
