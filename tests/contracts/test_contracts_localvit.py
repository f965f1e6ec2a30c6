"""The LocalViT recipe keeps every contract."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nasx import Arch
from nasx.measure import count_macs, count_params
from nasx.nn import Supernet
from nasx.testing import CostContract, RecipeContract, SpaceContract, SupernetContract
from recipes.localvit.__main__ import main
from recipes.localvit.cost import Macs, Params
from recipes.localvit.model import LocalViT, LocalViTConfig
from recipes.localvit.space import LOCALVIT_SPACE, LocalViTSpace, locality
from recipes.localvit.supernet import supernet

SPACE = locality(LocalViTSpace(blocks=2, mlp_ratio=(2, 3), kernel_size=(3, 5), reduction=(4, 8)))
VIT = LocalViTConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=16, num_heads=2)


class TestSpace(SpaceContract):
    space, importable, samples = LOCALVIT_SPACE, "recipes.localvit.space:LOCALVIT_SPACE", 8


class TestMacs(CostContract):
    space, cost = SPACE, Macs(VIT)

    def counted(self, arch: Arch) -> int:
        return count_macs(LocalViT(VIT, arch), torch.zeros(1, 1, 8, 8))


class TestParams(CostContract):
    space, cost = SPACE, Params(VIT)

    def counted(self, arch: Arch) -> int:
        return count_params(LocalViT(VIT, arch))


class TestSupernet(SupernetContract):
    space = SPACE

    def make_supernet(self) -> Supernet:
        return supernet(SPACE, VIT, drop_path=0.2)

    def make_inputs(self) -> Tensor:
        return torch.randn(3, 1, 8, 8)


class TestRecipe(RecipeContract):
    arguments = ("--no-timing",)
    short = (
        *("--set", "supernet.epochs=0.5", "--set", "supernet.warmup_epochs=0", "--set", "retrain.epochs=0.3"),
        *("--set", "retrain.warmup_epochs=0", "--set", "search.population=3", "--set", "search.generations=2"),
    )
    described = "localvit-tiny-act1"
    bad = (["plan", "--json", "--preset", "no-such-preset"], ["run", "--set", "budget.at_most=1"])

    def main(self, arguments: Sequence[str]) -> int:
        return main(arguments)
