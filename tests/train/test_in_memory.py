"""Samples held in memory are those of the batches, in batches of any size."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nasx.nn import Subnet
from nasx.train import (
    InMemorySamples,
    Unpacked,
    adamw,
    evaluate,
    load_into_memory,
    recalibrate,
    recalibrate_and_evaluate,
    train,
    unpack,
)
from recipes.glit.model import GLiTConfig
from recipes.glit.space import GLiTSpace, table2
from recipes.glit.supernet import supernet

CPU = torch.device("cpu")


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 1, 8, 8, generator=rng), torch.randint(10, (n,), generator=rng)) for n in sizes]


def held(*sizes: int) -> InMemorySamples:
    found = load_into_memory(batches(*sizes), CPU)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("size", "sizes"), [(4, [3, 4, 4]), (3, [2, 3, 3, 3]), (11, [11]), (100, [11]), (6, [5, 6]), (1, [1] * 11)]
)
def test_all_samples_in_order_in_batches_of_about_equal_size(size: int, sizes: list[int]) -> None:
    found = list(held(4, 4, 3).batches(size))
    assert [len(batch.targets) for batch in found] == sizes
    given = batches(4, 4, 3)
    assert torch.equal(torch.cat([b.args[0] for b in found]), torch.cat([x for x, _ in given]))
    assert torch.equal(torch.cat([b.targets for b in found]), torch.cat([y for _, y in given]))


def test_samples_at_positions() -> None:
    (batch,) = held(4, 4, 3).batches(10, np.array([9, 0, 4]))
    whole = torch.cat([y for _, y in batches(4, 4, 3)])
    assert batch.targets.tolist() == whole[[9, 0, 4]].tolist()
    assert list(held(4).batches(3, [])) == []


def test_a_device_may_be_given_by_name() -> None:
    found = load_into_memory(batches(4), "cpu")
    assert found is not None
    assert len(found) == 4


def test_batches_of_any_structure() -> None:
    x, y = batches(5)[0]
    found = load_into_memory([{"a": x, "more": [x, x + 1], "labels": y}] * 2, CPU)
    assert found is not None
    assert len(found) == 10
    batch = unpack(next(found.batches(7)))
    assert batch.args == ()
    assert batch.kwargs["more"][1].shape == (5, 1, 8, 8)


@pytest.mark.parametrize(
    "given",
    [
        [(torch.zeros(2, 7), torch.zeros(2)), (torch.zeros(2, 9), torch.zeros(2))],  # padded batch by batch
        [(torch.zeros(3, 7), torch.zeros(2))],
        [{"x": torch.zeros(2), "name": "a", "labels": torch.zeros(2)}],
        [(torch.zeros(2**20), torch.zeros(2**20))],
    ],
)
def test_what_cannot_be_held_is_none(given: list[Any]) -> None:
    assert load_into_memory(given, CPU, at_most=2**20) is None


def test_no_batches_and_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="no batches"):
        load_into_memory([], CPU)
    with pytest.raises(ValueError, match="at least one sample, but got 0"):
        next(held(2).batches(0))


CHOICES = GLiTSpace(blocks=2, kernel_size=(3, 5, 9), held_kernel_size=5)
VIT = GLiTConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=12)


def test_recalibration_and_scoring_in_one_visit_are_those_one_after_the_other() -> None:
    torch.manual_seed(0)
    whole = supernet(table2(CHOICES), VIT, init_std=0.3)
    arch = table2(CHOICES).sample(4)
    first, second = held(20, 20), held(16, 9)
    apart = Subnet(copy.deepcopy(whole), arch)
    expected_statistics = recalibrate(apart, first.batches(20))
    expected = evaluate(apart, second.batches(25))
    subnet = Subnet(whole, arch)
    scored, statistics = recalibrate_and_evaluate(subnet, first.batches(20), second.batches(25))
    assert scored == expected
    assert statistics.keys() == expected_statistics.keys()
    assert all(torch.equal(statistics[name], tensor) for name, tensor in expected_statistics.items())
    # and the supernet, its statistics and those returned can be used as before
    subnet.load_state_dict(statistics, strict=False)
    for network in (whole, subnet):
        network.train()
    optimizer = adamw(whole, lr=1e-3, weight_decay=0.0)
    steps = train(Subnet(whole, arch), batches(8), optimizer)
    assert not steps.run()[0].skipped
    assert not any(tensor.is_inference() for tensor in [*whole.state_dict().values(), *statistics.values()])


def test_unpacked_batches_stay_as_they_are() -> None:
    batch = Unpacked((torch.zeros(1),), {}, torch.zeros(1))
    assert unpack(batch) is batch
