"""An Arch is an immutable mapping by value: order, copies and JSON do not change what it equals."""

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasx import Arch, Space
from nasx.arch import matches, pattern_of, split, split_name
from tests.strategies import spaces

NAMES = st.lists(st.sampled_from(["a", "block", "0", "1", "mlp_ratio"]), min_size=1, max_size=4).map(".".join)
VALUES = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
ENTRIES = st.dictionaries(NAMES, VALUES, max_size=6)

BLOCKS = Arch({"width": 64, "block.count": 2, "block.0.mlp_ratio": 4, "block.0.k.size": 3, "block.1.mlp_ratio": 2.0})


@settings(max_examples=100)
@given(ENTRIES, st.randoms(use_true_random=False))
def test_equality_and_hash_ignore_order_and_json_keeps_it(entries: dict[str, Any], random: Any) -> None:
    arch = Arch(entries)
    shuffled = list(entries.items())
    random.shuffle(shuffled)
    assert Arch(dict(shuffled)) == arch
    assert hash(Arch(dict(shuffled))) == hash(arch)
    assert list(arch.items()) == list(entries.items())
    assert list(json.loads(arch.to_json()).items()) == list(entries.items())
    again = Arch.from_json(arch.to_json())
    assert again == arch
    assert again.to_json() == arch.to_json()
    assert pickle.loads(pickle.dumps(arch)) == arch


def test_numbers_compare_by_value() -> None:
    assert Arch({"a": 4}) == Arch({"a": 4.0})
    assert hash(Arch({"a": 4})) == hash(Arch({"a": 4.0}))
    assert Arch({"a": 4}) != Arch({"a": "4"})
    assert Arch({"a": 4}) != Arch({"a": 4, "b": 1})
    assert Arch({"a": 4}) != {"a": 4}  # only architectures have an architecture's equality


def test_an_arch_keeps_no_tie_to_what_it_was_made_from() -> None:
    entries = {"a": 1}
    arch = Arch(entries)
    entries["a"] = 2
    assert arch["a"] == 1
    with pytest.raises(TypeError):
        arch["a"] = 3  # type: ignore[index]


def test_numpy_scalars_become_plain_values() -> None:
    arch = Arch({"a": np.int64(3), "b": np.float64(0.5), "c": np.bool_(True)})  # type: ignore[dict-item]
    assert [type(value) for value in arch.values()] == [int, float, bool]
    assert json.loads(arch.to_json()) == {"a": 3, "b": 0.5, "c": True}


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64, lambda x: torch.tensor(x, dtype=torch.float32)])
def test_scalars_of_fewer_bits_are_the_numbers_that_were_written(kind: Any) -> None:
    for number in (0.1, 0.5, 3.0, 1e-4):
        assert Arch({"r": kind(number)}) == Arch({"r": number})


@pytest.mark.parametrize("value", [None, (1, 2), [1], {"a": 1}, np.zeros(2)], ids=repr)
def test_a_value_must_be_a_scalar(value: Any) -> None:
    with pytest.raises(TypeError, match="bool, int, float or str"):
        Arch({"a": value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Arch({"a": value})


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b"])
def test_a_name_has_no_empty_segment(name: str) -> None:
    with pytest.raises(ValueError, match="segments"):
        Arch({name: 1})


@pytest.mark.parametrize("text", ["", "[1]", "3", '{"a": null}', '{"a": {"b": 1}}', '{"a": NaN}', '{"": 1}'])
def test_other_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - what is wrong with it differs
        Arch.from_json(text)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("block.*.k", "block.11.k", True),
        ("block.*.k", "block.1.q", False),
        ("block.*", "block.1.k", False),
        ("*.k", "block.1.k", False),
        ("*.*.*", "block.1.k", True),
        ("block.1*.k", "block.11.k", False),
    ],
)
def test_a_star_is_exactly_one_segment(pattern: str, name: str, fits: bool) -> None:
    assert matches(pattern, name) is fits


