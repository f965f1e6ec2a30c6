"""What processes that read ahead are sent."""

import multiprocessing
from collections.abc import Iterator

import pytest
import torch

from nasx.data.readers import read_ahead


@pytest.fixture
def _spawned() -> Iterator[None]:
    """Start processes as worker processes of trainings, and other systems than Linux, start theirs."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("_spawned")
def test_what_no_module_holds_is_read_in_processes_that_are_not_forked() -> None:
    pytest.importorskip("cloudpickle")
    rows = torch.arange(12.0).view(4, 3)

    class Doubled:
        def __call__(self, index: int) -> torch.Tensor:
            return 2 * rows[index]

    found = torch.stack(list(read_ahead(Doubled(), range(4), workers=1)))
    assert torch.equal(found, 2 * rows)
