"""A cell as a supernet: on every edge of a graph, one of several operations."""

import operator
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx, nn

from nasx.arch import Arch
from nasx.cells import Edge, cell_edges, edge_name, live_edges
from nasx.nn.switch import Switch


class Cell(nn.Module):
    """The supernet of a `cell_space`: every edge holds every operation, with weights of its own.

    `operations` maps a name to what builds a module, or to None for the zero operation, of which there is at most one.
    Operations keep the shape of their input and do not change it in place. Nothing runs on edges that are not on a path
    from the input to the output; a cell without such a path gives zeros.
    """

    def __init__(self, graph: "nx.DiGraph[Any]", operations: Mapping[str, Callable[[], nn.Module] | None]) -> None:
        super().__init__()
        builders = {name: build for name, build in operations.items() if build is not None}
        zeros = [name for name in operations if name not in builders]
        if len(zeros) > 1 or not builders:
            raise ValueError(
                f"a cell needs operations of which at most one is None, the zero operation, but got {dict(operations)}"
            )
        self.operations = tuple(operations)
        self.zero = zeros[0] if zeros else None
        self.graph_edges = cell_edges(graph)
        self.edges = nn.ModuleDict(
            {_key(edge): Switch({name: build() for name, build in builders.items()}) for edge in self.graph_edges}
        )

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Map x to itself in shape; `arch` has the names of `cell_space`."""
        sums: dict[Hashable, Tensor] = {self.graph_edges[0][0]: x}
        for (source, target), operation in self._live(arch).items():
            term = self.edges[_key((source, target))](sums[source], operation)
            sums[target] = sums[target] + term if target in sums else term
        output = sums.get(self.graph_edges[-1][1])
        return torch.zeros_like(x) if output is None else output

    def extract(self, arch: Arch) -> fx.GraphModule:
        """Return the cell of an architecture: its `code` is the sum that it computes, its modules are copies."""
        graph, modules = fx.Graph(), {}
        x = graph.placeholder("x")
        sums: dict[Hashable, fx.Node] = {self.graph_edges[0][0]: x}
        for (source, target), operation in self._live(arch).items():
            switch, name, term = self.edges[_key((source, target))], f"edges.{_key((source, target))}", sums[source]
            assert isinstance(switch, Switch)
            if type(switch[operation]) is not nn.Identity:
                modules[name] = switch.extract(operation)
                term = graph.call_module(name, (term,))
            sums[target] = graph.call_function(operator.add, (sums[target], term)) if target in sums else term
        output = sums.get(self.graph_edges[-1][1])
        graph.output(graph.call_function(torch.zeros_like, (x,)) if output is None else output)
        return fx.GraphModule(modules, graph, class_name="CellNetwork").train(self.training)

    def _live(self, arch: Arch) -> dict[Edge, str]:
        for edge in self.graph_edges:  # a dead edge's operation is not looked up, but must be one all the same
            if (operation := arch.get(edge_name(edge))) not in self.operations:
                raise ValueError(
                    f"{edge_name(edge)} must be one of {', '.join(self.operations)}, but got {operation!r}"
                )
        return live_edges(self.graph_edges, arch, self.zero)


def _key(edge: Edge) -> str:
    return edge_name(edge).removeprefix("edge.")
