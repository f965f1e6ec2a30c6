"""Cells: their names, what of them lives, and how many are different, against NAS-Bench-201 and networkx."""

import random
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasx import Arch
from nasx.cells import (
    cell_edges,
    cell_graph,
    cell_space,
    count_distinct,
    edge_name,
    functional_form,
    live_edges,
    written_form,
)
from nasx.testing import SpaceContract

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def complete(nodes: int) -> "nx.DiGraph[int]":
    return nx.DiGraph([(i, j) for j in range(nodes) for i in range(j)])


NAS_BENCH_201 = complete(4)
SPACE = cell_space(NAS_BENCH_201, OPERATIONS)


def cell(*operations: str) -> Arch:
    """Return an architecture of the four-node cell by its operations, in the order of the edges."""
    return Arch(dict(zip(map(edge_name, cell_edges(NAS_BENCH_201)), operations, strict=True)))


class TestCellSpace(SpaceContract):
    space = SPACE


def test_a_cell_has_a_choice_per_edge_in_nas_bench_201s_order() -> None:
    assert SPACE.size == 15_625
    assert list(SPACE[0]) == ["edge.0-1", "edge.0-2", "edge.1-2", "edge.0-3", "edge.1-3", "edge.2-3"]
    assert SPACE[0]["edge.0-1"] == "none"


def test_the_order_of_edges_is_topological_whatever_the_order_of_insertion() -> None:
    graph = nx.DiGraph([("b", "out"), ("a", "b"), ("in", "b"), ("in", "a")])
    assert cell_edges(graph) == (("in", "a"), ("in", "b"), ("a", "b"), ("b", "out"))


def test_the_counts_of_nas_bench_201() -> None:
    archs = list(SPACE)
    assert len({written_form(NAS_BENCH_201, arch) for arch in archs}) == 6_466  # Dong and Yang, 2020
    assert len({written_form(NAS_BENCH_201, arch, zero=None) for arch in archs}) == 12_751
    assert count_distinct(NAS_BENCH_201, archs) == 5_425
    assert count_distinct(NAS_BENCH_201, archs, weightless=["avg_pool_3x3"]) == 5_260
    assert count_distinct(NAS_BENCH_201, archs, weightless=OPERATIONS) == 4_930


def test_what_leads_nowhere_does_not_live() -> None:
    dead = cell("nor_conv_1x1", "none", "nor_conv_3x3", "skip_connect", "none", "none")
    assert live_edges(cell_edges(NAS_BENCH_201), dead) == {(0, 3): "skip_connect"}
    unreached = cell("none", "nor_conv_1x1", "nor_conv_3x3", "none", "nor_conv_3x3", "skip_connect")
    assert live_edges(cell_edges(NAS_BENCH_201), unreached) == {(0, 2): "nor_conv_1x1", (2, 3): "skip_connect"}
    assert live_edges(cell_edges(NAS_BENCH_201), SPACE[0]) == {}
    assert len(live_edges(cell_edges(NAS_BENCH_201), SPACE[0], zero=None)) == 6


def test_the_graph_of_a_cell_holds_live_edges_with_their_operations() -> None:
    graph = cell_graph(NAS_BENCH_201, cell("none", "nor_conv_1x1", "nor_conv_3x3", "none", "none", "skip_connect"))
    assert dict(graph.edges.items()) == {
        (0, 2): {"operation": "nor_conv_1x1"},
        (2, 3): {"operation": "skip_connect"},
    }
    assert dict(graph.nodes(data="kind")) == {0: "input", 2: "sum", 3: "output"}
    assert dict(cell_graph(NAS_BENCH_201, SPACE[0]).nodes(data="kind")) == {0: "input", 3: "output"}


def test_a_form_reads_as_numbered_terms() -> None:
    arch = cell("nor_conv_3x3", "skip_connect", "skip_connect", "none", "skip_connect", "nor_conv_1x1")
    assert functional_form(NAS_BENCH_201, arch) == (
        ("input", ()),
        ("nor_conv_3x3", ((0, 1),)),  # of the input
        ("nor_conv_1x1", ((0, 1), (1, 1))),  # of the input and of the term before
        ("output", ((1, 1), (2, 1))),
    )


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        # a skip copies a sum: x -> 3x3 stands at node 1 or at node 2
        (
            cell("nor_conv_3x3", "none", "skip_connect", "none", "none", "nor_conv_1x1"),
            cell("skip_connect", "none", "nor_conv_3x3", "none", "none", "nor_conv_1x1"),
            True,
        ),
        # two convolutions of the input, or one that is used twice
        (
            cell("nor_conv_3x3", "nor_conv_3x3", "none", "none", "nor_conv_1x1", "nor_conv_1x1"),
            cell("nor_conv_3x3", "none", "skip_connect", "none", "nor_conv_1x1", "nor_conv_1x1"),
            False,
        ),
        # the input once, or twice
        (
            cell("none", "none", "none", "skip_connect", "none", "none"),
            cell("skip_connect", "none", "none", "skip_connect", "skip_connect", "none"),
            False,
        ),
    ],
)
def test_which_cells_are_one_function(first: Arch, second: Arch, same: bool) -> None:
    assert (functional_form(NAS_BENCH_201, first) == functional_form(NAS_BENCH_201, second)) is same
    assert count_distinct(NAS_BENCH_201, [first, second]) == 2 - same