def test_views_below_a_prefix() -> None:
    assert BLOCKS.only("block.*.mlp_ratio", "width") == Arch(
        {"width": 64, "block.0.mlp_ratio": 4, "block.1.mlp_ratio": 2}
    )
    assert list(BLOCKS.only("*.*.mlp_ratio", "width")) == ["width", "block.0.mlp_ratio", "block.1.mlp_ratio"]
    assert BLOCKS.only("nothing") == Arch({})
    assert BLOCKS.at("block.0") == Arch({"mlp_ratio": 4, "k.size": 3})
    assert BLOCKS.at("bloc") == Arch({})
    assert BLOCKS.parts("block") == [Arch({"mlp_ratio": 4, "k.size": 3}), Arch({"mlp_ratio": 2})]
    assert BLOCKS.parts("width") == []


def test_parts_have_no_gaps() -> None:
    for numbers, message in (
        ((0, 2), r"the part block\.2, but no block\.1; number"),
        ((1,), r"block\.1, but no block\.0;"),
    ):
        arch = Arch({f"block.{number}.width": 4 for number in numbers})
        with pytest.raises(ValueError, match=message):
            arch.parts("block")


def test_parts_come_in_the_order_of_their_numbers() -> None:
    arch = Arch({f"block.{i}.depth": i for i in reversed(range(12))})
    assert [part["depth"] for part in arch.parts("block")] == list(range(12))
    assert arch.parts("block", 12) == arch.parts("block")
    assert Arch({}).parts("block", 0) == []
    with pytest.raises(
        ValueError, match=r"the 11 parts block\.0 to block\.10, but has those with the numbers 0, 1, .*, 10, 11"
    ):
        arch.parts("block", 11)
    with pytest.raises(ValueError, match=r"must have no part block\.0, but has those with the numbers 0, 1, 2,"):
        arch.parts("block", 0)
    with pytest.raises(ValueError, match=r"must have the part block\.0 alone, but has those with the numbers none"):
        Arch({}).parts("block", 1)


def test_a_checkpoint_that_holds_one_is_loaded_without_unpickling_other_things(tmp_path: Path) -> None:
    """In a process of its own, which has imported what trains networks and nothing else."""
    arch = Arch({"depth": 2, "block.0.ratio": 0.5, "block.0.kind": "conv", "block.1.wide": True})
    torch.save({"hyper_parameters": {"arch": arch, "parts": arch.parts("block")}}, tmp_path / "checkpoint.pt")
    code = "import sys, torch, nasx.nn; print(torch.load(sys.argv[1], weights_only=True)['hyper_parameters'])"
    command = [sys.executable, "-c", code, str(tmp_path / "checkpoint.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == repr({"arch": arch, "parts": arch.parts("block")})


def test_the_first_number_in_a_name_marks_a_part() -> None:
    assert split_name("net.block.3.mlp.0.ratio") == ("net.block", 3, "mlp.0.ratio")
    assert split_name("net.block.count") is None
    assert pattern_of("net.block.3.mlp.0.ratio") == "net.block.*.mlp.*.ratio"


@settings(max_examples=50)
@given(ENTRIES)
def test_repr_reads_back(entries: dict[str, Any]) -> None:
    arch = Arch(entries)
    assert eval(repr(arch)) == arch


def test_a_missing_entry_is_named_in_words() -> None:
    arch = Arch({"embed_dim": 4, "block.0.width": 2})
    with pytest.raises(ValueError, match=r"no entry 'depth', only embed_dim, block.0.width; is it of another space\?"):
        arch["depth"]
    with pytest.raises(KeyError):
        arch["depth"]
    assert arch.get("depth", 7) == 7


@settings(max_examples=60)
@given(spaces(), st.integers(0, 10**6))
def test_splitting_loses_nothing(space: Space, seed: int) -> None:
    arch = space.sample(seed)
    shared, parts = split(arch)
    joined = dict(shared) | {f"{name}.{i}.{n}": v for (name, i), part in parts.items() for n, v in part.items()}
    assert Arch(joined) == arch
    assert not any(segment.isdigit() for name in shared for segment in name.split("."))
