"""The files of a trained network in a run: its weights, and the scores of every sample."""

import hashlib
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

from nasx.pipeline.errors import CorruptWeights
from nasx.run.files import DamagedFile, read_checked, write_bytes
from nasx.train import ALONE, Evaluation, Group


def write_validation(weights: Path, scored: Evaluation, group: Group = ALONE) -> dict[str, Any]:
    """Write the score of every validation sample beside the weights; return what a result says of the validation."""
    path = weights.with_suffix(".val.npy")
    if group.first:
        write_scores(path, scored.scores)
    return {
        "val_score": scored.score,
        "val_loss": scored.loss if math.isfinite(scored.loss) else None,
        "val_scores": path.name,
    }


def write_scores(path: Path, scores: NDArray[np.float64]) -> None:
    """Write the score of every sample, in the order of the data, as an array that `numpy.load` reads."""
    content = io.BytesIO()
    np.save(content, scores.astype(np.float32), allow_pickle=False)
    write_bytes(path, content.getvalue())


def write_weights(path: Path, network: nn.Module, group: Group = ALONE) -> str:
    """Write a network's weights, the first rank of a group, and return the SHA-256 of the file."""
    # copies, because parts of one tensor, and tied ones, may not be written as they are
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    content = save(tensors)
    if group.first:
        write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Put weights that `write_weights` wrote into a network, and return it; a ValueError names what does not fit."""
    missing, unexpected = network.load_state_dict(weights, strict=False)
    if missing:
        raise ValueError(f"the weights do not fit the network: {missing[0]!r} is missing")
    if unexpected:
        raise ValueError(f"the weights do not fit the network: it has no {unexpected[0]!r}")
    return network


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """Return the weights in a file of a run; CorruptWeights where they are not those that were written."""
    try:
        return load(read_checked(path, sha256))
    except DamagedFile as error:
        raise CorruptWeights(f"the weights are not those that were written: {error}") from error
