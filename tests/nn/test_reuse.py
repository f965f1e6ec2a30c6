"""Networks put together from parts of earlier ones are those that the builder makes, or else are built."""

import copy
from collections import deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from nasx import Arch, Space, one_of, repeat
from nasx.nn import Supernet
from nasx.nn import supernet as module
from nasx.nn.reuse import BlockCache
from tests.families import FAMILIES, RECIPES, Family

SPACE = Space(width=one_of(4, 6), block=repeat(Space(hidden=one_of(2, 3, 5), norm=one_of(False, True)), 3))
X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, *, norm: bool, rate: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.BatchNorm1d(hidden) if norm else nn.Identity()
        self.drop = nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(self.drop(self.norm(self.up(x)).relu()))
        return y


class Network(nn.Module):
    def __init__(self, arch: Arch) -> None:
        super().__init__()
        width = int(arch["width"])
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(self.block(arch, i, width) for i in range(3))

    def block(self, arch: Arch, i: int, width: int) -> nn.Module:
        return Block(width, int(arch[f"block.{i}.hidden"]), norm=bool(arch[f"block.{i}.norm"]), rate=0.1 * i)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(x)
        return y


def counted(make: Callable[[Arch], nn.Module], space: Space = SPACE, **settings: Any) -> tuple[Supernet, list[Arch]]:
    """Return a supernet, and a list that has the architecture of each network that is built from now on."""
    built: list[Arch] = []

    def build(arch: Arch) -> nn.Module:
        built.append(arch)
        return make(arch)

    torch.manual_seed(0)
    supernet = Supernet(build, space, **settings)
    built.clear()
    return supernet, built


def outputs(supernet: Supernet, archs: list[Arch]) -> list[Tensor]:
    """Return what networks give and what they do to the store, in both modes, one after the other."""
    found = []
    for number, arch in enumerate(archs):
        supernet.train(number % 3 != 2)
        torch.manual_seed(number)
        y = supernet(X, arch)
        y.square().sum().backward()
        found.append(y.detach())
    return [*found, *(p.grad for p in supernet.parameters() if p.grad is not None), *supernet.buffers()]


ARCHS = list(SPACE.sample(1, 150))


def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every network be built."""
    monkeypatch.setattr(BlockCache, "put_together", lambda self, arch, build: None)


def test_blocks_are_built_once_and_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, built = counted(Network)
    found = outputs(supernet, ARCHS)
    # 2 x 6 kinds of each block, and those that are compared at first
    assert BlockCache.FIRST < len(built) < BlockCache.FIRST + 50 < len(set(ARCHS))
    with monkeypatch.context() as patched:
        never(patched)
        supernet, built = counted(Network)
        expected = outputs(supernet, ARCHS)
        assert len(built) == len(set(ARCHS))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


class Looking(Network):
    """A block knows another one's choices: by its sizes, by an attribute, or only in some networks."""

    def __init__(self, arch: Arch, *, how: str) -> None:
        self.how = how
        super().__init__(arch)
        if how == "attribute":
            self.hidden = [int(arch[f"block.{i}.hidden"]) for i in range(3)]
        elif how == "closure":
            self.scale: Callable[[Tensor], Tensor] = lambda x: x * int(arch["block.0.hidden"])
        elif how == "hidden list":
            self.again = [self.blocks[0]]
        elif how == "array":
            self.table = np.array([int(arch[f"block.{i}.hidden"]) for i in range(3)])
        elif how == "hook":
            factor = int(arch["block.0.hidden"])
            self.blocks[1].register_forward_hook(lambda module, inputs, output: output * factor)

    def block(self, arch: Arch, i: int, width: int) -> nn.Module:
        block = super().block(arch, i, width)
        if self.how == "rate" and i == 2:
            block.drop.p = 0.1 * int(arch["block.0.hidden"])  # type: ignore[union-attr]
        return block

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "how":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.how == "attribute":
            return y * sum(self.hidden)
        if self.how == "closure":
            return self.scale(y)
        if self.how == "array":
            return y * int(self.table.sum())
        return y + self.again[0](self.stem(x)).mean() if self.how == "hidden list" else y


