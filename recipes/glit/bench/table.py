"""The benchmark's results as one compact table."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nasx import Arch

from .settings import Settings

PATH = Path(__file__).with_name("cifar10.npz")
"""The table that comes with the recipe."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """One network trained alone with one seed. Accuracies lie in 0..1."""

    arch: Arch
    seed: int
    val_accuracy: float
    test_accuracy: float
    params: int
    macs: int
    seconds: float
    """Of training, on the machine that the card names."""
    val_curve: tuple[float, ...]
    """Validation accuracy after each of equal spans of the training, the last at its end."""
    losses: tuple[float, ...]
    """Mean training loss of equal spans of the training."""
    val_hits: Bools
    """Of each validation image, whether the network was right."""
    test_hits: Bools


class Table(Sequence[Row]):
    """The rows, network by network; its text says what the table covers."""

    def __init__(self, rows: Sequence[Row], settings: Settings, facts: Mapping[str, Any]) -> None:
        self.rows, self.settings, self.facts = tuple(rows), settings, dict(facts)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    @property
    def archs(self) -> tuple[Arch, ...]:
        """The networks, each once, in the order in which they were trained."""
        return tuple(dict.fromkeys(row.arch for row in self.rows))

    def of(self, arch: Arch) -> tuple[Row, ...]:
        """Return the rows of a network, by seed; none where the table does not have it."""
        return tuple(sorted((row for row in self.rows if row.arch == arch), key=lambda row: row.seed))

    def __repr__(self) -> str:
        seeds = sorted({row.seed for row in self.rows})
        size = self.settings.space.size
        covered = "all" if len(self.archs) == size else f"{len(self.archs)} of the {size}"
        return (
            f"Table({len(self)} trainings: {covered} networks of stage one, stratified over their heads, with "
            f"{len(seeds)} seeds each; CIFAR-10, {self.settings.train_images:,} training images, "
            f"{self.settings.epochs} epochs)"
        )


@lru_cache(maxsize=1)
def table(path: Path = PATH) -> Table:
    """Return the results; `print(table())` says how many networks they cover."""
    from ..cost import Macs, Params

    with np.load(path) as packed:
        document = json.loads(packed["document"].tobytes())
        val, test = packed["val"], packed["test"]
    settings = Settings(**{**document["settings"], "seeds": tuple(document["settings"]["seeds"])})
    macs, params = Macs(settings.vit), Params(settings.vit)
    space, rows = settings.space, []
    for number, row in enumerate(document["rows"]):
        arch = space[row["index"]]
        hits = [
            np.unpackbits(bits[number], count=count).astype(bool)
            for bits, count in ((val, document["val_images"]), (test, document["test_images"]))
        ]
        rows.append(
            Row(
                arch=arch,
                seed=row["seed"],
                val_accuracy=float(hits[0].mean()),
                test_accuracy=float(hits[1].mean()),
                params=params(arch),
                macs=macs(arch),
                seconds=row["seconds"],
                val_curve=tuple(row["val_curve"]),
                losses=tuple(row["losses"]),
                val_hits=hits[0],
                test_hits=hits[1],
            )
        )
    return Table(rows, settings, document["facts"])


def pack(results: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], path: Path = PATH) -> None:
    """Write a table from the results of trainings, as `train_job` writes them."""
    from .training import unpacked

    if not results:
        raise ValueError("there are no results to pack; run the benchmark first")
    settings = results[0]["settings"]
    if other := next((r for r in results if r["settings"] != settings), None):
        raise ValueError(f"results of different settings are no one table: {settings} and {other['settings']}")
    space = Settings(**{**settings, "seeds": tuple(settings["seeds"])}).space
    hits = {part: np.stack([np.packbits(unpacked(r[part])) for r in results]) for part in ("val", "test")}
    document = {
        "settings": settings,
        "facts": dict(facts),
        "val_images": results[0]["val"]["images"],
        "test_images": results[0]["test"]["images"],
        "rows": [
            {
                "index": space.index(Arch(r["arch"])),
                **{key: r[key] for key in ("seed", "seconds", "val_curve", "losses")},
            }
            for r in results
        ],
    }
    text = np.frombuffer(json.dumps(document).encode(), np.uint8)
    np.savez_compressed(path, document=text, val=hits["val"], test=hits["test"])
