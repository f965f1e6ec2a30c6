import csv
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nasx.comparison import Difference, Interval
from nasx.report import (
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
from nasx.report.html import render_comparison, render_report, write_report

VOID = {"meta", "link", "br", "img", "hr", "input"}
FOREIGN = "<script>alert(1)</script>&\"'\U0001f600"


class Outline(HTMLParser):
    """Checks that tags nest and collects text, ids and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report(candidates: int = 12, name: str = "") -> Report:
    per_generation = candidates // 3
    made = tuple(
        Candidate(
            g,
            1.3e9 + 1e7 * k / per_generation,
            None if k == 0 and g == 1 else 0.5 + g / 10 + k / per_generation / 10,
            {f"block.{block}.kernel": (3, 5, 7)[(k + block * g) % 3] for block in range(4)},
        )
        for g in range(3)
        for k in range(per_generation)
    )
    blocks = tuple(BlockDrawing(f"G{i} L{3 - i}{name}", 1 - i / 3, ("K 31", "E 4")) for i in range(4))
    worse = Difference(-0.0333, -0.05, -0.016, 360, 0.95, True)
    same = Difference(-0.0028, -0.02, 0.014, 360, 0.95, True)
    return Report(
        title=f"search of digits{name}",
        state="finished",
        highlights=(Highlight("architectures", "4.11 × 10²⁶", "of 3.66 × 10²⁷"),),
        searched=("The space holds 1,234,567 architectures.",),
        found=(f"The network found is better than another{name}.",),
        networks=(
            NetworkRow(
                f"searched{name}",
                24_563_712,
                1_398_123_456,
                0.9778,
                0.9694,
                test_interval=Interval(0.9694, 0.95, 0.983),
                blocks=blocks,
            ),
            NetworkRow("all global", 5_717_416, 1_253_683_200, 0.9500, 0.9361, versus_found=worse, blocks=blocks[:2]),
            NetworkRow("random", 6_123_000, 1_385_000_111, 0.9611, 0.9666, versus_found=same),
            NetworkRow("untested", 6_123_000, 1_385_000_111, 0.9611, None),
        ),
        stages=(
            StageRow("supernet", 41.2),
            StageRow("search", 83.8, "500 of 138,298 candidates"),
            StageRow("late", None),
        ),
        curves=(
            Curve("supernet", (1, 2, 3), (2.3, 1.9, 1.5), "supernet"),
            Curve(f"k 3·5{name}", (1, 2), (2, 1), "retrain"),
        ),
        searches=(SearchHistory(f"heads{name}", made, 4, budget=(1.3e9, 1.4e9)),),
        rankings=(
            RankingPlot("trust", (0.5, 0.6), (0.7, 0.8), (1.0, 2.0), "Weak.", (), Interval(0.4, 0.1, 0.7), None),
        ),
        incidents=(f"3 training images could not be read{name}.",),
        config={"supernet": {"lr": 0.125, "betas": [0.9, 0.99], "clip": None}, "seed": 77},
        split={"train": {"images": 1077}, "rule": "stratified"},
        versions={"nasx": "9.8.7", "torch": "2.99"},
        hardware={"processor": "an abacus"},
        command="python -m recipes.glit run --seed 77",
        seed=77,
        shade_legend="darker is more local",
    )


def test_the_report_is_well_formed_and_says_every_number() -> None:
    page = Outline(render_report(report()))
    for said in (
        *("24.56 M", "24,563,712", "1.398 G", "1,398,123,456", "97.78 %", "96.94 %", "95.00 % to 98.30 %"),
        *("5.717 M", "1.254 G", "95.00 %", "93.61 %", "−3.33 points", "no difference that this data can show", "–"),
        *("41.2 s", "1 min 24 s", "2 min 05 s", "500 of 138,298 candidates", "4.11 × 10²⁶", "1,234,567"),
        *("supernet.lr", "0.125", "[0.9, 0.99]", "null", "train.images", "1077", "stratified"),
        *("9.8.7", "2.99", "Seed 77", "G0 L3", "K 31", "an abacus", "python -m recipes.glit run --seed 77"),
        *("All 12 candidates of heads", "failed", "Kendall's tau", "0.10 to 0.70", "could not be read", "Pareto front"),
    ):
        assert said in page.text, said
    assert page.tags.count("svg") == 7
    assert len(page.ids) == len(set(page.ids))


def test_references_inside_the_figures_hold() -> None:
    html = render_report(report())
    ids = set(Outline(html).ids)
    references = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', html))
    assert references
    assert references <= ids
    tips = json.loads(html[html.index('id="tips">') + len('id="tips">') : html.index("</script>")])
    assert set(tips) <= ids
    assert len(tips["accuracy_over_macs_heads-points"]) == 11, "a text for every candidate that did not fail"


def test_nothing_is_loaded_from_elsewhere() -> None:
    html = render_report(report())
    assert set(re.findall(r"https?://[^\"\s<>]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not {"img", "iframe", "object"} & set(Outline(html).tags)
    assert re.findall(r"<link[^>]*>", html) == ['<link rel="icon" href="data:,">']
    assert "@import" not in html
    assert not re.search(r"\b(src|on\w+)=", html)


def test_hostile_names_stay_text() -> None:
    plain, hostile = (
        render_report(replace(report(name=name), config={name: {name: name}}, versions={name: [name]}))
        for name in ("", FOREIGN)
    )
    page = Outline(hostile)
    assert hostile.count("<script") == plain.count("<script") == 2, "the page's own"
    assert page.tags.count("script") == 2
    assert page.text.count(FOREIGN) >= 10


def test_what_a_run_did_not_have_is_left_out() -> None:
    page = Outline(render_report(Report("bare", (NetworkRow("only", None, None),))))
    assert "svg" not in page.tags
    for heading in ("Candidates", "Stages and their time", "Which options survive", "Can you trust the ranking?"):
        assert heading not in page.text
    page = Outline(render_report(Report("partly", (NetworkRow("a", 1, None, None, 0.5), NetworkRow("b", 1, 2, 0.5)))))
    assert page.tags.count("svg") == 1
    page = Outline(render_report(Report("nothing")))
    assert "What was found" not in page.text


def test_the_report_follows_the_reader_s_colour_scheme() -> None:
    html = render_report(report())
    assert "prefers-color-scheme: dark" in html
    defined = set(re.findall(r"(--[\w-]+): #", html)) | {"--share"}
    used = set(re.findall(r"var\((--[\w-]+)\)", html))
    assert used <= defined
    assert any(name.startswith("--figure-") for name in used)


def test_every_figure_is_also_a_file_and_its_data_too(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", report())
    stems = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    assert stems == {path.stem for path in (tmp_path / "figures").glob("*.csv")}
    assert {"architecture", "accuracy_over_macs_heads", "survival_heads_block_kernel", "networks_over_macs"} <= stems
    rows = list(csv.DictReader((tmp_path / "figures/accuracy_over_macs_heads.csv").read_text().splitlines()))
    assert [row["score"] == "" for row in rows].count(True) == 1
    assert [float(row["macs"]) for row in rows] == [candidate.cost for candidate in report().searches[0].candidates]
    for path in (tmp_path / "figures").glob("*.svg"):
        ElementTree.parse(path)

    write_report(tmp_path / "report.html", Report("nothing"))
    assert list((tmp_path / "figures").iterdir()) == [], "figures of the report before are gone"


def test_the_file_is_replaced_as_a_whole_and_reproducibly(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, report())
    first = path.read_bytes()
    write_report(path, report())
    assert path.read_bytes() == first
    assert first.decode() == render_report(report())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["figures", "report.html"]


def test_a_thousand_candidates_make_a_page_of_less_than_five_megabytes() -> None:
    html = render_report(report(candidates=1000))
    assert len(html.encode()) < 5_000_000
    assert Outline(html).tags.count("tr") > 999


def test_runs_stand_side_by_side_with_their_differences_and_the_settings_that_differ() -> None:
    other = replace(report(), config={"supernet": {"lr": 0.25, "betas": [0.9, 0.99]}, "seed": 77}, networks=())
    runs = [
        ComparedRun("first", report()),
        ComparedRun("second", report(), Difference(0.01, -0.01, 0.03, 360, 0.95, True)),
        ComparedRun("third", replace(other, state="not finished: stopped in stage search")),
    ]
    page = Outline(render_comparison(runs))
    for said in ("first", "no difference that this data can show", "not finished", "supernet.lr", "0.25"):
        assert said in page.text
    assert "supernet.betas" not in page.text
    with pytest.raises(ValueError, match="at least one run"):
        render_comparison([])


@pytest.mark.parametrize(("module", "missing"), [("figures", "matplotlib"), ("html", "jinja2")])
def test_the_library_needs_neither_matplotlib_nor_jinja_until_they_are_asked_for(module: str, missing: str) -> None:
    printed = subprocess.run(
        [
            sys.executable,
            "-c",
            f"""
import sys
sys.modules["{missing}"] = None
import nasx.report
assert not {{"matplotlib.figure", "markupsafe", "torch"}} & set(sys.modules)
try:
    import nasx.report.{module}
except ImportError as error:
    print(error)
""",
        ],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert missing in printed
    assert "nasx[recipes]" in printed
