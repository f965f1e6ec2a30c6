"""What a run shows: tables for terminals, figures in `figures`, and HTML pages in `html`."""

from nasx.report.console import Bars, ProgressLines, networks_table, progress, stages_table
from nasx.report.formats import duration, large, percent, score, si
from nasx.report.labels import short_labels
from nasx.report.model import (
    BlockDrawing,
    Candidate,
    ComparedRun,
    Curve,
    Highlight,
    NetworkRow,
    RankingPlot,
    Report,
    SearchHistory,
    StageRow,
)
from nasx.report.survival import Survival, survival

__all__ = [
    "Bars",
    "BlockDrawing",
    "Candidate",
    "ComparedRun",
    "Curve",
    "Highlight",
    "NetworkRow",
    "ProgressLines",
    "RankingPlot",
    "Report",
    "SearchHistory",
    "StageRow",
    "Survival",
    "duration",
    "large",
    "networks_table",
    "percent",
    "progress",
    "score",
    "short_labels",
    "si",
    "stages_table",
    "survival",
]