def test_weightless_operations_on_one_sum_are_one() -> None:
    two = cell("avg_pool_3x3", "avg_pool_3x3", "none", "none", "nor_conv_1x1", "nor_conv_3x3")
    one = cell("avg_pool_3x3", "none", "skip_connect", "none", "nor_conv_1x1", "nor_conv_3x3")
    assert count_distinct(NAS_BENCH_201, [two, one]) == 2
    assert count_distinct(NAS_BENCH_201, [two, one], weightless=["avg_pool_3x3"]) == 1


@settings(max_examples=150)
@given(
    st.integers(3, 6), st.sampled_from([OPERATIONS, ("skip_connect", "c"), ("c",)]), st.randoms(use_true_random=False)
)
def test_forms_do_not_depend_on_how_nodes_are_named_or_ordered(
    nodes: int, operations: tuple[str, ...], rng: random.Random
) -> None:
    graph: nx.DiGraph[int] = complete(nodes)
    graph.remove_edges_from([e for e in graph.edges if e[1] - e[0] > 1 and rng.random() < 0.4])
    arch = Arch({edge_name(edge): rng.choice(operations) for edge in graph.edges})
    spelled = dict(zip(graph, rng.sample(["a", "b", "c", "d", "e", "f"], nodes), strict=True))
    edges = rng.sample(list(graph.edges), len(graph.edges))
    renamed = nx.DiGraph([(spelled[u], spelled[v]) for u, v in edges])
    again = Arch({edge_name((spelled[u], spelled[v])): arch[edge_name((u, v))] for u, v in edges})
    assert functional_form(graph, arch) == functional_form(renamed, again)


def test_isomorphic_cells_have_one_form() -> None:
    archs = [SPACE[i] for i in range(7, SPACE.size, 190)]
    graphs = [cell_graph(NAS_BENCH_201, arch) for arch in archs]
    forms = [functional_form(NAS_BENCH_201, arch) for arch in archs]
    found = 0
    for i, graph in enumerate(graphs):
        for j in range(i):
            if isomorphic(graph, graphs[j]):
                assert forms[i] == forms[j], (archs[i], archs[j])
                found += 1
    assert found > 5


def isomorphic(first: Any, second: Any) -> bool:
    return len(first.edges) == len(second.edges) and nx.is_isomorphic(
        first,
        second,
        node_match=nx.isomorphism.categorical_node_match("kind", None),
        edge_match=nx.isomorphism.categorical_edge_match("operation", None),
    )


def test_forms_are_the_classes_of_isomorphic_expressions() -> None:
    """Of cells without skips, equal forms are exactly isomorphic live graphs once edges are taken for vertices."""
    space = cell_space(NAS_BENCH_201, ["none", "a", "b"])
    archs = [space[i] for i in range(0, space.size, 5)]
    lines = [expression(arch) for arch in archs]
    forms = [functional_form(NAS_BENCH_201, arch) for arch in archs]
    match = nx.isomorphism.categorical_node_match("operation", None)
    for i, line in enumerate(lines):
        for j in range(i):
            assert (forms[i] == forms[j]) == nx.is_isomorphic(line, lines[j], node_match=match), (archs[i], archs[j])


def expression(arch: Arch) -> "nx.DiGraph[Any]":
    live = live_edges(cell_edges(NAS_BENCH_201), arch)
    graph: nx.DiGraph[Any] = nx.DiGraph()
    graph.add_node("in", operation="in")
    graph.add_node("out", operation="out")
    for edge, operation in live.items():
        graph.add_node(edge, operation=operation)
    for edge in live:
        feeding = ["in"] if edge[0] == 0 else [other for other in live if other[1] == edge[0]]
        graph.add_edges_from((other, edge) for other in feeding)
        if edge[1] == 3:
            graph.add_edge(edge, "out")
    return graph


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (nx.DiGraph([(0, 1), (1, 0)]), "acyclic"),
        (nx.MultiDiGraph([(0, 1), (0, 1)]), "without parallel edges"),
        (nx.DiGraph([(0, 2), (1, 2)]), r"one input, .* but got \[0, 1\]"),
        (nx.DiGraph([(0, 1), (0, 2)]), r"one output, .* but got \[1, 2\]"),
        (nx.DiGraph([("a.b", "c")]), "'a.b'"),
        (nx.DiGraph([(0, 1), (1, "0")]), r"'0' 2 time"),
        (nx.DiGraph(), "one input"),
        (nx.trivial_graph(nx.DiGraph), "at least one edge"),
    ],
)
def test_graphs_that_are_no_cells_are_refused(graph: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cell_edges(graph)


@pytest.mark.parametrize("operations", ["conv", ["none", 2], [1, 2]])
def test_operations_are_several_names(operations: Any) -> None:
    with pytest.raises(TypeError, match=r"`operations` must be several names, .*'conv'\], but got"):
        cell_space(NAS_BENCH_201, operations)


def test_names_that_no_architecture_has_are_warned_of_in_counts(caplog: pytest.LogCaptureFixture) -> None:
    space = cell_space(complete(3), ["zero", "skip", "conv"])
    own = count_distinct(complete(3), space, zero="zero", skip="skip")
    count_distinct(complete(3), cell_space(complete(3), ["conv"]), zero=None, skip=None)
    assert not caplog.records
    assert count_distinct(complete(3), space) > own
    text = caplog.text
    assert "no architecture has the operation 'none', which `zero` names" in text
    assert "no architecture has the operation 'skip_connect', which `skip` names" in text
    assert "they have conv, skip, zero" in text


def test_an_edge_without_an_operation_is_named() -> None:
    with pytest.raises(ValueError, match=r"no entry 'edge\.0-2'"):
        functional_form(NAS_BENCH_201, {"edge.0-1": "none"})
