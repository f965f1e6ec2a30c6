"""Weights from outside: files are read without being run, and what does not fit is named."""

import argparse
import json
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from nasx.weights import INDEX, Shapes, StateDict, fit_weights, named_tensors, ratio_of, read_state_dict


@pytest.fixture
def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "pos_embed": (1, 10, 4),
        "head.weight": (3, 4),
        "blocks.0.fc.weight": (8, 4),
        "blocks.1.fc.weight": (8, 4),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_files_are_read_by_what_they_hold_and_not_by_their_names(tmp_path: Path, state: dict[str, Tensor]) -> None:
    content = {"model": state, "args": argparse.Namespace(lr=1e-3), "epoch": 300}
    torch.save(content, tmp_path / "zip.safetensors")
    torch.save(content, tmp_path / "legacy.bin", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "safe.pth")
    for name in ("zip.safetensors", "legacy.bin", "safe.pth"):
        found = read_state_dict(tmp_path / name)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


class Opens:
    """Pickled as an instruction to create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    created, path = tmp_path / "created", tmp_path / "weights.pth"
    pickle.loads(pickle.dumps(Opens(created))).close()
    assert created.exists(), "the pickle does not do what this test is about"
    created.unlink()
    plain = pickle.dumps(Opens(created))
    for zipped in (True, False):
        torch.save({"model": Opens(created)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=r"was not read"):
            read_state_dict(path)
    for content in (
        plain,
        pickle.dumps(Opens(created), protocol=0),
        b"",
        b"\x80",
        b"PK\x03\x04",
        b"\2" + b"\0" * 7 + b"{]",
        b'{"a": 1}',
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights.pth") as caught:
            read_state_dict(path)
        assert str(caught.value).startswith(str(path))
    assert not created.exists()


def test_a_state_dict_is_found_inside_a_checkpoint(state: dict[str, Tensor]) -> None:
    assert named_tensors({"model": state, "epoch": 3}).keys() == state.keys()
    nothings: list[object] = [{}, [1], {"model": {}}, {"epoch": 3}, {3: torch.zeros(1)}]
    for nothing in nothings:
        with pytest.raises(ValueError, match="maps names to tensors"):
            named_tensors(nothing)


Wrapper = Callable[[dict[str, Tensor]], dict[str, Any]]


def _shifted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("checkpoint", "entry", "shifted", "remark"),
    [
        (lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": [1]}}, "model", False, None),
        (lambda s: {"state_dict": s, "epoch": 3}, "state_dict", False, None),
        (lambda s: {"model": s, "model_ema": _shifted(s)}, "model_ema", True, "'model_ema'; there are also 'model'"),
        (lambda s: {"state_dict": s, "state_dict_ema": _shifted(s)}, "state_dict_ema", True, "also 'state_dict'"),
        (lambda s: {"teacher": s}, "teacher", False, None),
    ],
)
def test_the_state_dict_of_a_checkpoint_is_found_and_the_choice_is_said(
    tmp_path: Path, state: dict[str, Tensor], checkpoint: Wrapper, entry: str, shifted: bool, remark: str | None
) -> None:
    torch.save(checkpoint(state), tmp_path / "c.pth")
    found = read_state_dict(tmp_path / "c.pth")
    expected = _shifted(state) if shifted else state
    assert found.entry == entry
    assert all(torch.equal(found[name], expected[name]) for name in state)
    assert (remark in found.remarks[0]) if remark else found.remarks == ()
    if shifted:
        other = next(name for name in found.entries if name != entry)
        assert torch.equal(read_state_dict(tmp_path / "c.pth", key=other)["head.weight"], state["head.weight"])


def test_a_state_dict_is_asked_for_where_several_are_as_good(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"student": state, "teacher": _shifted(state)}, tmp_path / "dino.pth")
    with pytest.raises(
        ValueError, match=r"dino\.pth: several state dicts are there: student, teacher; choose one with key="
    ):
        read_state_dict(tmp_path / "dino.pth")
    assert read_state_dict(tmp_path / "dino.pth", key="student").entry == "student"
    with pytest.raises(ValueError, match=r"no state dict under key='optimizer' .*there are student, teacher"):
        read_state_dict(tmp_path / "dino.pth", key="optimizer")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "_orig_mod.module.", "module._orig_mod."])
def test_what_wrappers_put_before_names_is_removed(state: dict[str, Tensor], prefix: str) -> None:
    found = named_tensors({"state_dict": {prefix + name: tensor for name, tensor in state.items()}})
    assert found.keys() == state.keys()
    assert found.prefix == prefix
    assert f"{prefix!r} is removed from every name" in found.remarks
    some = {name if "head" in name else prefix + name: tensor for name, tensor in state.items()}
    assert named_tensors(some).prefix == ""


def test_blocks_that_were_compiled_one_by_one_keep_their_names(state: dict[str, Tensor]) -> None:
    compiled = {name.replace("blocks.0.", "blocks.0._orig_mod."): tensor for name, tensor in state.items()}
    assert named_tensors(compiled).keys() == state.keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_and_is_said(state: dict[str, Tensor], dtype: torch.dtype) -> None:
    found = named_tensors({name: tensor.to(dtype) for name, tensor in state.items()})
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert torch.equal(found["head.weight"], state["head.weight"].to(dtype).float())
    assert found.remarks == (f"weights are stored as {dtype}, and become torch.float32",)
    double = named_tensors({"a": torch.zeros(2, dtype=torch.float64)})
    assert double["a"].dtype == torch.float64


def test_several_safetensors_files_are_read_through_their_index(tmp_path: Path, state: dict[str, Tensor]) -> None:
    names = sorted(state)
    files = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file, held in files.items():
        save_file({name: state[name] for name in held}, tmp_path / file)
    places = {name: file for file, held in files.items() for name in held}
    index = tmp_path / INDEX
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    for path in (index, tmp_path):
        found = read_state_dict(path)
        assert all(torch.equal(found[name], state[name]) for name in state)
    index.write_text(json.dumps({"weight_map": {**places, "tail.weight": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors does not hold 'tail\.weight'"):
        read_state_dict(index)
    for outside in ("../x.safetensors", "/etc/passwd", 3):
        index.write_text(json.dumps({"weight_map": {"a": outside}}))
        with pytest.raises(ValueError, match="is no index of safetensors files"):
            read_state_dict(index)
    index.write_text(json.dumps({"weight_map": places}))
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00001-of-00002\.safetensors is missing, in which .* has 2 tensors"):
        read_state_dict(index)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is a folder without model\.safetensors\.index\.json"):
        read_state_dict(tmp_path / "empty")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.95])
def test_truncated_files_are_said_to_be_truncated_with_their_name_first(
    tmp_path: Path, form: str, share: float
) -> None:
    state, path = {"a.weight": torch.randn(30, 40), "b": torch.randn(4)}, tmp_path / "weights"
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"(copy or download it again|nor a torch checkpoint)") as caught:
        read_state_dict(path)
    assert str(caught.value).startswith(f"{path} is ")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ({"best": np.float64(0.8)}, "holds numpy objects beside tensors (numpy"),
        ({"curve": np.zeros(3)}, "holds numpy objects beside tensors (numpy"),
        ({"network": torch.nn.Linear(2, 2)}, "holds Python objects beside tensors (torch.nn.modules.linear.Linear)"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_pickle_holds_beside_tensors_is_named_after_the_file(
    tmp_path: Path, state: dict[str, Tensor], content: dict[str, object], cause: str, zipped: bool
) -> None:
    torch.save({"model": state, **content}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"was not read, because that could execute code") as caught:
        read_state_dict(tmp_path / "w.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'w.pth'} {cause}")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path: Path, state: dict[str, Tensor], bad: float) -> None:
    state["head.weight"][1, 2] = bad
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors: .*'head\.weight' holds NaN or infinity in 1 of 12 numbers"):
        read_state_dict(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"'head\.weight' holds NaN or infinity"):
        named_tensors(state)


def test_tensors_that_are_no_plain_floats_are_refused(state: dict[str, Tensor]) -> None:
    places = {name: (name, tuple(tensor.shape)) for name, tensor in state.items()}
    with pytest.raises(
        ValueError, match=r"'head\.weight' holds torch\.int8 and no floating numbers; are they quantised"
    ):
        fit_weights(named_tensors({**state, "head.weight": torch.zeros(3, 4, dtype=torch.int8)}), places)
    for other, kind in ((torch.zeros(3, 4, dtype=torch.complex64), "complex"), (torch.eye(3).to_sparse(), "sparse")):
        with pytest.raises(ValueError, match=f"'head.weight' is {kind}"):
            named_tensors({**state, "head.weight": other})
    counted = {"bn.num_batches_tracked": torch.tensor(3)}
    assert fit_weights(counted, {"bn.num_batches_tracked": ("n", ())})["n"] == 3


def test_a_state_dict_that_was_read_goes_on_as_it_is(state: dict[str, Tensor]) -> None:
    found = named_tensors({"model": {f"module.{name}": tensor for name, tensor in state.items()}})
    assert named_tensors(found) is found
    assert isinstance(found, StateDict)


def test_shapes_are_read_or_refused_by_name(state: dict[str, Tensor]) -> None:
    shapes = Shapes(state)
    assert (shapes.of("head.weight", 2), shapes.side("pos_embed"), shapes.depth("blocks")) == ((3, 4), 3, 2)
    with pytest.raises(ValueError, match=r"'tail\.weight' is missing"):
        shapes.of("tail.weight", 2)
    with pytest.raises(ValueError, match=r"'head.weight' has the shape \(3, 4\), but it has 3 dimensions"):
        shapes.of("head.weight", 3)
    with pytest.raises(ValueError, match=r"'layers\.0' is missing"):
        shapes.depth("layers")
    assert Shapes({"embed": torch.zeros(8, 3, 4, 4)}).square_patch("embed") == (8, 3, 4)
    with pytest.raises(ValueError, match="patches are square"):
        Shapes({"embed": torch.zeros(8, 3, 4, 5)}).square_patch("embed")
    with pytest.raises(ValueError, match="square of patches"):
        Shapes({"pos_embed": torch.zeros(1, 9, 4)}).side("pos_embed")
    assert Shapes({**state, "blocks.5.fc.weight": torch.zeros(1)}).depth("blocks") == 2


def test_weights_are_renamed_where_all_of_them_fit(state: dict[str, Tensor]) -> None:
    places = {name: (f"ours.{name}", tuple(tensor.shape)) for name, tensor in state.items()}
    fitted = fit_weights(state, places)
    assert {f"ours.{name}": id(tensor) for name, tensor in state.items()} == {n: id(t) for n, t in fitted.items()}
    with pytest.raises(ValueError, match=r"'missing' of shape \(2,\) is missing"):
        fit_weights(state, {**places, "missing": ("ours", (2,))})
    with pytest.raises(ValueError, match=r"'head.weight' has the shape \(3, 4\), not \(4, 3\)"):
        fit_weights(state, {**places, "head.weight": ("ours", (4, 3))})
    with pytest.raises(ValueError, match=r"'extra' of shape \(5,\) has no place"):
        fit_weights({**state, "extra": torch.zeros(5)}, places)


@given(st.integers(1, 5000), st.integers(1, 2000))
def test_a_ratio_gives_its_size_back(size: int, per: int) -> None:
    ratio = ratio_of(size, per)
    assert int(per * ratio) == size
    assert math.isclose(ratio, size / per)
    assert isinstance(ratio, int) == (size % per == 0)
