"""The handwritten digits that ship with the library: real images for tests, examples and demonstrations."""

import hashlib
from functools import partial
from importlib.resources import files

import numpy as np

from nasx.data.dataset import Dataset, ImageArray
from nasx.data.leaks import copied_arrays
from nasx.data.splits import images_to_hold_out, split_record, stratified_split

_INK_LEVELS = 16  # a pixel counts the inked cells of a 4 x 4 block


def load_digits(*, seed: int, val_fraction: float = 0.2) -> Dataset:
    """Return the 1,797 UCI digits, 8 x 8 and grey: 360 fixed test images, the rest split by `seed`.

    Stored values 0..16 are scaled to 0..255 and rounded. Source and licence are in DIGITS.md, beside the data. The
    test part is the same for every seed.
    """
    with (files("nasx.data") / "digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
        ink, labels, test = stored["images"], stored["labels"].astype(np.int64), stored["test"].astype(np.int64)
    pixels = np.rint(ink * (255 / _INK_LEVELS)).astype(np.uint8)[:, None]
    classes = tuple("0123456789")

    rest = np.setdiff1d(np.arange(len(labels)), test)
    assert not copied_arrays(pixels[rest], pixels[test])
    n_val = images_to_hold_out(len(rest), val_fraction)
    train, val = (rest[part] for part in stratified_split(labels[rest], n_val, seed, classes=classes))
    parts = {"train": train, "val": val, "test": test}
    return Dataset(
        name="digits",
        classes=classes,
        channels=1,
        image_size=pixels.shape[-1],
        train=ImageArray(pixels[train], labels[train]),
        val=ImageArray(pixels[val], labels[val]),
        split=split_record(
            seed=seed,
            rule=f"test: {len(test)} fixed images; val: {n_val} of the other {len(rest)}, stratified, by seed",
            classes=classes,
            parts={
                part: (
                    [f"{index:04d}" for index in indices],
                    labels[indices],
                    hashlib.sha256(pixels[indices].tobytes()).hexdigest(),
                )
                for part, indices in parts.items()
            },
        ),
        test=partial(ImageArray, pixels[test], labels[test]),
    )
