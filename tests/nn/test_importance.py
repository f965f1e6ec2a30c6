"""Weights ordered by importance: the largest network computes the same, and its slices hold what matters most."""

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasx import Arch, Space, one_of, repeat
from nasx.data import TrainBatches, channel_statistics, eval_batches, load_digits
from nasx.nn import Attention, FeedForward, Member, Supernet, Units, heads, neurons, order_by_importance, stacked
from nasx.train import Unpacked, adamw, evaluate, train
from tests.families import BY_NAME

SPACE = Space(width=one_of(8, 16), block=repeat(Space(hidden=one_of(6, 12)), 2))
X = torch.randn(5, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, width // 4), FeedForward(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, arch: Arch) -> None:
        super().__init__()
        width = int(arch["width"])
        self.stem = nn.Linear(3, width)
        self.blocks = nn.ModuleList(Block(width, int(part["hidden"])) for part in arch.parts("block"))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


HEADS = heads("blocks.*.attn.qkv", "blocks.*.attn.proj", 4)
NEURONS = neurons("blocks.*.mlp.fc1", "blocks.*.mlp.fc2")
CHANNELS = Units(
    dict.fromkeys(("stem", "norm", "*.norm?", "*.attn.proj", "*.fc2"), 0)
    | dict.fromkeys(("head.weight", "*.qkv.weight", "*.fc1.weight"), 1),
    together=True,
)


def make(**settings: object) -> Supernet:
    torch.manual_seed(0)
    supernet = Supernet(Transformer, SPACE, layout={"*.qkv": stacked(3)}, **settings).double().eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return supernet


@pytest.mark.parametrize("measured", [False, True], ids=["magnitude", "activations"])
@pytest.mark.parametrize(
    "groups", [[HEADS], [NEURONS], [CHANNELS], [HEADS, NEURONS, CHANNELS], [CHANNELS, NEURONS, HEADS]]
)
def test_the_largest_network_computes_the_same(groups: Sequence[Units], measured: bool) -> None:
    supernet = make()
    assert supernet.largest is not None
    before, kept = supernet(X, supernet.largest), copy.deepcopy(supernet.state_dict())
    order_by_importance(supernet, [X, (X, torch.zeros(5))] if measured else None, groups=groups)
    torch.testing.assert_close(supernet(X, supernet.largest), before, rtol=0, atol=1e-12)
    after = supernet.state_dict()
    assert any(not torch.equal(after[name], kept[name]) for name in kept)
    for name in kept:  # nothing is lost
        assert torch.equal(after[name].flatten().sort().values, kept[name].flatten().sort().values)


class Residual(nn.Module):
    """A residual stream through square layers, whose weights hold its channels along both dimensions."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        width = int(arch["width"])
        self.e, self.o = nn.Linear(3, width), nn.Linear(width, 2)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x)
        for block in self.blocks:
            x = x + block(x).relu()
        out: Tensor = self.o(x)
        return out


STREAM = {"e": 0, "blocks.*": 0, "blocks.*.weight": 1, "o.weight": 1}


@pytest.mark.parametrize("measured", [False, True], ids=["magnitude", "activations"])
def test_a_tensor_may_hold_the_units_along_two_dimensions(measured: bool) -> None:
    torch.manual_seed(0)
    supernet = Supernet(Residual, Space(width=one_of(4, 8))).double()
    largest, kept = Arch({"width": 8}), copy.deepcopy(supernet.state_dict())
    before = supernet(X, largest)
    order_by_importance(supernet, [X] if measured else None, groups=[Units(STREAM, together=True)])
    torch.testing.assert_close(supernet(X, largest), before, rtol=0, atol=1e-12)
    assert all(
        not torch.equal(tensor, kept[name]) for name, tensor in supernet.state_dict().items() if name != "o.bias"
    )


def test_the_tensors_of_a_module_that_a_star_matches_go_together() -> None:
    def build(arch: Arch) -> nn.Module:
        width = int(arch["width"])
        return nn.Sequential(*(nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 3)) for _ in range(2)))

    torch.manual_seed(0)
    supernet, largest = Supernet(build, Space(width=one_of(4, 8))).double(), Arch({"width": 8})
    before = supernet(X, largest)
    order_by_importance(supernet, groups=[Units({"*.0": 0, "*.2.weight": 1})])
    torch.testing.assert_close(supernet(X, largest), before, rtol=0, atol=1e-12)
    layers = Supernet(Residual, Space(width=one_of(4, 8))).double()
    order_by_importance(layers, groups=[Units({"blocks.*": 0})])
    for i in range(2):
        rows = torch.cat([layers.get_parameter(f"blocks.{i}.{name}").view(8, -1) for name in ("weight", "bias")], 1)
        norms = rows.square().sum(dim=1).tolist()
        assert norms == sorted(norms, reverse=True)


def test_batches_are_taken_apart_as_for_training() -> None:
    labels = torch.zeros(5)
    expected: dict[str, Tensor] | None = None
    for batch in (X, [X], (X, labels), {"x": X, "labels": labels}):
        supernet = make()
        order_by_importance(supernet, [batch], groups=[NEURONS])
        found = supernet.state_dict()
        expected = expected or found
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    order_by_importance(make(), [{"pixels": X}], groups=[NEURONS], unpack=lambda b: Unpacked((b["pixels"],), {}, None))


def test_every_block_has_an_order_of_its_own_unless_they_go_together() -> None:
    for group, alike in ((NEURONS, False), (CHANNELS, True)):
        supernet = make()
        marks = [f"blocks.{i}.{'norm1.weight' if alike else 'mlp.fc1.bias'}" for i in range(2)]
        for name in marks:
            with torch.no_grad():
                parameter = supernet.get_parameter(name)
                parameter.copy_(torch.arange(len(parameter)) * 1e-9)  # too small to matter
        order_by_importance(supernet, groups=[group])
        orders = [supernet.get_parameter(name).argsort().tolist() for name in marks]
        assert (orders[0] == orders[1]) is alike


def test_magnitude_is_the_norm_of_all_that_belongs_to_a_unit() -> None:
    supernet = make()
    order_by_importance(supernet, groups=[HEADS, NEURONS])
    for block in range(2):
        at = partial(supernet.get_parameter)
        fc1, bias, fc2 = (at(f"blocks.{block}.mlp.{name}") for name in ("fc1.weight", "fc1.bias", "fc2.weight"))
        norms = fc1.square().sum(1) + bias.square() + fc2.square().sum(0)
        assert norms.tolist() == sorted(norms.tolist(), reverse=True)
        qkv, qkv_bias = at(f"blocks.{block}.attn.qkv.weight"), at(f"blocks.{block}.attn.qkv.bias")
        proj = at(f"blocks.{block}.attn.proj.weight")
        of_heads = qkv.square().sum(1).view(3, 4, 4).sum((0, 2)) + qkv_bias.square().view(3, 4, 4).sum((0, 2))
        of_heads = of_heads + proj.square().sum(0).view(4, 4).sum(1)
        assert of_heads.tolist() == sorted(of_heads.tolist(), reverse=True)


def test_units_that_are_never_active_come_last_where_activations_count() -> None:
    supernet = make()
    with torch.no_grad():
        supernet.get_parameter("blocks.1.mlp.fc1.bias")[[0, 3]] = -1e3  # GELU gives 0
        supernet.get_parameter("blocks.1.mlp.fc2.weight")[:, [0, 3]] = 100
    order_by_importance(supernet, [X], groups=[NEURONS])
    assert (supernet.get_parameter("blocks.1.mlp.fc1.bias") < -100).nonzero().flatten().tolist() == [10, 11]


def test_statistics_and_copies_go_with_their_channels() -> None:
    space = Space(width=one_of(4, 8), kind=one_of("a", "b"))

    def build(arch: Arch) -> nn.Module:
        width = int(arch["width"])
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2, 1))

    supernet, images = Supernet(build, space, separate={"0": "kind"}).double(), torch.randn(4, 3, 6, 6).double()
    for arch in space:
        supernet.train()(images, arch)
    supernet.eval()
    largest = [arch for arch in space if arch["width"] == 8]
    before = [supernet(images, arch) for arch in largest]
    order_by_importance(supernet, groups=[Units({"0": 0, "1": 0, "3.weight": 1})])
    for arch, outputs in zip(largest, before, strict=True):
        torch.testing.assert_close(supernet(images, arch), outputs, rtol=0, atol=1e-12)


def test_tied_weights_are_permuted_once() -> None:
    family = BY_NAME["tied"]
    supernet = family.make_supernet().double()
    largest, (words,) = family.space[family.space.size - 1], family.args
    before = supernet(words, largest)
    order_by_importance(supernet, groups=[Units({"embed": 1, "head": 1, "mix.0.weight": 1, "mix.2": 0}, together=True)])
    torch.testing.assert_close(supernet(words, largest), before, rtol=0, atol=1e-12)
    assert supernet.get_parameter("embed.weight") is supernet.get_parameter("head.weight")


def test_slices_of_a_trained_network_become_better() -> None:
    torch.manual_seed(0)
    digits = load_digits(seed=0)
    mean, std = channel_statistics(digits.train)
    batches = TrainBatches(digits.train, batch_size=64, seed=0, mean=mean, std=std)
    space = Space(hidden=one_of(*range(8, 136, 8)))

    def build(arch: Arch) -> nn.Module:
        return nn.Sequential(nn.Flatten(), FeedForward(64, int(arch["hidden"])), nn.Linear(64, 10))

    network = build(space[space.size - 1])
    train(network, batches.steps(0, 150), adamw(network, lr=3e-3, weight_decay=0.05)).run()
    supernet = Supernet(build, space, weights=network.state_dict())

    def mean_accuracy(of: Supernet) -> float:
        val = list(eval_batches(digits.val, 512, mean, std))
        return sum(evaluate(of.extract(arch), val).score for arch in space) / space.size

    before = mean_accuracy(supernet)
    for measured in (None, list(batches.steps(0, 4))):
        ordered = copy.deepcopy(supernet)
        order_by_importance(ordered, measured, groups=[neurons("1.fc1", "1.fc2")])
        assert mean_accuracy(ordered) > before + 0.02


class Wrapped(nn.Module):
    """What a transformer returns, with a logit masked and in a structure."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.inner = Transformer(arch)

    def forward(self, x: Tensor) -> dict[str, Any]:
        logits = self.inner(x)
        return {"masked": (logits.index_fill(1, torch.tensor(0), -math.inf), logits[:, 0]), "tokens": x.shape[1]}


def test_masked_logits_in_a_structure_are_compared() -> None:
    torch.manual_seed(0)
    supernet = Supernet(Wrapped, SPACE, layout={"*.qkv": stacked(3)}).double()
    kept = copy.deepcopy(supernet.state_dict())
    with pytest.raises(ValueError, match="the groups change what the network computes"):
        order_by_importance(supernet, [X], groups=Units({"*.blocks.*.mlp.fc1": 0}))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in supernet.state_dict().items())
    order_by_importance(supernet, [X], groups=neurons("*.blocks.*.mlp.fc1", "*.blocks.*.mlp.fc2"))
    assert not all(torch.equal(tensor, kept[name]) for name, tensor in supernet.state_dict().items())


