"""The images of small folders, packed as others write them: tar shards, and tables of Hugging Face `datasets`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest


def _classes(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "train").iterdir())


def _files(folder: Path, part: str) -> Iterator[tuple[str, int, bytes]]:
    classes = _classes(folder)
    for path in sorted((folder / part).glob("*/*.png")):
        yield f"{path.parent.name}_{path.stem}", classes.index(path.parent.name), path.read_bytes()


def write_shards(folder: Path, root: Path, *, label: str = "cls", held_out: str = "test", names: bool = True) -> Path:
    """Write the images of a folder as shards of seven samples with webdataset's own writer."""
    webdataset = pytest.importorskip("webdataset")
    root.mkdir()
    classes = _classes(folder)
    for part, called in (("train", "train"), ("test", held_out)):
        with webdataset.ShardWriter(str(root / f"{called}-%06d.tar"), maxcount=7, verbose=0) as writer:
            for key, number, content in _files(folder, part):
                sample = {"__key__": key, "png": content, "json": json.dumps({"label": number}).encode()}
                if label != "json":
                    sample["cls"] = (classes[number] if label == "name" else str(number)).encode()
                writer.write(sample)
    if names and label != "name":
        (root / "classes.txt").write_text("\n".join(classes) + "\n")
    return root


def write_table(folder: Path, root: Path, *, form: str = "disk", held_out: str = "test", labelled: bool = True) -> Path:
    """Write the images of a folder as a table of `datasets`."""
    datasets = pytest.importorskip("datasets")
    classes = _classes(folder)
    kind = datasets.ClassLabel(names=classes) if labelled else datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    parts = {}
    for part, called in (("train", "train"), ("test", held_out)):
        rows = list(_files(folder, part))
        parts[called] = datasets.Dataset.from_dict(
            {
                "image": [{"bytes": content, "path": f"{key}.png"} for key, _, content in rows],
                "label": [number if labelled else classes[number] for _, number, _ in rows],
            },
            features=features,
        )
    if form == "disk":
        datasets.DatasetDict(parts).save_to_disk(str(root))
    else:
        (root / "data").mkdir(parents=True)
        for part, table in parts.items():
            table.to_parquet(str(root / "data" / f"{part}-00000-of-00001.parquet"))
    return root
