"""The LocalViT networks as plain torch: what is retrained, scored, exported and shipped."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nasx import Arch
from nasx.arch import Value
from nasx.nn import Attention, DropPath, FeedForward, ViT, ViTConfig, block_parts, drop_path_rates, hidden_width

from .layers import EfficientChannelAttention, LocalFeedForward, SqueezeExcitation
from .space import variant


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalViTConfig(ViTConfig):
    """All that a network's blocks share: images, patches, width, heads, classes. Defaults are Tiny's."""

    num_heads: int = 4


def make_local(vit: LocalViTConfig, part: Mapping[str, Value]) -> LocalFeedForward:
    """Return the locally-enhanced feed-forward of one part of an architecture."""
    hidden = hidden_width(vit.embed_dim, part["mlp_ratio"])
    match part["channel_attention"]:
        case "none":
            attention: nn.Module | None = None
        case "se":
            attention = SqueezeExcitation(hidden, int(part["reduction"]))
        case "eca":
            attention = EfficientChannelAttention(hidden, str(part["gate"]))
        case other:
            raise ValueError(f"channel attention must be one of none, se, eca, but got {other!r}")
    kernel_size, activation = int(part["kernel_size"]), str(part["activation"])
    return LocalFeedForward(vit.embed_dim, hidden, kernel_size=kernel_size, activation=activation, attention=attention)


class Block(nn.Module):
    """Attention, then DeiT's feed-forward (`norm2`, `mlp`) or the local one beside the class token (`local`).

    The local half has no LayerNorm and no stochastic depth, and the class token passes it unchanged.
    """

    def __init__(self, vit: LocalViTConfig, part: Mapping[str, Value], drop_path: float = 0.0) -> None:
        super().__init__()
        dim = vit.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, vit.num_heads)
        self.drop_path = DropPath(drop_path)
        self.local = make_local(vit, part) if part["depthwise"] else None
        if self.local is None:
            self.norm2 = nn.LayerNorm(dim, eps=1e-6)
            self.mlp = FeedForward(dim, hidden_width(dim, part["mlp_ratio"]))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, D), class token first, to tokens (B, N, D)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        if self.local is not None:
            patches = x[:, 1:]
            return torch.cat([x[:, :1], patches + self.local(patches)], dim=1)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class LocalViT(ViT):
    """The network of an architecture with fresh weights: images (B, C, H, W) in, logits (B, classes) out.

    Pointwise convolutions are Linear layers here and drawn like them; BatchNorm follows, so their scale is free.
    """

    def __init__(self, vit: LocalViTConfig, arch: Arch, *, drop_path: float = 0.0, init_std: float = 0.02) -> None:
        parts = block_parts(arch)
        rates = drop_path_rates(drop_path, len(parts))
        super().__init__(vit, [Block(vit, part, rate) for part, rate in zip(parts, rates, strict=True)])
        self.initialise(init_std)


SMALL_VIT = LocalViTConfig(embed_dim=384, num_heads=8)
"""LocalViT-Small's sizes; the defaults are Tiny's."""

LOCALVIT_TINY_ACT1 = variant(1, mlp_ratio=6)
"""The published LocalViT-Tiny with ReLU6 and a hidden width of six times the block's."""

LOCALVIT_TINY_ACT3 = variant(3, reduction=192)
"""The published LocalViT-Tiny with h-swish and squeeze-excitation."""

LOCALVIT_SMALL_ACT3 = variant(3, reduction=384)
"""The published LocalViT-Small, which stands in `SMALL_VIT`."""
