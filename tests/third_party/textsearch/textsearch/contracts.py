"""Contracts of nasx that apply; run with `pytest --pyargs textsearch.contracts`."""

from torch import Tensor

from nasx.nn import Supernet
from nasx.testing import SpaceContract, SupernetContract

from .data import collate, snippets
from .network import TEXT, TextTransformer


class TestSpace(SpaceContract):
    space, importable = TEXT, "textsearch.network:TEXT"


class TestSupernet(SupernetContract):
    space = TEXT

    def make_supernet(self) -> Supernet:
        return Supernet(TextTransformer, TEXT)

    def make_inputs(self) -> Tensor:
        return collate(snippets()[:4])[0]
