import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nasx.train import (
    UniformPaths,
    adamw,
    autocast,
    device_of,
    pick_device,
    train_supernet,
    use_deterministic_algorithms,
    use_precision,
    use_threads,
)
from nasx.train.device import seed_generators
from recipes.glit.model import GLiTConfig
from recipes.glit.space import GLiTSpace, table2
from recipes.glit.supernet import supernet as make_supernet


def test_threads_come_back_even_after_an_error() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with use_threads(before + 1):
            raise KeyError(torch.get_num_threads())

    with pytest.raises(KeyError, match=str(before + 1)):
        fail()
    assert torch.get_num_threads() == before


def test_the_cpu_computes_in_full_precision() -> None:
    with autocast(torch.device("cpu")):
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.float32


def test_the_precision_is_that_of_the_innermost_context() -> None:
    def dtype() -> torch.dtype:
        with autocast(torch.device("cpu")):
            return nn.Linear(2, 2)(torch.zeros(1, 2)).dtype

    with use_precision("bfloat16"):
        assert dtype() == torch.bfloat16
        with use_precision("float32"):
            assert dtype() == torch.float32
        assert dtype() == torch.bfloat16
    assert dtype() == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert dtype() == torch.bfloat16, "the caller's own autocast stays"
    with pytest.raises(ValueError, match="one of auto, float32, bfloat16, but got 'half'"), use_precision("half"):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize("enabled", [None, False, True])
def test_weights_that_change_between_two_passes_are_seen_in_bfloat16(enabled: bool | None) -> None:
    layer, x = nn.Linear(8, 8, bias=False), torch.ones(1, 8)
    outer = nullcontext() if enabled is None else torch.autocast("cpu", torch.bfloat16, enabled=enabled)
    with outer, use_precision("float32" if enabled else "bfloat16"):
        for value in (1.0, 2.0):
            nn.init.constant_(layer.weight, value)
            with autocast(torch.device("cpu")):
                outputs = layer(x)
            assert outputs.dtype == torch.bfloat16
            assert outputs.tolist() == [[8 * value] * 8]


@pytest.mark.parametrize("outer", [False, True])
def test_what_a_backward_pass_computes_again_is_forgotten_in_bfloat16(outer: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 8, bias=False), torch.ones(1, 8)
    context = torch.autocast("cpu", enabled=False) if outer else nullcontext()
    with context, use_precision("bfloat16"):
        for value in (1.0, 2.0, 3.0):
            nn.init.constant_(layer.weight, value)
            with autocast(torch.device("cpu")):
                outputs = checkpoint(layer, x, use_reentrant=False)
            assert outputs.tolist() == [[8 * value] * 8]
            outputs.float().sum().backward()


FAULTS = """
import resource, sys, torch
from nasx.train import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
def use():
    return [torch.zeros(2**20) for _ in range(8)]
for _ in range(5):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_that_was_freed_is_kept_for_what_comes_next() -> None:
    def faults(what: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, what], capture_output=True, text=True)
        if done.returncode == 3:
            pytest.skip("this system's C library is not glibc")
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    usual = faults("as it is")
    # none at all where huge pages are given out whole, which leaves nothing to save
    assert faults("keep") <= usual / 10


def test_generators_are_seeded_as_torch_seeds_them() -> None:
    torch.manual_seed(2**40 + 3)
    expected = torch.rand(3)
    seed_generators(2**40 + 3)
    assert torch.equal(torch.rand(3), expected)


def test_a_modules_device_is_that_of_its_tensors() -> None:
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert device_of(nn.BatchNorm1d(2, affine=False, device="meta")) == torch.device("meta")
    assert device_of(nn.ReLU()) == torch.device("cpu")


def test_an_unknown_device_is_a_clear_error() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="tpu9"):
        pick_device("tpu9")
    if not torch.backends.mps.is_available():
        with pytest.raises(ValueError, match="the device 'mps' was asked for, but this machine"):
            pick_device("mps")


def test_supernets_train_where_only_deterministic_algorithms_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    space = table2(GLiTSpace(blocks=1, kernel_size=(3, 5, 9), held_kernel_size=5))
    vit = GLiTConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=12)
    supernet = make_supernet(space, vit)
    batches = [(torch.randn(4, 1, 8, 8), torch.randint(10, (4,))) for _ in range(2)]
    try:
        use_deterministic_algorithms()
        assert torch.are_deterministic_algorithms_enabled()
        steps = list(
            train_supernet(supernet, batches, UniformPaths(space, 0), adamw(supernet, lr=1e-3, weight_decay=0))
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert [step.skipped for step in steps] == [False, False]
