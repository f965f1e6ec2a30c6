"""The presets of published size run on an image folder, every stage, shortened to a few steps."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nasx import Arch
from nasx.data import load_digits
from recipes.autoformer.__main__ import main as autoformer
from recipes.autoformer.cost import params
from recipes.localvit.__main__ import main as localvit
from recipes.localvit.cost import macs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real digits as photographs of many sizes."""
    root, digits, rng = tmp_path_factory.mktemp("photographs"), load_digits(seed=0), np.random.default_rng(0)
    for split, first, count in (("train", 0, 9), ("val", 9, 2)):
        for label in range(3):
            (root / split / f"digit{label}").mkdir(parents=True)
            members = np.flatnonzero(digits.train.labels == label)[first : first + count]
            for i, pixels in enumerate(digits.train.load(members)):
                size = rng.integers(200, 300, 2).tolist()
                image = Image.fromarray(pixels[0].numpy()).convert("RGB").resize(size)
                image.save(root / split / f"digit{label}" / f"{i}.jpg")
    return root


SHORT = {
    "data.val_images": 12,
    "supernet.epochs": 0.5,
    "supernet.batch_size": 4,
    "supernet.warmup_epochs": 0,
    "search.population": 2,
    "search.generations": 1,
    "search.parents": 1,
    "search.top_k": 1,
    "search.eval_batch_size": 4,
    "retrain.epochs": 0.5,
    "retrain.batch_size": 4,
    "retrain.warmup_epochs": 0,
}


@pytest.mark.parametrize(
    ("main", "preset", "more", "counted"),
    [
        (autoformer, "autoformer-tiny", {"finetune.epochs": 0.5, "finetune.warmup_epochs": 0}, lambda a: params(a)),
        (localvit, "localvit-tiny", {"search.recalibration_batches": 1, "search.recalibration_batch_size": 4}, macs),
    ],
)
def test_a_preset_of_published_size_runs_all_its_stages(
    main: Callable[[Sequence[str]], int],
    preset: str,
    more: dict[str, float],
    counted: Callable[[Arch], int],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = [word for name, value in {**SHORT, **more}.items() for word in ("--set", f"{name}={value}")]
    run = ["run", "--preset", preset, "--data", str(folder), "--run-dir", str(tmp_path), "--json", *settings]
    assert main(run) == 0
    searched = json.loads(capsys.readouterr().out)["networks"]["searched"]
    thousand = counted(Arch(searched["arch"]))  # with a head of 1,000 classes; the run's has 3
    assert 0 < thousand - searched["params" if preset.startswith("auto") else "macs"] < 1001 * 256
    assert (tmp_path / "model.safetensors").exists()
