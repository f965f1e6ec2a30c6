"""Photographs in tables of Hugging Face `datasets`: a local folder, by position, without a network."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from nasx.data.assemble import Options, Part, assemble
from nasx.data.dataset import Dataset, Indices
from nasx.data.decode import Channels, read_regular
from nasx.data.leaks import Leaks
from nasx.data.shards import known_classes, numbered
from nasx.data.sources import FileEnds, ends_of_bytes, ends_of_file

_HELD_OUT = ("test", "validation", "val", "valid")


class TableSource:
    """Images in a column of a table of `datasets`, whose rows hold the bytes of a file, or its path."""

    def __init__(self, table: Any, column: str, part: str, rows: Indices | None = None) -> None:
        self._table, self._column, self._part = table, column, part
        self._rows = np.arange(len(table)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def path(self, index: int) -> Path:
        """Return the part and the number of the row, with the file's name where there is one."""
        row = int(self._rows[index])
        name = self._cell(index)["path"]
        return Path(self._part) / f"row {row}" / (os.path.basename(name) if name else "image")  # noqa: PTH119

    def content(self, index: int) -> bytes:
        """Return the content of the image in this row; ValueError where it has none."""
        cell = self._cell(index)
        if cell["bytes"] is not None:
            content: bytes = cell["bytes"]
            return content
        if cell["path"] is None:
            raise ValueError("its row holds neither bytes nor a path")
        return read_regular(Path(cell["path"]))

    def ends(self, index: int) -> FileEnds:
        """Return both ends of that content."""
        cell = self._cell(index)
        if cell["bytes"] is None and cell["path"] is not None:
            return ends_of_file(os.fsencode(cell["path"]))
        return ends_of_bytes(self.content(index))

    def take(self, indices: Indices | Sequence[int]) -> "TableSource":
        """Return the images in these rows."""
        return TableSource(self._table, self._column, self._part, self._rows[np.asarray(indices, np.int64)])

    def _cell(self, index: int) -> dict[str, Any]:
        return self._table[int(self._rows[index])][self._column] or {"bytes": None, "path": None}


def load_hf_folder(
    root: Path,
    *,
    image_size: int,
    seed: int,
    image_column: str = "image",
    label_column: str = "label",
    classes: Sequence[str] | None = None,
    channels: Channels | None = None,
    val_images: int | None = None,
    val_fraction: float = 0.1,
    leaks: Leaks = "refuse",
    max_bytes: int = 4 << 30,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
    on_check: Callable[[int, int], object] = lambda done, total: None,
) -> Dataset:
    """Return the data set of a local folder of Hugging Face `datasets`, as `load_image_folder` does of a folder.

    The folder is what `DatasetDict.save_to_disk` wrote, or one that `datasets.load_dataset` reads, such as Parquet
    files (which it copies into its cache). Needs the splits `train` and `test`; `validation` takes the place of a
    `test` that is not there or has no labels (-1, as on the Hub). Class names are those of the label's `ClassLabel`, or
    else `classes`, or else the labels themselves.

    Needs the extra `hf`. Raises ImportError without it, and ValueError for splits or columns that are not there and for
    labels that are none of the classes.
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
    train, test, remarks = table_parts(Path(root), image_column, label_column, classes)
    return assemble(Path(root).resolve().name, train, test, options, remarks=remarks)


def table_parts(
    root: Path, image_column: str = "image", label_column: str = "label", classes: Sequence[str] | None = None
) -> tuple[Part, Part, list[str]]:
    """Return the training and the test rows of such a folder, and what a user should know of them.

    No image is read. Raises what `load_hf_folder` does.
    """
    tables = _tables(root)
    there = [part for part in _HELD_OUT if part in tables]
    held_out = next((part for part in there if not _is_unlabelled(tables[part], label_column)), None)
    remarks = [] if not there or held_out == there[0] else [f"{there[0]} has no labels, so {held_out} is tested on"]
    if "train" not in tables or held_out is None:
        raise ValueError(
            f"{root} has the splits {', '.join(tables) or 'none'}; needed are train, and test or validation with "
            "labels for the final evaluation"
        )
    found = []
    for part in ("train", held_out):
        table = tables[part]
        for column in (image_column, label_column):
            if column not in table.column_names:
                raise ValueError(
                    f"{part} of {root} has no column {column!r}, only {', '.join(table.column_names)}; name it with "
                    "image_column or label_column"
                )
        found.append((part, table))
    datasets = _datasets()
    feature = found[0][1].features[label_column]
    if classes is None and isinstance(feature, datasets.ClassLabel):
        classes = feature.names
    labels = [list(table[label_column]) for _, table in found]
    classes = known_classes(classes, labels[0])
    parts = []
    for (part, table), of_part in zip(found, labels, strict=True):
        plain = table.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
        names = [f"{part}/{row}" for row in range(len(table))]
        numbers = numbered(of_part, classes, f"the rows of {part} in {root}")
        parts.append(Part(f"{part} of {root}", TableSource(plain, image_column, part), names, numbers, classes))
    train, test = parts
    return train, replace(test, called=held_out), remarks


def _is_unlabelled(table: Any, label_column: str) -> bool:
    return label_column in table.column_names and all(label in (-1, None) for label in table[label_column])


def _tables(root: Path) -> dict[str, Any]:
    if not root.is_dir():
        raise ValueError(f"there is no directory {root}; name a local folder of a data set")
    datasets = _datasets()
    try:
        if (root / "dataset_dict.json").exists() or (root / "state.json").exists():
            loaded = datasets.load_from_disk(str(root))
        else:
            loaded = datasets.load_dataset(str(root))
    except (
        FileNotFoundError,
        datasets.exceptions.DatasetNotFoundError,
        datasets.exceptions.DatasetGenerationError,
    ) as error:
        raise ValueError(f"{root} holds no data set that Hugging Face `datasets` reads: {error}") from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _datasets() -> Any:
    try:
        return import_module("datasets")
    except ImportError as error:
        raise ImportError("reading Hugging Face data sets needs datasets: pip install 'nasx[hf]'") from error
