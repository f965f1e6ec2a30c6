"""The GLiT recipe keeps every contract that a third party's spaces, costs, supernets and searchers would."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nasx import Arch
from nasx.measure import count_macs, count_params
from nasx.nn import Supernet
from nasx.search import Evolution, ParetoSearch, RandomSearch, Searcher
from nasx.space import ArchSet
from nasx.testing import CostContract, RecipeContract, SearcherContract, SpaceContract, SupernetContract
from recipes.glit.__main__ import main
from recipes.glit.cost import Macs, PaperMacs, Params
from recipes.glit.cost import macs as tiny_macs
from recipes.glit.model import GLiTConfig, build_in
from recipes.glit.space import GLIT, TABLE2, GLiTSpace, details_space, heads_space, same_heads, table2
from recipes.glit.supernet import supernet

CHOICES = GLiTSpace(blocks=3, kernel_size=(3, 9), held_kernel_size=9, expansion=(1, 4), mlp_ratio=(2, 4))
VIT = GLiTConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=24)
SMALL = table2(CHOICES)


class TestGlit(SpaceContract):
    space, importable, samples = GLIT, "recipes.glit.space:GLIT", 8


class TestTable2(SpaceContract):
    space, importable, samples = TABLE2, "recipes.glit.space:TABLE2", 8


class TestHeads(SpaceContract):
    space = heads_space(CHOICES)


class TestDetails(SpaceContract):
    space = details_space(same_heads(1, CHOICES), CHOICES)


class TestMacs(CostContract):
    space, cost = SMALL, Macs(VIT)

    def counted(self, arch: Arch) -> int:
        return count_macs(build_in(VIT, arch), torch.zeros(1, 1, 8, 8))


class TestPaperMacs(CostContract):
    space, cost = SMALL, PaperMacs(VIT)


class TestParams(CostContract):
    space, cost = SMALL, Params(VIT)

    def counted(self, arch: Arch) -> int:
        return count_params(build_in(VIT, arch))


class TestTinyMacs(CostContract):
    space, cost = GLIT, tiny_macs


class TestSeparateWeights(SupernetContract):
    space = SMALL

    def make_supernet(self) -> Supernet:
        return supernet(SMALL, VIT, sharing="separate", drop_path=0.2)

    def make_inputs(self) -> Tensor:
        return torch.randn(3, 1, 8, 8)


class TestEntangledWeights(SupernetContract):
    space = SMALL

    def make_supernet(self) -> Supernet:
        return supernet(SMALL, VIT, sharing="entangled", drop_path=0.2)

    def make_inputs(self) -> Tensor:
        return torch.randn(3, 1, 8, 8)


class TestEvolution(SearcherContract):
    def make_searcher(self, space: ArchSet, seed: int) -> Searcher:
        return Evolution(space, population=10, generations=4, parents=4, seed=seed)


class TestRandomSearch(SearcherContract):
    def make_searcher(self, space: ArchSet, seed: int) -> Searcher:
        return RandomSearch(space, evaluations=45, batch=10, seed=seed)


class TestParetoSearch(SearcherContract):
    def make_searcher(self, space: ArchSet, seed: int) -> Searcher:
        return ParetoSearch(space, [lambda arch: len(arch)], population=10, generations=4, seed=seed)


class TestRecipe(RecipeContract):
    arguments = ("--no-timing",)
    short = (
        *("--set", "supernet.epochs=0.5", "--set", "supernet.warmup_epochs=0", "--set", "retrain.epochs=0.3"),
        *("--set", "retrain.warmup_epochs=0", "--set", "search.population=3", "--set", "search.generations=2"),
    )
    described = "glit-tiny"
    bad = (["plan", "--json", "--preset", "no-such-preset"], ["run", "--method", "no-such-method"])

    def main(self, arguments: Sequence[str]) -> int:
        return main(arguments)
