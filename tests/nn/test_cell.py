"""The module of a cell: sums along the graph, plain extracts, and equal functions for equal forms."""

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

from nasx import Arch, Space, repeat
from nasx.cells import cell_space, functional_form
from nasx.measure import count_macs
from nasx.nn import Cell, Supernet
from nasx.testing import SupernetContract


def complete(nodes: int) -> "nx.DiGraph[int]":
    return nx.DiGraph([(i, j) for j in range(nodes) for i in range(j)])


def conv() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.2))


OPERATIONS: dict[str, Callable[[], nn.Module] | None] = {
    "none": None,
    "skip_connect": nn.Identity,
    "conv": conv,
    "pool": lambda: nn.AvgPool2d(3, stride=1, padding=1),
}


class Network(nn.Module):
    """Two cells of their own architectures between two convolutions, so that something is trained by every path."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 1)
        self.cells = nn.ModuleList(Cell(complete(4), OPERATIONS) for _ in range(2))

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        x = self.stem(x)
        for cell, choices in zip(self.cells, arch.parts("cell"), strict=True):
            x = cell(x, choices)
        return self.head(x)

    def extract(self, arch: Arch) -> nn.Module:
        cells = [cell.extract(choices) for cell, choices in zip(self.cells, arch.parts("cell"), strict=True)]  # type: ignore[operator]
        ends = copy.deepcopy([self.stem, self.head])
        return nn.Sequential(ends[0], *cells, ends[1]).train(self.training)


class TestCellSupernet(SupernetContract):
    space = Space(cell=repeat(cell_space(complete(4), OPERATIONS), 2))

    def make_supernet(self) -> Supernet:
        return Network()

    def make_inputs(self) -> Tensor:
        return torch.randn(3, 1, 6, 6)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x.square()


def test_a_node_is_the_sum_of_its_edges() -> None:
    cell = Cell(complete(3), {"none": None, "skip_connect": nn.Identity, "scale": Scale})
    a, b, c = (cell.get_submodule(f"edges.{edge}.on_scale") for edge in ("0-1", "0-2", "1-2"))
    x = torch.randn(2, 5)

    def run(first: str, second: str, third: str) -> Tensor:
        return cell(x, Arch({"edge.0-1": first, "edge.0-2": second, "edge.1-2": third}))

    torch.testing.assert_close(run("scale", "scale", "scale"), b(x) + c(a(x)))
    torch.testing.assert_close(run("scale", "skip_connect", "skip_connect"), x + a(x))
    torch.testing.assert_close(run("none", "scale", "scale"), b(x))
    torch.testing.assert_close(run("skip_connect", "skip_connect", "skip_connect"), 2 * x)
    assert torch.equal(run("scale", "none", "none"), torch.zeros_like(x))


def test_a_dead_edge_does_not_run() -> None:
    cell = Cell(complete(3), OPERATIONS).train()
    cell(torch.randn(2, 3, 4, 4), Arch({"edge.0-1": "none", "edge.0-2": "conv", "edge.1-2": "conv"})).sum().backward()
    used = {name.split(".")[1] for name, parameter in cell.named_parameters() if parameter.grad is not None}
    assert used == {"0-2"}
    batches = {name.split(".")[1]: int(b) for name, b in cell.named_buffers() if name.endswith("tracked")}
    assert batches == {"0-1": 0, "0-2": 1, "1-2": 0}


def test_an_extract_is_plain_torch_without_dead_parts() -> None:
    cell = Cell(complete(4), OPERATIONS)
    arch = cell_space(complete(4), OPERATIONS)[0]
    x = torch.randn(1, 3, 4, 4)
    empty = cell.extract(arch)
    assert torch.equal(empty(x), torch.zeros_like(x))
    assert not list(empty.parameters())
    network = cell.extract(Arch({**arch, "edge.0-1": "conv", "edge.0-3": "conv", "edge.1-2": "conv"}))
    assert {name.split(".")[1] for name in network.state_dict()} == {"0-3"}
    assert count_macs(network, x) == 16 * 3 * 3 * 9
    assert all(type(module).__module__.startswith("torch.") for module in network.modules())
    torch.export.export(network.eval(), (x,))


def test_a_cell_compiles_whole() -> None:
    cell = Cell(complete(4), OPERATIONS).eval()
    run = torch.compile(cell, backend="eager", fullgraph=True)
    x = torch.randn(1, 3, 4, 4)
    for arch in cell_space(complete(4), OPERATIONS).sample(0, 2):
        torch.testing.assert_close(run(x, arch), cell(x, arch))
    torch._dynamo.reset()


class Bend(nn.Module):
    """A function of which nothing is known but its weights."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight, self.bias = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight + self.scale * self.bias)


WEIGHTED: dict[str, Callable[[], nn.Module] | None] = {"none": None, "skip_connect": nn.Identity, "bend": Bend}


@pytest.mark.parametrize(
    ("nodes", "operations"),
    [(3, {**WEIGHTED, "other": lambda: Bend(0.3), "free": nn.Softplus}), (4, WEIGHTED)],
    ids=["3 nodes", "4 nodes"],
)
def test_equal_forms_are_equal_functions_for_some_naming_of_the_weights(
    nodes: int, operations: dict[str, Callable[[], nn.Module] | None]
) -> None:
    """The least output over all ways to hand out one pool of weights tells functions up to the names of weights."""
    graph = complete(nodes)
    space, cell = cell_space(graph, operations), Cell(graph, operations).double()
    generator = torch.Generator().manual_seed(0)
    pool = [
        [nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64)) for shape in ((2, 2), (2,))]
        for _ in cell.edges
    ]
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64)

    @torch.no_grad()
    def least_output(arch: Arch) -> tuple[float, ...]:
        network = cell.extract(arch)
        kinds: dict[str, list[Bend]] = defaultdict(list)
        for name, module in network.named_modules():
            if isinstance(module, Bend):
                kinds[str(arch["edge." + name.removeprefix("edges.")])].append(module)
        outputs = []
        for handed in itertools.product(*(itertools.permutations(pool[: len(m)]) for m in kinds.values())):
            for modules, weights in zip(kinds.values(), handed, strict=True):
                for module, (weight, bias) in zip(modules, weights, strict=True):
                    module.weight, module.bias = weight, bias
            outputs.append(tuple(round(value, 9) for value in network(x).flatten().tolist()))
        return min(outputs)

    by_form, by_output = defaultdict(set), defaultdict(set)
    for number, arch in enumerate(space):
        by_form[functional_form(graph, arch, weightless=["free"])].add(number)
        by_output[least_output(arch)].add(number)
    assert sorted(map(sorted, by_form.values())) == sorted(map(sorted, by_output.values()))


def test_operations_and_architectures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at most one is None"):
        Cell(complete(3), {"none": None, "zero": None, "conv": conv})
    with pytest.raises(ValueError, match="at most one is None"):
        Cell(complete(3), {"none": None})
    cell, x = Cell(complete(3), OPERATIONS), torch.zeros(1, 3, 4, 4)
    for arch in (Arch({"edge.0-1": "none", "edge.0-2": "none", "edge.1-2": "max"}), Arch({"edge.0-1": "none"})):
        for use in (lambda arch=arch: cell(x, arch), lambda arch=arch: cell.extract(arch)):
            with pytest.raises(ValueError, match=r"edge\.\d-2 must be one of none, skip_connect, conv, pool, but got"):
                use()
