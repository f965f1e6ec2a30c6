"""Vision transformers taken apart into blocks, and costs that are counted on these."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from nasx.arch import Arch, Value
from nasx.cost import AdditiveCost
from nasx.measure.count import count_macs, count_params
from nasx.nn.vit import ImageConfig

BuildViT = Callable[..., nn.Module]
"""Returns the network of a ViT config and an architecture, `build(vit, arch)`, in which `blocks` are the blocks."""


@dataclass(frozen=True)
class ViTBlocks:
    """Builds what the networks of a ViT config `vit` consist of, with inputs for batches of `batch_size` images.

    `build(vit, arch)` returns a network with its blocks in `blocks`; that of an architecture whose `block.count` is 0
    is what stands around the blocks. `nasx.latency.measure_latency` times both.

    Examples:
        >>> latency = measure_latency(TABLE2, ViTBlocks(build_in, GLiTConfig()))
        >>> fast = TABLE2.within(Budget(latency, at_most=8_000))
    """

    build: BuildViT
    vit: ImageConfig
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but got {self.batch_size}")

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields of `vit` and the batch size, which a table of latencies keeps."""
        return {**asdict(self.vit), "batch_size": self.batch_size}

    def fixed(self, shared: Mapping[str, Value]) -> tuple[nn.Module, Tensor]:
        """Return patch embedding, class token, norm and head, and images (B, C, H, W)."""
        return self.build(self.vit, Arch({**shared, "block.count": 0})), self._images()

    def part(
        self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]
    ) -> tuple[nn.Module, Tensor]:
        """Return a block and its tokens (B, N, D)."""
        network: Any = self.build(self.vit, Arch.from_parts("block", [choices], {**shared, "block.count": 1}))
        return network.blocks[0], torch.randn(self.batch_size, self.vit.tokens, network.head.in_features)

    def network(self, arch: Arch) -> tuple[nn.Module, Tensor]:
        """Return a whole network and its images."""
        return self.build(self.vit, arch), self._images()

    def _images(self) -> Tensor:
        f = self.vit
        return torch.randn(self.batch_size, f.in_channels, f.image_size, f.image_size)


@dataclass(frozen=True)
class ViTCost(AdditiveCost):
    """A cost of the networks of one ViT config, `vit`."""

    vit: Any

    def configured(self, **changes: Any) -> Self:
        """Return the same cost in another ViT config: `macs.configured(image_size=32, patch_size=4)`."""
        return replace(self, vit=replace(self.vit, **changes))


@dataclass(frozen=True)
class CountedViTCost(ViTCost):
    """Multiply-adds of one image, or parameters, counted once in a process for each block that is asked for.

    `kind` says which of the two, "macs" or "params"; `build(vit, arch)` returns a network of the ViT config `vit` with
    its blocks in `blocks`. Modules run on `meta`, which computes nothing: a block takes some milliseconds for its
    multiply-adds and less than one for its parameters. Equal costs share what they have counted.
    """

    build: BuildViT
    kind: Literal["macs", "params"]

    @property
    def unit(self) -> str:  # type: ignore[override]
        """What is counted, in words."""
        return "MACs" if self.kind == "macs" else "parameters"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the cost of patch embedding, class token, positions, last norm and head."""
        return self._counted(_as_arch(shared), None)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the cost of one block."""
        return self._counted(_as_arch(shared), _as_arch(choices))

    def _counted(self, shared: Arch, choices: Arch | None) -> int:
        return _count(self.build, self.vit, self.kind, shared, choices)


@lru_cache(maxsize=1 << 16)
def _count(build: BuildViT, vit: Any, kind: Literal["macs", "params"], shared: Arch, choices: Arch | None) -> int:
    blocks = ViTBlocks(build, vit)
    with torch.device("meta"):
        part = blocks.fixed(shared) if choices is None else blocks.part("block", 0, shared, choices)
        return count_params(part[0]) if kind == "params" else count_macs(*part)


def _as_arch(choices: Mapping[str, Value]) -> Arch:
    return choices if isinstance(choices, Arch) else Arch(choices)
