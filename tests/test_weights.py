"""Weights from outside: files are read without being run, and what does not fit is named."""

import argparse
import math
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from nasx.weights import Shapes, fit_weights, named_tensors, ratio_of, read_state_dict


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
        with pytest.raises(ValueError, match=r"weights.pth"):
            read_state_dict(path)
    assert not created.exists()


def test_a_state_dict_is_found_inside_a_checkpoint(state: dict[str, Tensor]) -> None:
    assert named_tensors({"model": state, "epoch": 3}).keys() == state.keys()
    nothings: list[object] = [{}, [1], {"model": {}}, {"epoch": 3}, {3: torch.zeros(1)}]
    for nothing in nothings:
        with pytest.raises(ValueError, match="maps names to tensors"):
            named_tensors(nothing)


def test_shapes_are_read_or_refused_by_name(state: dict[str, Tensor]) -> None:
    shapes = Shapes(state)
    assert (shapes.of("head.weight", 2), shapes.side("pos_embed"), shapes.depth("blocks")) == ((3, 4), 3, 2)
    with pytest.raises(ValueError, match=r"'tail\.weight' is missing"):
        shapes.of("tail.weight", 2)
    with pytest.raises(ValueError, match=r"'head.weight' has the shape \(3, 4\), but it has 3 dimensions"):
        shapes.of("head.weight", 3)
    with pytest.raises(ValueError, match=r"'layers\.0' is missing"):
        shapes.depth("layers")
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
