"""Photographs in tar shards as `webdataset` writes them: `train-000000.tar`, ... beside `test-000000.tar`, ...

A sample is a run of members of one base name: an image, and its label as `cls` (a number or a name) or in `json`. Which
members belong together is `webdataset`'s own rule. Shards are read in place by position, so batches are a function of
seed and step as with files.
"""

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from nasx.data.assemble import Options, Part, assemble
from nasx.data.dataset import Dataset, Indices
from nasx.data.decode import Channels
from nasx.data.leaks import Leaks
from nasx.data.sources import END, FileEnds
from nasx.data.walk import readable_suffixes

_NAMES = "classes.txt"
_Sample = tuple[str, tuple[int, int, int], int | str]  # name; shard, first byte, bytes; label
_HELD_OUT = ("test", "val", "validation")


class ShardSource:
    """Images inside of tar files, by position."""

    def __init__(self, shards: Sequence[Path], names: Sequence[str], places: Sequence[tuple[int, int, int]]) -> None:
        self._shards = tuple(shards)
        encoded = [os.fsencode(name) for name in names]  # one buffer, as for files
        self._names = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._places = np.array(places, np.int64).reshape(len(names), 3)  # shard, first byte, bytes
        self._opened: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}  # each process opens shards for itself

    def __del__(self) -> None:
        for descriptor in getattr(self, "_opened", {}).values():
            os.close(descriptor)

    def _name(self, index: int) -> str:
        index = range(len(self))[index]
        return os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])

    def path(self, index: int) -> Path:
        """Return the shard and the member inside of it, as if it were a folder."""
        return self._shards[self._places[index][0]] / self._name(index)

    def content(self, index: int) -> bytes:
        """Return the content of the image at this position; ValueError where its shard ends early."""
        return self._read(index, 0, int(self._places[index][2]))

    def ends(self, index: int) -> FileEnds:
        """Return both ends of that content."""
        size = int(self._places[index][2])
        head = self._read(index, 0, min(END, size))
        first = max(END, size - END)
        return FileEnds(size, head, self._read(index, first, size - first) if size > END else b"")

    def take(self, indices: Indices | Sequence[int]) -> "ShardSource":
        """Return the images at these positions."""
        chosen = [int(index) for index in indices]
        places = [tuple(self._places[index].tolist()) for index in chosen]
        return ShardSource(self._shards, [self._name(index) for index in chosen], places)

    def _read(self, index: int, first: int, size: int) -> bytes:
        shard, start, _ = self._places[index].tolist()
        if shard not in self._opened:
            descriptor = os.open(self._shards[shard], os.O_RDONLY)
            if self._opened.setdefault(shard, descriptor) != descriptor:  # another thread was faster
                os.close(descriptor)
        data = os.pread(self._opened[shard], size, start + first)
        if len(data) != size:
            raise ValueError(f"its shard ends {size - len(data):,} bytes early")
        return data


def load_shards(
    root: Path,
    *,
    image_size: int,
    seed: int,
    classes: Sequence[str] | None = None,
    channels: Channels | None = None,
    val_images: int | None = None,
    val_fraction: float = 0.1,
    leaks: Leaks = "refuse",
    max_bytes: int = 4 << 30,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
    on_check: Callable[[int, int], object] = lambda done, total: None,
) -> Dataset:
    """Return the data set of the tar shards under a directory, as `load_image_folder` does of a folder.

    Training shards are `train*.tar` or `train/*.tar`; the test images are those of `test`, or of `val` or `validation`
    where there is no `test`. Labels that are numbers count `classes`, or the lines of `classes.txt` beside the shards,
    or else are the names themselves, "0" to the greatest; labels that are names are sorted.

    Needs the extra `shards`. Raises ImportError without it, and ValueError for compressed shards, in which nothing can
    be read by position, for samples without an image or label, and for labels that are none of the classes.
    """
    options = Options(
        image_size=image_size,
        seed=seed,
        channels=channels,
        val_images=val_images,
        val_fraction=val_fraction,
        leaks=leaks,
        max_bytes=max_bytes,
        on_progress=on_progress,
        on_check=on_check,
    )
    return assemble(Path(root).resolve().name, *shard_parts(Path(root), classes), options)


def shard_parts(root: Path, classes: Sequence[str] | None = None) -> tuple[Part, Part]:
    """Return the training and the test samples of such shards, of which no image is read.

    Raises what `load_shards` does.
    """
    train = _shards(root, "train")
    if not train:
        raise ValueError(f"{root} has no shards train*.tar nor train/*.tar; name the directory that holds them")
    held_out = next((part for part in _HELD_OUT if _shards(root, part)), None)
    if held_out is None:
        raise ValueError(f"{root} has neither test*.tar nor val*.tar; the final evaluation needs one of them")
    if classes is None and (root / _NAMES).is_file():
        classes = (root / _NAMES).read_text(encoding="utf-8").splitlines()
    listed = [list(_samples(_shards(root, part))) for part in ("train", held_out)]
    labels = [[label for *_, label in samples] for samples in listed]
    classes = known_classes(classes, labels[0])
    train_part, test_part = (
        _part(part, _shards(root, part), samples, classes)
        for part, samples in zip(("train", held_out), listed, strict=True)
    )
    return train_part, test_part


