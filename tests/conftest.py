"""What all tests share: threads of processes, seeds, settings of property tests, and a browser if there is one."""

import itertools
import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# before torch is imported; pytest-xdist gives every core a process
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NASX_PROCESSES", "1")

import torch

from tests.browser import Browser, missing, started

# property tests draw the same examples each time, and none fails because the machine is slow
settings.register_profile("nasx", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nasx")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests together that share a fixture of their module, which `--dist loadgroup` then makes once."""
    for item in items:
        if isinstance(item, pytest.Function):
            fixtures = itertools.chain.from_iterable(item._fixtureinfo.name2fixturedefs.values())
            if any(fixture.scope == "module" for fixture in fixtures):
                item.add_marker(pytest.mark.xdist_group(item.location[0]))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Begin each test, and the fixtures made for it, at the same random numbers, whatever ran before in its process."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # libraries draw from it
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; tests that need one are skipped where it is not installed."""
    if what := missing():
        pytest.skip(f"no browser to open pages in; not installed: {what}")
    with started(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser
