import hashlib
import json
import logging
import math
import shutil
import struct
import subprocess
import sys
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, ReduceLROnPlateau, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nasx.run.checkpoints import Checkpoint, Checkpoints, flatten_state, unflatten_state


def tensors_of(step: int) -> dict[str, Tensor]:
    return {"a.weight": torch.arange(12.0).view(3, 4) + step, "count": torch.tensor(step), "none": torch.empty(0, 3)}


def state_of(step: int) -> dict[str, Any]:
    return {"epoch": step, "note": "ü", "losses": [0.1, step / 3]}


def save(checkpoints: Checkpoints, step: int) -> Path:
    return checkpoints.save(step, tensors_of(step), state_of(step))


def is_that_of(found: Checkpoint | None, step: int) -> bool:
    return found is not None and found.step == step and found.state == state_of(step) and same(found.tensors, step)


def same(tensors: dict[str, Tensor], step: int) -> bool:
    expected = tensors_of(step)
    return tensors.keys() == expected.keys() and all(
        torch.equal(tensors[k], t) and tensors[k].dtype == t.dtype for k, t in expected.items()
    )


def equal(a: Any, b: Any) -> bool:
    """Whether two states are the same in values and types, NaN included."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(type(k) is type(j) and equal(a[k], b[j]) for k, j in zip(a, b, strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, float):
        return a.hex() == b.hex()
    return bool(a == b)


def test_the_newest_comes_back_and_the_last_ones_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoints.latest() is None
    for step in (5, 10, 10, 7):  # the last one saved is the newest, whatever its step
        path = save(checkpoints, step)
        assert is_that_of(checkpoints.latest(), step)
        assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "state.json", "tensors.safetensors"]
    assert len(list(checkpoints.directory.iterdir())) == 2
    assert is_that_of(Checkpoints(tmp_path / "run" / "checkpoints").latest(), 7)
    save(Checkpoints(checkpoints.directory, keep=1), 8)
    assert len(list(checkpoints.directory.iterdir())) == 1
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match="-1"):
        save(checkpoints, -1)


def test_equal_content_gives_equal_files(tmp_path: Path) -> None:
    first, second = (save(Checkpoints(tmp_path / name), 3) for name in "ab")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
    with safe_open(first / "tensors.safetensors", "pt") as opened:
        assert len(opened.metadata() or {}) <= 1


def test_every_layout_of_a_tensor_is_kept(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    shared = nn.Parameter(base.view(4, 6))
    tensors: dict[str, Tensor] = {
        "shared": shared,
        "alias": shared,
        "view": base[3:9],
        "transposed": base.view(4, 6).t(),
        "expanded": torch.ones(1, 3).expand(4, 3),
        "half": base.bfloat16(),
        "eighth": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
        "long": torch.tensor([2**62]),
        "bool": torch.tensor([True, False]),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "negated": torch.tensor([1 + 2j]).conj().imag,
    }
    Checkpoints(tmp_path).save(0, tensors, None)
    found = Checkpoints(tmp_path).latest()
    assert found
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype, name
        wide = torch.complex128
        assert torch.equal(found.tensors[name].to(wide), tensor.detach().to(wide)), name
    found.tensors["alias"].zero_()
    assert torch.equal(found.tensors["shared"], shared)


def test_the_first_tensor_that_is_not_finite_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    bad = torch.tensor([1.0, math.nan])
    tensors = {"fine": torch.ones(2), "first": bad, "second": bad * math.inf, "whole": torch.tensor([1])}
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e5m2, torch.complex64):
        with pytest.raises(ValueError, match="'first' holds NaN or infinity"):
            checkpoints.save(2, {name: t.to(dtype) for name, t in tensors.items()}, {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoints.save(2, {}, {"best": -math.inf})
    assert is_that_of(checkpoints.latest(), 1)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    newest = save(checkpoints, 2)
    (newest / "state.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert is_that_of(checkpoints.latest(), 1)
    assert str(newest) in caplog.text
    assert newest.with_name(newest.name + ".damaged").is_dir()
    for step in (3, 4, 5):
        save(checkpoints, step)
    assert is_that_of(checkpoints.latest(), 5)
    assert newest.with_name(newest.name + ".damaged").is_dir()  # for whoever wants to look
    newest.mkdir()  # put back and damaged again
    assert is_that_of(checkpoints.latest(), 5)
    shutil.rmtree(checkpoints.directory / "000004-step5")
    assert is_that_of(checkpoints.latest(), 4)
    shutil.rmtree(checkpoints.directory / "000003-step4")
    assert checkpoints.latest() is None
    assert len(list(checkpoints.directory.glob("*.damaged*"))) == 2


def forge(path: Path, tensors: bytes, state: bytes) -> None:
    """Replace a checkpoint's files and describe them as its manifest would."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    for name, data in (("tensors.safetensors", tensors), ("state.json", state)):
        (path / name).write_bytes(data)
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))


def one_tensor(dtype: str, shape: list[int], data: bytes) -> bytes:
    header = json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize(
    ("tensors", "state"),
    [
        (one_tensor("F4", [2], b"x"), b"1"),  # a type that torch has not
        (one_tensor("F32", [0, 2**40, 2**40], b""), b"1"),
        (one_tensor("F32", [0, 2**63], b""), b"1"),
        (one_tensor("F32", [3], b"12345678"), b"1"),
        (one_tensor("F32", [2], b"12345678"), b"[" * 99_999),
        (one_tensor("F32", [2], b"12345678"), b"NaN"),
        (struct.pack("<Q", 2**63), b"1"),
        (struct.pack("<Q", 99_999) + b"[" * 99_999, b"1"),
    ],
)
def test_a_forged_checkpoint_that_cannot_be_read_is_set_aside(tmp_path: Path, tensors: bytes, state: bytes) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    forge(save(checkpoints, 2), one_tensor("F32", [2], bytes(8)), b"1")
    found = checkpoints.latest()
    assert found is not None
    assert found.state == 1  # forged well
    forge(save(checkpoints, 3), tensors, state)
    found = checkpoints.latest()
    assert found is not None
    assert found.step == 2


