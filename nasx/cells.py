"""Cells: an operation on every edge of a directed acyclic graph, and how many of them are different functions.

A cell has one input (the node that nothing enters) and one output (the node that nothing leaves); a node is the sum
of its incoming edges. An edge whose operation is the zero operation is absent, and so is whatever then lies on no path
from the input to the output. `nasx.nn.Cell` runs cells by the same rule.
"""

import logging
import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nasx.arch import Arch, Value
from nasx.space import Space, one_of

if TYPE_CHECKING:
    import networkx as nx

logger = logging.getLogger(__name__)

Edge = tuple[Hashable, Hashable]
"""Source and target of an edge."""

Term = tuple[str, tuple[tuple[int, int], ...]]
"""An operation and the sum that it is applied to: pairs of an earlier term's number and how often that term comes."""

Form = tuple[Term, ...]
"""A cell written as numbered terms: the input first, the output's sum last."""


def cell_edges(graph: "nx.DiGraph[Any]") -> tuple[Edge, ...]:
    """Return a cell's edges in their canonical order: by target, then by source, both in topological order.

    The first edge leaves the input and the last one enters the output. Nodes are spelled by `str` in names, with
    letters, digits and underscores only. A graph that is no cell is a ValueError.
    """
    import networkx as nx  # here, because searches without cells need not load it

    if graph.is_multigraph() or not graph.is_directed() or not nx.is_directed_acyclic_graph(graph):
        raise ValueError(f"a cell is a directed acyclic graph without parallel edges, but got {graph}")
    ends = {
        "input, the node that nothing enters": [node for node, degree in graph.in_degree if degree == 0],
        "output, the node that nothing leaves": [node for node, degree in graph.out_degree if degree == 0],
    }
    for what, found in ends.items():
        if len(found) != 1:
            raise ValueError(f"a cell has one {what}, but got {found}; join them by a node of their own")
    if not graph.edges:
        raise ValueError("a cell has at least one edge, but got a single node")
    spelled = Counter(map(str, graph))
    for name, count in spelled.items():
        if count > 1 or not re.fullmatch(r"\w+", name):
            raise ValueError(
                f"nodes need different names of letters, digits and underscores, but got {name!r} {count} time(s)"
            )
    place = {node: i for i, node in enumerate(nx.topological_sort(graph))}
    return tuple(sorted(graph.edges, key=lambda edge: (place[edge[1]], place[edge[0]])))


def edge_name(edge: Edge) -> str:
    """Return an edge's name in an architecture: `edge.0-1` leads from node 0 to node 1."""
    return f"edge.{edge[0]}-{edge[1]}"


def cell_space(graph: "nx.DiGraph[Any]", operations: Iterable[str]) -> Space:
    """Return the space of a cell: one of `operations` for every edge of `graph`, in the edges' canonical order.

    A TypeError refuses operations that are no list of names.

    Examples:
        >>> import networkx as nx
        >>> cell_space(nx.DiGraph([(0, 1), (0, 2), (1, 2)]), ["none", "skip_connect", "conv"]).size
        27
    """
    names = [operations] if isinstance(operations, str) else list(operations)
    if names == [operations] or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"`operations` must be several names, such as ['none', 'skip_connect', 'conv'], but got {operations!r}"
        )
    choice = one_of(*names)
    return Space(edge=Space(**{edge_name(edge).removeprefix("edge."): choice for edge in cell_edges(graph)}))


def live_edges(edges: Iterable[Edge], arch: Mapping[str, Value], zero: str | None = "none") -> dict[Edge, str]:
    """Return the operations of the edges that the output depends on, in order.

    `edges` are those of `cell_edges`. An edge lives if it is on a path from the input to the output on which no
    operation is `zero`. Without such a path the result is empty. A ValueError names an edge that has no operation.
    """
    edges = tuple(edges)
    for edge in edges:
        if edge_name(edge) not in arch:
            raise ValueError(f"the architecture has no entry {edge_name(edge)!r}; every edge of a cell needs one")
    reached, needed = {edges[0][0]}, {edges[-1][1]}
    alive = []
    for edge in edges:  # edges into a node come before those out of it
        operation = str(arch[edge_name(edge)])
        if operation != zero and edge[0] in reached:
            reached.add(edge[1])
            alive.append((edge, operation))
    kept = []
    for edge, operation in reversed(alive):
        if edge[1] in needed:
            needed.add(edge[0])
            kept.append((edge, operation))
    return dict(reversed(kept))


