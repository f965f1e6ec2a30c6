"""Pages of the site in a real browser, at the widths of a telephone and a desk, in both colour schemes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest

from tests.browser import Browser, Scheme, served

ROOT = Path(__file__).parents[2]
PAGES = ("", "start/", "tutorials/own_network/", "concepts/", "settings/", "reference/pipeline/")
WIDTHS = (360, 1440)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install 'nasx[dev]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with served(folder) as address:
        yield address


@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_read_on_a_telephone_and_a_desk(site: str, browser: Browser, page: str) -> None:
    for width in WIDTHS:
        for scheme in get_args(Scheme):
            assert browser.open(site + page, width=width, scheme=scheme).faults == {}, (width, scheme)


def test_the_colours_follow_the_reader(site: str, browser: Browser) -> None:
    light, dark = (browser.open(site, scheme=scheme).background for scheme in get_args(Scheme))
    assert light != dark


def test_guides_lead_from_one_to_the_next(site: str, browser: Browser) -> None:
    browser.open(f"{site}start/")
    links = browser.run(
        "return [...document.querySelectorAll('.md-footer__link')].map(link => link.getAttribute('href'))"
    )
    assert len(links) == 2


def test_classes_show_their_signatures(site: str, browser: Browser) -> None:
    text = browser.open(f"{site}reference/pipeline/").text
    for parameter in ("make", "budget", "config"):
        assert parameter in text.partition("nasx.pipeline.Problem")[2][:2000]
