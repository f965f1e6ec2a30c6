"""Seeds for single draws, and the global generators that other libraries draw from."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(*path: int) -> int:
    """Return the 63-bit seed of one draw, named by numbers such as (seed, use, step)."""
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0]) >> 1


def seed_globals(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (CPU), for code that draws from no other."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the accelerators


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put the global generators back as they were, as `globals_kept` does, and those of CUDA devices."""
    used = torch.cuda.is_initialized()
    before = [generator.get_state() for generator in torch.cuda.default_generators] if used else []
    with globals_kept():
        try:
            yield
        finally:
            for generator, state in zip(torch.cuda.default_generators, before, strict=False):
                generator.set_state(state)
    if not used and torch.cuda.is_initialized():  # they would have begun with the seed of the CPU's
        torch.cuda.manual_seed_all(torch.initial_seed())


@contextmanager
def globals_kept() -> Iterator[None]:
    """Put the global generators of Python, numpy and torch (CPU) back as they were."""
    python, legacy, default = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.default_generator.set_state(default)
