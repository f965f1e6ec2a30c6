"""Networks of timm, trained by the same recipe (paper, table 3's other rows)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from nasx import Arch, Space
from nasx.arch import Value
from nasx.cli import nearest
from nasx.cost import AdditiveCost
from nasx.measure import count_macs, count_params
from nasx.nn import ImageConfig
from nasx.pipeline.images import ImageTask
from nasx.pipeline.presentation import Presentation
from nasx.pipeline.vit import ViTProblem
from nasx.report import BlockDrawing

from .config import Config

PREFIX = "timm:"


def timm_arch(name: str) -> Arch:
    """Return the architecture that stands for `timm:NAME`; an unknown name is a ValueError with the nearest."""
    network = name.removeprefix(PREFIX)
    plain, dot, tag = network.partition(".")
    if not timm.is_model(plain):
        raise ValueError(f"timm has no network {network!r}{nearest(plain, timm.list_models())}")
    if dot:
        raise ValueError(
            f"{name!r} names the weights {tag!r}, but networks are trained from fresh weights; write {PREFIX}{plain}"
        )
    return Arch({"timm": plain})


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


def build_in(vit: ImageConfig, arch: Arch, *, drop_path: float = 0.0, init_std: float = 0.0) -> nn.Module:
    """Return a network of timm for images of this size; its weights are drawn as timm draws them."""
    return build_timm(
        str(arch["timm"]),
        num_classes=vit.num_classes,
        image_size=vit.image_size,
        in_channels=vit.in_channels,
        drop_path=drop_path,
    )


def timm_problem(config: Config, task: ImageTask, arch: Arch) -> ViTProblem[Config]:
    """Return the training of one network of timm."""
    data = task.dataset
    vit = ImageConfig(
        image_size=data.image_size, patch_size=1, in_channels=data.channels, num_classes=len(data.classes)
    )
    with torch.device("meta"):  # computes nothing
        network = build_in(vit, arch).eval()
        macs = count_macs(network, torch.zeros(1, data.channels, data.image_size, data.image_size))
    return ViTProblem(
        config,
        task,
        space=Space(**arch),
        vit=vit,
        build=build_in,
        supernet=_refuse,
        macs=_Constant(macs, "MACs"),
        params=_Constant(count_params(network), "parameters"),
        budget=(),
        baselines={},
        name="glit",
        presentation=Presentation(title="GLiT", draw=lambda arch: (BlockDrawing(str(arch["timm"]), 0.0, ("timm",)),)),
    )


def _refuse(*arguments: Any, **settings: Any) -> nn.Module:
    raise ValueError("a network of timm is trained alone and has no supernet")


@dataclass(frozen=True)
class _Constant(AdditiveCost):
    value: int
    unit: str = ""

    def fixed(self, shared: Mapping[str, Value]) -> int:
        return self.value

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return 0
