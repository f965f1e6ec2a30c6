"""What GLiT networks look at (paper, figure 6): output tokens as maps over the image."""

import logging
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from nasx import Arch
from nasx.pipeline.finished_run import read_run
from nasx.pipeline.image_sources import ImageSource, load_images
from nasx.pipeline.weight_files import load_weights, read_weights
from nasx.report.figures import heat_maps

from .config import Config
from .model import GLiT
from .problem import glit_problem

logger = logging.getLogger(__name__)

NETWORKS = {"deit_shaped": "DeiT-shaped", "searched": "searched"}


@torch.no_grad()
def token_maps(network: GLiT, images: Tensor) -> Tensor:
    """Return the mean over channels of the last block's tokens, on the grid of patches: (B, C, H, W) to (B, h, w).

    The class token is left out. The tokens are those before the last norm, which takes their mean away.
    """
    network.eval()
    tokens = network.embed(images)
    for block in network.blocks:
        tokens = block(tokens)
    vit = network.vit
    patches = tokens[:, vit.tokens - vit.patches :]
    return patches.mean(dim=2).reshape(-1, vit.grid, vit.grid)


def first_of_each_class(labels: NDArray[np.int64], count: int) -> list[int]:
    """Return the positions of the first image of each class, in the order of the classes, at most `count`."""
    classes, first = np.unique(labels, return_index=True)
    return [int(position) for position in first[: min(count, len(classes))]]


def heat_maps_of_run(run_dir: Path, data: Path | None = None, count: int = 8) -> Figure:
    """Return the heat maps of a finished run: validation images, the DeiT-shaped network, the one that was found.

    `data` is the run's image folder, None for the digits; `count` images at most are shown. Raises ValueError where the
    directory is no finished run, or `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, but got {count}")
    run = read_run(run_dir, "glit")
    networks = run.results["evaluation"]["networks"]
    if missing := [name for name in NETWORKS if name not in networks]:
        raise ValueError(f"the run in {run_dir} has no network {missing[0]!r} to compare; give one that searched")
    config = Config.model_validate(run.config)
    task = load_images(ImageSource(config.data, config.seed, data.resolve() if data else None))
    problem = glit_problem(config, task)
    images = task.dataset.val
    chosen = np.array(first_of_each_class(images.labels, count))
    if count > len(chosen):
        logger.warning("%d of %d images are drawn, one of each class", len(chosen), count)
    shown = images.load(chosen)
    ((normalised, _),) = task.eval_batches("val", len(chosen), indices=chosen)
    maps = {}
    for name, label in NETWORKS.items():
        weights = read_weights(run_dir / networks[name]["weights"], networks[name]["sha256"])
        network = load_weights(problem.make(Arch(networks[name]["arch"])), weights)
        assert isinstance(network, GLiT)
        maps[label] = token_maps(network, normalised).numpy()
    pictures = shown.permute(0, 2, 3, 1).numpy()
    return heat_maps(pictures[..., 0] if pictures.shape[-1] == 1 else pictures, maps)
