"""Blocks that run through `torch.compile`: which, how often they are compiled, and that nothing else changes."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasx.nn import DropPath, FeedForward
from nasx.train import (
    BatchNormGroups,
    adamw,
    compiled_blocks,
    evaluate,
    seeded,
    train,
)
from nasx.train.compiled import missing_for_compilation, repeated_blocks

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


class Residual(nn.Module):
    """A block with BatchNorm and stochastic depth."""

    def __init__(self, dim: int, hidden: int, rate: float = 0.0) -> None:
        super().__init__()
        self.norm, self.mlp, self.drop_path = nn.BatchNorm1d(dim), FeedForward(dim, hidden), DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm(x)))


class Network(nn.Module):
    """As many blocks as there are hidden widths, between two layers."""

    def __init__(self, hidden: tuple[int, ...], rate: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(Residual(6, width, rate) for width in hidden)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def network(*hidden: int, rate: float = 0.0) -> Network:
    torch.manual_seed(0)
    return Network(hidden, rate)


def batches(first: int, last: int, size: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    for step in range(first, last):
        rng = torch.Generator().manual_seed(step)
        yield torch.randn(size, 4, generator=rng), torch.randint(3, (size,), generator=rng)


def counting() -> tuple[Callable[..., Any], list[int]]:
    """Return a backend that computes eagerly, and a list that grows with each compilation."""
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(len(compiled))
        return graph.forward

    return backend, compiled


def losses_of(model: nn.Module, first: int, last: int, optimizer: torch.optim.Optimizer, **how: Any) -> list[float]:
    return [step.loss for step in train(model, seeded(batches(first, last), 3, first), optimizer, **how)]


def test_blocks_are_the_members_of_the_outermost_lists_of_one_class() -> None:
    pair = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(2)))
    assert repeated_blocks(nn.Sequential(nn.Linear(4, 6), pair, nn.ReLU())) == list(pair)
    model = network(8, 12)
    assert repeated_blocks(model) == list(model.blocks)
    assert repeated_blocks(nn.Sequential(nn.ReLU(), nn.ReLU())) == [], "nothing to compute in them"
    assert repeated_blocks(nn.Linear(2, 2)) == []
    assert repeated_blocks(network(8)) == [], "one block is not repeated"


def test_a_training_compiles_each_block_once_and_gives_the_same_losses() -> None:
    hidden = tuple(range(8, 20))  # more kinds than torch's limit of recompilations
    plain, model = network(*hidden, rate=0.2), network(*hidden, rate=0.2)
    expected = losses_of(plain, 0, 6, adamw(plain, lr=1e-2, weight_decay=0))
    names = list(model.state_dict())
    backend, compiled = counting()
    with compiled_blocks(model, backend=backend):
        optimizer = adamw(model, lr=1e-2, weight_decay=0)
        found = losses_of(model, 0, 2, optimizer)
        assert len(compiled) >= len(hidden)
        after_the_first = len(compiled)
        found += losses_of(model, 2, 6, optimizer, start_step=2)
        assert len(compiled) == after_the_first, "later epochs compile nothing"
        assert list(model.state_dict()) == names
        copy.deepcopy(model)
    assert found == pytest.approx(expected, rel=1e-5)
    evaluate(model, batches(0, 1, size=5))
    assert len(compiled) == after_the_first, "outside of the context blocks run as they are"


def test_batch_norm_of_groups_is_compiled_once() -> None:
    plain, model = network(8, 8), network(8, 8)
    how = {"batch_norm_group": 4}
    expected = losses_of(plain, 0, 4, adamw(plain, lr=1e-2, weight_decay=0), **how)
    backend, compiled = counting()
    with compiled_blocks(model, backend=backend):
        optimizer = adamw(model, lr=1e-2, weight_decay=0)
        found = losses_of(model, 0, 1, optimizer, **how)
        once = len(compiled)
        found += losses_of(model, 1, 4, optimizer, start_step=1, **how)
    assert 0 < once == len(compiled)
    assert found == pytest.approx(expected, rel=1e-5)
    with BatchNormGroups(8, 4):
        torch.testing.assert_close(model(next(batches(9, 10))[0]), plain(next(batches(9, 10))[0]))


def test_a_network_without_repeated_blocks_is_compiled_as_a_whole() -> None:
    backend, compiled = counting()
    model = network(8)
    with compiled_blocks(model, backend=backend) as same:
        assert same is model
        model(torch.randn(4, 4))
    assert compiled


def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    raise NotImplementedError("this backend compiles nothing")


def test_blocks_that_cannot_be_compiled_run_as_they_are_where_that_was_asked_for() -> None:
    model, x = network(8, 8), torch.randn(4, 4)
    expected = model(x)
    with compiled_blocks(model, backend=broken, fall_back=True):
        torch.testing.assert_close(model(x), expected)
    with compiled_blocks(model, backend=broken), pytest.raises(Exception, match="compiles nothing"):
        model(x)
    torch.testing.assert_close(model(x), expected)


def test_what_compiling_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_for_compilation(torch.device("meta")) is not None
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "g++" in str(missing_for_compilation(CPU))


def compare_on_the_cpu() -> None:
    """Train a plain network and a compiled one alike; for an interpreter of its own."""
    plain, model = network(8, 8), network(8, 8)
    expected = losses_of(plain, 0, 3, adamw(plain, lr=1e-2, weight_decay=0))
    with compiled_blocks(model):
        found = losses_of(model, 0, 3, adamw(model, lr=1e-2, weight_decay=0))
    assert found == pytest.approx(expected, rel=1e-4)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_the_cpus_compiler_gives_the_same_losses() -> None:
    if missing := missing_for_compilation(CPU):
        pytest.skip(missing)
    # torch's compiler imports setuptools, which fails where a test before this one has imported distutils
    call = "from tests.train.test_compiled import compare_on_the_cpu; compare_on_the_cpu()"
    done = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
