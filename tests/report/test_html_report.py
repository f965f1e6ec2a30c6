import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nasx.report import BlockDrawing, Candidate, Curve, NetworkRow, Report, SearchHistory, StageRow
from nasx.report.html import render_report, write_report

VOID = {"meta", "link", "br", "img", "hr", "input"}
FOREIGN = "<script>alert(1)</script>&\"'"


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


def report() -> Report:
    candidates = tuple(Candidate(g, 1.3e9 + 1e7 * k, 0.5 + g / 10 + k / 100) for g in range(3) for k in range(4))
    return Report(
        title="search of digits",
        networks=(
            NetworkRow("searched", 24_563_712, 1_398_123_456, 0.9778, 0.9694),
            NetworkRow("all global", 5_717_416, 1_253_683_200, 0.9500, 0.9361),
            NetworkRow("random", 6_123_000, 1_385_000_111, 0.9611, None),
        ),
        stages=(StageRow("supernet", 41.2), StageRow("search", 83.8, "500 of 138,298 candidates")),
        curves=(Curve("supernet", (1, 2, 3), (2.3, 1.9, 1.5)),),
        searches=(SearchHistory("heads", candidates),),
        blocks=tuple(BlockDrawing(f"G{i} L{3 - i}", 1 - i / 3, ("K 31", "E 4")) for i in range(4)),
        config={"supernet": {"lr": 0.125, "betas": [0.9, 0.99], "clip": None}, "seed": 77},
        split={"train": {"images": 1077}, "rule": "stratified"},
        versions={"nasx": "9.8.7", "torch": "2.99"},
        seed=77,
    )


def test_the_report_is_well_formed_and_says_every_number() -> None:
    page = Outline(render_report(report()))
    for said in (
        *("24.56 M", "24,563,712", "1.398 G", "1,398,123,456", "97.78 %", "96.94 %"),
        *("5.717 M", "1.254 G", "95.00 %", "93.61 %", "−2.78 points", "−3.33 points", "–"),
        *("41.2 s", "1 min 24 s", "2 min 05 s", "500 of 138,298 candidates"),
        *("supernet.lr", "0.125", "[0.9, 0.99]", "null", "train.images", "1077", "stratified"),
        *("9.8.7", "2.99", "seed 77", "G0 L3", "K 31"),
    ):
        assert said in page.text
    assert page.tags.count("svg") == 4
    assert len(page.ids) == len(set(page.ids))


def test_references_inside_the_figures_hold() -> None:
    html = render_report(report())
    ids = set(Outline(html).ids)
    references = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', html))
    assert references
    assert references <= ids


def test_nothing_is_loaded_from_elsewhere() -> None:
    html = render_report(report())
    assert set(re.findall(r"https?://[^\"\s<>]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not {"script", "link", "img", "iframe", "object"} & set(Outline(html).tags)
    assert "@import" not in html
    assert not re.search(r"\b(src|on\w+)=", html)


def test_hostile_names_stay_text() -> None:
    hostile = replace(
        report(),
        title=FOREIGN,
        networks=(NetworkRow(FOREIGN, 1, 2, 0.5, 0.5),),
        stages=(StageRow(FOREIGN, 1, FOREIGN),),
        curves=(Curve(FOREIGN, (1, 2), (1.0, 2.0), FOREIGN + "panel"),),
        searches=(SearchHistory(FOREIGN, (Candidate(0, 1, 0.5),)),),
        blocks=(BlockDrawing(FOREIGN, 0.5, (FOREIGN,)),),
        config={FOREIGN: {FOREIGN: FOREIGN}},
        versions={FOREIGN: [FOREIGN]},
        shade_legend=FOREIGN,
    )
    html = render_report(hostile)
    page = Outline(html)
    assert "<script" not in html
    assert "script" not in page.tags
    assert page.text.count(FOREIGN) >= 10


def test_what_a_run_did_not_have_is_left_out() -> None:
    page = Outline(render_report(Report("bare", (NetworkRow("only", None, None),))))
    assert "svg" not in page.tags
    assert "Candidates" not in page.text
    assert "Time per stage" not in page.text
    page = Outline(render_report(Report("partly", (NetworkRow("a", 1, None, None, 0.5), NetworkRow("b", 1, 2, 0.5)))))
    assert page.tags.count("svg") == 1
    page = Outline(render_report(Report("nothing", ())))
    assert "Networks" not in page.text


def test_the_report_follows_the_reader_s_colour_scheme() -> None:
    html = render_report(report())
    assert "prefers-color-scheme: dark" in html
    defined = set(re.findall(r"(--[\w-]+): #", html))
    used = set(re.findall(r"var\((--[\w-]+)\)", html))
    assert used <= defined
    assert any(name.startswith("--figure-") for name in used)


def test_the_file_is_replaced_as_a_whole_and_reproducibly(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, report())
    first = path.read_bytes()
    write_report(path, report())
    assert path.read_bytes() == first
    assert first.decode() == render_report(report())
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(("module", "missing"), [("figures", "matplotlib"), ("html", "jinja2")])
def test_the_library_needs_neither_matplotlib_nor_jinja_until_they_are_asked_for(module: str, missing: str) -> None:
    told = subprocess.run(
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
    assert missing in told
    assert "nasx[recipes]" in told
