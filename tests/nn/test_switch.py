"""Separate weights: keys, stable names in the state dict, independent copies."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nasx
from nasx.arch import Value
from nasx.nn import Switch

Key = Value | tuple[Value, ...]


class Add(nn.Module):
    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(amount))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.amount


def names(switch: Switch) -> list[str]:
    return [name.removesuffix(".amount") for name in switch.state_dict()]


def test_a_call_runs_the_candidate_of_its_key() -> None:
    keys: list[Key] = [(1, 2, 31), (2, 0.5), 0.5, 4, "relu", "float", "3x3", "a.b", "a_b", "", ()]
    switch = Switch({key: Add(float(i)) for i, key in enumerate(keys)})
    for i, key in enumerate(keys):
        assert switch(torch.zeros(()), key) == i
        assert key in switch
    assert list(switch) == keys
    assert len(switch) == len(keys)


def test_equal_numbers_are_one_key_and_one_name() -> None:
    switch = Switch({4: Add(1.0), (1, 2.0): Add(2.0)})
    same: list[Any] = [4.0, np.int64(4), np.float64(4)]
    assert all(switch[key] is switch[4] for key in same)
    assert switch[(1.0, 2)] is switch[(1, 2)]
    assert sorted(names(switch)) == sorted(names(Switch({4.0: Add(1.0), (True, 2): Add(2.0)})))
    assert names(Switch({np.float64(0.5): Add(1.0)})) == names(Switch({0.5: Add(1.0)}))


def test_names_are_readable_and_in_one_order() -> None:
    keys: list[Key] = ["skip_connect", (1, 2, 31), 0.5, 4, ("conv", 3), -1]
    expected = ["on_-1", "on_0_5", "on_1,2,31", "on_4", "on_conv,3", "on_skip_connect"]
    assert names(Switch({key: Add(0.0) for key in keys})) == expected
    assert names(Switch({key: Add(0.0) for key in reversed(keys)})) == expected


scalars = st.one_of(
    st.booleans(),
    st.integers(-20, 20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "1", "-1", "0_5", "0.5", "1,2", "%2E", "é", "a b", "True", "1e-05", "%31", "float", "."]),
    st.text(max_size=4),
)
keys = st.one_of(scalars, st.lists(scalars, max_size=3).map(tuple))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(keys, min_size=1, max_size=8, unique=True))
def test_different_keys_have_different_names(some: list[Key]) -> None:
    switch = Switch({key: Add(float(i)) for i, key in enumerate(some)})
    assert len(set(names(switch))) == len(some)
    other = Switch({key: Add(-1.0) for key in reversed(some)})
    other.load_state_dict(switch.state_dict())
    assert [other(torch.zeros(()), key).item() for key in some] == list(range(len(some)))


def test_names_do_not_depend_on_the_hash_seed() -> None:
    program = (
        "from torch import nn; from nasx.nn import Switch;"
        "keys = {'relu', 'gelu', 'silu', 'tanh', (1, 'relu'), (2, 0.5), 0.5};"
        "print(*Switch({key: nn.Linear(1, 1) for key in keys}).state_dict())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(nasx.__file__).parents[1],
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert "on_2,0_5.weight" in outputs.pop()


def test_an_extract_is_a_copy() -> None:
    switch = Switch({1: nn.Linear(3, 3), 2: nn.Linear(3, 3)}).eval()
    plain = switch.extract(2)
    assert type(plain) is nn.Linear
    assert not plain.training
    x, before = torch.randn(2, 3), switch(torch.ones(2, 3), 2)
    assert torch.equal(plain(x), switch(x, 2))
    nn.init.zeros_(plain.weight)
    assert torch.equal(switch(torch.ones(2, 3), 2), before)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_an_extract_can_be_trained_wherever_it_was_made(context: Callable[[], torch.no_grad]) -> None:
    switch = Switch({1: nn.Linear(3, 2), 2: nn.Linear(3, 3)})
    with context():
        plain = switch.extract(1)
    torch.autograd.backward(plain(torch.ones(1, 3)).sum())
    assert all(parameter.grad is not None for parameter in plain.parameters())


def test_only_the_candidate_that_ran_has_gradients() -> None:
    switch = Switch({1: Add(0.0), 2: Add(0.0)})
    switch(torch.zeros(()), 2).backward()
    assert {name for name, p in switch.named_parameters() if p.grad is not None} == {"on_2.amount"}


def test_an_unknown_key_names_itself_and_the_choices() -> None:
    switch = Switch({(1, 0.5): Add(0.0), "relu": Add(0.0)})
    assert "gelu" not in switch
    for use in (lambda: switch(torch.zeros(()), "gelu"), lambda: switch.extract("gelu"), lambda: switch["gelu"]):
        with pytest.raises(KeyError, match=r"no candidate 'gelu'; the choices are \(1, 0\.5\), 'relu'"):
            use()


def test_a_switch_of_nothing_or_on_no_choice_value_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one candidate"):
        Switch({})
    with pytest.raises(ValueError, match="finite"):
        Switch({float("nan"): Add(0.0)})
    with pytest.raises(TypeError, match="None"):
        Switch({None: Add(0.0)})  # type: ignore[dict-item]


def test_a_switch_compiles_whole() -> None:
    switch = Switch({(1, 0.5): Add(1.0), "a.b": Add(2.0)})
    run = torch.compile(switch, backend="eager", fullgraph=True)
    assert run(torch.zeros(()), (1, 0.5)) == 1
    assert run(torch.zeros(()), "a.b") == 2
    torch._dynamo.reset()
