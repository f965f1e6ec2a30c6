"""The figures of a report: each drawn, described in words, and with its data."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nasx.report.figures import (
    accuracy_over_cost,
    architecture,
    candidates_by_generation,
    candidates_over_cost,
    loss_curves,
    option_survival,
    supernet_rankings,
)
from nasx.report.formats import score, si
from nasx.report.labels import full_text, short_labels
from nasx.report.model import Curve, NetworkRow, RankingPlot, Report, SearchHistory
from nasx.report.survival import Survival, survival
from nasx.run import write_text

ARCHITECTURE, CANDIDATES, GENERATIONS, SURVIVAL, RANKING, NETWORKS, LOSSES = (
    *("architecture", "accuracy_over_macs", "generations", "survival"),
    *("ranking", "networks_over_macs", "losses"),
)


@dataclass(frozen=True, slots=True)
class Panel:
    """A figure with the name of its files, what it shows in words, and its data.

    `tips` are what a reader sees who points at an element: by SVG group, the text of each point in it, or one for all.
    """

    kind: str
    name: str
    figure: Figure
    text: str
    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    tips: dict[str, list[str]] = field(default_factory=dict)

    @property
    def data(self) -> str:
        """The data as CSV."""
        written = io.StringIO()
        table = csv.writer(written, lineterminator="\n")
        table.writerow(self.header)
        table.writerows(["" if value is None else value for value in row] for row in self.rows)
        return written.getvalue()


def panels(report: Report) -> list[Panel]:
    """Return the figures that a report has something to show in."""
    found = [
        *_architectures(report),
        *(_candidates(search, report.metric) for search in report.searches if search.scored),
        *(_generations(search, report.metric) for search in report.searches if search.scored),
        *(_survival(shares) for search in report.searches for shares in survival(search)),
        *(_ranking(ranking, report.metric) for ranking in report.rankings if ranking.scores),
        *_networks(report.networks, report.metric),
        *_losses(report.curves),
    ]
    names: dict[str, int] = {}
    unique = []
    for panel in found:
        names[panel.name] = names.get(panel.name, 0) + 1
        number = names[panel.name]
        unique.append(panel if number == 1 else replace(panel, name=f"{panel.name}_{number}"))
    return unique


def write_panels(folder: Path, drawn: Sequence[Panel], svgs: Sequence[str]) -> None:
    """Write each figure, drawn as SVG, and its data as CSV into a folder; figures of an earlier report are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    written = set()
    for panel, svg in zip(drawn, svgs, strict=True):
        write_text(folder / f"{panel.name}.svg", svg)
        write_text(folder / f"{panel.name}.csv", panel.data)
        written |= {f"{panel.name}.svg", f"{panel.name}.csv"}
    for path in folder.iterdir():
        if path.suffix in (".svg", ".csv") and path.name not in written:
            path.unlink()


def _architectures(report: Report) -> Iterator[Panel]:
    drawn = [network for network in report.networks if network.blocks]
    if not drawn:
        return
    found = drawn[0]
    described = "; ".join(" ".join((block.title, *block.lines)) for block in found.blocks)
    rows = [
        (network.label, number, block.title, " ".join(block.lines))
        for network in drawn
        for number, block in enumerate(network.blocks, 1)
    ]
    yield Panel(
        ARCHITECTURE,
        "architecture",
        architecture(found.blocks, report.shade_legend),
        f"The blocks of the network {found.label} in their order: {described}",
        ("network", "block", "title", "details"),
        tuple(rows),
    )


def _candidates(search: SearchHistory, metric: str) -> Panel:
    best, front = search.best, search.front
    assert best is not None
    labels = short_labels([candidate.arch for candidate in search.scored])
    on_front = {id(candidate) for candidate in front}
    return Panel(
        CANDIDATES,
        _name(CANDIDATES, search.name),
        candidates_over_cost(search, metric=metric),
        f"Validation {metric} over MACs of the {len(search.scored):,} candidates of {search.name}, coloured by "
        f"generation. The best has {score(best.score, metric)} at {si(best.cost)} MACs; {len(front)} form the Pareto "
        "front.",
        ("generation", "macs", "score", "pareto_front", "architecture"),
        tuple((c.generation, c.cost, c.score, int(id(c) in on_front), full_text(c.arch)) for c in search.candidates),
        {"points": _candidate_tips(search, labels, metric)},
    )


def _generations(search: SearchHistory, metric: str) -> Panel:
    labels = short_labels([candidate.arch for candidate in search.scored])
    so_far: list[float] = []
    for candidate in search.scored:
        value = float(candidate.score or 0)
        so_far.append(max(value, so_far[-1]) if so_far else value)
    return Panel(
        GENERATIONS,
        _name(GENERATIONS, search.name),
        candidates_by_generation([search], metric=metric),
        f"Validation {metric} of the candidates of {search.name} by generation. The best so far rises from "
        f"{score(so_far[0], metric)} to {score(so_far[-1], metric)}.",
        ("generation", "score", "best_so_far"),
        tuple((c.generation, c.score, best) for c, best in zip(search.scored, so_far, strict=True)),
        {"points": _candidate_tips(search, labels, metric)},
    )


