"""How fast batches are made, from memory and from files. One thread, and as many worker processes as a row says."""

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.cases import Row, Run
from benchmarks.pairs import alternate
from nasx.data import Augment, ImageArray, TrainBatches, load_image_folder
from nasx.train import use_threads

SETTINGS = {
    "as they are": Augment(),
    "cropped": Augment(pad_crop=4),
    "cropped, flipped": Augment(pad_crop=4, flip=True),
    "cropped, flipped, erased": Augment(pad_crop=4, flip=True, erase=0.25),
    "rotated, zoomed": Augment(rotate=10, zoom=0.1),
}


def memory(seconds: float = 6.0, device: torch.device | str = "cpu") -> list[Row]:
    """Return images of 32 pixels a second, in batches of 128; `ratio` is of the time, over images as they are."""
    rng = np.random.default_rng(0)
    images = ImageArray(rng.integers(0, 256, (4096, 3, 32, 32), dtype=np.uint8), np.arange(4096) % 10)
    with use_threads(1):
        functions: dict[str, Run] = {
            name: partial(next, _endless(images, augment, device)) for name, augment in SETTINGS.items()
        }
        timed = alternate(functions, seconds=seconds, device=device)
    return [
        {"images": name, "ratio": timed.ratio(name, to="as they are"), "images/s": 128 / timed.median(name)}
        for name in SETTINGS
    ]


def _endless(images: ImageArray, augment: Augment, device: torch.device | str) -> Iterator[object]:
    batches = TrainBatches(
        images, batch_size=128, seed=0, mean=(0.5,) * 3, std=(0.25,) * 3, augment=augment, device=device
    )
    return batches.steps(0, 10**9)


def folder(
    workers: tuple[int, ...] = (0, 1, 2), *, steps: int = 3, batch: int = 32, size: int = 224, device: str = "cpu"
) -> list[Row]:
    """Return photographs a second at 224 pixels, cropped and augmented as for ImageNet, by worker processes."""
    augment = Augment(resized_crop=(0.08, 1.0), auto_augment="rand-m9-mstd0.5-inc1", flip=True, erase=0.25)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as directory, use_threads(1):
        root = Path(directory)
        photographs(root, images=4 * batch)
        dataset = load_image_folder(root, image_size=size, seed=0, val_images=batch, leaks="allow", max_bytes=0)
        for count in workers:
            batches = TrainBatches(
                dataset.train,
                batch_size=batch,
                seed=0,
                mean=(0.5,) * 3,
                std=(0.25,) * 3,
                augment=augment,
                workers=count,
                device=device,
            ).steps(0, 10**9)
            next(batches)  # which starts the workers
            timed = alternate(
                {"batch": partial(_several, batches, steps)}, seconds=0, warm_up=0, device=device, wall=True
            )
            rows.append({"workers": count, "photographs/s": steps * batch / timed.median("batch")})
            batches.close()  # type: ignore[attr-defined]
    return rows


def _several(batches: Iterator[object], count: int) -> None:
    for _ in range(count):
        next(batches)


def photographs(root: Path, *, images: int, side: int = 400, classes: int = 2) -> None:
    """Write JPEG files of about ImageNet's size: smooth noise, which compresses as photographs do."""
    rng = np.random.default_rng(0)
    for part, count in (("train", images), ("test", classes)):
        for number in range(count):
            place = root / part / f"class{number % classes}" / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            if number >= 16 * classes:  # a copy: writing it costs no time, and reading it as much
                shutil.copy(place.with_name(f"{number % (16 * classes)}.jpg"), place)
                continue
            small = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(place, quality=90)
