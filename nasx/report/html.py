"""The report of a finished run as one HTML file that needs nothing else: no script, no font, no network."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nasx.report.figures import (
    GRID,
    INK,
    MUTED,
    PALETTE,
    accuracy_over_cost,
    architecture,
    candidates_by_generation,
    loss_curves,
    supernet_rankings,
    svg_text,
)
from nasx.report.formats import duration, score, score_difference, si
from nasx.report.model import Report
from nasx.run import write_text

try:
    import jinja2
    from markupsafe import Markup, escape
except ImportError as error:
    raise ImportError("the HTML report needs jinja2: pip install 'nasx[recipes]'") from error

TEMPLATE = Path(__file__).with_name("report.html.j2")

# on a dark page the figures' colours become these; the boxes of an architecture bring their own background
DARK = dict(
    zip(
        (INK, MUTED, GRID, *PALETTE),
        ("#e6e9ee", "#98a3b3", "#333b47", "#4aa8e0", "#f0803c", "#2bc79a", "#e29cc4", "#f0b429", "#8fd0f5"),
        strict=True,
    )
)


def write_report(path: Path, report: Report) -> None:
    """Write the report of a run as one self-contained HTML file, which appears whole or not at all."""
    write_text(path, render_report(report))


def render_report(report: Report) -> str:
    """Return the report of a run as one self-contained HTML document; identical input gives identical text."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(si=si, score=score, difference=score_difference, duration=duration, flat=_flat)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        figures=_figures(report),
        colours={_variable(light): (light, dark) for light, dark in DARK.items()},
        total_seconds=sum(stage.seconds for stage in report.stages),
        longest=max((stage.seconds for stage in report.stages), default=0) or 1,
    )


def _figures(report: Report) -> dict[str, Markup]:
    figures = {}
    if report.blocks:
        drawn = architecture(report.blocks, report.shade_legend)
        told = "; ".join(" ".join((block.title, *block.lines)) for block in report.blocks)
        figures["architecture"] = _inline(drawn, "architecture", f"Blocks in order: {told}")
    if any(search.candidates for search in report.searches):
        drawn = candidates_by_generation(report.searches, metric=report.metric)
        figures["candidates"] = _inline(drawn, "candidates", "Scores of the candidates by generation")
    if any(ranking.scores for ranking in report.rankings):
        figures["rankings"] = _inline(
            supernet_rankings(report.rankings, metric=report.metric),
            "rankings",
            f"Stand-alone {report.metric} over the supernet's score",
        )
    if report.curves:
        figures["losses"] = _inline(loss_curves(report.curves), "losses", "Training losses over steps")
    if any(search.candidates for search in report.searches) or any(
        network.macs is not None and (network.test_accuracy, network.val_accuracy) != (None, None)
        for network in report.networks
    ):
        drawn = accuracy_over_cost(report.searches, report.networks, metric=report.metric)
        figures["cost"] = _inline(drawn, "cost", f"{report.metric.capitalize()} over MACs")
    return figures


def _inline(figure: Any, name: str, description: str) -> Markup:
    svg = svg_text(figure)
    svg = svg[svg.index("<svg") :]  # neither XML declaration nor document type inside HTML
    svg = re.sub(r'(?<=\bid=")|(?<=url\(#)|(?<=href="#)', f"{name}-", svg)  # ids are unique in a document
    for light in DARK:
        svg = svg.replace(light, f"var({_variable(light)})")
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1))


def _variable(light: str) -> str:
    return f"--figure-{light[1:]}"


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            # as JSON, which is how settings are given
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)