def _candidate_tips(search: SearchHistory, labels: Sequence[str], metric: str) -> list[str]:
    return [
        f"generation {c.generation}: {score(c.score, metric)}, {si(c.cost)} MACs; {label}"
        for c, label in zip(search.scored, labels, strict=True)
    ]


def _survival(shares: Survival) -> Panel:
    last = shares.shares[-1]
    described = []
    for row, name in enumerate(shares.names):
        share = last[row].max()
        described.append(f"{name}: {shares.options[int(last[row].argmax())]} ({share:.0%})")
    rows = [
        (generation, name, option, round(float(shares.shares[at, row, column]), 4))
        for at, generation in enumerate(shares.generations)
        for row, name in enumerate(shares.names)
        for column, option in enumerate(shares.options)
    ]
    return Panel(
        SURVIVAL,
        _name(SURVIVAL, f"{shares.search}_{shares.pattern}"),
        option_survival(shares),
        f"Options of {shares.pattern} among the {shares.best_kept} best candidates of {shares.search}, by generation. "
        f"At last the most frequent are {'; '.join(described)}.",
        ("generation", "choice", "option", "share"),
        tuple(rows),
    )


def _ranking(ranking: RankingPlot, metric: str) -> Panel:
    labels = ranking.labels or tuple(f"architecture {number}" for number in range(1, len(ranking.scores) + 1))
    rows = tuple(zip(labels, ranking.scores, ranking.accuracies, ranking.costs, strict=True))
    tau = f" Kendall's tau is {ranking.tau.value:.2f}." if ranking.tau else ""
    return Panel(
        RANKING,
        _name(RANKING, ranking.name),
        supernet_rankings([ranking], metric=metric),
        f"Validation {metric} of {len(rows)} networks trained alone over their score with the supernet's weights.{tau}",
        ("architecture", "supernet_score", "trained_alone", "macs"),
        rows,
        {
            "points": [
                f"{label}: {score(own, metric)} with shared weights, {score(alone, metric)} trained alone, {si(cost)} "
                "MACs"
                for label, own, alone, cost in rows
            ]
        },
    )


def _networks(networks: Sequence[NetworkRow], metric: str) -> Iterator[Panel]:
    placed = [n for n in networks if n.macs is not None and (n.test_accuracy, n.val_accuracy) != (None, None)]
    if not placed:
        return
    tested = any(n.test_accuracy is not None for n in placed)
    drawn = [n for n in placed if (n.test_accuracy if tested else n.val_accuracy) is not None]
    described = "; ".join(
        f"{n.label} {score(n.test_accuracy if n.test_accuracy is not None else n.val_accuracy, metric)} at "
        f"{si(n.macs)} MACs"
        for n in drawn
    )
    rows = []
    for n in placed:
        ends = [(i.low, i.high) if i else (None, None) for i in (n.val_interval, n.test_interval)]
        rows.append((n.label, n.params, n.macs, n.val_accuracy, *ends[0], n.test_accuracy, *ends[1]))
    yield Panel(
        NETWORKS,
        NETWORKS,
        accuracy_over_cost(networks, metric=metric),
        f"{metric.capitalize()} over MACs of the trained networks: {described}",
        (
            *("network", "parameters", "macs", "validation", "validation_low", "validation_high"),
            *("test", "test_low", "test_high"),
        ),
        tuple(rows),
        {f"network-{i}": [_network_tip(n, metric)] for i, n in enumerate(networks) if n in drawn},
    )


def _network_tip(network: NetworkRow, metric: str) -> str:
    described = [f"{part} {score(value, metric)}" for part, value in _parts(network) if value is not None]
    return f"{network.label}: {', '.join(described)}, {si(network.macs)} MACs, {si(network.params)} parameters"


def _parts(network: NetworkRow) -> Iterator[tuple[str, float | None]]:
    yield "validation", network.val_accuracy
    yield "test", network.test_accuracy


def _losses(curves: Sequence[Curve]) -> Iterator[Panel]:
    for panel in dict.fromkeys(curve.panel for curve in curves):
        members = [curve for curve in curves if curve.panel == panel and curve.steps]
        if not members:
            continue
        ends = "; ".join(f"{curve.label}: {curve.values[0]:.3g} to {curve.values[-1]:.3g}" for curve in members)
        yield Panel(
            LOSSES,
            _name(LOSSES, panel or members[0].label),
            loss_curves(members),
            f"Training losses over steps. {ends}.",
            ("curve", "step", "loss"),
            tuple((c.label, step, loss) for c in members for step, loss in zip(c.steps, c.values, strict=True)),
            {f"line-{i}": [f"{c.label}: {c.values[-1]:.4g} at last"] for i, c in enumerate(members)},
        )


def _name(kind: str, subject: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "_", subject.lower()).strip("_")
    return f"{kind}_{words[:60]}" if words else kind
