"""Every contract of nasx that applies, each inherited in a line; run with `pytest --pyargs textsearch.contracts`."""

from torch import Tensor

from nasx.arch import Arch
from nasx.measure import count_macs, count_params
from nasx.testing import CostContract, SpaceContract, SupernetContract

from .data import load
from .space import TEXT, Macs, Params
from .supernet import TextSupernet, build


class TestSpace(SpaceContract):
    space, importable = TEXT, "textsearch.space:TEXT"


class TestParams(CostContract):
    space, cost = TEXT, Params()

    def counted(self, arch: Arch) -> int:
        return count_params(build(arch))


class TestMacs(CostContract):
    space, cost = TEXT, Macs()

    def counted(self, arch: Arch) -> int:
        return count_macs(build(arch), load()[0].tokens[:1])


class TestSupernet(SupernetContract):
    space = TEXT

    def make_supernet(self) -> TextSupernet:
        return TextSupernet()

    def make_inputs(self) -> Tensor:
        return load()[0].tokens[:4]