def test_a_manifest_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    for text in ("[" * 99_999, "[]", "1", '{"checkpoint": "000001-step2"}', "NaN"):
        (save(checkpoints, 2) / "manifest.json").write_text(text)
        assert is_that_of(checkpoints.latest(), 1)


def test_what_a_killed_writer_left_goes_with_the_next_save(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1).rename(tmp_path / ".000000-step1.0123abcd.partial")
    assert checkpoints.latest() is None
    path = save(checkpoints, 2)
    assert list(tmp_path.iterdir()) == [path]


def test_another_owners_checkpoint_is_refused(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, identity="heads"), 1)
    assert is_that_of(Checkpoints(tmp_path).latest(), 1)
    assert is_that_of(Checkpoints(tmp_path, identity="heads").latest(), 1)
    assert Checkpoints(tmp_path, identity="details").latest() is None


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname", "link.json"])
def test_nothing_outside_a_checkpoint_is_read(tmp_path: Path, name: str) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    save(checkpoints, 1)
    path = save(checkpoints, 2)
    (tmp_path / "c" / "outside.json").write_text((path / "state.json").read_text())
    (path / "link.json").symlink_to(path / "state.json")
    text = (path / "manifest.json").read_text()
    assert "state.json" in text
    (path / "manifest.json").write_text(text.replace("state.json", name))
    assert is_that_of(checkpoints.latest(), 1)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json", ""])
def test_links_are_not_followed(tmp_path: Path, name: str) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    save(checkpoints, 1)
    target = save(checkpoints, 2) / name
    target.rename(tmp_path / "moved")
    target.symlink_to(tmp_path / "moved")
    assert is_that_of(checkpoints.latest(), 1)


STATE: dict[Any, Any] = {
    0: torch.arange(3),
    "0": torch.arange(4),
    "a.b": torch.ones(1),
    "a": {"b": torch.zeros(1), "tensor": "a", "dict": [], "c": ()},
    "scalars": [None, True, 1, 1.0, -0.0, 10**30, 5e-324, 0.1, math.inf, -math.inf, math.nan, "", "ü", "\ud800"],
    "tuples": ((1, (2.5,)), [(), []]),
    (1, "x"): OrderedDict(z=1, a=Counter({3: 2})),
    1.5: {True: 1, None: 2},
    "__metadata__": torch.ones(2),
    "float": {"float": "nan"},
}


def test_states_come_back_the_same_in_values_types_and_order(tmp_path: Path) -> None:
    states: list[Any] = [STATE, torch.ones(2), 3, math.inf, [], {}, {"tensor": torch.ones(1)}]
    for state in states:
        tensors, plain = flatten_state(state)
        json.dumps(plain, allow_nan=False)
        Checkpoints(tmp_path).save(0, tensors, plain)
        found = Checkpoints(tmp_path).latest()
        assert found
        assert equal(unflatten_state(found.tensors, found.state), state)


def test_what_cannot_be_kept_is_named() -> None:
    with pytest.raises(TypeError, match=r"at groups\.0\.scale it holds a function"):
        flatten_state({"groups": [{"scale": is_that_of}]})
    tensors, plain = flatten_state({"a": torch.ones(1)})
    with pytest.raises(ValueError, match="needs the tensor 'a'"):
        unflatten_state({}, plain)
    for other in ({"a": 1, "b": 2}, {"dict": 1}, {"dict": [1]}, {"dict": [[[1], 2]]}):
        with pytest.raises(ValueError, match="not a state"):
            unflatten_state(tensors, other)


class Training:
    """A network with BatchNorm, AdamW, warm-up and cosine, and a moving average of the weights."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        average = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, amsgrad=True)
        warmup, cosine = LinearLR(self.optimizer, 0.1, total_iters=3), CosineAnnealingLR(self.optimizer, 9)
        self.schedule = SequentialLR(self.optimizer, [warmup, cosine], milestones=[3])
        self.parts: dict[str, Any] = {
            "model": self.model,
            "average": self.average,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "plateau": ReduceLROnPlateau(self.optimizer),
            "steps": MultiStepLR(torch.optim.SGD(self.model.parameters()), [4, 4, 6]),
        }

    def run(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            images = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            self.model(images).square().mean().backward()
            self.optimizer.step()
            self.schedule.step()
            self.average.update_parameters(self.model)

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}


def test_training_continued_from_a_checkpoint_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, first, second = Training(), Training(), Training()
    whole.run(0, 8)
    first.run(0, 5)
    Checkpoints(tmp_path).save(5, *flatten_state(first.state()))
    found = Checkpoints(tmp_path).latest()
    assert found
    state = unflatten_state(found.tensors, found.state)
    assert equal(state, first.state())
    for name, part in second.parts.items():
        part.load_state_dict(state[name])
    second.run(found.step, 8)
    assert equal(second.state(), whole.state())


def test_importing_runs_loads_no_torch() -> None:
    code = "import sys, nasx.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
