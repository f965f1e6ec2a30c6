"""The tabular benchmark: networks trained many at once on a GPU are those that are trained alone."""

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nasx import Arch
from nasx.train import StackedNetworks
from recipes.glit.bench import table, together
from recipes.glit.bench.__main__ import main
from recipes.glit.bench.settings import Settings, ordered_archs
from recipes.glit.bench.together import groups, train_group
from recipes.glit.bench.training import Job, train_job, unpacked
from tests.gpu.places import EVERYWHERE

SHORT = replace(Settings(), train_images=80, val_images=40, epochs=6, batch_size=8, checks=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an image folder of ten classes, each of its own colour."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, each in (("train", 14), ("test", 3)):
        for number in range(10 * each):
            place = root / part / f"class{number % 10}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            image = rng.normal(20 * (number % 10) + 30, 25, (32, 32, 3)).clip(0, 255)
            Image.fromarray(image.astype(np.uint8)).save(place)
    return root


def jobs(archs: list[Arch], data: Path, out: Path, device: str = "cpu") -> list[Job]:
    out.mkdir(exist_ok=True)
    return [
        Job(arch, seed, SHORT, data, out / f"{number}-{seed}.json", device)
        for number, arch in enumerate(archs)
        for seed in SHORT.seeds
    ]


def read(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(job.path.read_text())
    return found


@EVERYWHERE
def test_networks_trained_at_once_are_those_trained_alone(device: str, folder: Path, tmp_path: Path) -> None:
    archs = ordered_archs(SHORT.space)[2:5]
    apart, together = jobs(archs, folder, tmp_path / "apart"), jobs(archs, folder, tmp_path / "together", device)
    for job in apart:
        train_job(job, lambda done, total: False)
    for group in groups(together, at_once=2):
        train_group(group)
    for alone, at_once in zip(apart, together, strict=True):
        expected, found = read(alone), read(at_once)
        assert found.keys() == expected.keys()
        assert (found["arch"], found["seed"]) == (expected["arch"], expected["seed"])
        assert found["losses"] == pytest.approx(expected["losses"], rel=2e-2)
        for checked, check in zip(found["val_curve"], expected["val_curve"], strict=True):
            assert checked == pytest.approx(check, abs=0.1)


def test_groups_have_each_job_once_and_seeds_that_agree(tmp_path: Path) -> None:
    every = jobs(ordered_archs(SHORT.space)[:5], tmp_path, tmp_path)
    left = [job for job in every if job.path.name != "3-0.json"]
    found = list(groups(left, at_once=2))
    assert sorted(job.path.name for group in found for own in group for job in own) == sorted(
        job.path.name for job in left
    )
    assert all(len({tuple(job.seed for job in own) for own in group}) == 1 for group in found)
    assert max(len(group) for group in found) == 2


@EVERYWHERE
def test_a_group_leaves_no_memory_taken(
    device: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[StackedNetworks]] = []
    make = together._Stack.__init__

    def noted(self: Any, *arguments: Any) -> None:
        make(self, *arguments)
        made.append(weakref.ref(self.networks))

    monkeypatch.setattr(together._Stack, "__init__", noted)
    archs, taken = ordered_archs(SHORT.space)[2:6], []
    gc.disable()  # whatever only the collection of cycles frees is still there for the next group
    try:
        for group in groups(jobs(archs, folder, tmp_path / "out", device), at_once=1):
            train_group(group)
            if device == "cuda":
                torch.cuda.empty_cache()
                taken.append(torch.cuda.memory_reserved())
        left = [ref() is not None for ref in made]
    finally:
        gc.enable()
    assert len(made) == len(archs)
    # importing torchvision keeps the frames that it is imported in, which may be those of the first group
    assert not any(left[1:])
    assert not taken or taken[-1] <= taken[1]


def test_a_packed_table_names_what_its_networks_were_trained_on(folder: Path, tmp_path: Path) -> None:
    archs = ordered_archs(SHORT.space)[2:4]
    few = [replace(job, settings=replace(SHORT, epochs=2)) for job in jobs(archs, folder, tmp_path / "out")]
    for group in groups(few):
        train_group(group)
    assert main(["pack", "--out", str(tmp_path / "out"), "--table", str(tmp_path / "own.npz"), "--machine", "two"]) == 0
    packed = table(tmp_path / "own.npz")
    assert packed.facts == {"torch": torch.__version__, "device": "cpu", "machine": "two", "commit": ""}
    assert packed.archs == tuple(archs)
    (row, _) = packed.of(archs[0])
    assert row.val_curve == tuple(read(few[0])["val_curve"])
    assert row.test_accuracy == pytest.approx(unpacked(read(few[0])["test"]).mean())


def test_fewer_steps_than_the_points_of_a_curve_have_a_point_each(folder: Path, tmp_path: Path) -> None:
    (job, *_) = jobs(ordered_archs(SHORT.space)[:1], folder, tmp_path)
    train_job(replace(job, settings=replace(SHORT, epochs=1)), lambda done, total: False)
    assert len(read(job)["losses"]) == 10


def test_a_loss_that_is_not_finite_writes_nothing(folder: Path, tmp_path: Path) -> None:
    broken = replace(SHORT, lr=1e30)
    (job, *_) = jobs(ordered_archs(SHORT.space)[:1], folder, tmp_path)
    with pytest.raises(ArithmeticError, match="not finite"):
        train_group([[replace(job, settings=broken)]])
    assert not job.path.exists()


def test_the_first_architectures_are_spread_over_the_heads() -> None:
    totals = [sum(int(v) for v in arch.only("block.*.global_heads").values()) for arch in ordered_archs(SHORT.space)]
    assert set(totals[:17]) == set(range(13))
    assert np.mean(totals) == 6
