"""AutoFormer's vision transformer as plain torch: what is retrained, scored, exported and shipped."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasx import Arch
from nasx.arch import Value
from nasx.nn import DropPath, FeedForward, ImageConfig, block_parts, drop_path_rates, hidden_width

from .layers import Embedding, RelativeAttention, RelativePositions


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoFormerConfig(ImageConfig):
    """All that is not searched: images, patches, classes, the heads' width, how far offsets reach.

    The number of vectors in a table of relative positions is 2 max_offset + 2. Defaults are the paper's.
    """

    head_dim: int = 64
    max_offset: int = 14
    relative_positions: bool = True

    def positions(self) -> RelativePositions | None:
        """Return one block's relative positions, or None where the network has none."""
        if not self.relative_positions:
            return None
        return RelativePositions((self.grid, self.grid), self.head_dim, max_offset=self.max_offset)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, vit: AutoFormerConfig, dim: int, part: Mapping[str, Value], drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = RelativeAttention(dim, int(part["num_heads"]), head_dim=vit.head_dim, positions=vit.positions())
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, hidden_width(dim, part["mlp_ratio"]))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, C) to tokens (B, N, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class AutoFormer(nn.Module):
    """A vision transformer: images (B, channels, H, W) in, logits (B, classes) out, from the patches' mean.

    Drop path's rates grow linearly over the blocks, or over `rates_over` of them: those of a supernet's largest network
    stay with its blocks.
    """

    def __init__(
        self,
        vit: AutoFormerConfig,
        arch: Arch,
        *,
        drop_path: float = 0.0,
        rates_over: int | None = None,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        if missing := [name for name in ("embed_dim", "block.count") if name not in arch]:
            raise ValueError(
                f"the architecture has no entry {missing[0]!r}; it needs embed_dim, block.count and the blocks"
            )
        parts, dim = block_parts(arch), int(arch["embed_dim"])
        rates = drop_path_rates(drop_path, max(len(parts), rates_over or 0))
        self.embed = Embedding(dim, tokens=vit.tokens, in_channels=vit.in_channels, patch_size=vit.patch_size)
        self.blocks = nn.ModuleList(Block(vit, dim, part, rate) for part, rate in zip(parts, rates, strict=False))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vit.num_classes)
        self.initialise(init_std)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 1:].mean(dim=1))

    @torch.no_grad()
    def initialise(self, std: float) -> None:
        """Draw Linear weights, class token, positions and their tables from a truncated normal; Linear biases are 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, RelativePositions):
                for table in module.parameters():
                    nn.init.trunc_normal_(table, std=std)
        nn.init.trunc_normal_(self.embed.cls_token, std=std)
        nn.init.trunc_normal_(self.embed.pos_embed, std=std)


def build(
    arch: Arch,
    num_classes: int = 1000,
    image_size: int = 224,
    *,
    drop_path: float = 0.0,
    init_std: float = 0.02,
    **sizes: Any,
) -> AutoFormer:
    """Return the network of an architecture with fresh weights; the defaults are the paper's on ImageNet.

    `sizes` are other fields of `AutoFormerConfig`, such as `patch_size`.
    """
    vit = AutoFormerConfig(num_classes=num_classes, image_size=image_size, **sizes)
    return AutoFormer(vit, arch, drop_path=drop_path, init_std=init_std)
