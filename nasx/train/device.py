"""Where computation happens, and with how many threads."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

Precision = Literal["auto", "float32", "bfloat16"]
"""What networks compute in; `auto` is bfloat16 on CUDA devices that have it, and float32 everywhere else."""

_precision: ContextVar[Precision] = ContextVar("precision", default="auto")


def pick_device(name: str = "auto") -> torch.device:
    """Return a torch device by name; "auto" is CUDA where there is one, else the CPU.

    Under torchrun "auto" and "cuda" are this process's own CUDA device, numbered by LOCAL_RANK.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"there is no device {name!r}; write cpu, cuda, cuda:0 or auto") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"the device {name!r} was asked for, but this machine has no usable CUDA device")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if device.index >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun started a process for {device}, but this machine has {torch.cuda.device_count()} CUDA "
                "devices; lower --nproc-per-node or ask for the device cpu"
            )
    if device.type not in ("cpu", "cuda"):
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(
                f"the device {name!r} was asked for, but this machine or this PyTorch has none; write cpu, cuda or auto"
            ) from error
    return device


def device_name(device: torch.device) -> str:
    """Return what a device is called by its maker: a CUDA device or the processor; another one by its type."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8", errors="replace").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter or else buffer; the CPU where it has neither."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def use_precision(precision: Precision) -> Iterator[None]:
    """Train and score in one precision inside this context and this thread; a ValueError says that there is none such.

    `bfloat16` is torch's autocast: products of matrices are taken in it, weights, norms and losses stay float32. It
    needs no loss scaling. `auto` uses it on CUDA devices that compute in it, and nowhere else: CPUs without AMX take
    about twice as long in bfloat16 as in float32.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"the precision must be one of {', '.join(get_args(Precision))}, but got {precision!r}")
    token = _precision.set(precision)
    try:
        yield
    finally:
        _precision.reset(token)


@contextmanager
def autocast(device: torch.device) -> Iterator[None]:
    """Run a forward pass and its loss in bfloat16 autocast, or as they are; see `use_precision`.

    The default precision depends on the type of `device`. An autocast that the caller has entered stays in force. What
    autocast keeps of weights in bfloat16 is dropped at the end, for they may have changed before the next pass: inside
    another autocast, even one that is switched off, torch would keep it.
    """
    precision = _precision.get()
    if precision == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if native else "float32"
    torch.clear_autocast_cache()  # a backward pass that computed something again may have left some
    try:
        with torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext():
            yield
    finally:
        torch.clear_autocast_cache()


def seed_generators(seed: int) -> None:
    """Seed torch's default generators, as `torch.manual_seed` does, in a fraction of the time.

    For each kind of accelerator that is not in use, that function notes down the call stack.
    """
    torch.default_generator.manual_seed(seed)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return
    if accelerator.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    else:
        torch.manual_seed(seed)


def use_deterministic_algorithms() -> None:
    """Make CUDA compute the same bits each time, more slowly; call it before the first CUDA operation.

    An operation that has no deterministic form is a RuntimeError where it runs. CPUs need only a fixed number of
    threads.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Run with a fixed number of CPU threads: sums over threads differ in the last bits with their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
