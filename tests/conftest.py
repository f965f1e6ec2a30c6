"""What all tests share: one thread for each process that they start, and a browser where one is installed."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; pytest-xdist gives every core a process

from tests.browser import Browser, missing, started


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; tests that need one are skipped where it is not installed."""
    if what := missing():
        pytest.skip(f"no browser to open pages in; not installed: {what}")
    with started(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser
