"""Figures of a search run. Identical input gives identical SVG, byte for byte.

Every function returns a matplotlib `Figure` of its own; pyplot and its global state are not used.
"""

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence, Sized
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
from numpy.typing import NDArray

from nasx.comparison import Interval
from nasx.report.formats import SHARES, score, si
from nasx.report.labels import LONGEST
from nasx.report.model import BlockDrawing, Candidate, Curve, NetworkRow, RankingPlot, SearchHistory
from nasx.report.survival import Survival
from nasx.run import write_bytes, write_text

try:
    import matplotlib
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_hex, to_rgb
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
_PANEL = 4.0, 2.9  # inches: as wide as a telephone shows without shrinking it much

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
    """Return the losses over training steps, one panel for each `Curve.panel` in order of appearance.

    Line i of a panel is the SVG group `line-<i>`.
    """
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    _need(panels, "loss curves", "a curve")
    most = max(sum(curve.panel == panel for curve in curves) for panel in panels)
    figure, grid = _panels(len(panels), entries=most)
    for axes, panel in zip(grid, panels, strict=True):
        members = [curve for curve in curves if curve.panel == panel]
        for i, curve in enumerate(members):
            axes.plot(
                curve.steps,
                curve.values,
                color=PALETTE[i % len(PALETTE)],
                linestyle=_DASHES[i // len(PALETTE) % len(_DASHES)],
                marker="o" if len(curve.steps) == 1 else "",
                label=_legend_entry(curve.label),
                gid=f"line-{i}",
            )
        axes.set_title(panel)
        axes.set(xlabel="step", ylabel="training loss")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if len(members) > 1 or members[0].label != panel:
            _legend(axes)
    return figure


@_styled
def candidates_by_generation(searches: Sequence[SearchHistory], *, metric: str = "accuracy") -> Figure:
    """Return every candidate's score by generation and the best so far, one panel for each search.

    Within a generation the candidates stand side by side in the order in which they were scored. The candidates of a
    panel are the SVG group `points`.
    """
    searches = [search for search in searches if search.scored]
    _need(searches, "candidates by generation", "a scored candidate")
    figure, grid = _panels(len(searches), entries=2)
    for axes, search in zip(grid, searches, strict=True):
        places, scores, best = _in_order(search)
        axes.plot(places, scores, **_dots(PALETTE[0]), label="candidate", gid="points")
        label = f"best so far, {score(best[-1], metric)} at last"
        axes.plot(places, best, color=PALETTE[1], drawstyle="steps-post", label=label)
        axes.set_title(search.name)
        axes.set(xlabel="generation", ylabel=f"validation {metric}, shared weights")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_formatter(_score_ticks(metric))
        _legend(axes)
    return figure


@_styled
def candidates_over_cost(search: SearchHistory, *, metric: str = "accuracy") -> Figure:
    """Return the score of every candidate of a search over its MACs, coloured by generation.

    A line joins the Pareto front, and dashed lines stand at the budget's bounds. The candidates are the SVG group
    `points`, in the order of `search.scored`.
    """
    _need(search.scored, "accuracy over cost", "a scored candidate")
    figure, (axes,) = _panels(1, entries=2)
    generations = [candidate.generation for candidate in search.scored]
    first, last = min(generations), max(*generations, min(generations) + 1)
    shades = colormaps["viridis"].resampled(min(32, last - first + 1))
    colours = ScalarMappable(Normalize(first, last), shades)
    costs, scores = _over_cost(search.scored)
    axes.scatter(
        costs,
        scores,
        s=26,
        c=[to_hex(colour) for colour in colours.to_rgba(np.array(generations, float))],
        linewidths=0,
        alpha=0.85,
        label="candidate, by generation",
        gid="points",
    )
    axes.plot(*_over_cost(search.front), color=PALETTE[1], drawstyle="steps-post", linewidth=1.3, label="Pareto front")
    # a bound far from every candidate would squeeze them into a corner
    low, high = axes.get_xlim()
    named = "budget"
    for bound in search.budget:
        if bound is not None and low - (high - low) <= bound <= high + (high - low):
            axes.axvline(bound, color=MUTED, linestyle="--", linewidth=1.1, label=named)
            named = ""
    bar = figure.colorbar(colours, ax=axes, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    bar.set_label("generation")
    axes.set_title(search.name)
    axes.set(xlabel="MACs", ylabel=f"validation {metric}, shared weights")
    _cost_axis(axes)
    axes.yaxis.set_major_formatter(_score_ticks(metric))
    _legend(axes)
    return figure


@_styled
def accuracy_over_cost(
    networks: Sequence[NetworkRow],
    *,
    published: Sequence[NetworkRow] = (),
    star: bool = True,
    metric: str = "accuracy",
) -> Figure:
    """Return accuracy over MACs of trained networks and of published ones, a panel each, with their intervals.

    They are apart because a network is scored with its own weights on test samples (on validation samples where no
    network has a test accuracy), and a published one on whatever its paper says. The first network is what was found
    and has a `star`, unless that is False (GLiT paper, figure 1). Network i of a panel is the SVG group `network-<i>`.
    """
    kinds = [
        (title, tested, placed)
        for title, members in (("Trained networks", networks), ("As published", published))
        for tested, placed in [_placed(members)]
        if placed
    ]
    _need(kinds, "accuracy over cost", "a network with MACs and an accuracy")
    figure, grid = _panels(len(kinds), entries=max(len(placed) for _, _, placed in kinds))
    for axes, (title, tested, placed) in zip(grid, kinds, strict=True):
        for i, network in placed:
            starred = star and i == 0
            value, interval = _tested(network, tested)
            assert value is not None
            assert network.macs is not None
            colour = INK if starred else PALETTE[(i + star) % len(PALETTE)]
            if interval is not None:
                axes.plot(
                    [network.macs, network.macs], [interval.low, interval.high], color=colour, linewidth=1.1, alpha=0.7
                )
            axes.plot(
                [network.macs],
                [value],
                color=colour,
                marker=_MARKERS[(i + (not star)) % len(_MARKERS)],
                markersize=13 if starred else 7,
                markeredgewidth=0,
                linestyle="none",
                zorder=3,
                label=_legend_entry(network.label, f", {score(value, metric)}"),
                gid=f"network-{i}",
            )
        axes.set_title(title)
        axes.set(xlabel="MACs", ylabel=f"{'test' if tested else 'validation'} {metric}")
        axes.margins(0.2, 0.2)
        _cost_axis(axes)
        axes.yaxis.set_major_formatter(_score_ticks(metric))
        _legend(axes)
    return figure


@_styled
def option_survival(shares: Survival) -> Figure:
    """Return how often each option stands among the best candidates, generation by generation, a strip each choice.

    The heights of the colours of a strip are the shares of the options; what is left white lacks the choice.
    """
    _need(shares.names, "the survival of options", "a choice")
    rows, options = len(shares.names), len(shares.options)
    per_row = 4
    height = 1.15 + 0.24 * rows + 0.19 * math.ceil(options / per_row)
    figure = Figure(figsize=(_PANEL[0], height), layout="constrained")
    axes = figure.add_subplot()
    edges = np.arange(len(shares.generations) + 1) - 0.5
    for option, colour in enumerate(_sequence(options)):
        before, through = shares.shares[:, :, :option].sum(axis=2), shares.shares[:, :, : option + 1].sum(axis=2)
        for row in range(rows):
            # a strip grows upwards from its lower edge, and the first row is the topmost
            low, high = (rows - 1 - row + 0.86 * part[:, row] for part in (before, through))
            axes.fill_between(
                edges,
                np.append(low, low[-1]),
                np.append(high, high[-1]),
                step="post",
                color=colour,
                linewidth=0,
                label=_legend_entry(shares.options[option]) if row == 0 else "",
            )
    axes.set_yticks([rows - 1 - row + 0.43 for row in range(rows)], shares.row_labels)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_ylim(-0.1, rows)
    axes.set_xlim(-0.5, len(shares.generations) - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    names = shares.generations
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda at, _: str(names[round(at)]) if 0 <= round(at) < len(names) else "")
    )
    axes.set_title(f"{shares.title} ({shares.search})")
    axes.set_xlabel("generation")
    numbered = any(segment.isdigit() for segment in shares.names[0].split("."))
    axes.set_ylabel(shares.pattern.split(".*")[0] if numbered else "")
    _legend(axes, columns=per_row)
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
    """Return stand-alone accuracy over the supernet's score, one panel a ranking, larger dots costing more MACs.

    The dots of a panel are the SVG group `points`.
    """
    rankings = [ranking for ranking in rankings if ranking.scores]
    _need(rankings, "a supernet's ranking", "an architecture with both scores")
    figure, grid = _panels(len(rankings))
    for axes, ranking in zip(grid, rankings, strict=True):
        low, high = min(ranking.costs), max(ranking.costs)
        sizes = [25 + 75 * (cost - low) / ((high - low) or 1) for cost in ranking.costs]
        axes.scatter(
            ranking.scores, ranking.accuracies, s=sizes, color=PALETTE[0], alpha=0.6, linewidths=0, gid="points"
        )
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
        fill, text_colour = box_colours(block.shade)
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


def box_colours(shade: float) -> tuple[str, str]:
    """Return the colour of a block's box for a shade from 0 (light) to 1 (dark), and that of text on it."""
    fill = _shade(shade)
    return fill, _legible_on(fill)


def svg_text(figure: Figure) -> str:
    """Return a figure as an SVG document without date, host or version."""
    buffer = io.BytesIO()
    # ticks are made, and ids hashed, when a figure is written
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # text stays text, so it is the reader's fonts that must have an emoji
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
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


FORMATS: Mapping[str, Callable[[Figure, Path], None]] = {".svg": save_svg, ".png": save_png}
"""What `save_figure` writes, by the ending of a file's name."""


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that its file name ends in, one of `FORMATS`; another is a ValueError."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"a figure is written as {' or '.join(FORMATS)}, but got {path}; rename it")
    FORMATS[path.suffix.lower()](figure, path)


def _panels(count: int, entries: int = 0) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels, each with room for the entries of a legend below it."""
    columns = min(count, 2)
    rows = math.ceil(count / columns)
    width, height = _PANEL
    figure = Figure(figsize=(width * columns, rows * (height + 0.18 * entries)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _legend(axes: Axes, columns: int = 1) -> None:
    """Put a panel's legend below it: beside the figure where there is one panel, else under its own axes."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    handles, labels = axes.get_legend_handles_labels()
    if sum(panel.get_label() != "<colorbar>" for panel in figure.axes) == 1:
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, borderaxespad=0.2)
    else:
        axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(0, -0.25), ncols=columns)


