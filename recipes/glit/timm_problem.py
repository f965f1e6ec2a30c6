"""Networks of timm, trained by the same recipe (paper, table 3's other rows)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import timm
import torch
from torch import nn

from nasx import Arch, Budget, Space
from nasx.arch import Value
from nasx.cli import nearest
from nasx.cost import AdditiveCost
from nasx.feasible import Feasible
from nasx.measure import count_macs, count_params
from nasx.pipeline.problem import ImageTask, Problem
from nasx.report import BlockDrawing
from recipes.glit.config import Config

PREFIX = "timm:"


def timm_arch(name: str) -> Arch:
    """Return the architecture that stands for a network of timm; an unknown name is a ValueError with the nearest."""
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}{nearest(name, timm.list_models())}")
    return Arch({"timm": name})


def build_timm(
    name: str, *, num_classes: int, image_size: int, in_channels: int = 3, drop_path: float = 0.0
) -> nn.Module:
    """Return a network of timm with fresh weights; image size and drop path reach those that know them."""
    size, rate = {"img_size": image_size}, {"drop_path_rate": drop_path}
    refusals: list[TypeError] = []
    for known in (size | rate, rate, size, {}):  # the size is ViT's alone, and convolutional networks refuse it
        try:
            return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **known)
        except TypeError as error:
            refusals.append(error)
    raise ValueError(f"timm's {name!r} cannot be built for {num_classes} classes: {refusals[-1]}")


class TimmProblem(Problem[Config]):
    """The training of one network of timm on the images of a run."""

    title = "GLiT"

    def __init__(self, config: Config, task: ImageTask, arch: Arch) -> None:
        super().__init__(config, task)
        self.arch = arch

    @property
    def joint(self) -> Feasible:
        """The one network."""
        return Space(**self.arch).within(Budget(self.cost))

    @cached_property
    def cost(self) -> AdditiveCost:
        """The multiply-adds of the one network."""
        return _Constant(self.macs(self.arch))

    def macs(self, arch: Arch) -> int:
        """Return the multiply-adds for one image, counted."""
        return self._counts[0]

    def params(self, arch: Arch) -> int:
        """Return the parameters, counted."""
        return self._counts[1]

    @cached_property
    def _counts(self) -> tuple[int, int]:
        size = self.config.data.image_size
        with torch.device("meta"):  # computes nothing
            network = self.network(self.arch)().eval()
            return count_macs(network, torch.zeros(1, self.task.dataset.channels, size, size)), count_params(network)

    def supernet(self, space: Space) -> nn.Module:
        """Refuse: nothing is searched."""
        raise ValueError("a network of timm is trained alone and has no supernet")

    def network(self, arch: Arch) -> Callable[[], nn.Module]:
        """Return what builds the network, with the drop path of the retraining."""
        return partial(
            build_timm,
            str(arch["timm"]),
            num_classes=len(self.task.dataset.classes),
            image_size=self.config.data.image_size,
            in_channels=self.task.dataset.channels,
            drop_path=self.config.retrain.drop_path,
        )

    def baselines(self) -> Mapping[str, tuple[str, Arch]]:
        """Return none."""
        return {}

    def drawings(self, arch: Arch) -> Sequence[BlockDrawing]:
        """Return one box for the whole network."""
        return (BlockDrawing(str(arch["timm"]), 0.0, ("timm",)),)


@dataclass(frozen=True)
class _Constant(AdditiveCost):
    value: int
    unit = "MACs"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        return self.value

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return 0
