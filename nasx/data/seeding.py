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
    used = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    before = [generator.get_state() for generator in torch.cuda.default_generators] if used else []
    seed = torch.initial_seed()
    try:
        with globals_kept():
            yield
    finally:
        if used:
            for generator, state in zip(torch.cuda.default_generators, before, strict=True):
                generator.set_state(state)
        elif torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(seed)  # with which they would have begun


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
