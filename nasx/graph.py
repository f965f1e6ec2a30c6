"""A search space as a networkx graph: what opens what, and how many architectures stand below."""

import networkx as nx

from nasx._arguments import check_space
from nasx.space import Choice, Repeat, Space


def space_graph(space: Space) -> "nx.DiGraph[str]":
    """Return a tree whose nodes are the space, its choices, their options, subspaces and repeats.

    A node is named by its path, such as `block.*.global_heads=1` or `block.*.op='conv'`; its attributes are `kind`
    ("space", "choice", "option" or "repeat"), `label` and `size`, the exact number of architectures below. Parts that
    are equal appear once as `*`, with `count` on the repeat.
    """
    check_space(space, "space_graph(space)")
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_node("", kind="space", label="space", size=space.size)
    _grow(graph, "", "", space)
    return graph


def _grow(graph: "nx.DiGraph[str]", parent: str, prefix: str, space: Space) -> None:
    for key, node in space.nodes.items():
        path = f"{parent}/{prefix}{key}" if "=" in parent else f"{prefix}{key}"
        match node:
            case Space():
                _add(graph, parent, path, "space", key, node.size)
                _grow(graph, path, f"{prefix}{key}.", node)
            case Choice():
                _add(graph, parent, path, "choice", key, node.size)
                for value, opened in node.options:
                    _add(graph, path, f"{path}={value!r}", "option", str(value), opened.size)
                    _grow(graph, f"{path}={value!r}", prefix, opened)
            case Repeat():
                _add(graph, parent, path, "repeat", key, node.size)
                graph.nodes[path]["count"] = node.counts
                same = len(set(node.parts)) == 1
                for i, part in enumerate(node.parts[:1] if same else node.parts):
                    name = f"{path}.{'*' if same else i}"
                    _add(graph, path, name, "space", "*" if same else str(i), part.size)
                    _grow(graph, name, f"{prefix}{key}.{'*' if same else i}.", part)


def _add(graph: "nx.DiGraph[str]", parent: str, path: str, kind: str, label: str, size: int) -> None:
    graph.add_node(path, kind=kind, label=label, size=size)
    graph.add_edge(parent, path)
