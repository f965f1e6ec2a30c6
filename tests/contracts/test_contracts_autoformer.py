"""The AutoFormer recipe keeps every contract."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from nasx import Arch
from nasx.measure import count_macs, count_params
from nasx.nn import Supernet
from nasx.testing import CostContract, RecipeContract, SpaceContract, SupernetContract
from recipes.autoformer.__main__ import main
from recipes.autoformer.cost import Macs, Params
from recipes.autoformer.model import AutoFormer, AutoFormerConfig
from recipes.autoformer.space import BASE, SMALL, TINY, AutoFormerSpace, uniform
from recipes.autoformer.supernet import supernet

CHOICES = AutoFormerSpace(embed_dim=(16, 24), depth=(1, 2, 3), num_heads=(1, 2, 3), mlp_ratio=(2, 2.5))
VIT = AutoFormerConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, head_dim=8, max_offset=2)


class TestTiny(SpaceContract):
    space, importable, samples = TINY, "recipes.autoformer.space:TINY", 8


class TestSmall(SpaceContract):
    space, importable, samples = SMALL, "recipes.autoformer.space:SMALL", 8


class TestBase(SpaceContract):
    space, importable, samples = BASE, "recipes.autoformer.space:BASE", 8


class TestMacs(CostContract):
    space, cost = CHOICES.space(), Macs(VIT)

    def counted(self, arch: Arch) -> int:
        return count_macs(AutoFormer(VIT, arch), torch.zeros(1, 1, 8, 8))


class TestParams(CostContract):
    space, cost = CHOICES.space(), Params(VIT)

    def counted(self, arch: Arch) -> int:
        return count_params(AutoFormer(VIT, arch))


class TestSupernet(SupernetContract):
    space = CHOICES.space()

    def make_supernet(self) -> Supernet:
        return supernet(CHOICES.space(), VIT, drop_path=0.2)

    def make_inputs(self) -> Tensor:
        return torch.randn(3, 1, 8, 8)


class TestPackedBiases(SupernetContract):
    space = CHOICES.space()

    def make_supernet(self) -> Supernet:
        return supernet(CHOICES.space(), VIT, qkv_bias="packed", drop_path=0.2)

    def make_inputs(self) -> Tensor:
        return torch.randn(3, 1, 8, 8)


@pytest.fixture(autouse=True, scope="module")
def _tiny(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("arch") / "arch.json"
    path.write_text(uniform(192, 12, 3, 4).to_json())
    TestRecipe.described = str(path)


class TestRecipe(RecipeContract):
    arguments = ("--no-timing",)
    short = (
        *("--set", "supernet.epochs=0.5", "--set", "supernet.warmup_epochs=0", "--set", "retrain.epochs=0.3"),
        *("--set", "retrain.warmup_epochs=0", "--set", "finetune.epochs=0.2", "--set", "search.population=3"),
        *("--set", "search.generations=2"),
    )
    bad = (["plan", "--json", "--preset", "no-such-preset"], ["run", "--set", "budget.at_most=1"])

    def main(self, arguments: Sequence[str]) -> int:
        return main(arguments)
