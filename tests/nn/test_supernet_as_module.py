"""What any torch module does, a supernet does: moves, modes, copies, hooks, compilers, threads, saving."""

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nasx import Arch, Space, one_of
from nasx.nn import Subnet, Supernet, stacked
from tests.families import BY_NAME

SPACE = Space(width=one_of(4, 8), depth=one_of(1, 2))
LARGEST = Arch({"width": 8, "depth": 2})
X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Layers with statistics, dropout, and a table that the width decides."""

    table: Tensor

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        width = int(arch["width"])
        self.stem = nn.Linear(5, width)
        self.norm = nn.BatchNorm1d(width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(int(arch["depth"])))
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, 3)
        self.register_buffer("table", torch.linspace(0, 1, width, dtype=torch.float32), persistent=False)
        self.calls: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)) * self.table
        for block in self.blocks:
            x = x + self.drop(block(x).relu())
        return self.head(x)


def make(layout: Any = None) -> Supernet:
    torch.manual_seed(0)
    return Supernet(Network, SPACE, layout=layout)


HALVES = {"norm": stacked(2), "blocks.*": stacked(2)}
"""A layout of copies, where plain prefixes are views."""

both_layouts = pytest.mark.parametrize("layout", [None, HALVES], ids=["prefixes", "stacks"])


def same(supernet: Supernet, arch: Arch, x: Tensor) -> None:
    network = supernet.extract(arch)
    torch.manual_seed(0)
    expected = network(x)
    torch.manual_seed(0)
    torch.testing.assert_close(supernet(x, arch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_precision_is_changed_for_all(dtype: torch.dtype) -> None:
    supernet = make()
    before = supernet(X, SPACE[0])
    supernet.to(dtype)
    assert all(p.dtype == dtype for p in supernet.parameters())
    assert supernet(X.to(dtype), SPACE[0]).dtype == dtype
    network = supernet.extract(SPACE[0])
    assert {t.dtype for t in network.state_dict().values()} == {dtype, torch.int64}
    assert network.table.dtype == dtype
    same(supernet.eval(), SPACE[0], X.to(dtype))
    torch.testing.assert_close(supernet.float()(X, SPACE[0]).shape, before.shape)
    assert supernet.extract(SPACE[0]).table.dtype == torch.float32


def test_a_builder_of_two_precisions_keeps_both() -> None:
    def mixed(arch: Arch) -> nn.Module:
        network = Network(arch)
        network.blocks.to(torch.float64)
        network.table = network.table.double()
        return network

    supernet = Supernet(mixed, SPACE)
    assert supernet.get_parameter("stem.weight").dtype == torch.float32
    assert supernet.get_parameter("blocks.0.weight").dtype == torch.float64
    network = supernet.extract(SPACE[0])
    assert network.get_parameter("blocks.0.weight").dtype == network.table.dtype == torch.float64
    assert network.get_parameter("stem.weight").dtype == torch.float32


def test_networks_are_built_in_the_default_precision_that_the_supernet_was_built_in() -> None:
    supernet = make().double().eval()
    expected = [supernet(X.double(), arch) for arch in SPACE]
    torch.set_default_dtype(torch.float64)
    try:
        fresh = copy.deepcopy(supernet)
        for arch, outputs in zip(SPACE, expected, strict=True):
            assert torch.equal(fresh(X.double(), arch), outputs)
            assert torch.equal(fresh.extract(arch)(X.double()), outputs)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_it_moves_to_meta_and_is_made_there() -> None:
    moved = make().to("meta")
    with torch.device("meta"):
        made = Supernet(Network, SPACE)
    for supernet in (moved, made):
        assert {tensor.device.type for tensor in supernet.state_dict().values()} == {"meta"}
        assert {name: t.shape for name, t in supernet.state_dict().items()} == {
            name: t.shape for name, t in make().state_dict().items()
        }
        assert supernet(X.to("meta"), SPACE[0]).shape == (6, 3)
        assert {tensor.device.type for tensor in supernet.extract(SPACE[0]).state_dict().values()} == {"meta"}
    made.to_empty(device="cpu").load_state_dict(make().state_dict())
    torch.testing.assert_close(made.eval()(X, SPACE[3]), make().eval()(X, SPACE[3]))


def test_modes_are_the_supernets() -> None:
    supernet = make()
    assert supernet.extract(SPACE[0]).training
    supernet.eval()
    assert not any(module.training for module in supernet.extract(SPACE[0]).modules())
    assert torch.equal(supernet(X, SPACE[0]), supernet(X, SPACE[0]))
    before = supernet.get_buffer("norm.running_mean").clone()
    supernet.train()(X, SPACE[0])
    after = supernet.get_buffer("norm.running_mean")
    assert (before[:4] != after[:4]).all()
    assert torch.equal(before[4:], after[4:])


@pytest.mark.parametrize("way", ["constructor", "train"])
def test_modules_that_a_network_freezes_are_frozen_in_the_supernet_as_well(way: str) -> None:
    class Frozen(Network):
        def __init__(self, arch: Arch) -> None:
            super().__init__(arch)
            self.norm.eval()

        def train(self, mode: bool = True) -> "Frozen":
            super().train(mode)
            if way == "train":
                self.norm.eval()
            return self

    supernet = Supernet(Frozen, SPACE)
    same(supernet, SPACE[0], X)
    same(supernet.eval(), SPACE[0], X)
    same(supernet.train(), SPACE[0], X)
    assert supernet.extract(SPACE[0]).get_submodule("norm").training is (way == "constructor")


def test_hooks_of_the_networks_own_modules_run() -> None:
    calls: list[str] = []

    class Hooked(Network):
        def __init__(self, arch: Arch) -> None:
            super().__init__(arch)
            self.stem.register_forward_pre_hook(lambda module, args: calls.append("before"))
            self.stem.register_forward_hook(lambda module, args, output: output + 1)
            self.head.register_full_backward_hook(lambda module, *gradients: calls.append("backward"))

    supernet, plain = Supernet(Hooked, SPACE).eval(), make().eval()
    plain.load_state_dict(supernet.state_dict())
    same(supernet, SPACE[0], X)
    calls.clear()
    outputs = supernet(X, SPACE[0])
    outputs.sum().backward()
    assert calls == ["before", "backward"]
    assert not torch.equal(outputs, plain(X, SPACE[0]))


def test_hooks_of_the_supernet_run() -> None:
    supernet, seen = make(), []
    supernet.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    supernet(X, SPACE[0])
    assert seen == [(6, 3)]


def test_autocast_reaches_slices() -> None:
    supernet = make().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = supernet(X, SPACE[0]), supernet.extract(SPACE[0])(X)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    found.float().sum().backward()
    assert supernet.get_parameter("stem.weight").grad is not None


def test_what_is_extracted_compiles_whole() -> None:
    torch._dynamo.reset()
    supernet = make().eval()
    for arch in SPACE:
        network = supernet.extract(arch)
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(X), supernet(X, arch))
    torch._dynamo.reset()


@both_layouts
def test_a_deep_copy_is_of_its_own(layout: Any) -> None:
    supernet = make(layout)
    supernet(X, SPACE[0])  # with something to remember
    other = copy.deepcopy(supernet)
    assert other.space is supernet.space
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.train()(X, SPACE[0])
    for arch in SPACE:
        same(supernet.eval(), arch, X)
        same(other.eval(), arch, X)
        assert not torch.equal(supernet(X, arch), other(X, arch))
    assert int(other.get_buffer("norm.num_batches_tracked")) == 1 + int(supernet.get_buffer("norm.num_batches_tracked"))


@both_layouts
def test_it_is_pickled_with_its_weights_and_without_its_networks(layout: Any) -> None:
    supernet = make(layout).eval()
    before = len(pickle.dumps(supernet))
    expected = [supernet(X, arch) for arch in SPACE]
    assert len(pickle.dumps(supernet)) <= before + 100
    again: Supernet = pickle.loads(pickle.dumps(supernet))
    assert not again.training
    for arch, outputs in zip(SPACE, expected, strict=True):
        assert torch.equal(again(X, arch), outputs)


def test_tied_parameters_survive_copies() -> None:
    supernet = BY_NAME["tied"].make_supernet()
    for other in (copy.deepcopy(supernet), pickle.loads(pickle.dumps(supernet)), copy.deepcopy(supernet).double()):
        assert other.get_parameter("head.weight") is other.get_parameter("embed.weight")


@both_layouts
def test_a_state_dict_brings_everything_back(layout: Any) -> None:
    supernet, other = make(layout), make(layout)
    for arch in SPACE:
        supernet(X, arch)
    with torch.no_grad():
        supernet.get_parameter("head.weight").mul_(2)
    other(X, SPACE[0])
    other.load_state_dict(copy.deepcopy(supernet.state_dict()))
    for arch in SPACE:
        assert torch.equal(supernet.eval()(X, arch), other.eval()(X, arch))
    other.load_state_dict(copy.deepcopy(supernet.state_dict()), assign=True)
    assert torch.equal(supernet(X, SPACE[0]), other(X, SPACE[0]))


@both_layouts
def test_inference_mode_leaves_nothing_that_training_cannot_use(layout: Any) -> None:
    supernet = make(layout)
    with torch.inference_mode():
        supernet.eval()(X, SPACE[0])
        subnet = Subnet(supernet, SPACE[1])
        subnet(X)
        network = supernet.extract(SPACE[2])
    supernet.train()
    for outputs in (supernet(X, SPACE[0]), subnet.train()(X), network.train()(X)):
        outputs.sum().backward()
    assert supernet.get_parameter("stem.weight").grad is not None
    assert all(p.grad is not None for p in network.parameters())


def test_a_supernet_that_was_made_in_inference_mode_can_be_read() -> None:
    with torch.inference_mode():
        supernet = Supernet(Network, SPACE, layout=HALVES).eval()
        same(supernet, SPACE[0], X)


@both_layouts
def test_two_threads_run_two_networks(layout: Any) -> None:
    supernet = make(layout).eval()
    archs = list(SPACE)
    with torch.no_grad():
        expected = [supernet(X, arch) for arch in archs]
    start = threading.Barrier(len(archs))

    def run(arch: Arch) -> list[Tensor]:
        start.wait(60)
        with torch.no_grad():
            return [supernet(X, arch) for _ in range(20)]

    with ThreadPoolExecutor(len(archs)) as pool:
        for outputs, alone in zip(pool.map(run, archs), expected, strict=True):
            assert all(torch.equal(output, alone) for output in outputs)


def test_a_network_of_one_thread_is_not_anothers() -> None:
    supernet = make().eval()
    inside, leave = threading.Event(), threading.Event()

    class Waiting(Tensor):
        pass

    def slow(module: nn.Module, args: Any) -> None:
        if isinstance(args[0], Waiting):
            inside.set()
            assert leave.wait(60)

    handle = nn.modules.module.register_module_forward_pre_hook(slow)
    try:
        with torch.no_grad(), ThreadPoolExecutor(1) as pool:
            expected = supernet(X, SPACE[0])
            first = pool.submit(torch.no_grad()(supernet), X.as_subclass(Waiting), SPACE[0])
            assert inside.wait(60)
            second = supernet(X + 1, SPACE[0])  # while the first is in the same network
            leave.set()
            torch.testing.assert_close(first.result().as_subclass(Tensor), expected)
            torch.testing.assert_close(second, supernet(X + 1, SPACE[0]))
    finally:
        handle.remove()


def test_gradient_checkpoints_are_recomputed_in_the_right_network() -> None:
    class Checkpointed(Network):
        def forward(self, x: Tensor) -> Tensor:
            for block in [self.stem, *self.blocks, self.head]:
                x = checkpoint(block, x, use_reentrant=False)
            return x

    supernet, plain = (Supernet(maker, SPACE, layout=HALVES).double() for maker in (Checkpointed, Plain))
    plain.load_state_dict(supernet.state_dict())
    for module in (supernet, plain):
        sum(module(X.double(), arch).square().sum() for arch in SPACE).backward()
    for (name, mine), theirs in zip(supernet.named_parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad)


class Plain(Network):
    def forward(self, x: Tensor) -> Tensor:
        for block in [self.stem, *self.blocks, self.head]:
            x = block(x)
        return x


def test_networks_that_ran_hold_no_copies_of_the_weights() -> None:
    """However many there were: networks are kept, but what was copied for them is let go."""
    space = Space(**{f"w{i}": one_of(*range(2, 18, 2)) for i in range(3)})

    def chain(arch: Arch) -> nn.Module:
        return nn.Sequential(*[nn.Linear(a, b) for a, b in pairwise([5, *(int(v) for v in arch.values()), 4])])

    supernet = Supernet(chain, space, layout={"*.weight": stacked(2)})
    stored = {tensor.untyped_storage().data_ptr() for tensor in supernet.parameters()}

    def copies() -> int:
        gc.collect()
        matrices = (o for o in gc.get_objects() if type(o) is Tensor and not o.is_meta and o.ndim == 2)
        return sum(matrix.untyped_storage().data_ptr() not in stored for matrix in matrices)

    before = copies()
    for arch in space.sample(0, 30):
        with torch.no_grad():
            supernet(X, arch)
    assert 4 <= copies() - before <= 4 * 4  # those of the last four networks


def test_copies_are_found_by_name_where_the_value_has_a_dot() -> None:
    space = Space(ratio=one_of(3, 3.5))
    supernet = Supernet(lambda arch: nn.BatchNorm1d(int(arch["ratio"] * 2)), space, separate={"*": "ratio"})
    for name, parameter in supernet.named_parameters():
        assert supernet.get_parameter(name) is parameter
    for name, buffer in supernet.named_buffers():
        assert supernet.get_buffer(name) is buffer
    for get in (supernet.get_parameter, supernet.get_buffer):
        with pytest.raises(AttributeError):
            get("unknown")
    with pytest.raises(AttributeError):
        supernet.get_buffer("weight@ratio=3")


class TestBuffers:
    """State is shared, sliced and updated; what a builder computes belongs to each network."""

    @staticmethod
    def supernet(buffer: Callable[[int], Tensor], update: Callable[[nn.Module], None] = lambda m: None) -> Supernet:
        class WithBuffer(nn.Module):
            def __init__(self, arch: Arch) -> None:
                super().__init__()
                self.layer = nn.Linear(5, int(arch["width"]))
                self.register_buffer("state", buffer(int(arch["width"])))

            def forward(self, x: Tensor) -> Tensor:
                update(self)
                return self.layer(x) * self.get_buffer("state")

        return Supernet(WithBuffer, SPACE)

    def test_a_number_that_the_width_decides_is_computed(self) -> None:
        supernet = self.supernet(lambda width: torch.tensor(width**-0.5))
        assert "state" not in supernet.state_dict()
        for arch in SPACE:
            assert float(supernet.extract(arch).get_buffer("state")) == pytest.approx(int(arch["width"]) ** -0.5)
            same(supernet, arch, X)

    def test_a_table_of_which_the_smallest_is_one_number_is_computed(self) -> None:
        supernet = self.supernet(lambda width: (torch.arange(width) // 4).float())
        for arch in SPACE:
            same(supernet, arch, X)
        assert supernet.extract(SPACE[3]).get_buffer("state").tolist() == [0.0] * 4 + [1.0] * 4

    @pytest.mark.parametrize("assigned", [False, True], ids=["in place", "assigned"])
    def test_state_is_updated_in_the_slice(self, assigned: bool) -> None:
        def update(module: nn.Module) -> None:
            state = module.get_buffer("state")
            if assigned:
                module.state = state + 1
            else:
                state.add_(1)

        supernet = self.supernet(torch.zeros, update)
        small, large = SPACE[0], SPACE[3]
        for arch in (small, large, small):
            supernet(X, arch)
        assert supernet.get_buffer("state").tolist() == [3.0] * 4 + [1.0] * 4
        assert supernet.extract(small).get_buffer("state").tolist() == [3.0] * 4
        subnet = Subnet(supernet, small)
        for _ in range(2):
            subnet(X)
        assert supernet.get_buffer("state").tolist() == [5.0] * 4 + [1.0] * 4

    def test_computed_buffers_must_not_change(self) -> None:
        supernet = self.supernet(lambda width: torch.arange(width).float(), lambda m: m.get_buffer("state").add_(1))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="the buffer 'state' changes when the network runs"):
            supernet(X, SPACE[0])

    def test_a_buffer_that_is_empty_when_built_must_not_grow(self) -> None:
        supernet = self.supernet(lambda width: torch.empty(0), lambda m: m.get_buffer("state").resize_(1).fill_(1))  # type: ignore[arg-type]
        with pytest.raises(
            ValueError, match=r"'state' of a WithBuffer is empty when .* add .* to the extracted network"
        ):
            supernet(X, SPACE[0])


class TestSubnet:
    @both_layouts
    @pytest.mark.parametrize("training", [False, True])
    def test_it_is_the_supernet_at_one_architecture(self, layout: Any, training: bool) -> None:
        supernet = make(layout).double().train(training)
        for arch in SPACE:
            subnet = Subnet(supernet, arch)
            assert subnet.training is training
            network = supernet.extract(arch)
            torch.manual_seed(0)
            expected = network(X.double())
            torch.manual_seed(0)
            torch.testing.assert_close(subnet(X.double()), expected)
            assert set(dict(subnet.network.named_modules())) == set(dict(network.named_modules()))

    @both_layouts
    def test_it_follows_the_supernet(self, layout: Any) -> None:
        supernet = make(layout)
        subnet = Subnet(supernet, SPACE[0]).eval()
        for arch in (SPACE[0], LARGEST):  # statistics move
            supernet.train()(X * 3 + 1, arch)
        with torch.no_grad():
            supernet.get_parameter("stem.weight").mul_(2)
        kept = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
        torch.testing.assert_close(subnet(X), supernet.eval().extract(SPACE[0])(X))
        assert all(torch.equal(tensor, kept[name]) for name, tensor in supernet.state_dict().items())
        supernet.double()
        torch.testing.assert_close(subnet(X.double()), supernet.extract(SPACE[0])(X.double()))

    @both_layouts
    def test_its_statistics_are_the_supernets(self, layout: Any) -> None:
        supernet = make(layout)
        subnet = Subnet(supernet, SPACE[0])
        network = supernet.extract(SPACE[0])
        for module in (subnet.network, network):
            norm = module.get_submodule("norm")
            assert isinstance(norm, nn.BatchNorm1d)
            norm.reset_running_stats()
            norm.momentum = None
        for number in range(3):
            subnet(X + number)
            network(X + number)
        torch.testing.assert_close(supernet.extract(SPACE[0]).state_dict(), network.state_dict())
        subnet.load_state_dict({"network.norm.running_mean": torch.full((4,), 7.0)}, strict=False)
        subnet.eval()(X)
        assert supernet.extract(SPACE[0]).get_buffer("norm.running_mean").tolist() == [7.0] * 4

    def test_it_is_copied_and_pickled(self) -> None:
        subnet = Subnet(make().eval(), SPACE[1])
        for other in (copy.deepcopy(subnet), pickle.loads(pickle.dumps(subnet))):
            assert other.arch == SPACE[1]
            assert torch.equal(other(X), subnet(X))
            assert other.supernet is not subnet.supernet

    def test_any_other_supernet_is_called_as_it_is(self) -> None:
        class Own(nn.Module):
            def forward(self, x: Tensor, scale: float = 1, *, arch: Arch) -> Tensor:
                return x * int(arch["width"]) * scale

        assert torch.equal(Subnet(Own(), SPACE[3])(X, scale=2), X * 16)