def _cost_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: si(cost)))


def _over_cost(candidates: Sequence[Candidate]) -> tuple[list[float], list[float]]:
    return [candidate.cost for candidate in candidates], [float(candidate.score or 0) for candidate in candidates]


def _sequence(count: int) -> list[str]:
    """Return colours from dark to light, which can be told apart on a light page and on a dark one."""
    return [to_hex(colormaps["viridis"](0.12 + 0.78 * i / max(1, count - 1))) for i in range(count)]


def _placed(networks: Sequence[NetworkRow]) -> tuple[bool, list[tuple[int, NetworkRow]]]:
    tested = any(network.test_accuracy is not None for network in networks if network.macs is not None)
    return tested, [
        (i, network)
        for i, network in enumerate(networks)
        if network.macs is not None and _tested(network, tested)[0] is not None
    ]


def _tested(network: NetworkRow, tested: bool) -> tuple[float | None, Interval | None]:
    if tested:
        return network.test_accuracy, network.test_interval
    return network.val_accuracy, network.val_interval


def _in_order(search: SearchHistory) -> tuple[list[float], list[float], list[float]]:
    # candidate k of the n of generation g stands at g + (k + 1/2)/n - 1/2, within 0.4 of g
    members: dict[int, list[float]] = {}
    for candidate in search.scored:
        members.setdefault(candidate.generation, []).append(float(candidate.score or 0))
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


def _legend_entry(label: str, value: str = "") -> str:
    """Return a label, and a value after it, in one line that fits a panel."""
    most = LONGEST - len(value)
    label = label if len(label) <= most else f"{label[: most - 1]}…"
    return f"{' ' * label.startswith('_')}{label}{value}"  # a leading underscore would hide it


def _need(something: Sized, figure: str, what: str) -> None:
    if not len(something):
        raise ValueError(f"{figure} cannot be drawn of nothing: give at least {what}")
