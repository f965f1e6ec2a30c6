"""What a supernet is to training and search."""

from typing import Protocol

from torch import Tensor, nn

from nasx.arch import Arch


class Supernet(Protocol):
    """A module that runs any architecture of a space.

    The architecture is an argument and never module state, so one supernet serves threads, ranks and tests alike.
    `extract(arch)` is plain torch with copies of the weights; its outputs equal the supernet's for that
    architecture, in evaluation mode and, from the same random state, in training mode.
    """

    def __call__(self, x: Tensor, arch: Arch) -> Tensor:
        """Return the outputs for a batch under an architecture."""

    def extract(self, arch: Arch) -> nn.Module:
        """Return an architecture's network on its own."""


class Subnet(nn.Module):
    """A supernet held at one architecture: weights and modes stay the supernet's own."""

    def __init__(self, supernet: nn.Module, arch: Arch) -> None:
        super().__init__()
        self.supernet, self.arch = supernet, arch

    def forward(self, x: Tensor) -> Tensor:
        """Return the supernet's outputs under the architecture."""
        return self.supernet(x, self.arch)
