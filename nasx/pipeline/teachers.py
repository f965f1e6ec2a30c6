"""Networks to learn from: timm's with local weights, and exported ones."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nasx.pipeline.records import ARCH, WEIGHTS, read_arch
from nasx.pipeline.weight_files import load_weights
from nasx.weights import read_state_dict

if TYPE_CHECKING:
    from nasx.pipeline.images import ImageTask
    from nasx.pipeline.problem import Problem

TIMM = "timm:"


class Renormalised(nn.Module):
    """A network for images that were normalised otherwise than it expects; both by mean and deviation per channel."""

    factor: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        given: tuple[Sequence[float], Sequence[float]],
        expected: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        super().__init__()
        self.network = network
        (mean, std), (wanted_mean, wanted_std) = (map(torch.tensor, pair) for pair in (given, expected))
        self.register_buffer("factor", (std / wanted_std).view(-1, 1, 1))
        self.register_buffer("shift", ((mean - wanted_mean) / wanted_std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Any:
        """Return the network's outputs for images (B, C, H, W)."""
        return self.network(images * self.factor + self.shift)


def open_teacher(spec: str, problem: "Problem[Any]") -> nn.Module:
    """Return the network that a setting names: `timm:NAME=WEIGHTS`, or the folder of a run or of an exported network.

    A folder of one of the library's recipes may hold a network of any recipe and size, for images of the problem's size
    and its classes; it is given images as it was trained on them. Another folder holds `arch.json` and
    `model.safetensors` of the problem's own builder. Anything else is a ValueError.
    """
    from nasx.pipeline.images import ImageTask

    if spec.startswith(TIMM):
        return timm_teacher(spec, problem)
    folder = Path(spec)
    arch, weights = folder / ARCH, folder / WEIGHTS
    if not (arch.is_file() and weights.is_file()):
        raise ValueError(
            f"a teacher is timm:NAME=WEIGHTS.safetensors, or a folder with arch.json and model.safetensors, but got "
            f"{spec!r}"
        )
    if isinstance(problem.task, ImageTask) and (found := exported_teacher(folder, problem.task)):
        return found
    network = problem.make(read_arch(arch))
    return load_weights(network, read_state_dict(weights), f"the weights in {weights}").eval()


def exported_teacher(folder: Path, task: "ImageTask") -> nn.Module | None:
    """Return the network of a recipe's run or export, for images as a task prepares them; None where it is of none."""
    from nasx.pipeline.exported import NoRecipe, check_classes, open_model

    try:
        model = open_model(folder)
    except NoRecipe:
        return None
    check_classes(model, task.dataset.classes)
    expects = model.preprocessing
    ours, expected = (task.dataset.channels, task.dataset.image_size), (expects.channels, expects.image_size)
    if ours != expected:
        raise ValueError(
            f"the teacher in {folder} takes images of {expected[0]} channels and {expected[1]} pixels, but those of "
            f"this run have {ours[0]} and {ours[1]}"
        )
    return Renormalised(model.network, task.statistics, (model.mean, model.std)).eval()


def timm_teacher(spec: str, problem: "Problem[Any]") -> nn.Module:
    """Return a network of timm with weights from a file, for images normalised as the problem's are."""
    from nasx.pipeline.images import ImageTask

    name, equals, file = spec.removeprefix(TIMM).partition("=")
    if not equals:
        raise ValueError(f"{spec!r} names no weights; write {TIMM}{name}=WEIGHTS.safetensors, nothing is downloaded")
    timm = import_module("timm")
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}; see timm.list_models()")
    state = read_state_dict(file)
    task = problem.task
    settings: dict[str, Any] = {}
    if isinstance(task, ImageTask):
        settings = {"num_classes": len(task.dataset.classes), "in_chans": task.dataset.channels}
    network: nn.Module = timm.create_model(name, pretrained=False, **settings)
    load_weights(network, state, f"the weights in {file}")
    if not isinstance(task, ImageTask):
        return network.eval()
    described: Any = network.pretrained_cfg
    expected = tuple(described["mean"]), tuple(described["std"])
    if len(expected[0]) != task.dataset.channels:
        return network.eval()
    return Renormalised(network, task.statistics, expected).eval()
