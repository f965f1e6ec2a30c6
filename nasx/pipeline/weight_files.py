"""The files of a trained network in a run: its weights, and the scores of every sample."""

import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
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
    """Write the score of every validation sample beside the weights, where samples have scores of their own.

    Returns what a result says of the validation.
    """
    found = {"val_score": scored.score, "val_loss": scored.loss if math.isfinite(scored.loss) else None}
    if not len(scored.scores):
        return found
    path = weights.with_suffix(".val.npy")
    if group.first:
        write_scores(path, scored.scores)
    return {**found, "val_scores": path.name}


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


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], name: str = "the weights") -> nn.Module:
    """Put weights into a network of the same names and shapes, and return it; a ValueError says what does not fit.

    `name` is what the message calls the weights.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        faults = "; ".join(_faults(network, weights)) or str(error)
        raise ValueError(f"{name} do not fit: {faults}") from error
    floats = (key for key, tensor in network.state_dict().items() if key in weights and tensor.is_floating_point())
    if whole := [key for key in floats if not weights[key].is_floating_point()]:  # which torch converts silently
        raise ValueError(
            f"{name} do not fit: {_counted(whole, 'holds', 'hold')} {weights[whole[0]].dtype} and no floating numbers; "
            "are they quantised? give the weights before that"
        )
    return network


def _faults(network: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the first tensor that is missing, unexpected or of another shape, and how many more are."""
    own, given = ({name: tuple(t.shape) for name, t in of.items()} for of in (network.state_dict(), weights))
    if missing := [name for name in own if name not in given]:
        yield _counted(missing, "is missing", "are missing")
    if unexpected := [name for name in given if name not in own]:
        yield _counted(unexpected, "is unexpected", "are unexpected")
    if reshaped := [name for name in own if given.get(name, own[name]) != own[name]]:
        first = reshaped[0]
        shapes = f"{given[first]} where the network has {own[first]}"
        yield f"{_counted(reshaped, 'has another shape', 'have other shapes')} ({shapes})"


def _counted(names: Sequence[str], singular: str, plural: str) -> str:
    return f"{names[0]!r} {singular}" if len(names) == 1 else f"{names[0]!r} and {len(names) - 1:,} more {plural}"


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """Return the weights in a file of a run; CorruptWeights where they are not those that were written."""
    try:
        return load(read_checked(path, sha256))
    except DamagedFile as error:
        raise CorruptWeights(f"the weights are not those that were written: {error}") from error
