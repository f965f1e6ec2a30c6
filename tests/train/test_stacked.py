"""Networks trained as one are the networks trained one by one."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx.nn import Attention, DropPath
from nasx.train import (
    StackedNetworks,
    adamw,
    cosine_schedule,
    ema,
    nesterov_sgd,
    stacked_batches,
    stacked_loss,
    train,
)
from recipes.glit.config import DIGITS
from recipes.glit.model import build_in
from recipes.glit.space import heads_space

VIT = DIGITS.vit(in_channels=1, num_classes=10)
ARCH = heads_space(DIGITS.choices()).sample(3)  # attention, convolution and BatchNorm


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_in(VIT, ARCH, init_std=0.2)


def batches(seed: int, steps: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randn(12, 1, 8, 8, generator=rng), torch.randint(10, (12,), generator=rng)


def assert_alike(ours: nn.Module, other: nn.Module) -> None:
    for (name, mine), (_, theirs) in zip(ours.state_dict().items(), other.state_dict().items(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=2e-5, msg=name)


def small_network(seed: int) -> nn.Module:
    # every parameter has a gradient: Adam would make steps of the rounding in others, such as a bias before BatchNorm
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16, bias=False), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 10))


@pytest.mark.parametrize(
    ("network", "make"),
    [
        (small_network, partial(adamw, lr=3e-3, weight_decay=0.5)),
        (network, partial(nesterov_sgd, lr=0.1, weight_decay=0.01, decay="matrices")),
    ],
)
def test_several_seeds_trained_as_one_learn_what_each_learns_alone(
    network: Callable[[int], nn.Module], make: Callable[[nn.Module], torch.optim.Optimizer]
) -> None:
    loss = partial(F.cross_entropy, label_smoothing=0.1)
    alone, losses = [], []
    for seed in range(3):
        model = network(seed)
        optimizer = make(model)
        schedule = cosine_schedule(optimizer, steps=4, warmup_steps=1)
        steps = train(model, batches(seed), optimizer, loss=loss, schedule=schedule, clip_norm=0.7)
        losses.append([step.loss for step in steps])
        alone.append(model)

    stacked = StackedNetworks([network(seed) for seed in range(3)])
    optimizer = make(stacked)
    together = train(
        stacked,
        stacked_batches(*(batches(seed) for seed in range(3))),
        optimizer,
        loss=stacked_loss(loss),
        schedule=cosine_schedule(optimizer, steps=4, warmup_steps=1),
        clip_norm=0.7,  # of each network's own norm
    ).run()
    for ours, other in zip(stacked.unstack(), alone, strict=True):
        assert_alike(ours, other)
    means = [sum(of_step) / 3 for of_step in zip(*losses, strict=True)]
    assert [step.loss for step in together] == pytest.approx(means, rel=1e-5)


class Tied(nn.Module):
    """A language model whose output layer has the weights of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.embed(x))
        return out


