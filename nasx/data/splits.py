"""Splitting a labelled set in two, and the record of a split."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasx._words import number_of


def stratified_split(
    labels: NDArray[np.int64], n_val: int, seed: int, *, classes: Sequence[str] = ()
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sorted indices of a training part and of a validation part with exactly `n_val` members.

    Every class gives its proportional share, rounded by the largest remainder (the lower class first among equals), but
    keeps at least one training image, so a class of one image is not validated. A class's members are drawn from
    (seed, class) alone. A ValueError says that so many images cannot be held out; `classes` are names to say it with.
    """
    present, counts = np.unique(labels, return_counts=True)
    most = int((counts - 1).sum())
    if not 0 < n_val < len(labels):
        raise ValueError(
            f"1 to {len(labels) - 1:,} of {len(labels):,} training images can be held out for validation, but got "
            f"{n_val:,}; change val_images or val_fraction"
        )
    if n_val > most:
        if most < 2:
            raise ValueError(
                f"{len(labels)} training images of {len(present)} classes leave {most} to hold out for validation, "
                "because every class keeps one, and at least 2 are needed; give each class at least two images"
            )
        first = int(np.argmin(counts))
        name = repr(classes[present[first]]) if classes else str(present[first])
        raise ValueError(
            f"{n_val} validation images of {len(labels)} leave some class no training image, such as {name} "
            f"({number_of(int(counts[first]), 'image')}); hold out {most} at most, by val_images or val_fraction"
        )
    shares = _largest_remainder(counts, n_val)
    while (excess := int(np.maximum(shares - (counts - 1), 0).sum())) > 0:
        shares = np.minimum(shares, counts - 1)
        free = counts - 1 - shares
        shares += np.minimum(_largest_remainder(free, min(excess, int(free.sum()))), free)
    val = []
    for label, share in zip(present, shares, strict=True):
        members = np.flatnonzero(labels == label)
        val.append(np.random.default_rng([seed, int(label)]).permutation(members)[:share])
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[np.concatenate(val)] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _largest_remainder(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    floors, remainders = np.divmod(counts * total, counts.sum())  # integers: no rounding decides a tie
    missing = total - floors.sum()
    floors[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return floors


def images_to_hold_out(images: int, fraction: float) -> int:
    """Return how many of a set's images a fraction in (0, 1) is: rounded, at least two, for one tells nothing apart."""
    if not 0 < fraction < 1:
        raise ValueError(f"the validation fraction must lie between 0 and 1, but got val_fraction={fraction}")
    return max(2, round(images * fraction))


def split_record(
    *, seed: int, rule: str, classes: Sequence[str], parts: Mapping[str, tuple[Sequence[str], NDArray[np.int64], str]]
) -> dict[str, Any]:
    """Return the JSON-able record of a split whose parts are given as (member names, labels, digest of contents).

    `sha256` of a part is that of its member names, each followed by a newline; `contents` is of what is in the images.
    """
    record: dict[str, Any] = {"seed": seed, "rule": rule}
    for part, (names, labels, contents) in parts.items():
        counts = np.bincount(labels, minlength=len(classes)).tolist()
        record[part] = {
            "images": len(names),
            "per_class": dict(zip(classes, counts, strict=True)),
            "sha256": hashlib.sha256(b"".join(os.fsencode(name) + b"\n" for name in names)).hexdigest(),
            "contents": contents,
        }
    return record
