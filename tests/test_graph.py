"""The graph of a space is a tree whose sizes add up at choices and multiply at spaces."""

import math

import networkx as nx
import pytest
from hypothesis import given, settings

from nasx import Space, one_of, repeat
from nasx.graph import space_graph
from tests.strategies import spaces


def _below(graph: "nx.DiGraph[str]", node: str) -> list[int]:
    return [graph.nodes[child]["size"] for child in graph.successors(node)]


@settings(max_examples=100)
@given(spaces())
def test_sizes_follow_from_the_sizes_below(space: Space) -> None:
    graph = space_graph(space)
    assert nx.is_arborescence(graph)
    assert graph.nodes[""]["size"] == space.size
    for node, data in graph.nodes(data=True):
        below = _below(graph, node)
        match data["kind"]:
            case "space" | "option":
                assert data["size"] == math.prod(below)
            case "choice":
                assert below
                assert data["size"] == sum(below)
            case "repeat":
                assert data["size"] == sum(math.prod(below * count) for count in data["count"])


def test_the_tree_of_a_small_space() -> None:
    block = Space(op=one_of({"none": None, "conv": Space(k=one_of(3, 5))}))
    graph = space_graph(Space(width=one_of(8, 16), block=repeat(block, one_of(1, 2))))
    assert {name: (data["kind"], data["size"]) for name, data in graph.nodes(data=True)} == {
        "": ("space", 2 * (3 + 9)),
        "width": ("choice", 2),
        "width=8": ("option", 1),
        "width=16": ("option", 1),
        "block": ("repeat", 3 + 9),
        "block.*": ("space", 3),
        "block.*.op": ("choice", 3),
        "block.*.op='none'": ("option", 1),
        "block.*.op='conv'": ("option", 2),
        "block.*.op='conv'/block.*.k": ("choice", 2),
        "block.*.op='conv'/block.*.k=3": ("option", 1),
        "block.*.op='conv'/block.*.k=5": ("option", 1),
    }
    assert graph.nodes["block"]["count"] == (1, 2)
    assert list(graph.successors("block.*.op")) == ["block.*.op='none'", "block.*.op='conv'"]


def test_parts_that_differ_are_shown_one_by_one() -> None:
    space = Space(block=repeat(Space(k=one_of(3, 5)), 3))
    assert set(space_graph(space).successors("block")) == {"block.*"}
    pinned = space_graph(space.pin({"block.1.k": 3}))
    assert {name: pinned.nodes[name]["size"] for name in pinned.successors("block")} == {
        "block.0": 2,
        "block.1": 1,
        "block.2": 2,
    }


def test_a_part_of_a_space_has_no_graph() -> None:
    with pytest.raises(TypeError, match=r"must be a whole Space, but got Feasible.*pass its `.space`"):
        space_graph(Space(a=one_of(1, 2)).within())  # type: ignore[arg-type]


def test_options_that_are_spelled_alike_are_two() -> None:
    graph = space_graph(Space(a=one_of(1, "1")))
    assert {"a=1", "a='1'"} <= set(graph)