class Repeated(nn.Module):
    """A layer and its BatchNorm that are used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, layer = nn.Embedding(5, 4), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.layers, self.head = nn.ModuleList([layer, layer]), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x)
        return out


def tokens(seed: int) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    return [(torch.randint(5, (9,), generator=rng), torch.randint(5, (9,), generator=rng)) for _ in range(4)]


@pytest.mark.parametrize("make", [Tied, Repeated])
def test_networks_with_tied_tensors_learn_what_they_learn_alone(make: Callable[[], nn.Module]) -> None:
    alone = []
    for seed in range(2):
        torch.manual_seed(seed)
        alone.append(make())
    stacked = StackedNetworks(alone)
    numbers = [sum(p.numel() for p in module.parameters()) for module in (stacked, *alone)]
    assert numbers[0] == numbers[1] + numbers[2]

    data = stacked_batches(tokens(0), tokens(1))
    train(stacked, data, nesterov_sgd(stacked, lr=0.1, weight_decay=0.1), loss=stacked_loss(F.cross_entropy)).run()
    for seed, model in enumerate(alone):
        train(model, tokens(seed), nesterov_sgd(model, lr=0.1, weight_decay=0.1), loss=F.cross_entropy).run()
    for ours, other in zip(stacked.unstack(), alone, strict=True):
        assert_alike(ours, other)
        assert [name for name, _ in ours.named_parameters()] == [name for name, _ in other.named_parameters()]
        assert [name for name, _ in ours.named_modules()] == [name for name, _ in other.named_modules()]


def test_networks_tied_in_different_ways_are_refused() -> None:
    a, b, c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    with pytest.raises(ValueError, match="'the tie of 2' is '1' in number 1 and '0' in the first"):
        StackedNetworks([nn.Sequential(a, b, a), nn.Sequential(a, b, b)])
    c.weight = a.weight
    other = copy.deepcopy(nn.Sequential(a, b, c))
    other[2].weight = other[1].weight
    with pytest.raises(ValueError, match=r"'the tie of 2.weight' is '1.weight' in number 1 and '0.weight' in"):
        StackedNetworks([nn.Sequential(a, b, c), other])


def test_it_computes_what_each_network_computes() -> None:
    networks = [network(seed).eval() for seed in range(3)]
    stacked = StackedNetworks(networks)
    x = torch.randn(3, 5, 1, 8, 8)
    with torch.inference_mode():
        for row, found in enumerate(stacked(x)):
            torch.testing.assert_close(found, networks[row](x[row]), rtol=1e-4, atol=1e-5)
    assert not stacked.training
    assert not stacked.unstack()[0].training


def test_unstacked_networks_are_copies_of_the_networks_stacked() -> None:
    networks = [network(seed) for seed in range(2)]
    stacked = StackedNetworks(networks)
    for ours, given in zip(stacked.unstack(), networks, strict=True):
        assert {k: v.tolist() for k, v in ours.state_dict().items()} == {
            k: v.tolist() for k, v in given.state_dict().items()
        }
        next(ours.parameters()).data.zero_()
    assert float(next(stacked.parameters()).detach().abs().sum()) > 0


def test_optimizers_treat_stacked_vectors_as_vectors() -> None:
    model, stacked = network(0), StackedNetworks([network(0), network(1)])
    for make in (
        partial(adamw, lr=0.1, weight_decay=0.1),
        partial(nesterov_sgd, lr=0.1, weight_decay=0.1, decay="matrices"),
    ):
        counts = [[len(group["params"]) for group in make(module).param_groups] for module in (model, stacked)]
        assert counts[0] == counts[1]


def test_a_batch_without_labels_for_one_of_them_teaches_the_others() -> None:
    networks = [small_network(seed) for seed in range(2)]
    images, labels = next(batches(0))
    given = [(images, torch.full_like(labels, -100)), (images, labels)]
    stacked = StackedNetworks(networks)
    optimizer = nesterov_sgd(stacked, lr=0.1, weight_decay=0.1)
    (step,) = train(
        stacked, stacked_batches(*([batch] for batch in given)), optimizer, loss=stacked_loss(F.cross_entropy)
    ).run()
    assert not step.skipped
    for network, batch, trained in zip(networks, given, stacked.unstack(), strict=True):
        train(network, [batch], nesterov_sgd(network, lr=0.1, weight_decay=0.1)).run()
        assert_alike(trained, network)


def test_their_average_is_followed() -> None:
    stacked = StackedNetworks([network(0), network(1)])
    average = ema(stacked, 0.5)
    optimizer = adamw(stacked, lr=1e-2, weight_decay=0.0)
    data = stacked_batches(batches(0), batches(1))
    train(stacked, data, optimizer, loss=stacked_loss(F.cross_entropy), average=average).run()
    averaged: Any = average.module
    x = torch.randn(2, 3, 1, 8, 8)
    averaged.eval()
    for row, of_row in enumerate(averaged.unstack()):
        torch.testing.assert_close(averaged(x)[row], of_row(x[row]), rtol=1e-4, atol=1e-5)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop_path = nn.Linear(3, 3), DropPath(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.layer(x))


def test_stochastic_depth_draws_for_each_network_apart() -> None:
    first = Dropping()
    stacked = StackedNetworks([first, copy.deepcopy(first)])
    x = torch.randn(64, 3)
    one, other = stacked(torch.stack([x, x]))
    dropped = [(out == x).all(dim=1) for out in (one, other)]
    assert not torch.equal(*dropped)
    assert all(10 < int(rows.sum()) < 54 for rows in dropped)


def test_a_step_that_breaks_one_network_changes_none() -> None:
    stacked = StackedNetworks([network(0), network(1)])
    before = copy.deepcopy(stacked.state_dict())
    x, y = next(batches(0))
    broken = torch.stack([x, x * torch.inf]), torch.stack([y, y])
    optimizer = adamw(stacked, lr=1e-2, weight_decay=0.0)
    (step,) = train(stacked, [broken], optimizer, loss=stacked_loss(F.cross_entropy))
    assert step.skipped
    assert all(torch.equal(tensor, before[name]) for name, tensor in stacked.state_dict().items())


class Assigning(nn.Module):
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + x.mean(dim=0)
        out: Tensor = self.layer(x) - self.mean
        return out


def test_a_buffer_that_is_assigned_anew_is_refused() -> None:
    stacked = StackedNetworks([Assigning(), Assigning()])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"assigns a new tensor to 'mean' when it runs.*change it in place"):
            stacked(torch.randn(2, 4, 3))


def test_networks_of_different_architectures_are_refused() -> None:
    other = build_in(VIT, heads_space(DIGITS.choices()).sample(5))
    with pytest.raises(ValueError, match=r"the same architecture, but '.*' is .* in number 1 and"):
        StackedNetworks([network(0), other])
    with pytest.raises(ValueError, match=r"but 'heads' is 4 in number 1 and 2 in the first"):
        StackedNetworks([Attention(8, 2), Attention(8, 4)])
    with pytest.raises(ValueError, match=r"but 'dilation' is \(2,\) in number 1 and \(1,\) in the first"):
        StackedNetworks([nn.Conv1d(3, 3, 3), nn.Conv1d(3, 3, 3, dilation=2)])
    with pytest.raises(ValueError, match=r"but 'weight.requires_grad' is False in number 1 and True in the first"):
        StackedNetworks([nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)])
    StackedNetworks([network(0), network(1).eval()])
    with pytest.raises(ValueError, match="no networks"):
        StackedNetworks([])
