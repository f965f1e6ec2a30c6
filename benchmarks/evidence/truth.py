"""The truth that supernets are judged by: networks trained alone."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.evidence.scenes import Scene
from nasx import Arch
from nasx.run import write_json
from recipes.glit.bench.training import packed


def measure_alone(scene: Scene, arch: Arch, seed: int, epochs: float, path: Path) -> None:
    """Train a network of stage one alone and write what it gets right of the validation and test images."""
    facts = {"arch": scene.space.index(arch), "macs": scene.macs(arch)}
    measure_network(scene, partial(scene.make, arch), facts, seed, epochs, path)


def measure_network(
    scene: Scene, make: Callable[[], nn.Module], facts: Mapping[str, Any], seed: int, epochs: float, path: Path
) -> None:
    """Train any network alone and write what it gets right, beside facts that identify it."""
    started = time.monotonic()
    network = scene.train_alone(make, seed, epochs)
    write_json(
        path,
        {
            "scene": scene.name,
            "seed": seed,
            "epochs": epochs,
            "seconds": round(time.monotonic() - started, 1),
            **facts,
            **packed_hits(scene, network),
        },
    )


def packed_hits(scene: Scene, network: nn.Module) -> dict[str, Any]:
    """Return what a network gets right of the validation and test images, as JSON values."""
    return {part: packed(scene.hits(network, images)) for part, images in (("val", scene.val), ("test", scene.test))}
