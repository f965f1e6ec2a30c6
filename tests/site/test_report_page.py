"""A report in a browser: no error, no request, no sideways scrolling, figures that can be read, tables that sort."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nasx.report.html import write_comparison, write_report
from nasx.report.model import ComparedRun
from tests import browser
from tests.report.test_html_report import FOREIGN, report

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=f"needs {browser.missing()}")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.started(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_report(folder / "report.html", report(candidates=60, name=FOREIGN))
    write_comparison(folder / "comparison.html", [ComparedRun(name, report()) for name in ("one", FOREIGN)])
    return folder


@pytest.mark.parametrize("name", ["report.html", "comparison.html"])
def test_the_page_is_sound_on_telephones_and_wide_screens_in_both_themes(
    name: str, chromium: browser.Browser, folder: Path
) -> None:
    backgrounds = set()
    for scheme in ("light", "dark"):
        for width in (360, 1440):
            page = chromium.open((folder / name).as_uri(), width=width, scheme=scheme)
            assert page.faults == {}, (scheme, width)
            assert page.figures
            assert FOREIGN in page.text
            backgrounds.add(page.background)
    assert len(backgrounds) == 2


def test_a_point_says_what_it_is_and_a_heading_sorts_the_candidates(chromium: browser.Browser, folder: Path) -> None:
    chromium.open((folder / "report.html").as_uri())
    shown = chromium.run("""
        const points = document.querySelectorAll("[id$=-points] [data-tip]");
        const box = points[0].getBoundingClientRect();
        points[0].dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: box.x, clientY: box.y}));
        return [points.length, document.getElementById("tip").hidden, document.getElementById("tip").textContent];
    """)
    assert shown[0] >= 2 * 59, "a text at each point of both figures of the candidates"
    assert shown[1] is False
    assert "generation 0" in shown[2]
    scores = chromium.run("""
        const table = document.querySelector("table.sortable"), button = table.querySelectorAll("th button")[2];
        const column = () => [...table.tBodies[0].rows].map(row => row.cells[2].dataset.value);
        button.click(); const falling = column();
        button.click(); return [falling, column(), table.querySelectorAll("[aria-sort]").length];
    """)
    falling, rising = ([float(value) for value in column if value] for column in scores[:2])
    assert falling == sorted(falling, reverse=True)
    assert rising == sorted(rising)
    assert scores[0][-1] == scores[1][-1] == "", "the one that failed stays last"
    assert scores[2] == 1
