"""Figures of a search run. Identical input gives identical SVG, byte for byte.

Every function returns a matplotlib `Figure` of its own; pyplot and its global state are not used.
"""

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence, Sized
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
from numpy.typing import NDArray

from nasx.report.formats import SHARES, score, si
from nasx.report.model import BlockDrawing, Curve, NetworkRow, RankingPlot, SearchHistory
from nasx.run import write_bytes, write_text

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.colors import to_hex, to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch
    from matplotlib.ticker import FuncFormatter, MaxNLocator
except ImportError as error:
    raise ImportError("figures need matplotlib: pip install 'nasx[recipes]'") from error

_Parameters = ParamSpec("_Parameters")

INK, MUTED, GRID = "#1c2128", "#5f6b7a", "#d9dee5"
# Okabe and Ito's colours, told apart with any kind of colour vision, without the two that are faint on white
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("*", "s", "^", "D", "v", "P", "X", "o")
_LIGHT_BOX, _DARK_BOX = "#e3eef9", "#08306b"
_BLOCKS_PER_ROW = 12
_BELOW: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, -0.2)}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and follows the page's font
    "svg.hashsalt": "nasx",
    "svg.id": None,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "path.simplify": False,
}


def _styled(draw: Callable[_Parameters, Figure]) -> Callable[_Parameters, Figure]:
    @wraps(draw)
    def in_style(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return in_style


@_styled
def loss_curves(curves: Sequence[Curve]) -> Figure:
    """Return the losses over training steps, one panel for each `Curve.panel` in order of appearance."""
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    _need(panels, "loss curves", "a curve")
    figure, grid = _panels(len(panels))
    for axes, panel in zip(grid, panels, strict=True):
        members = [curve for curve in curves if curve.panel == panel]
        for i, curve in enumerate(members):
            dashes = _DASHES[i // len(PALETTE) % len(_DASHES)]
            axes.plot(
                curve.steps,
                curve.values,
                color=PALETTE[i % len(PALETTE)],
                linestyle=dashes,
                marker="o" if len(curve.steps) == 1 else "",
                label=_legend_entry(curve.label),
            )
        axes.set_title(panel)
        axes.set(xlabel="step", ylabel="training loss")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(members) > 1 or members[0].label != panel:
            axes.legend(ncols=1 if len(members) < 6 else 2)
    return figure


@_styled
def candidates_by_generation(searches: Sequence[SearchHistory], *, metric: str = "accuracy") -> Figure:
    """Return every candidate's score by generation and the best so far, one panel for each search.

    Within a generation the candidates stand side by side in the order in which they were scored.
    """
    searches = [search for search in searches if search.candidates]
    _need(searches, "candidates by generation", "a scored candidate")
    figure, grid = _panels(len(searches))
    for axes, search in zip(grid, searches, strict=True):
        places, scores, best = _in_order(search)
        axes.plot(places, scores, **_dots(PALETTE[0]), label="candidate")
        label = f"best so far, {score(best[-1], metric)} at last"
        axes.plot(places, best, color=PALETTE[1], drawstyle="steps-post", label=label)
        axes.set_title(search.name)
        axes.set(xlabel="generation", ylabel=f"validation {metric}, shared weights")
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.yaxis.set_major_formatter(_score_ticks(metric))
        axes.legend(loc="lower right")
    return figure


@_styled
def accuracy_over_cost(
    searches: Sequence[SearchHistory],
    networks: Sequence[NetworkRow],
    *,
    published: Sequence[NetworkRow] = (),
    star: bool = True,
    metric: str = "accuracy",
) -> Figure:
    """Return accuracy over MACs: the searches' candidates, the trained networks and published ones, a panel each.

    They are apart because a candidate is scored with the supernet's weights on validation images, a network with
    its own weights on test images (on validation images where no network has a test accuracy), and a published one on
    whatever its paper says. The first network is what was found and has a `star`, unless that is False (GLiT paper,
    figure 1).
    """
    searches = [search for search in searches if search.candidates]
    kinds = [
        (title, tested, placed)
        for title, members in (("Trained networks", networks), ("As published", published))
        for tested, placed in [_placed(members)]
        if placed
    ]
    _need([*searches, *kinds], "accuracy over cost", "a scored candidate or a network with MACs and an accuracy")
    figure, grid = _panels(bool(searches) + len(kinds))
    left = grid[0]
    if searches:
        for i, search in enumerate(searches):
            costs, scores = zip(*((c.cost, c.score) for c in search.candidates), strict=True)
            left.plot(costs, scores, **_dots(PALETTE[i % len(PALETTE)]), label=_legend_entry(search.name))
        left.set_title("Candidates")
        left.set(ylabel=f"validation {metric}, shared weights")
        left.legend(**_BELOW)
    for axes, (title, tested, placed) in zip(grid[bool(searches) :], kinds, strict=True):
        for i, label, macs, accuracy in placed:
            starred = star and i == 0
            axes.plot(
                [macs],
                [accuracy],
                color=INK if starred else PALETTE[(i + star) % len(PALETTE)],
                marker=_MARKERS[(i + (not star)) % len(_MARKERS)],
                markersize=15 if starred else 8,
                markeredgewidth=0,
                linestyle="none",
                zorder=3,
                label=f"{_legend_entry(label)}, {score(accuracy, metric)}",
            )
        axes.set_title(title)
        axes.set(ylabel=f"{'test' if tested else 'validation'} {metric}")
        axes.margins(0.2, 0.3)
        axes.legend(**_BELOW)
    for axes in grid:
        axes.set(xlabel="MACs")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: si(cost)))
        axes.yaxis.set_major_formatter(_score_ticks(metric))
    return figure