def cell_graph(graph: "nx.DiGraph[Any]", arch: Mapping[str, Value], *, zero: str | None = "none") -> "nx.DiGraph[Any]":
    """Return an architecture as a graph: the live edges with their `operation`, and the nodes that they join.

    Nodes have a `kind`: "input", "output" or "sum". Input and output are there even where nothing joins them.
    """
    import networkx as nx

    edges = cell_edges(graph)
    pruned: nx.DiGraph[Any] = nx.DiGraph()
    pruned.add_node(edges[0][0])
    for (source, target), operation in live_edges(edges, arch, zero).items():
        pruned.add_edge(source, target, operation=operation)
    pruned.add_node(edges[-1][1])
    nx.set_node_attributes(pruned, dict.fromkeys(pruned, "sum"), "kind")
    pruned.nodes[edges[0][0]]["kind"], pruned.nodes[edges[-1][1]]["kind"] = "input", "output"
    return pruned


def functional_form(
    graph: "nx.DiGraph[Any]",
    arch: Mapping[str, Value],
    *,
    zero: str | None = "none",
    skip: str | None = "skip_connect",
    weightless: Collection[str] = (),
) -> Form:
    """Return a form that two architectures share exactly if they are one function up to the names of their weights.

    Every live edge but the skips applies a function of its own to a sum of such functions' results and of the input;
    skips only copy, so the sums run through them. Two architectures are equivalent if renaming the edges that carry
    functions, operation by operation, turns the output's expression into the other's. That is: for any weights of the
    one there are weights of the other, edge by edge the same, with equal outputs, whatever functions the operations
    are, as long as sums may be reordered. `weightless` operations have nothing of their own, so two of them applied to
    the same sum are one and the same term (and a sum may then hold a term twice).

    Not identified is what needs to know an operation from inside: that pooling distributes over sums, that parallel
    linear maps add up to one, that a scaled term can hide in a BatchNorm. Nor are a zero input's images: nothing runs
    on an edge that the input does not reach, whereas a convolution with BatchNorm would give a constant there.

    Nodes are numbered by an exact canonical labelling (colour refinement, then the least of all individualisations
    that are left), so equal forms need no further isomorphism test. It takes well below a millisecond for usual cells,
    but k parallel chains of equal operations take k! steps: half a second for 7 of them.
    """
    return _form(cell_edges(graph), arch, zero, skip, frozenset(weightless))


def count_distinct(
    graph: "nx.DiGraph[Any]",
    archs: Iterable[Arch],
    *,
    zero: str | None = "none",
    skip: str | None = "skip_connect",
    weightless: Collection[str] = (),
) -> int:
    """Return how many different functions architectures are, by `functional_form`.

    The 15,625 cells of NAS-Bench-201 (Dong and Yang, ICLR 2020) are 5,425 functions, or 5,260 with `avg_pool_3x3`
    weightless. The paper's 6,466 come from another rule, see `written_form`. Where no architecture has the operation
    `zero`, or `skip`, or one of `weightless`, a warning says so, for a name that is spelled otherwise counts as any
    other; None says that there is none.
    """
    edges, free, archs = cell_edges(graph), frozenset(weightless), list(archs)
    met = {arch[name] for arch in archs for name in map(edge_name, edges) if name in arch}
    for role, operation in (("zero", zero), ("skip", skip), *(("weightless", name) for name in sorted(free))):
        if archs and operation is not None and operation not in met:
            logger.warning(
                "no architecture has the operation %r, which `%s` names, so none is taken for it; they have %s: name "
                "yours, or leave it out with None",
                operation,
                role,
                ", ".join(map(str, sorted(met, key=str))),
            )
    return len({_form(edges, arch, zero, skip, free) for arch in archs})


