"""Reports as HTML pages that need nothing else: one file with its style, its script and its figures inside."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nasx._nested import flattened
from nasx.report.figures import GRID, INK, MUTED, PALETTE, accuracy_over_cost, box_colours, svg_text
from nasx.report.formats import amount, duration, points, score, score_difference, si
from nasx.report.labels import full_text, short_labels
from nasx.report.model import ComparedRun, Report, cost_units
from nasx.report.panels import (
    ARCHITECTURE,
    CANDIDATES,
    GENERATIONS,
    LOSSES,
    NETWORKS,
    RANKING,
    SURVIVAL,
    Panel,
    panels,
    write_panels,
)
from nasx.report.survival import survival
from nasx.run import write_text

try:
    import jinja2
    from markupsafe import Markup, escape
except ImportError as error:
    raise ImportError("the HTML report needs jinja2: pip install 'nasx[recipes]'") from error

TEMPLATES = Path(__file__).with_name("templates")
FIGURES = "figures"
"""The folder beside a report that holds its figures as SVG and their data as CSV."""

# on a dark page the figures' colours become these; the boxes of an architecture bring their own background
DARK = dict(
    zip(
        (INK, MUTED, GRID, *PALETTE),
        ("#e6e9ee", "#98a3b3", "#333b47", "#4aa8e0", "#f0803c", "#2bc79a", "#e29cc4", "#f0b429", "#8fd0f5"),
        strict=True,
    )
)


def write_report(path: Path, report: Report) -> None:
    """Write a report as one self-contained HTML file, and its figures and their data into `figures/` beside it.

    Each file appears whole or not at all, and the page last.
    """
    drawn = panels(report)
    svgs = [svg_text(panel.figure) for panel in drawn]
    write_panels(path.parent / FIGURES, drawn, svgs)
    write_text(path, _report_page(report, drawn, svgs))


def render_report(report: Report) -> str:
    """Return the report of a run as one self-contained HTML document; identical input gives identical text."""
    drawn = panels(report)
    return _report_page(report, drawn, [svg_text(panel.figure) for panel in drawn])


def render_comparison(runs: Sequence[ComparedRun]) -> str:
    """Return several runs side by side as one self-contained HTML document."""
    if not runs:
        raise ValueError("a comparison needs at least one run")
    metric = runs[0].report.metric
    found = [replace(run.report.networks[0], label=run.name) for run in runs if run.report.networks]
    drawn = []
    if any(n.macs is not None and (n.val_accuracy, n.test_accuracy) != (None, None) for n in found):
        described = "; ".join(f"{n.label}: {score(n.test_accuracy, metric)} at {si(n.macs)} MACs" for n in found)
        figure = accuracy_over_cost(found, star=False, metric=metric)
        tips = {f"network-{i}": [n.label] for i, n in enumerate(found)}
        drawn = [Panel(NETWORKS, NETWORKS, figure, f"What each run found: {described}", (), (), tips)]
    svgs = [svg_text(panel.figure) for panel in drawn]
    return _page("comparison.html.j2", drawn, svgs, runs=runs, metric=metric, settings=list(_different(runs)))


def write_comparison(path: Path, runs: Sequence[ComparedRun]) -> None:
    """Write several runs side by side as one self-contained HTML file."""
    write_text(path, render_comparison(runs))


def _report_page(report: Report, drawn: Sequence[Panel], svgs: Sequence[str]) -> str:
    searches = []
    for search in report.searches:
        labels = short_labels([candidate.arch for candidate in search.candidates])
        front = {id(candidate) for candidate in search.front}
        rows = [
            (number, candidate, label, full_text(candidate.arch), id(candidate) in front)
            for number, (candidate, label) in enumerate(zip(search.candidates, labels, strict=True), 1)
        ]
        searches.append((search, rows, survival(search)))
    seconds = [stage.seconds for stage in report.stages if stage.seconds is not None]
    return _page(
        "report.html.j2",
        drawn,
        svgs,
        report=report,
        searches=searches,
        total_seconds=sum(seconds),
        longest=max(seconds, default=0) or 1,
        drawings=[network for network in report.networks if network.blocks],
    )


def _with_intervals(*reports: Report) -> bool:
    return any(row.val_interval or row.test_interval for report in reports for row in report.networks)


def _page(template: str, drawn: Sequence[Panel], svgs: Sequence[str], **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        si=si,
        amount=amount,
        score=score,
        difference=score_difference,
        duration=duration,
        points=points,
        flat=_flat,
        box=lambda shade: "background:{};color:{}".format(*box_colours(shade)),
    )
    environment.globals.update(with_intervals=_with_intervals, cost_units=cost_units)
    shown = [(panel, _inline(svg, panel)) for panel, svg in zip(drawn, svgs, strict=True) if panel.kind != ARCHITECTURE]
    return environment.get_template(template).render(
        figures={
            kind: [(panel, svg) for panel, svg in shown if panel.kind == kind]
            for kind in (CANDIDATES, GENERATIONS, SURVIVAL, RANKING, NETWORKS, LOSSES)
        },
        tips={f"{panel.name}-{group}": tips for panel, _ in shown for group, tips in panel.tips.items()},
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),
        colours={_variable(light): (light, dark) for light, dark in DARK.items()},
        **values,
    )


def _inline(svg: str, panel: Panel) -> Markup:
    svg = svg[svg.index("<svg") :]  # neither XML declaration nor document type inside HTML
    # ids are unique in a document
    svg = re.sub(r'(?<=\bid=")|(?<=url\(#)|(?<=href="#)', f"{panel.name}-", svg)
    for light in DARK:
        svg = svg.replace(light, f"var({_variable(light)})")
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(panel.text)}"', 1))


def _variable(light: str) -> str:
    return f"--figure-{light[1:]}"


def _different(runs: Sequence[ComparedRun]) -> Iterator[tuple[str, list[str]]]:
    """Yield the settings in which runs differ, with the value of each run."""
    settings = [dict(_flat(run.report.config)) for run in runs]
    for name in dict.fromkeys(name for own in settings for name in own):
        values = [own.get(name, "–") for own in settings]
        if len(set(values)) > 1:
            yield name, values


def _flat(nested: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in flattened(nested):
        # as JSON, which is how settings are given
        yield name, value if isinstance(value, str) else json.dumps(value, default=str)