@_styled
def heat_maps(images: NDArray[Any], maps_by_network: Mapping[str, NDArray[Any]]) -> Figure:
    """Return images above their heat maps, a row a network (GLiT paper, figure 6).

    `images` are (n, H, W) or (n, H, W, 3), uint8 or floats in 0..1; each network's maps are (n, h, w) of any range,
    dark where low and bright where high in the range of the map itself.
    """
    _need(maps_by_network, "heat maps", "a network")
    _need(images, "heat maps", "an image")
    for network, maps in maps_by_network.items():
        if maps.ndim != 3 or len(maps) != len(images):
            raise ValueError(
                f"each of the {len(images)} images has one map (h, w), but {network!r} got an array of {maps.shape}"
            )
    white = 255 if images.dtype == np.uint8 else 1
    rows = [
        ("images", images, "gray", white),
        *((name, maps, "inferno", None) for name, maps in maps_by_network.items()),
    ]
    figure = Figure(figsize=(1.1 * len(images) + 0.4, 1.1 * len(rows) + 0.1), layout="constrained")
    for i, (name, pictures, colours, top) in enumerate(rows):
        for j, picture in enumerate(pictures):
            axes = figure.add_subplot(len(rows), len(images), i * len(images) + j + 1)
            # patches keep their edges: what is between them was not computed
            axes.imshow(picture, cmap=colours, vmin=0 if top else None, vmax=top, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if j == 0:
                axes.set_ylabel(textwrap.fill(name, 18), color=INK)
    return figure


@_styled
def supernet_rankings(rankings: Sequence[RankingPlot], *, metric: str = "accuracy") -> Figure:
    """Return stand-alone accuracy over the supernet's score, one panel a ranking, larger dots costing more MACs."""
    rankings = [ranking for ranking in rankings if ranking.scores]
    _need(rankings, "a supernet's ranking", "an architecture with both scores")
    figure, grid = _panels(len(rankings))
    for axes, ranking in zip(grid, rankings, strict=True):
        low, high = min(ranking.costs), max(ranking.costs)
        sizes = [25 + 75 * (cost - low) / ((high - low) or 1) for cost in ranking.costs]
        axes.scatter(ranking.scores, ranking.accuracies, s=sizes, color=PALETTE[0], alpha=0.6, linewidths=0)
        axes.set_title(ranking.name)
        axes.set(xlabel=f"validation {metric}, shared weights", ylabel=f"validation {metric}, trained alone")
        axes.margins(0.1)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(_score_ticks(metric))
        axes.yaxis.set_major_formatter(_score_ticks(metric))
    return figure


@_styled
def architecture(blocks: Sequence[BlockDrawing], legend: str = "") -> Figure:
    """Return an architecture as one box per block, left to right, in rows of at most twelve (GLiT paper, figure 5).

    The box of block i is the SVG group `block-<i>`.
    """
    _need(blocks, "the architecture", "a block")
    rows = math.ceil(len(blocks) / _BLOCKS_PER_ROW)
    per_row = math.ceil(len(blocks) / rows)
    texts = [text for block in blocks for text in (block.title, *block.lines)]
    wide = max(0.62, 0.09 * max(map(len, texts)))  # inches, as all lengths here
    tall = 0.38 + 0.17 * max(len(block.lines) for block in blocks)
    gap, number, edge = 0.2, 0.3, 0.06
    width = 2 * edge + per_row * wide + (per_row - 1) * gap
    words = textwrap.wrap(legend, max(24, int(width / 0.06)))
    width = max(width, *(0.06 * len(line) for line in words), 0)
    height = rows * (tall + number) + edge + 0.17 * len(words)

    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    for i, block in enumerate(blocks):
        row, column = divmod(i, per_row)
        left, top = edge + column * (wide + gap), height - edge - row * (tall + number)
        fill = _shade(block.shade)
        axes.add_patch(
            FancyBboxPatch(
                (left, top - tall),
                wide,
                tall,
                boxstyle="round,pad=0,rounding_size=0.07",
                facecolor=fill,
                edgecolor="#4f7cac",
                linewidth=0.8,
                gid=f"block-{i}",
            )
        )
        text_colour = _legible_on(fill)
        middle = left + wide / 2
        axes.text(middle, top - 0.2, block.title, ha="center", va="center", weight="bold", color=text_colour)
        for j, line in enumerate(block.lines):
            height_of_line = top - 0.4 - 0.17 * j
            axes.text(middle, height_of_line, line, ha="center", va="center", size=8, color=text_colour)
        axes.text(middle, top - tall - 0.12, str(i + 1), ha="center", va="center", size=7.5, color=MUTED)
        if column + 1 < per_row and i + 1 < len(blocks):
            arrow = {"arrowstyle": "-|>", "color": MUTED, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 1}
            centre = top - tall / 2
            axes.annotate("", (left + wide + gap, centre), (left + wide, centre), arrowprops=arrow)
    for j, line in enumerate(words):
        axes.text(edge, 0.17 * (len(words) - j) - 0.09, line, ha="left", va="center", size=8, color=MUTED)
    return figure


def svg_text(figure: Figure) -> str:
    """Return a figure as an SVG document without date, host or version."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):  # ticks are made, and ids hashed, when a figure is written
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    return buffer.getvalue().decode()


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure as SVG; the file appears whole or not at all."""
    write_text(path, svg_text(figure))


def save_png(figure: Figure, path: Path, dpi: int = 200) -> None:
    """Write a figure as PNG on white; the file appears whole or not at all."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that its file name ends in: .svg or .png; another is a ValueError."""
    formats = {".svg": save_svg, ".png": save_png}
    if path.suffix.lower() not in formats:
        raise ValueError(f"a figure is written as {' or '.join(formats)}, but got {path}; rename it")
    formats[path.suffix.lower()](figure, path)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, 2)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(9.2, 3.3 * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _placed(networks: Sequence[NetworkRow]) -> tuple[bool, list[tuple[int, str, int, float]]]:
    tested = any(network.test_accuracy is not None for network in networks if network.macs is not None)
    return tested, [
        (i, network.label, network.macs, accuracy)
        for i, network in enumerate(networks)
        if (accuracy := network.test_accuracy if tested else network.val_accuracy) is not None
        and network.macs is not None
    ]


def _in_order(search: SearchHistory) -> tuple[list[float], list[float], list[float]]:
    # candidate k of the n of generation g stands at g + (k + 1/2)/n - 1/2, within 0.4 of g
    members: dict[int, list[float]] = {}
    for candidate in search.candidates:
        members.setdefault(candidate.generation, []).append(candidate.score)
    places: list[float] = []
    scores: list[float] = []
    best: list[float] = []
    for generation, values in members.items():
        for k, value in enumerate(values):
            places.append(generation + 0.8 * ((k + 0.5) / len(values) - 0.5))
            scores.append(value)
            best.append(max(value, best[-1]) if best else value)
    return places, scores, best


def _dots(colour: str) -> dict[str, Any]:
    return {"color": colour, "marker": "o", "markersize": 4, "alpha": 0.45, "markeredgewidth": 0, "linestyle": "none"}


def _shade(shade: float) -> str:
    light, dark = to_rgb(_LIGHT_BOX), to_rgb(_DARK_BOX)
    return to_hex(tuple((1 - shade) * a + shade * b for a, b in zip(light, dark, strict=True)))  # type: ignore[arg-type]


def _legible_on(fill: str) -> str:
    # whichever of white and black has the higher WCAG contrast ratio, which then is 4.5 at least
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(fill)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if luminance < 0.179 else "#000000"


def _score_ticks(metric: str) -> FuncFormatter:
    if metric in SHARES:
        return FuncFormatter(lambda fraction, _: f"{100 * fraction:.4g} %")
    return FuncFormatter(lambda value, _: f"{value:.4g}")


def _legend_entry(label: str) -> str:
    return f" {label}" if label.startswith("_") else label  # a leading underscore would hide it


def _need(something: Sized, figure: str, what: str) -> None:
    if not len(something):
        raise ValueError(f"{figure} cannot be drawn of nothing: give at least {what}")