def test_one_group_needs_no_list() -> None:
    first, second = make(), make()
    order_by_importance(first, groups=NEURONS)
    order_by_importance(second, groups=[NEURONS])
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_groups_that_cannot_be_are_refused_and_nothing_changes() -> None:
    supernet = make()
    kept = copy.deepcopy(supernet.state_dict())

    def refuses(groups: Sequence[Units], match: str, batches: Sequence[Tensor] | None = None) -> None:
        with pytest.raises(ValueError, match=match):
            order_by_importance(supernet, batches, groups=groups)
        assert all(torch.equal(tensor, kept[name]) for name, tensor in supernet.state_dict().items())

    refuses([neurons("blocks.*.mlp.fc3", "blocks.*.mlp.fc2")], r"the pattern 'blocks.\*.mlp.fc3' of a group matches no")
    refuses([heads("blocks.*.attn.qkv", "blocks.*.attn.proj", 5)], r"has 48 elements along dimension 0, which are no 3")
    refuses([Units({"stem": 0, "blocks.0.mlp.fc1": 0})], "hold different numbers of units")
    refuses([Units({"blocks.*.mlp.fc1": 0})], "the groups change what the network computes", [X])
    refuses([Units({"blocks.*.attn.qkv": Member(0, 3)}, 4)], "the groups change what the network computes", [X])
    refuses([NEURONS], "there are no batches to measure importance on", [])
    stacks = {"blocks.*.attn.qkv": Member(0, 3), "blocks.0.attn.*.weight": Member(0, 1)}
    refuses([Units(stacks, 4, together=True)], "'blocks.0.attn.qkv.weight' along dimension 0 in 3 and in 1 stack")
    small = partial(order_by_importance, supernet, [X], arch=SPACE[0])
    with pytest.raises(
        ValueError, match=r"has 6 of the 12 elements of 'blocks\.0\.mlp\.fc1\.weight' along dimension 0"
    ):
        small(groups=[NEURONS])
    with pytest.raises(ValueError, match=r"has 8 of the 16 elements of .* give an architecture that has all of them"):
        small(groups=[CHANNELS])
    assert all(torch.equal(tensor, kept[name]) for name, tensor in supernet.state_dict().items())
    crossed = Space(kind=one_of({0: Space(a=2, b=4), 1: Space(a=4, b=2)}))
    without = Supernet(lambda arch: nn.Linear(int(arch["a"]), int(arch["b"])), crossed)
    with pytest.raises(ValueError, match="no network of the space has every tensor at its largest size"):
        order_by_importance(without, [torch.zeros(1, 4)], groups=[Units({"weight": 0, "bias": 0})])
