"""The rate of a device's matrix product, which bounds every network, and what share of it a network reaches."""

from collections.abc import Callable

import torch

SIDES = {"cpu": 1024, "cuda": 8192}


class MatrixProduct:
    """A square matrix product, large enough to run at the device's full rate; `flops` is what a call takes."""

    def __init__(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        side = SIDES[torch.device(device).type]
        generator = torch.Generator(device).manual_seed(0)
        self.left, self.right = (
            torch.randn(side, side, generator=generator, device=device, dtype=dtype) for _ in range(2)
        )
        self.flops = 2 * side**3
        self._out = torch.empty_like(self.left)

    def __call__(self) -> None:
        """Compute the product."""
        torch.mm(self.left, self.right, out=self._out)


def training_flops(macs: int, images: int) -> int:
    """Return the floating-point operations of a training step: forward, and twice that backward."""
    return 6 * macs * images


def inference_flops(macs: int, images: int) -> int:
    """Return the floating-point operations of a forward pass."""
    return 2 * macs * images


Step = Callable[[], None]
