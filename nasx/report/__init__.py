"""What a finished run shows: console tables here, figures in `figures`, the HTML report in `html`."""

from nasx.report.console import Bars, ProgressLines, networks_table, progress, stages_table
from nasx.report.formats import duration, percent, si
from nasx.report.model import (
    BlockDrawing,
    Candidate,
    Curve,
    NetworkRow,
    RankingPlot,
    Report,
    SearchHistory,
    StageRow,
)

__all__ = [
    "Bars",
    "BlockDrawing",
    "Candidate",
    "Curve",
    "NetworkRow",
    "ProgressLines",
    "RankingPlot",
    "Report",
    "SearchHistory",
    "StageRow",
    "duration",
    "networks_table",
    "percent",
    "progress",
    "si",
    "stages_table",
]
