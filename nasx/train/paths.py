"""Which architectures a supernet trains on at each step: pure functions of (seed, step)."""

from typing import Protocol

import numpy as np

from nasx.arch import Arch
from nasx.space import ArchSet


class Paths(Protocol):
    """The architectures of a training step; gradients are averaged where there are several."""

    def __call__(self, step: int) -> tuple[Arch, ...]:
        """Return the architectures of a step."""


class UniformPaths:
    """One path a step, every choice drawn uniformly (SPOS, section 3.3)."""

    def __init__(self, space: ArchSet, seed: int) -> None:
        self.space, self.seed = space, seed

    def __call__(self, step: int) -> tuple[Arch, ...]:
        """Return the architecture of a step."""
        return (self.space.sample_per_choice(np.random.default_rng([self.seed, step])),)
