"""Processes that read ahead and die."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from nasx.data import Augment, Files, PhotoSet, TrainBatches, WorkerDied

SIZE = 8


@pytest.fixture(autouse=True)
def _noticed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch look for dead workers more often than every five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


class Deadly(PhotoSet):
    """Kill the process that reads an image once for every file that a directory has of it."""

    deaths: Path

    def photo(self, index: int) -> Any:
        if left := sorted(self.deaths.glob(f"{index}.*")):
            left[0].unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().photo(index)


def batches_of(tmp_path: Path, augment: Augment, *, deaths: Sequence[int] = (), workers: int = 0) -> TrainBatches:
    """Return ten batches of images that hold their number; those in `deaths` kill their readers as often as named."""
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for number, path in enumerate(paths):
        Image.new("RGB", (SIZE, SIZE), (number, 0, 0)).save(path)
    images = Deadly(Files(paths), np.zeros(40, dtype=np.int64), SIZE, in_memory=False)
    images.deaths = tmp_path / "deaths"
    images.deaths.mkdir(exist_ok=True)
    for death, number in enumerate(deaths):
        (images.deaths / f"{number}.{death}").touch()
    return TrainBatches(images, batch_size=4, seed=0, mean=(0,) * 3, std=(1,) * 3, augment=augment, workers=workers)


@pytest.mark.parametrize("augment", [Augment(), Augment(resized_crop=(0.08, 1.0))])
def test_a_worker_that_dies_once_is_replaced_and_changes_no_batch(tmp_path: Path, augment: Augment) -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    alone = list(batches_of(tmp_path, augment).steps(0, 10))
    helped = []
    for batch in batches_of(tmp_path, augment, deaths=[17], workers=2).steps(0, 10):
        helped.append(batch)
        assert signal.getsignal(signal.SIGCHLD) == handler, "a death must not be raised inside of a training step"
    assert not list((tmp_path / "deaths").iterdir())
    assert all(torch.equal(one[0], other[0]) for one, other in zip(alone, helped, strict=True))


@pytest.mark.parametrize("augment", [Augment(), Augment(resized_crop=(0.08, 1.0))])
def test_a_worker_that_dies_twice_is_an_error_that_names_the_image(tmp_path: Path, augment: Augment) -> None:
    with pytest.raises(WorkerDied, match=r"died twice at the same place, while reading \S*/17\.png: .*fewer workers"):
        list(batches_of(tmp_path, augment, deaths=[17, 17], workers=1).steps(0, 10))


def test_deaths_far_apart_are_each_mended(tmp_path: Path) -> None:
    alone = list(batches_of(tmp_path, Augment()).steps(0, 10))
    first, last = (round(float(alone[step][0][0, 0, 0, 0]) * 255) for step in (0, 9))
    helped = batches_of(tmp_path, Augment(), deaths=[first, last], workers=1).steps(0, 10)
    assert all(torch.equal(one[0], other[0]) for one, other in zip(alone, helped, strict=True))
    assert not list((tmp_path / "deaths").iterdir())
