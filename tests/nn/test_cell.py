"""The module of a cell: sums along the graph, plain extracts, and equal functions for equal forms."""

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

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 1)
        self.cells = nn.ModuleList(Cell(complete(4), OPERATIONS, choices) for choices in arch.parts("cell"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x)
        return self.head(x)


class TestCellSupernet(SupernetContract):
    space = Space(cell=repeat(cell_space(complete(4), OPERATIONS), 2))

    def make_supernet(self) -> Supernet:
        return Supernet(Network, self.space)

    def make_inputs(self) -> Tensor:
        return torch.randn(3, 1, 6, 6)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x.square()


def of_three(first: str, second: str, third: str) -> Arch:
    return Arch({"edge.0-1": first, "edge.0-2": second, "edge.1-2": third})


def test_a_node_is_the_sum_of_its_edges() -> None:
    operations: dict[str, Callable[[], nn.Module] | None] = {"none": None, "skip_connect": nn.Identity, "scale": Scale}
    x = torch.randn(2, 5)

    def run(*names: str) -> tuple[Tensor, Callable[[str], nn.Module]]:
        cell = Cell(complete(3), operations, of_three(*names))
        return cell(x), lambda edge: cell.get_submodule(f"edges.{edge}.scale")

    found, at = run("scale", "scale", "scale")
    torch.testing.assert_close(found, at("0-2")(x) + at("1-2")(at("0-1")(x)))
    found, at = run("scale", "skip_connect", "skip_connect")
    torch.testing.assert_close(found, x + at("0-1")(x))
    found, at = run("none", "scale", "scale")
    torch.testing.assert_close(found, at("0-2")(x))
    assert torch.equal(run("skip_connect", "skip_connect", "skip_connect")[0], 2 * x)
    assert torch.equal(run("scale", "none", "none")[0], torch.zeros_like(x))


def test_what_is_on_no_path_is_not_built() -> None:
    cell = Cell(complete(3), OPERATIONS, of_three("none", "conv", "conv"))
    assert {name.split(".")[1] for name in cell.state_dict()} == {"0-2"}
    empty = Cell(complete(4), OPERATIONS, cell_space(complete(4), OPERATIONS)[0])
    assert not list(empty.parameters())
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(empty(x), torch.zeros_like(x))


def test_every_operation_of_every_edge_has_weights_of_its_own_in_a_supernet() -> None:
    space = cell_space(complete(3), OPERATIONS)
    supernet = Supernet(lambda arch: Cell(complete(3), OPERATIONS, arch), space).train()
    assert {name.rpartition(".conv")[0] for name in supernet.state_dict()} == {"edges.0-1", "edges.0-2", "edges.1-2"}
    supernet(torch.randn(2, 3, 4, 4), of_three("none", "conv", "conv")).sum().backward()
    used = {name.split(".")[1] for name, parameter in supernet.named_parameters() if parameter.grad is not None}
    assert used == {"0-2"}
    batches = {name.split(".")[1]: int(b) for name, b in supernet.named_buffers() if name.endswith("tracked")}
    assert batches == {"0-1": 0, "0-2": 1, "1-2": 0}


def test_a_cell_is_plain_torch() -> None:
    arch = cell_space(complete(4), OPERATIONS)[0]
    cell = Cell(complete(4), OPERATIONS, Arch({**arch, "edge.0-1": "conv", "edge.0-3": "conv", "edge.1-2": "conv"}))
    x = torch.randn(1, 3, 4, 4)
    assert {name.split(".")[1] for name in cell.state_dict()} == {"0-3"}
    assert count_macs(cell, x) == 16 * 3 * 3 * 9
    exported = torch.export.export(cell.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), cell(x))
    compiled = torch.compile(cell, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), cell(x))
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
    space = cell_space(graph, operations)
    generator = torch.Generator().manual_seed(0)
    pool = [
        [nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64)) for shape in ((2, 2), (2,))]
        for _ in graph.edges
    ]
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64)

    @torch.no_grad()
    def least_output(arch: Arch) -> tuple[float, ...]:
        network = Cell(graph, operations, arch).double()
        kinds: dict[str, list[Bend]] = defaultdict(list)
        for name, module in network.named_modules():
            if isinstance(module, Bend):
                kinds[name.rpartition(".")[2]].append(module)
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
    conv_only = of_three("conv", "conv", "conv")
    with pytest.raises(ValueError, match="at most one of them None"):
        Cell(complete(3), {"none": None, "zero": None, "conv": conv}, conv_only)
    with pytest.raises(ValueError, match="at most one of them None"):
        Cell(complete(3), {"none": None}, of_three("none", "none", "none"))
    for name in ("type", "training", "conv.3x3", ""):
        with pytest.raises(ValueError, match="must be one that a module can have, but got"):
            Cell(complete(3), {"none": None, name: conv}, of_three("none", name, name))
    with pytest.raises(TypeError, match="a string as its name, but got 2; write '2'"):
        Cell(complete(3), {"none": None, 2: conv}, conv_only)  # type: ignore[dict-item]
    for arch in (of_three("none", "none", "max"), Arch({"edge.0-1": "none"})):
        with pytest.raises(ValueError, match=r"edge\.\d-2 must be one of none, skip_connect, conv, pool, but got"):
            Cell(complete(3), OPERATIONS, arch)