@pytest.mark.parametrize("how", ["rate", "attribute", "closure", "hidden list", "array", "hook"])
def test_parts_that_know_of_others_are_built_each_time(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, built = counted(partial(Looking, how=how))
    found = outputs(supernet, ARCHS)
    assert set(built) >= set(ARCHS)
    with monkeypatch.context() as patched:
        never(patched)
        supernet, _ = counted(partial(Looking, how=how))
        expected = outputs(supernet, ARCHS)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


class Rarely(Network):
    """A block knows the others' choices in one network of 54."""

    @staticmethod
    def is_rare(arch: Arch) -> bool:
        return bool(arch["block.0.norm"]) and [arch[f"block.{i}.hidden"] for i in range(3)] == [5, 5, 2]

    def __init__(self, arch: Arch) -> None:
        super().__init__(arch)
        if self.is_rare(arch):
            self.blocks[1].drop.p = 0.9  # type: ignore[union-attr]


def test_every_network_is_built_where_reuse_is_off() -> None:
    supernet, built = counted(Rarely, reuse=False)
    for copied in (supernet, copy.deepcopy(supernet)):
        built.clear()
        outputs(copied, ARCHS)
        assert len(built) == len(set(ARCHS))
    rare = [arch for arch in ARCHS if Rarely.is_rare(arch)]
    assert rare
    for arch in rare:
        torch.manual_seed(0)
        expected = supernet.extract(arch).train()(X)
        torch.manual_seed(0)
        torch.testing.assert_close(supernet.train()(X, arch), expected)


def test_a_module_in_two_places_is_built_each_time() -> None:
    class Tied(Network):
        def __init__(self, arch: Arch) -> None:
            super().__init__(arch)
            self.last = self.blocks[2]

    supernet, built = counted(Tied)
    outputs(supernet, ARCHS[:60])
    assert len(built) == len(set(ARCHS[:60]))


class Counting(Block):
    """A block that writes to what all blocks and the network know."""

    def __init__(self, width: int, hidden: int, store: Any) -> None:
        super().__init__(width, hidden, norm=False, rate=0.0)
        self.store = store

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if isinstance(self.store, SimpleNamespace):
            self.store.total = self.store.total + x.mean()
        elif isinstance(self.store, dict):
            self.store["total"] = self.store.get("total", 0) + x.mean()
        else:
            self.store.append(x.mean())
        return x


class Sharing(Network):
    shared: Any

    def __init__(self, arch: Arch, *, kind: Callable[[], Any]) -> None:
        self.__dict__["shared"] = kind()
        super().__init__(arch)

    def block(self, arch: Arch, i: int, width: int) -> nn.Module:
        return Counting(width, int(arch[f"block.{i}.hidden"]), self.shared)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.shared, SimpleNamespace):
            self.shared.total = 0
        else:
            self.shared.clear()
        y = super().forward(x)
        if isinstance(self.shared, SimpleNamespace):
            return y + self.shared.total
        return y + sum(self.shared.values() if isinstance(self.shared, dict) else self.shared)


OUTSIDE: dict[str, Any] = {}
STORES: dict[str, Callable[[], Any]] = {
    "list": list,
    "dict": dict,
    "deque": deque,
    "namespace": lambda: SimpleNamespace(total=0),
    "the program's own": lambda: OUTSIDE,
}


@pytest.mark.parametrize("kind", list(STORES))
def test_objects_that_modules_share_and_change_stay_shared(kind: str) -> None:
    supernet, _ = counted(partial(Sharing, kind=STORES[kind]))
    supernet.eval()
    for arch in ARCHS[:60]:
        with torch.no_grad():
            torch.testing.assert_close(supernet(X, arch), supernet.extract(arch)(X))


class Collecting(Network):
    """A network that keeps what it saw in training."""

    def __init__(self, arch: Arch) -> None:
        super().__init__(arch)
        self.kept: deque[int] = deque()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.kept.append(len(x))
        return super().forward(x) + len(self.kept)


def test_what_one_network_keeps_is_not_anothers() -> None:
    supernet, _ = counted(Collecting)
    first, *others = dict.fromkeys(ARCHS)
    supernet.eval()
    with torch.no_grad():
        supernet(X, first)
        supernet.train()
        for arch in others:
            supernet(X, arch)
        supernet.eval()
        network = supernet.extract(first)
        torch.testing.assert_close(supernet(X, first), network(X))


class TiedWeights(Network):
    """A head that has the weight of the first block, which exists once for each of that block's choices."""

    def __init__(self, arch: Arch) -> None:
        super().__init__(arch)
        first, last = self.blocks[0], self.blocks[2]
        assert isinstance(first, Block)
        assert isinstance(last, Block)
        last.down.bias = first.down.bias


def test_tied_tensors_with_copies_are_those_of_their_own_choices() -> None:
    supernet, _ = counted(TiedWeights, separate={"blocks.0.down.bias": "hidden"})
    supernet.eval()
    for arch in ARCHS[:60]:
        with torch.no_grad():
            torch.testing.assert_close(supernet(X, arch), supernet.extract(arch)(X))


