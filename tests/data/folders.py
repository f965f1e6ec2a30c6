"""Small image folders for tests."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(
    root: Path, parts: Mapping[str, int], classes: Iterable[str], *, size: tuple[int, int] = (8, 8), seed: int = 0
) -> Path:
    """Write as many RGB images of noise per class and part, of a width and height, no two alike; return the root."""
    rng = np.random.default_rng(seed)
    for part, count in parts.items():
        for name in classes:
            directory = root / part / name
            directory.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(directory / f"{number:04d}.png")
    return root
