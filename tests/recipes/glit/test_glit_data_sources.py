"""Whole runs on data of one's own from the command line: folders of photographs, tar shards, Hugging Face tables."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nasx import Arch
from nasx.data import load_digits
from nasx.data.photos import PhotoSet
from nasx.pipeline.config import Data
from nasx.pipeline.image_sources import ImageSource, load_images
from nasx.pipeline.machine import Machine
from recipes.glit.__main__ import main
from tests.data.packed import write_shards, write_table

ARCHIVE = Path(__file__).parents[4] / "shared" / "data" / "cifar10-images.tar.xz"
SHORT = {
    "supernet.epochs": "0.5",
    "supernet.warmup_epochs": "0",
    "retrain.epochs": "0.3",
    "retrain.warmup_epochs": "0",
    "search.population": "3",
    "search.generations": "2",
    "search.parents": "2",
    "search.recalibration_batches": "1",
    "model.embed_dim": "12",
}


def settings(changes: dict[str, str]) -> list[str]:
    return [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the digits from 0 to 2 as PNG files."""
    root = tmp_path_factory.mktemp("digits") / "folder"
    data = load_digits(seed=0)
    for part, images, most in (("train", data.train, 60), ("test", data.open_test(), 15)):
        for label in range(3):
            (root / part / f"digit{label}").mkdir(parents=True)
            members = np.flatnonzero(images.labels == label)[:most]
            for number, pixels in enumerate(images.load(members)):
                Image.fromarray(pixels[0].numpy()).save(root / part / f"digit{label}" / f"{number:03d}.png")
    return root


@pytest.fixture(scope="module")
def of_folder(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a run on the plain folder."""
    return run_on(digits, "folder", tmp_path_factory.mktemp("runs") / "folder")


def run_on(data: Path, source: str, directory: Path) -> Path:
    own = {"data.source": source, "space.blocks": "2", "supernet.batch_size": "32", "retrain.batch_size": "32"}
    own |= {"search.recalibration_batch_size": "32", "budget.heads_at_most": "1e9"}
    own |= {"budget.details_at_least": "1", "budget.details_at_most": "1e9"}
    where = ["--data", str(data), "--run-dir", str(directory)]
    assert main(["run", "--preset", "digits", *where, *settings(SHORT | own)]) == 0
    return directory


@pytest.mark.parametrize(("source", "write"), [("shards", write_shards), ("hf", write_table)])
def test_packed_images_give_the_run_that_their_folder_gives(
    source: str, write: Callable[[Path, Path], Path], digits: Path, of_folder: Path, tmp_path: Path
) -> None:
    run = run_on(write(digits, tmp_path / "packed"), source, tmp_path / "run")
    networks = [json.loads((found / "summary.json").read_text())["networks"] for found in (run, of_folder)]
    assert networks[0] == networks[1]
    for name in ("arch.json", "model.safetensors"):
        assert (run / name).read_bytes() == (of_folder / name).read_bytes()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 photographs in three classes, of many sizes, few of them square."""
    if not ARCHIVE.exists():
        pytest.skip(f"{ARCHIVE.name}, the photographs, is not beside this checkout")
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    wanted = {"train": 160, "test": 40}
    counts: dict[Path, int] = {}
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            *_, part, name, file = ("", "", *Path(member.name).parts)
            directory = root / part / name
            if name not in ("cat", "ship", "frog") or counts.get(directory, 0) == wanted[part]:
                continue
            counts[directory] = counts.get(directory, 0) + 1
            directory.mkdir(parents=True, exist_ok=True)
            opened = archive.extractfile(member)
            assert opened is not None
            width, height = (int(side) for side in rng.integers(48, 160, 2))
            Image.open(io.BytesIO(opened.read())).resize((width, height)).save(directory / file)
    assert sum(counts.values()) == 600
    return root


def test_a_folder_of_photographs_is_enough_for_a_run(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--preset", "folder", "--data", str(photographs)]
    own = settings(SHORT | {"model.embed_dim": "24", "space.blocks": "2"})
    free = settings({"budget.heads_at_most": "1e9", "budget.details_at_least": "1", "budget.details_at_most": "1e9"})
    directory = tmp_path / "run"
    assert main(["run", *command, "--run-dir", str(directory), "--json", *own, *free]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {part: summary["split"][part]["images"] for part in ("train", "val", "test")} == {
        "train": 384,
        "val": 96,
        "test": 120,
    }
    assert {"searched", "deit_shaped", "random"} <= summary["networks"].keys()
    assert len(Arch.from_json((directory / "arch.json").read_text()).parts("block")) == 2
    assert (directory / "report.html").exists()


def test_a_plan_looks_at_headers_alone_and_counts_the_images_that_a_run_keeps(
    photographs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    load = PhotoSet.read

    def counting(self: PhotoSet, indices: Sequence[int]) -> Any:
        read.extend(indices)
        return load(self, indices)

    monkeypatch.setattr(PhotoSet, "read", counting)
    assert main(["plan", "--no-timing", "--json", "--preset", "folder", "--data", str(photographs)]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert 0 < planned["feasible_size"] < planned["size"]
    assert len(read) < 48 < sum(planned["images"].values())
    data = Data.model_validate(planned["config"]["data"])
    assert data.mean is None, "what stands in for the statistics is no setting"
    unread = load_images(ImageSource(data, 0, photographs, Machine(image_memory_gib=0)))
    assert unread.bytes_to_keep(2**30) == 480 * 3 * data.image_size**2
    assert unread.bytes_to_keep(0) == 0
