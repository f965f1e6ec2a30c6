"""The search space and what its networks cost."""

from collections.abc import Mapping

from nasx import Space, one_of, repeat
from nasx.arch import Value
from nasx.cost import AdditiveCost

from .data import LENGTH, MODULES, VOCABULARY

DIM = 24
BLOCK = Space(num_heads=one_of(1, 2, 4), mlp_ratio=one_of(0.5, 1, 2))
TEXT = Space(block=repeat(BLOCK, one_of(1, 2, 3)))


class Params(AdditiveCost):
    """Parameters of a network; heads cost nothing, as they share one width."""

    unit = "parameters"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the parameters of the embeddings, the last norm and the head."""
        return DIM * (VOCABULARY + LENGTH) + 2 * DIM + (DIM + 1) * len(MODULES)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the parameters of one block."""
        hidden = int(DIM * float(choices["mlp_ratio"]))
        return 4 * DIM + (DIM + 1) * 3 * DIM + (DIM + 1) * DIM + (DIM + 1) * hidden + (hidden + 1) * DIM


class Macs(AdditiveCost):
    """Multiply-adds of one text."""

    unit = "MACs"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the MACs of the head."""
        return DIM * len(MODULES)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the MACs of one block."""
        hidden = int(DIM * float(choices["mlp_ratio"]))
        return LENGTH * (4 * DIM * DIM + 2 * LENGTH * DIM + 2 * DIM * hidden)
