"""Random architectures of every space: slice, extracted network, reloaded weights and formulas are one."""

from collections.abc import Callable
from functools import partial

import networkx as nx
import pytest
import torch
from torch import nn

from nasx import Arch
from nasx.cells import cell_space
from nasx.cost import AdditiveCost
from nasx.nn import Cell, Supernet
from nasx.space import Space
from nasx.verify import verify
from recipes.autoformer import cost as autoformer_cost
from recipes.autoformer import model as autoformer_model
from recipes.autoformer.space import BASE_CHOICES, SMALL_CHOICES, AutoFormerSpace
from recipes.autoformer.supernet import supernet as autoformer_supernet
from recipes.glit import cost as glit_cost
from recipes.glit import model as glit_model
from recipes.glit.space import GLIT, TINY, heads_space, table2
from recipes.glit.supernet import supernet as glit_supernet
from recipes.localvit import cost as localvit_cost
from recipes.localvit import model as localvit_model
from recipes.localvit.space import LocalViTSpace, locality
from recipes.localvit.supernet import supernet as localvit_supernet

GLIT_VIT = glit_model.GLiTConfig(image_size=16, patch_size=4, in_channels=1, num_classes=5, embed_dim=12)
AUTOFORMER_VIT = autoformer_model.AutoFormerConfig(
    image_size=8, patch_size=4, in_channels=1, num_classes=5, head_dim=4, max_offset=2
)
LOCALVIT_VIT = localvit_model.LocalViTConfig(
    image_size=16, patch_size=4, in_channels=1, num_classes=5, embed_dim=96, num_heads=2
)
JOINT = table2(TINY.with_blocks(3))  # every kind of block; the twelve of the paper's space differ in nothing else
LOCAL = locality(LocalViTSpace(blocks=3))
CELL = nx.DiGraph([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
OPERATIONS: dict[str, Callable[[], nn.Module] | None] = {
    "none": None,
    "skip_connect": nn.Identity,
    "nor_conv_1x1": partial(nn.Conv2d, 3, 3, 1),
    "nor_conv_3x3": partial(nn.Conv2d, 3, 3, 3, padding=1),
    "avg_pool_3x3": partial(nn.AvgPool2d, 3, 1, 1),
}

Build = Callable[[Arch], nn.Module]
Subject = tuple[Space, Supernet, torch.Tensor, AdditiveCost | None, AdditiveCost | None, Build | None]


def glit(space: Space, sharing: str) -> Subject:
    supernet = glit_supernet(space, GLIT_VIT, sharing=sharing)  # type: ignore[arg-type]
    build = partial(glit_model.build_in, GLIT_VIT)
    costs = glit_cost.Macs(GLIT_VIT), glit_cost.Params(GLIT_VIT)
    return space, supernet, torch.randn(2, 1, 16, 16), *costs, build


def autoformer(choices: AutoFormerSpace) -> Subject:
    supernet = autoformer_supernet(choices.space(), AUTOFORMER_VIT)
    build = partial(autoformer_model.AutoFormer, AUTOFORMER_VIT)
    costs = autoformer_cost.Macs(AUTOFORMER_VIT), autoformer_cost.Params(AUTOFORMER_VIT)
    return choices.space(), supernet, torch.randn(2, 1, 8, 8), *costs, build


def localvit() -> Subject:
    supernet = localvit_supernet(LOCAL, LOCALVIT_VIT)
    build = partial(localvit_model.LocalViT, LOCALVIT_VIT)
    costs = localvit_cost.Macs(LOCALVIT_VIT), localvit_cost.Params(LOCALVIT_VIT)
    return LOCAL, supernet, torch.randn(2, 1, 16, 16), *costs, build


def cell() -> Subject:
    space = cell_space(CELL, OPERATIONS)
    supernet = Supernet(lambda arch: Cell(CELL, OPERATIONS, arch), space)
    return space, supernet, torch.randn(2, 3, 6, 6), None, None, None


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "GLiT, stage one": partial(glit, heads_space(TINY.with_blocks(3)), "separate"),
    "GLiT, stage two's union, entangled": partial(glit, GLIT, "entangled"),
    "GLiT, joint, separate": partial(glit, JOINT, "separate"),
    "GLiT, joint, entangled": partial(glit, JOINT, "entangled"),
    # the depths, heads and ratios of the published spaces; widths a twelfth of theirs
    "AutoFormer": partial(autoformer, AutoFormerSpace(embed_dim=(16, 18, 20))),
    "AutoFormer-Small": partial(autoformer, SMALL_CHOICES.model_copy(update={"embed_dim": (26, 32, 37)})),
    "AutoFormer-Base": partial(autoformer, BASE_CHOICES.model_copy(update={"embed_dim": (44, 48, 52)})),
    "LocalViT": localvit,
    "cell": cell,
}


FEW = {"AutoFormer-Small": 10, "AutoFormer-Base": 10, "GLiT, stage one": 20, "GLiT, stage two's union, entangled": 20}
"""Of spaces that differ from another's in their numbers alone, or are a part of it, fewer than fifty."""


@pytest.mark.parametrize("name", SUBJECTS)
def test_random_architectures_pass_verification(name: str) -> None:
    torch.manual_seed(0)
    space, supernet, images, macs, params, build = SUBJECTS[name]()
    for arch in space.sample(0, FEW.get(name, 50)):
        found = verify(supernet, arch, images, macs=macs, params=params, build=build)
        assert found.passed, str(found)
        ran = [check.name for check in found.checks if check.passed is not None]
        assert len(ran) >= (2 if build is None else 5), ran


@pytest.mark.parametrize("name", ["GLiT, joint, separate", "GLiT, joint, entangled", "AutoFormer", "LocalViT"])
@pytest.mark.parametrize("change", ["one block more", "a gap"])
def test_an_architecture_with_other_blocks_is_refused_by_their_numbers(name: str, change: str) -> None:
    space, supernet, images, *_ = SUBJECTS[name]()
    arch = space.sample(0)
    last = len(arch.parts("block")) - 1
    part = arch.at(f"block.{last}")
    kept = arch if change == "one block more" else {n: v for n, v in arch.items() if not n.startswith(f"block.{last}.")}
    foreign = Arch({**kept, **{f"block.{last + 1}.{n}": value for n, value in part.items()}})
    message = rf"no '?blocks?\.{last + 1}\b|no block\.{last}; number parts|describes {last + 2} blocks"
    for use in (partial(supernet, images), supernet.extract):
        with pytest.raises(ValueError, match=message):
            use(foreign)
