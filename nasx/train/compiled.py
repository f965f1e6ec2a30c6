"""Compiling the blocks of a network that is trained for long, with `torch.compile`."""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

_COMPILERS = {"cpu": ("g++", "c++", "clang++"), "cuda": ("gcc", "cc", "clang")}


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks that a network repeats, in order: the members of its outermost lists of one class.

    A list is an `nn.ModuleList` or `nn.Sequential` with at least two members, all of the same class and with
    parameters. A network without such lists has no repeated blocks.
    """
    if isinstance(network, nn.ModuleList | nn.Sequential):
        members = list(network)
        one_class = len(members) > 1 and len({type(member) for member in members}) == 1
        if one_class and all(any(True for _ in member.parameters()) for member in members):
            return members
    return [block for child in network.children() for block in repeated_blocks(child)]


def missing_for_compilation(device: torch.device) -> str | None:
    """Return what a machine lacks to compile networks for a device, or None where it lacks nothing."""
    if device.type not in _COMPILERS:
        return f"PyTorch compiles for {' and '.join(_COMPILERS)} only, not for {device.type}"
    if device.type == "cuda" and find_spec("triton") is None:
        return "the package triton is not installed"
    names = _COMPILERS[device.type]
    set_name = "CXX" if device.type == "cpu" else "CC"
    if not any(shutil.which(name) for name in (os.environ.get(set_name), *names) if name):
        return f"there is no compiler on the path ({', '.join(names)}, or the one that {set_name} names)"
    return None


@contextmanager
def compiled_blocks(
    network: nn.Module, *, backend: str | Callable[..., Any] = "inductor", fall_back: bool = False
) -> Iterator[nn.Module]:
    """Run a network's repeated blocks compiled inside this context, or all of it where it has none; yields the network.

    Blocks are compiled when they first run, one by one, which takes far less time than a whole network: seconds for
    each kind of block on a GPU, more on a CPU. A block is compiled again only for inputs of another shape, at most
    once, after which its sizes are variable. Outputs differ from those of plain blocks by rounding. Parameters and
    names of the state dict stay as they are. `backend` is torch's. With `fall_back`, a block that cannot be compiled
    runs as it is, with torch's warning; otherwise that is torch's error.

    It is not for processes that share a batch (`group`), whose statistics and masks compiled code would not exchange.
    Leaving the context forgets everything that `torch.compile` has made in this process.
    """
    from torch._dynamo import config  # whose import takes a second

    # torch's tracing looks at the gradient of every input, which blocks after the first compute themselves
    warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf", UserWarning)
    blocks = repeated_blocks(network) or [network]
    before = [block._compiled_call_impl for block in blocks]
    room = 4 * len(blocks) + config.recompile_limit  # blocks of one class share a limit, which 8 kinds would exhaust
    settings: Any = {"recompile_limit": room, "suppress_errors": fall_back or config.suppress_errors}
    with config.patch(settings):
        for block in blocks:
            block.compile(backend=backend)
        try:
            yield network
        finally:
            for block, call in zip(blocks, before, strict=True):
                block._compiled_call_impl = call
            torch.compiler.reset()
