"""The network of a cell: on every edge of a graph, one of several operations."""

from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nasx.arch import Value
from nasx.cells import Edge, cell_edges, edge_name, live_edges

if TYPE_CHECKING:
    import networkx as nx


class Cell(nn.Module):
    """One cell of a `cell_space`: every node of `graph` is the sum of what its incoming edges give.

    `arch` names the operation of every edge. `operations` maps a name to what builds a module, or to None for the zero
    operation, at most one. Operations keep the shape of their input and do not change it in place.
    An operation's name is that of a module, without dots and none that torch's own modules use, such as `type`.
    Only edges on a path from the input to the output are built, as `edges.<source>-<target>.<operation>`, so in a
    `Supernet` every operation of every edge has weights of its own. A cell without such a path gives zeros.
    """

    def __init__(
        self,
        graph: "nx.DiGraph[Any]",
        operations: Mapping[str, Callable[[], nn.Module] | None],
        arch: Mapping[str, Value],
    ) -> None:
        super().__init__()
        zeros = [name for name, build in operations.items() if build is None]
        if len(zeros) > 1 or len(zeros) == len(operations):
            raise ValueError(
                f"a cell needs operations, at most one of them None (the zero operation), but got {dict(operations)}"
            )
        for name, build in operations.items():
            if not isinstance(name, str):
                raise TypeError(f"an operation needs a string as its name, but got {name!r}; write {str(name)!r}")
            if build is not None and (not name or "." in name or hasattr(nn.ModuleDict(), name)):
                raise ValueError(
                    f"an operation's name must be one that a module can have, but got {name!r}: it must hold a letter, "
                    "no dot, and be no attribute of torch's modules; choose another in the space and the operations"
                )
        edges = cell_edges(graph)
        for edge in edges:  # the operation of an edge that is not built must be a known one all the same
            if (chosen := arch.get(edge_name(edge))) not in operations:
                raise ValueError(f"{edge_name(edge)} must be one of {', '.join(operations)}, but got {chosen!r}")
        self.operations: dict[Edge, str] = live_edges(edges, arch, zeros[0] if zeros else None)
        self.input, self.output = edges[0][0], edges[-1][1]
        self.edges = nn.ModuleDict()
        for edge, name in self.operations.items():
            build = operations[name]
            assert build is not None, "no edge of the zero operation is on a path"
            self.edges[_key(edge)] = nn.ModuleDict({name: build()})

    def forward(self, x: Tensor) -> Tensor:
        """Map x to itself in shape."""
        sums: dict[Hashable, Tensor] = {self.input: x}
        for edge, name in self.operations.items():
            source, target = edge
            term = self.edges[_key(edge)][name](sums[source])  # type: ignore[index]
            sums[target] = sums[target] + term if target in sums else term
        return sums[self.output] if self.output in sums else torch.zeros_like(x)


def _key(edge: Edge) -> str:
    return edge_name(edge).removeprefix("edge.")