@pytest.mark.parametrize("family", RECIPES, ids=str)
def test_networks_of_the_recipes_can_be_put_together(family: Family) -> None:
    supernet = family.make_supernet()
    for arch in family.space.sample(0, 2):
        supernet._network_of(arch)
    assert supernet._networks.blocks.works


def test_a_difference_that_is_met_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockCache, "FIRST", 0)
    monkeypatch.setattr(BlockCache, "LATER", 5)
    supernet, _ = counted(partial(Looking, how="rate"))
    with pytest.raises(ValueError, match="depend on choices of other parts"):
        outputs(supernet, ARCHS)


class Checkpointed(Network):
    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        y: Tensor = self.head(x)
        return y


class Reentrant(Checkpointed):
    reentrant = True


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("kind", [Checkpointed, Reentrant])
def test_a_gradient_is_computed_after_others_ran(kind: type[Network], monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may have the same blocks, without gradients as a teacher has them."""
    monkeypatch.setattr(module, "_HELD", 2)
    supernet, built = counted(kind, layout={"*.down.weight": last})
    for arch in ARCHS[:80]:
        supernet(X, arch)
    known = len(built)
    supernet.eval()
    for number in range(80, len(ARCHS) - 3, 3):
        earlier, held, later = ARCHS[number : number + 3]
        supernet(X, earlier)
        y, network = supernet(X, held), supernet.extract(held)
        with torch.no_grad():
            supernet(X, later)
        supernet.zero_grad()
        y.sum().backward()
        network(X).sum().backward()
        for name, parameter in network.named_parameters():
            found = supernet.get_parameter(name).grad
            assert found is not None
            assert parameter.grad is not None
            assert torch.allclose(found.norm(), parameter.grad.norm(), rtol=1e-4), name
    assert len(built) - known < 60 + 23  # of which extracting took 23 and more


def test_each_network_has_modes_of_its_own() -> None:
    supernet, _ = counted(Network)
    outputs(supernet, ARCHS)
    for arch in ARCHS:
        for training in (False, True):
            supernet.train(training)
            supernet(X, arch)
            network = supernet._network_of(arch).network
            assert {part.training for part in network.modules()} == {training}


class Remembering(Network):
    """What a network has seen is its own, and no difference."""

    def __init__(self, arch: Arch) -> None:
        super().__init__(arch)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen = max(self.seen, len(x))
        return super().forward(x) * self.seen


def test_what_a_network_notes_when_it_runs_is_its_own() -> None:
    supernet, built = counted(Remembering)
    with torch.no_grad():
        for number, arch in enumerate(ARCHS):
            supernet(X[: 2 + number % 5], arch)
    assert len(built) < len(set(ARCHS))


class Optional(nn.Module):
    """A list that some networks do not have, beside recurrent layers."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 5, batch_first=True)
        count = int(arch["a.count"])
        if count:
            self.a = nn.ModuleList(nn.Linear(5, 5, bias=bool(arch[f"a.{i}.bias"])) for i in range(count))
        self.b = nn.ModuleList(nn.Linear(5, 5, bias=bool(arch[f"b.{i}.bias"])) for i in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.gru(x[:, None])
        for layer in [*getattr(self, "a", []), *self.b]:
            x = layer(x)
        return x


def test_lists_may_be_absent_and_layers_recurrent() -> None:
    choices = Space(bias=one_of(False, True))
    space = Space(a=repeat(choices, one_of(2, 0)), b=repeat(choices, 2))
    supernet, _ = counted(Optional, space)
    for arch in space.sample(0, 60):
        with torch.no_grad():
            torch.testing.assert_close(supernet(X, arch), supernet.extract(arch)(X))


def tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def last(name: str, largest: tuple[int, ...], wanted: tuple[int, ...], choices: Any) -> tuple[Any, ...]:
    return slice(0, wanted[0]), torch.arange(largest[1] - wanted[1], largest[1])


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_every_family_gives_what_its_extracted_networks_do(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockCache, "FIRST", 4)  # fewer comparisons: what is put together is used, and later refused
    torch.manual_seed(0)
    supernet = family.make_supernet().eval()
    archs = list(family.space.sample(5, 12))
    mixed = [family.space.crossover(archs[i], archs[i - 1], i) for i in range(len(archs))]
    for arch in [*archs, *mixed]:
        with torch.no_grad():
            ours, theirs = supernet(*family.args, arch=arch, **family.kwargs), supernet.extract(arch)
            expected = theirs(*family.args, **family.kwargs)
        for mine, their in zip(*map(tensors, (ours, expected)), strict=True):
            torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-5)
