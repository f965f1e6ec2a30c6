"""Batches of healthy data, to the bit: a change of the code that changes them would change every published run."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nasx.data import Augment, Images, TrainBatches, eval_batches, load_digits, load_image_folder

SHIFTED = Augment(pad_crop=2, flip=True)


def digest(images: Images, channels: int) -> str:
    """Return the digest of pixels and labels of five training batches over the end of an epoch, and of all in order."""
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    batches = TrainBatches(images, batch_size=8, seed=7, mean=zeros, std=ones, augment=SHIFTED)
    last = batches.steps_per_epoch
    digest = hashlib.sha256()
    for part in (batches.steps(last - 3, last + 2), eval_batches(images, 8, zeros, ones)):
        for pixels, labels in part:
            digest.update((pixels * 255).round().to(torch.uint8).numpy().tobytes())
            digest.update(labels.numpy().tobytes())
    return digest.hexdigest()[:16]


def test_batches_of_digits() -> None:
    assert digest(load_digits(seed=3).train, 1) == "2739cb6af32f8fb7"


def test_batches_of_a_folder(tmp_path: Path) -> None:
    """Files of the size that is asked for, so that no resampling takes part."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 12, 12, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        directory = tmp_path / ("train" if number < 48 else "test") / "abc"[number % 3]
        directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(directory / f"{number:02d}.png")
    dataset = load_image_folder(tmp_path, image_size=12, seed=3, val_images=6)
    assert dataset.split["val"]["sha256"][:16] == "75d285aa14403084"
    assert set(dataset.split) == {"seed", "rule", "train", "val", "test", "class_order"}
    assert digest(dataset.train, 3) == "e8c250467d8433db"
