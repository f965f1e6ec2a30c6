import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from nasx.comparison import Interval
from nasx.report import BlockDrawing, Candidate, Curve, NetworkRow, SearchHistory, survival
from nasx.report.figures import (
    accuracy_over_cost,
    architecture,
    candidates_by_generation,
    candidates_over_cost,
    heat_maps,
    loss_curves,
    option_survival,
    save_png,
    save_svg,
    svg_text,
)

ALL_FIGURES = """
import sys
import numpy as np
from nasx.report import BlockDrawing, Candidate, Curve, NetworkRow, SearchHistory
from nasx.report.figures import *
from nasx.report import survival
made = [Candidate(g, 10 * g + k, 0.5 + g / 10, {"block.0.kernel": 3 + k % 2}) for g in range(3) for k in range(4)]
searches = [SearchHistory("heads", tuple(made))]
figures = [
    architecture([BlockDrawing("G1 L2", 2 / 3, ("K 31", "MLP \\u00d74"))] * 14, "darker is more local"),
    candidates_by_generation(searches),
    candidates_over_cost(searches[0]),
    accuracy_over_cost([NetworkRow("found", 5, 12, 0.7, 0.8), NetworkRow("other", 5, 20, 0.7, 0.75)]),
    *map(option_survival, survival(searches[0])),
    loss_curves([Curve("a", (1, 2), (3.0, 2.0)), Curve("b", (1, 2), (3.0, 2.5), "second")]),
    heat_maps(np.arange(128, dtype=np.uint8).reshape(2, 8, 8), {"net": np.arange(32.0).reshape(2, 4, 4)}),
    accuracy_over_cost([NetworkRow("a", 5, 12, 0.7)], published=[NetworkRow("b", 5, 9, 0.7, 0.8)], star=False),
]
sys.stdout.buffer.write("".join(map(svg_text, figures)).encode())
"""


def fill_of_block(svg: str, number: int) -> str:
    group = svg[svg.index(f'id="block-{number}"') :]
    match = re.search(r"fill: (#[0-9a-f]{6})", group)
    assert match
    return match[1]


def heights(line: Line2D) -> list[float]:
    found: list[float] = np.asarray(line.get_ydata(), float).tolist()
    return found


def blocks(count: int) -> list[BlockDrawing]:
    return [BlockDrawing(f"G{i} L{count - i}", 1 - i / count, ("K 31", "E 4", "MLP ×4")) for i in range(count)]


