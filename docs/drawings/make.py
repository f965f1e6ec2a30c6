"""Draws the figures of docs/concepts.md from the library itself: `python docs/drawings/make.py` writes them.

They are 340 pixels wide, so that a telephone shows them at their own size, and follow the reader's colour scheme.
"""

import contextlib
import io
import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import groupby, product
from math import log10
from pathlib import Path

from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from nasx import Arch, Budget, Space, one_of
from nasx.arch import split
from nasx.nn import Supernet
from nasx.search import Evolution
from nasx.space import Choice, Repeat
from recipes.glit.__main__ import main as glit
from recipes.glit.cost import macs
from recipes.glit.space import GLIT, TABLE2, TINY, heads_space

WIDTH = 340
STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1c2128 }
.small { font-size: 12.5px }
.muted { fill: #57606a }
.middle { text-anchor: middle }
.end { text-anchor: end }
.panel { fill: #f6f8fa }
.box { fill: #dbe7ff; stroke: #6b7fb3 }
.warm { fill: #ffe9c7; stroke: #a98444 }
.fresh { fill: #d5f0da; stroke: #5f9a6b }
.line { fill: none; stroke: #57606a; stroke-width: 1.4 }
.strong { fill: none; stroke: #c2410c; stroke-width: 2.2 }
.head { fill: #57606a }
.dot { fill: #2f5fd0 }
.faint { fill: #c3c9d2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e9ee }
  .muted { fill: #a5adba }
  .panel { fill: #262a34 }
  .box { fill: #2b3d6b; stroke: #8da2dc }
  .warm { fill: #5a4420; stroke: #d1a75f }
  .fresh { fill: #23492d; stroke: #7cc08a }
  .line { stroke: #a5adba }
  .strong { stroke: #fb923c }
  .head { fill: #a5adba }
  .dot { fill: #8fb0ff }
  .faint { fill: #4a5160 }
}
"""


class Drawing:
    """A picture of a title and a height, to which shapes are added from top to bottom."""

    def __init__(self, title: str, height: int) -> None:
        self.title, self.height = title, height
        self.shapes: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, kind: str = "box", radius: int = 5) -> None:
        """Add a rectangle."""
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}"'
        self.shapes.append(f'<rect class="{kind}" {place}/>')

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        """Add a line of text that stands on y."""
        self.shapes.append(f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>')

    def path(self, points: Iterable[tuple[float, float]], kind: str = "line", arrow: bool = False) -> None:
        """Add straight lines from point to point."""
        steps = " ".join(f"{'ML'[i > 0]}{x:g} {y:g}" for i, (x, y) in enumerate(points))
        end = ' marker-end="url(#head)"' if arrow else ""
        self.shapes.append(f'<path class="{kind}" d="{steps}"{end}/>')

    def dot(self, x: float, y: float, kind: str) -> None:
        """Add a small disc."""
        self.shapes.append(f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="3.4"/>')

    def svg(self) -> str:
        """Return the picture as an SVG document."""
        marker = (
            '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path class="head" d="M0 0L8 4L0 8z"/></marker>'
        )
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
            f'height="{self.height}" role="img">',
            f"<title>{escape(self.title)}</title>",
            f"<style>{STYLE}</style>",
            f"<defs>{marker}</defs>",
            f'<rect class="panel" width="{WIDTH}" height="{self.height}" rx="8"/>',
            *self.shapes,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"


def space() -> Drawing:
    """Draw the space that stage two of GLiT can reach: a repeat, a choice, and the subspaces that its options open."""
    repeated, options = block_of(GLIT)
    cards = [(values, opened) for opened, values in by_subspace(options)]
    drawing = Drawing("GLiT's space: each of its blocks chooses its heads, and the heads open further choices", 430)
    drawing.text(14, 26, f"block: repeated {repeated} times")
    drawing.text(14, 48, "each has one of these kinds of heads:", "small muted")
    y = 60.0
    for values, opened in cards:
        lines = [(name, [str(v) for v in choice.values]) for name, choice in choices_of(opened)]
        height = 34 + 20 * len(lines)
        drawing.box(14, y, 312, height, "fresh")
        drawing.text(26, y + 22, f"global_heads {' or '.join(map(str, values))}")
        for i, (name, offered) in enumerate(lines):
            drawing.text(44, y + 43 + 20 * i, name, "small")
            searched = len(offered) > 1
            said = "  ".join(offered) if searched else f"{offered[0]}, held"
            drawing.text(314, y + 43 + 20 * i, said, "small end" if searched else "small muted end")
        y += height + 10
    candidates = sum(opened.size for _, opened in options.options)
    drawing.text(14, y + 16, f"{candidates} candidates a block, {scientific(GLIT.size)} architectures", "small")
    drawing.height = round(y + 30)
    return drawing


def budget() -> Drawing:
    """Draw the sums of MACs after each block, those that can still end inside a budget, and one draw."""
    blocks = 4
    space = heads_space(TINY.with_blocks(blocks))
    low, high = 440_000_000, 460_000_000
    inside = space.within(Budget(macs, at_least=low, at_most=high))
    shared, parts = split(space[0])
    costs = [macs.part(*key, shared, arch) for arch in options_of(space) for key in [next(iter(parts))]]
    start = macs.fixed(shared)
    reached = [sorted({start + sum(chosen) for chosen in product(costs, repeat=k)}) for k in range(blocks + 1)]
    ends = [any_inside(costs, blocks - k, low, high) for k in range(blocks + 1)]
    drawing = Drawing("Sums of MACs after each block, and those that can still end inside a budget", 330)
    cheapest, costliest = reached[-1][0], reached[-1][-1]

    def at(k: int, total: float) -> tuple[float, float]:
        above = total + (blocks - k) * min(costs) - cheapest
        return 30 + 54 * k, 262 - 218 * above / (costliest - cheapest)

    drawing.text(14, 24, f"MACs above the cheapest network's, {blocks} blocks", "small muted")
    right, top = at(blocks, high)
    bottom = at(blocks, low)[1]
    drawing.box(right - 9, top, 18, bottom - top, "warm")
    for k, sums in enumerate(reached):
        for total in sums:
            drawing.dot(*at(k, total), "dot" if ends[k](total) else "faint")
        drawing.text(at(k, 0)[0], 288, str(k), "small middle")
    drawn = split(inside.sample(0))[1].values()
    steps = [macs.part("block", 0, shared, choices) for choices in drawn]
    drawing.path([at(k, start + sum(steps[:k])) for k in range(blocks + 1)], "strong")
    drawing.text(right + 13, (top + bottom) / 2 + 4, f"{low / 1e6:g}-{high / 1e6:g} M", "small")
    drawing.text(14, 314, f"{inside.size} of {space.size} networks are inside; one is drawn", "small")
    return drawing


def supernet() -> Drawing:
    """Draw what a supernet stores for one layer of three widths: slices of one tensor, or a tensor for each."""
    widths, inputs = (32, 64, 96), 64
    choices = Space(width=one_of(*widths))
    shared = shapes(Supernet(layer(inputs), choices))
    apart = shapes(Supernet(layer(inputs), choices, separate={"proj": "width"}))
    drawing = Drawing("A layer of three widths in a supernet: slices of one tensor, or one tensor for each width", 380)
    drawing.text(14, 26, "Shared (weight entanglement)")
    ((name, (rows, columns)),) = shared.items()
    drawing.text(14, 47, f"{name}: {rows} × {columns}", "small muted")
    for width, kind in zip(reversed(widths), ("box", "warm", "fresh"), strict=True):
        drawing.box(14, 58, columns, width, kind, 2)
        drawing.text(14 + columns + 10, 58 + width - 4, f"width {width}: the first {width} rows", "small")
    drawing.text(14, 190, "Separate (one path at a time)")
    y = 202.0
    for (stored, (own, columns)), kind in zip(apart.items(), ("fresh", "warm", "box"), strict=True):
        drawing.box(14, y, columns, own / 2, kind, 2)
        drawing.text(14 + columns + 10, y + own / 4 + 4, f"{stored}: {own} × {columns}", "small")
        y += own / 2 + 10
    drawing.text(14, y + 12, "extract(arch) copies what one network uses", "small muted")
    drawing.text(14, y + 29, "into plain torch.", "small muted")
    drawing.height = round(y + 42)
    return drawing


def search() -> Drawing:
    """Draw how a searcher and what scores its candidates talk to each other."""
    inside = TABLE2.within(Budget(macs, at_least=1.38e9, at_most=1.40e9))
    searcher = Evolution(inside, population=20, generations=5, seed=0)
    asked = searcher.ask()
    drawing = Drawing("A searcher: ask returns architectures, tell takes their scores", 300)
    drawing.box(14, 14, 312, 46, "fresh")
    drawing.text(170, 33, "architectures inside a budget", "middle")
    drawing.text(170, 51, f"{scientific(inside.size)} of {scientific(TABLE2.size)}", "small muted middle")
    drawing.path([(170, 60), (170, 84)], arrow=True)
    drawing.box(14, 86, 312, 46)
    drawing.text(170, 105, f"searcher: {type(searcher).__name__}", "middle")
    drawing.text(170, 123, f"done after {searcher.evaluations} scores", "small muted middle")
    drawing.path([(90, 132), (90, 212)], arrow=True)
    drawing.path([(250, 214), (250, 134)], arrow=True)
    drawing.text(82, 166, "ask()", "end")
    drawing.text(98, 186, f"{len(asked)} architectures", "small")
    drawing.text(258, 166, "tell()")
    drawing.text(242, 206, "their scores", "small end")
    drawing.box(14, 214, 312, 64, "warm")
    drawing.text(170, 235, "your scores", "middle")
    drawing.text(170, 253, "a supernet, a training, a table;", "small muted middle")
    drawing.text(170, 270, "in any order, on any device", "small muted middle")
    drawing.height = 292
    return drawing


def run() -> Drawing:
    """Draw the stages of a run of the GLiT recipe, in the order in which they are done."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = glit(["plan", "--no-timing", "--json"])
    assert status == 0
    names = [stage["name"] for stage in json.loads(output.getvalue())["stages"]]
    drawing = Drawing("The stages of a run of the GLiT recipe, in order", 0)
    y = 14.0
    kinds = iter(("box", "fresh", "warm", "warm", "warm"))
    for level, stages in groupby(names, key=lambda name: name.partition("/")[0] if "/" in name else ""):
        own, kind = list(stages), next(kinds)
        for number, name in enumerate(own):
            if y > 14:
                drawing.path([(170, y - 14), (170, y - 2)], arrow=True)
            drawing.box(60, y, 220, 32, kind)
            drawing.text(170, y + 21, name, "middle")
            if not level and number == len(own) - 1:
                drawing.text(170, y + 50, "the test images are read here, and only here", "small muted middle")
            y += 46
    drawing.height = round(y + 14)
    return drawing


def block_of(space: Space) -> tuple[int, Choice]:
    """Return how often a space of one repeat of one choice repeats it, and the choice."""
    repeated = space.nodes["block"]
    assert isinstance(repeated, Repeat)
    choice = repeated.parts[0].nodes["global_heads"]
    assert isinstance(choice, Choice)
    assert isinstance(repeated.count, int)
    return repeated.count, choice


def by_subspace(choice: Choice) -> list[tuple[Space, list[object]]]:
    """Return each subspace that options open, with their values."""
    found: dict[Space, list[object]] = {}
    for value, opened in choice.options:
        found.setdefault(opened, []).append(value)
    return list(found.items())


def choices_of(space: Space) -> list[tuple[str, Choice]]:
    """Return the choices of a space that has nothing else."""
    return [(name, node) for name, node in space.nodes.items() if isinstance(node, Choice)]


def options_of(space: Space) -> list[Arch]:
    """Return what the first block of a space can be."""
    firsts = (split(arch)[1]["block", 0] for arch in space)
    return list(dict.fromkeys(firsts))


def any_inside(costs: Sequence[int], left: int, low: int, high: int) -> Callable[[int], bool]:
    """Return whether a sum can end inside bounds when some blocks are left."""
    further = {sum(chosen) for chosen in product(costs, repeat=left)}
    return lambda total: any(low <= total + more <= high for more in further)


def layer(inputs: int) -> Callable[[Arch], nn.Module]:
    """Return a builder of a network of one layer, as wide as its architecture says."""
    return lambda arch: nn.Sequential(OrderedDict(proj=nn.Linear(inputs, int(arch["width"]), bias=False)))


def shapes(supernet: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of what a supernet stores."""
    return {name: tuple(tensor.shape) for name, tensor in supernet.state_dict().items()}


def scientific(number: int) -> str:
    """Return a large number with two digits and a power of ten."""
    exponent = int(log10(number))
    raised = str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{number / 10**exponent:.1f} × 10{raised}"


DRAWINGS: Mapping[str, Callable[[], Drawing]] = {
    "space": space,
    "budget": budget,
    "supernet": supernet,
    "search": search,
    "run": run,
}


if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (Path(__file__).parent / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")