def _part(part: str, shards: Sequence[Path], samples: Sequence[_Sample], classes: tuple[str, ...]) -> Part:
    source = ShardSource(shards, [name for name, *_ in samples], [place for _, place, _ in samples])
    called = f"the {part} shards of {shards[0].parent}"
    labels = numbered([label for *_, label in samples], classes, called)
    names = [f"{part}/{source.path(index).parent.name}/{name}" for index, (name, *_) in enumerate(samples)]
    return Part(called, source, names, labels, classes)


def known_classes(classes: Sequence[str] | None, labels: Sequence[int | str]) -> tuple[str, ...]:
    """Return the names of the classes: those given, or what the labels of the training part say."""
    if classes is not None:
        return tuple(classes)
    if all(isinstance(label, int) for label in labels):
        return tuple(str(number) for number in range(max(map(int, labels), default=-1) + 1))
    return tuple(sorted({str(label) for label in labels}))


def numbered(labels: Sequence[int | str], classes: Sequence[str], where: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return labels as numbers of the classes; a ValueError names one that is none of them."""
    place = {name: number for number, name in enumerate(classes)}
    found = []
    for label in labels:
        number = label if isinstance(label, int) else place.get(label)
        if number is None or not 0 <= number < len(classes):
            raise ValueError(
                f"{where} have the label {label!r}, which is none of the {len(classes)} classes "
                f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}); name them all with `classes`"
            )
        found.append(number)
    return np.array(found, np.int64)


def _shards(root: Path, part: str) -> list[Path]:
    if packed := sorted([*root.glob(f"{part}*.tar.*"), *root.glob(f"{part}*.tgz")]):
        raise ValueError(f"{packed[0]} is compressed, so that nothing in it can be read by position; unpack it to .tar")
    return sorted([*root.glob(f"{part}[-_.0-9]*.tar"), *root.glob(f"{part}.tar"), *(root / part).glob("*.tar")])


def _samples(shards: Sequence[Path]) -> Iterator[_Sample]:
    """Yield the name of each sample's image, where it lies (shard, first byte, bytes), and its label."""
    group = _webdataset("tariterators").group_by_keys
    suffixes = {suffix.removeprefix(".") for suffix in readable_suffixes()}
    for number, shard in enumerate(shards):
        try:
            with tarfile.open(shard, "r:") as archive, shard.open("rb") as file:
                members = (
                    {
                        "fname": member.name,
                        "data": (member.offset_data, member.size, member.name),
                        "__url__": str(shard),
                    }
                    for member in archive
                    if member.isreg()
                )
                for sample in group(members):
                    yield _sample(sample, number, suffixes, file, shard)
        except tarfile.TarError as error:
            raise ValueError(f"{shard} is no tar file that can be read: {error}") from error


def _sample(sample: Mapping[str, Any], number: int, suffixes: set[str], file: Any, shard: Path) -> _Sample:
    key = sample["__key__"]
    image = next((value for suffix, value in sample.items() if suffix.rpartition(".")[2] in suffixes), None)
    if image is None:
        raise ValueError(
            f"the sample {key!r} of {shard} has no image; it has {', '.join(_members(sample)) or 'nothing'}"
        )

    def read(place: tuple[int, int, str]) -> bytes:
        file.seek(place[0])
        content: bytes = file.read(place[1])
        return content

    start, size, name = image
    if "cls" in sample:
        label: object = read(sample["cls"]).decode("utf-8", "replace").strip()
    elif "json" in sample:
        try:
            label = json.loads(read(sample["json"])).get("label")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{key}.json of {shard} is no JSON object: {error}") from error
    else:
        label = None
    has = f"it has {', '.join(_members(sample))}"
    if isinstance(label, str) and re.fullmatch(r"\d+", label):
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        raise ValueError(
            f"the sample {key!r} of {shard} has no label: a member {key}.cls with a number or a name, or {key}.json "
            f'with "label"; {has}'
        )
    return name, (number, start, size), label


def _members(sample: Mapping[str, Any]) -> list[str]:
    return [value[2] for key, value in sample.items() if not key.startswith("__")]


def _webdataset(module: str) -> Any:
    try:
        return import_module(f"webdataset.{module}")
    except ImportError as error:
        raise ImportError("reading tar shards needs webdataset: pip install 'nasx[shards]'") from error
