"""The truth that supernets are judged by: networks trained alone."""

import base64
import time
from pathlib import Path

import numpy as np

from benchmarks.evidence.scenes import Scene
from nasx import Arch
from nasx.run import write_json


def measure_alone(scene: Scene, arch: Arch, seed: int, epochs: float, path: Path) -> None:
    """Train a network alone and write what it gets right of the validation and test images."""
    started = time.monotonic()
    network = scene.train_alone(arch, seed, epochs)
    write_json(
        path,
        {
            "scene": scene.name,
            "arch": scene.space.index(arch),
            "seed": seed,
            "epochs": epochs,
            "seconds": round(time.monotonic() - started, 1),
            "macs": scene.macs(arch),
            **{
                part: {"images": len(images), "hits": packed(scene.hits(network, images))}
                for part, images in (("val", scene.val), ("test", scene.test))
            },
        },
    )


def packed(hits: "np.typing.NDArray[np.bool_]") -> str:
    """Return hits as text for a JSON file."""
    return base64.b64encode(np.packbits(hits).tobytes()).decode()