def test_the_same_input_gives_the_same_bytes_whatever_the_hash_seed() -> None:
    root = Path(__file__).parents[2]
    first, second = (
        subprocess.run(
            [sys.executable, "-c", ALL_FIGURES],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    )
    assert first == second
    assert first.count(b"<svg") == 8


@pytest.mark.parametrize("count", [1, 4, 12, 13, 24])
def test_an_architecture_has_one_box_per_block_and_darker_boxes_for_larger_shades(count: int) -> None:
    svg = svg_text(architecture(blocks(count), "darker: more local"))
    assert re.findall(r'id="block-(\d+)"', svg) == [str(i) for i in range(count)]
    brightness = [sum(to_rgb(fill_of_block(svg, i))) for i in range(count)]
    assert brightness == sorted(brightness)
    assert len(set(brightness)) == count
    for i, block in enumerate(blocks(count)):
        assert f">{block.title}<" in svg
        assert f">{i + 1}<" in svg
    assert svg.count(">MLP ×4<") == count


def test_text_on_every_shade_has_the_contrast_that_wcag_asks_for() -> None:
    def luminance(colour: str) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for tenth in range(11):
        svg = svg_text(architecture([BlockDrawing("G1 L2", tenth / 10)]))
        fill = fill_of_block(svg, 0)
        label = re.search(r"<text style=\"([^\"]*)\"[^>]*>G1 L2<", svg)
        assert label
        colour = re.search(r"fill: (#[0-9a-f]{6})", label[1])
        light, dark = sorted((luminance(fill), luminance(colour[1] if colour else "#000000")), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_the_best_so_far_never_falls_and_ends_at_the_best_score() -> None:
    scores = [0.5, 0.7, 0.6, 0.65, 0.8, 0.3]
    candidates = tuple(Candidate(i // 2, 1e9, score) for i, score in enumerate(scores))
    (axes,) = candidates_by_generation([SearchHistory("heads", candidates)]).axes
    points, best = axes.lines
    assert heights(points) == scores
    assert np.round(np.asarray(points.get_xdata(), float)).tolist() == [c.generation for c in candidates]
    assert heights(best) == [0.5, 0.7, 0.7, 0.7, 0.8, 0.8]
    assert "80.00 %" in str(best.get_label())


def test_long_names_end_inside_the_panel() -> None:
    name = "a baseline of my own: global_heads 3, qkv_ratio 1·1·2·1, mlp_ratio 4·2·4·4"
    curves = loss_curves([Curve(f"{name} {i}", (1, 2), (3.0, 2.0), str(i // 2)) for i in range(4)])
    trained = accuracy_over_cost([NetworkRow(name, 5, 12, 0.7, 0.8), NetworkRow(name, 5, 20, 0.7, 0.75)])
    for figure in (curves, trained):
        figure.draw_without_rendering()
        legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
        assert legends
        for panel, legend in enumerate(legends):
            end = figure.bbox.width * (panel % 2 + 1) / min(2, len(legends))
            assert legend.get_window_extent().x1 <= end
            assert all(text.get_text().startswith("a baseline of my own") for text in legend.get_texts())


def test_each_search_and_each_group_of_curves_has_its_panel() -> None:
    searches = [SearchHistory(name, (Candidate(0, 1, 0.5),)) for name in ("heads", "details", "more")]
    assert [axes.get_title("left") for axes in candidates_by_generation(searches).axes] == ["heads", "details", "more"]
    curves = [Curve("a", (1,), (2.0,), "x"), Curve("b", (1,), (2.0,), "y"), Curve("c", (1,), (2.0,), "x")]
    assert [len(axes.lines) for axes in loss_curves(curves).axes] == [2, 1]


def test_networks_are_compared_on_test_images_and_on_validation_images_only_where_none_was_tested() -> None:
    tested = accuracy_over_cost([NetworkRow("a", 1, 10, 0.9, 0.8), NetworkRow("b", 1, 20, 0.9)]).axes[0]
    assert [heights(line) for line in tested.lines] == [[0.8]]
    untested = accuracy_over_cost([NetworkRow("a", 1, 10, 0.9), NetworkRow("b", 1, 20, 0.7)]).axes[0]
    assert [heights(line) for line in untested.lines] == [[0.9], [0.7]]
    assert untested.get_ylabel() == "validation accuracy"


def test_published_networks_have_a_panel_of_their_own_and_only_what_was_found_a_star() -> None:
    ours, theirs = [NetworkRow("a", 1, 10, 0.9, 0.8)], [NetworkRow("b", 1, 10**9, test_accuracy=0.763)]
    both = accuracy_over_cost(ours, published=theirs).axes
    assert [[heights(line) for line in axes.lines] for axes in both] == [[[0.8]], [[0.763]]]
    assert [axes.get_title("left") for axes in both] == ["Trained networks", "As published"]
    for star in (True, False):
        (axes,) = accuracy_over_cost([*ours, *theirs], star=star).axes
        assert [line.get_marker() == "*" for line in axes.lines] == [star, False]


def test_candidates_stand_over_their_cost_with_the_front_and_the_budget_s_bounds_that_are_near() -> None:
    costs, scores = [10, 20, 30, 40], [0.5, 0.7, 0.6, 0.8]
    candidates = tuple(
        Candidate(i // 2, cost, score) for i, (cost, score) in enumerate(zip(costs, scores, strict=True))
    )
    axes = candidates_over_cost(SearchHistory("search", candidates, budget=(12, 1000))).axes[0]
    (points,) = axes.collections
    assert np.asarray(points.get_offsets()).tolist() == [[c, s] for c, s in zip(costs, scores, strict=True)]
    front, bound = axes.lines
    assert heights(front) == [0.5, 0.7, 0.8]
    assert np.asarray(bound.get_xdata(), float).tolist() == [12, 12]


def test_a_network_s_interval_is_drawn_around_it() -> None:
    network = NetworkRow("a", 1, 10, test_accuracy=0.8, test_interval=Interval(0.8, 0.7, 0.85))
    (axes,) = accuracy_over_cost([network]).axes
    assert [heights(line) for line in axes.lines] == [[0.7, 0.85], [0.8]]


def test_the_strips_of_a_choice_are_as_high_as_its_options_shares() -> None:
    archs = [{"block.0.k": 3}, {"block.0.k": 5}, {"block.0.k": 5}, {"block.0.k": 5}]
    search = SearchHistory("search", tuple(Candidate(0, 1, 0.5, arch) for arch in archs))
    (axes,) = option_survival(survival(search)[0]).axes
    spans = [area.get_paths()[0].get_extents() for area in axes.collections]
    assert [round(span.height / 0.86, 6) for span in spans] == [0.25, 0.75]
    assert spans[0].y1 == spans[1].y0


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 8, 8, 3)])
def test_heat_maps_are_shown_as_computed_in_a_row_a_network(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, shape, dtype=np.uint8)
    maps = {"DeiT": generator.normal(size=(2, 4, 4)), "GLiT": 100 * generator.normal(size=(2, 2, 2))}
    panels = heat_maps(images, maps).axes
    shown = [np.asarray(panel.images[0].get_array()) for panel in panels]
    for picture, expected in zip(shown, [*images, *maps["DeiT"], *maps["GLiT"]], strict=True):
        np.testing.assert_array_equal(picture, expected)
    assert [panels[i].get_ylabel() for i in (0, 2, 4)] == ["images", "DeiT", "GLiT"]
    assert panels[2].images[0].get_clim() == (maps["DeiT"][0].min(), maps["DeiT"][0].max())
    if len(shape) == 3:
        assert panels[0].images[0].get_clim() == (0, 255)


def test_heat_maps_need_a_map_an_image() -> None:
    images = np.zeros((2, 8, 8))
    with pytest.raises(ValueError, match="'net' got an array of"):
        heat_maps(images, {"net": np.zeros((3, 4, 4))})
    with pytest.raises(ValueError, match="give at least a network"):
        heat_maps(images, {})
    with pytest.raises(ValueError, match="give at least an image"):
        heat_maps(images[:0], {"net": np.zeros((0, 4, 4))})


def test_names_are_drawn_as_text_and_not_as_formulas() -> None:
    svg = svg_text(loss_curves([Curve("_$x^2$ <b>", (1, 2), (1.0, 2.0)), Curve("$", (1, 2), (1.0, 2.0))]))
    ET.fromstring(svg)
    assert "_$x^2$ &lt;b&gt;" in svg


def test_nothing_to_draw_and_wrong_values_are_refused() -> None:
    for draw in (loss_curves, candidates_by_generation, architecture):
        with pytest.raises(ValueError, match="give at least"):
            draw([])
    with pytest.raises(ValueError, match="give at least"):
        accuracy_over_cost([NetworkRow("a", 1, None, 0.5)])
    with pytest.raises(ValueError, match="give at least"):
        candidates_over_cost(SearchHistory("failed", (Candidate(0, 1, None),)))
    with pytest.raises(ValueError, match=r"0\.\.1"):
        BlockDrawing("G1", 1.5)
    with pytest.raises(ValueError, match="2 steps and 1 values"):
        Curve("a", (1, 2), (1.0,))


def test_figures_are_saved_as_svg_and_png(tmp_path: Path) -> None:
    figure = architecture(blocks(4))
    save_svg(figure, tmp_path / "a.svg")
    save_png(figure, tmp_path / "a.png")
    assert ET.parse(tmp_path / "a.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg"]
