"""AutoFormer's vision transformer as plain torch: what is retrained, scored, exported and shipped."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nasx import Arch
from nasx.arch import Value
from nasx.nn import DropPath, FeedForward, ImageFrame, drop_path_rates
from recipes.autoformer.layers import TABLES, Embedding, RelativeAttention, RelativePositions

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame(ImageFrame):
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


def depth_of(arch: Mapping[str, Value]) -> int:
    """Return an architecture's number of blocks; a ValueError where it does not have the blocks that it counts."""
    found = len(Arch(arch).parts("block"))
    for name in ("embed_dim", "block.count"):
        if name not in arch:
            raise ValueError(f"the architecture has no entry {name!r}; it needs embed_dim, block.count and the blocks")
    if not found or found != arch["block.count"]:
        raise ValueError(f"block.count is {arch['block.count']}, but the architecture describes {found} blocks")
    return found


def hidden_width(embed_dim: int, choices: Mapping[str, Value]) -> int:
    """Return the hidden width of a block's feed-forward, at least 1."""
    hidden = int(embed_dim * float(choices["mlp_ratio"]))
    if hidden < 1:
        raise ValueError(f"mlp_ratio {choices['mlp_ratio']} leaves no hidden width at width {embed_dim}")
    return hidden


def run_block(x: Tensor, norm1: Layer, attend: Layer, norm2: Layer, feed: Layer, drop_path: Layer) -> Tensor:
    """Apply one pre-norm block to tokens (B, N, C)."""
    x = x + drop_path(attend(norm1(x)))
    return x + drop_path(feed(norm2(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(
        self, norm1: nn.LayerNorm, attn: RelativeAttention, norm2: nn.LayerNorm, mlp: FeedForward, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = norm1, attn, norm2, mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, C) to tokens (B, N, C)."""
        return run_block(x, self.norm1, self.attn, self.norm2, self.mlp, self.drop_path)


class AutoFormer(nn.Module):
    """A vision transformer: images (B, channels, H, W) in, logits (B, classes) out, from the patches' mean."""

    def __init__(self, embed: Embedding, blocks: list[Block], norm: nn.LayerNorm, head: nn.Linear) -> None:
        super().__init__()
        self.embed, self.blocks, self.norm, self.head = embed, nn.ModuleList(blocks), norm, head

    def no_weight_decay(self) -> set[str]:
        """Return the parameters beside vectors, class token and positions that weight decay spares: relative tables."""
        return set(TABLES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.head(mean_patch(self.norm(x)))


def mean_patch(tokens: Tensor) -> Tensor:
    """Return the mean (B, C) of the patches' tokens, class token aside."""
    return tokens[:, 1:].mean(dim=1)


@torch.no_grad()
def initialise(model: nn.Module, std: float) -> None:
    """Draw Linear weights, class token, positions and their tables from a truncated normal; Linear biases are 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
        elif isinstance(module, RelativePositions):
            for table in module.parameters():
                nn.init.trunc_normal_(table, std=std)
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_token", "pos_embed")):
            nn.init.trunc_normal_(parameter, std=std)


def build(
    arch: Arch,
    num_classes: int = 1000,
    image_size: int = 224,
    *,
    patch_size: int = 16,
    in_channels: int = 3,
    head_dim: int = 64,
    max_offset: int = 14,
    relative_positions: bool = True,
    drop_path: float = 0.0,
    init_std: float = 0.02,
) -> AutoFormer:
    """Return the network of an architecture with fresh weights; the defaults are the paper's on ImageNet."""
    frame = Frame(
        image_size=image_size,
        patch_size=patch_size,
        in_channels=in_channels,
        num_classes=num_classes,
        head_dim=head_dim,
        max_offset=max_offset,
        relative_positions=relative_positions,
    )
    return build_in(frame, arch, drop_path=drop_path, init_std=init_std)


def build_in(frame: Frame, arch: Arch, *, drop_path: float = 0.0, init_std: float = 0.02) -> AutoFormer:
    """Return the network of an architecture in a frame, with fresh weights."""
    depth, dim = depth_of(arch), int(arch["embed_dim"])
    blocks = [
        Block(
            nn.LayerNorm(dim),
            RelativeAttention(dim, int(part["num_heads"]), head_dim=frame.head_dim, positions=frame.positions()),
            nn.LayerNorm(dim),
            FeedForward(dim, hidden_width(dim, part)),
            rate,
        )
        for part, rate in zip(arch.parts("block"), drop_path_rates(drop_path, depth), strict=True)
    ]
    embed = Embedding(dim, tokens=frame.tokens, in_channels=frame.in_channels, patch_size=frame.patch_size)
    model = AutoFormer(embed, blocks, nn.LayerNorm(dim), nn.Linear(dim, frame.num_classes))
    initialise(model, init_std)
    return model