def written_form(
    graph: "nx.DiGraph[Any]",
    arch: Mapping[str, Value],
    *,
    zero: str | None = "none",
    skip: str | None = "skip_connect",
) -> str:
    """Return the output's expression as NAS-Bench-201 writes it: architectures of one text are one topology there.

    Each node is the sorted list of its edges' texts, where a skip gives its source's text and a zero, or anything
    applied to a text that is a zero alone, gives a zero. It gives 6,466 texts for NAS-Bench-201's 15,625 cells, the
    number of the paper, and 12,751 with `zero=None`, which takes zeros for ordinary operations.

    The rule is neither finer nor coarser than `functional_form`: zeros stay in a sum's text, and a sum copied by a skip
    stands in the other as one piece, so one function has several texts (6,466 instead of 4,930 without these two); but
    operations that read the same are one, whether or not they have weights of their own (4,930 instead of 5,425).
    """
    edges = cell_edges(graph)
    texts: dict[Hashable, list[str]] = {edges[0][0]: ["input"]}
    for edge in edges:
        operation = str(arch[edge_name(edge)])
        source = "+".join(sorted(texts[edge[0]]))
        if operation == zero or (source == "#" and zero is not None):
            text = "#"
        else:
            text = source if operation == skip else f"({source}){operation}"
        texts.setdefault(edge[1], []).append(text)
    return "+".join(sorted(texts[edges[-1][1]]))


def _form(
    edges: tuple[Edge, ...], arch: Mapping[str, Value], zero: str | None, skip: str | None, weightless: frozenset[str]
) -> Form:
    terms: list[Term] = [("input", ())]
    known: dict[Term, int] = {}
    sums: dict[Hashable, Counter[int]] = {edges[0][0]: Counter([0])}
    for (source, target), operation in live_edges(edges, arch, zero).items():
        into = sums.setdefault(target, Counter())
        if operation == skip:
            into.update(sums[source])
            continue
        term = operation, _sorted(sums[source])
        number = known.get(term) if operation in weightless else None
        if number is None:
            number = known[term] = len(terms)
            terms.append(term)
        into[number] += 1
    terms.append(("output", _sorted(sums.get(edges[-1][1], Counter()))))
    return _canonical(tuple(terms))


def _sorted(sums: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted(sums.items()))


@lru_cache(maxsize=1 << 16)  # many architectures differ in dead edges alone
def _canonical(terms: Form) -> Form:
    uses: list[list[tuple[int, int]]] = [[] for _ in terms]
    depths: list[int] = []
    for number, (_, inputs) in enumerate(terms):
        depths.append(1 + max((depths[i] for i, _ in inputs), default=-1))
        for i, times in inputs:
            uses[i].append((number, times))

    def refined(colours: list[int]) -> list[int]:
        while True:
            seen = [
                (colour, *(tuple(sorted((colours[i], times) for i, times in near)) for near in (terms[n][1], uses[n])))
                for n, colour in enumerate(colours)
            ]
            finer = _ranks(seen)
            if len(set(finer)) == len(set(colours)):
                return finer
            colours = finer

    def numberings(colours: list[int]) -> Iterator[list[int]]:
        shared = [colour for colour, count in Counter(colours).items() if count > 1]
        if not shared:
            yield colours
            return
        twins = set()  # what has the same inputs and uses is interchangeable: one of them stands for all
        for number in (n for n, colour in enumerate(colours) if colour == min(shared)):
            if (near := (terms[number][1], tuple(uses[number]))) not in twins:
                twins.add(near)
                yield from numberings(refined([2 * c - (n == number) for n, c in enumerate(colours)]))

    def renumbered(numbers: list[int]) -> Form:
        order = sorted(range(len(terms)), key=numbers.__getitem__)
        return tuple((terms[n][0], tuple(sorted((numbers[i], k) for i, k in terms[n][1]))) for n in order)

    last = len(terms) - 1  # the output, even of a cell in which nothing reaches it
    first = [(n == last, depths[n], operation) for n, (operation, _) in enumerate(terms)]
    return min(map(renumbered, numberings(refined(_ranks(first)))))


def _ranks(keys: list[Any]) -> list[int]:
    rank = {key: i for i, key in enumerate(sorted(set(keys)))}
    return [rank[key] for key in keys]
