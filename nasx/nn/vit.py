"""What stands around a vision transformer's blocks, for networks whose blocks differ.

Shapes: images are (B, C, H, W), tokens (B, N, D): batch, tokens (class token first), width.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nasx.arch import Arch, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """Square images cut into square patches. Defaults are ImageNet's.

    Raises ValueError where the image is no whole number of patches wide.
    """

    image_size: int = 224
    """Pixels along a side of an image."""

    patch_size: int = 16
    """Pixels along a side of a patch."""

    in_channels: int = 3
    """Channels of an image."""

    num_classes: int = 1000
    """Outputs of the classifier."""

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size or self.image_size < self.patch_size:
            raise ValueError(
                f"the image size must be a multiple of the patch size, but got {self.image_size} and {self.patch_size}"
            )

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Number of image patches."""
        return self.grid**2

    @property
    def has_class_token(self) -> bool:
        """Whether a class token is classified, rather than the mean of the patches' tokens."""
        return True

    @property
    def tokens(self) -> int:
        """Number of tokens: patches and the class token."""
        return self.patches + self.has_class_token


@dataclass(frozen=True, slots=True, kw_only=True)
class ViTConfig(ImageConfig):
    """An `ImageConfig` with one width and one number of heads for all blocks. Defaults are DeiT-Tiny's."""

    embed_dim: int = 192
    """Channels of a token, a multiple of `num_heads`."""

    num_heads: int = 3
    """Attention heads of a block."""

    def __post_init__(self) -> None:
        ImageConfig.__post_init__(self)
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"the width must be a multiple of the heads, but got {self.embed_dim} and {self.num_heads}"
            )


def hidden_width(embed_dim: int, mlp_ratio: Value) -> int:
    """Return the hidden width of a feed-forward: `mlp_ratio` times the tokens' width `embed_dim`, as a whole number.

    Raises ValueError where it is below 1.
    """
    hidden = int(embed_dim * float(mlp_ratio))
    if hidden < 1:
        raise ValueError(
            f"mlp_ratio must leave a hidden width of at least 1 of {embed_dim}, but got {mlp_ratio}; raise it"
        )
    return hidden


def block_parts(arch: Arch) -> list[Arch]:
    """Return the choices of the blocks of `arch` in order; a ValueError where they are not as many as it says.

    Without `block.count` there must be some; with a `block.count` of 0 there are none, which is what stands around the
    blocks.
    """
    parts = arch.parts("block")
    if "block.count" in arch and arch["block.count"] != len(parts):
        raise ValueError(
            f"block.count is {arch['block.count']}, but the architecture describes {len(parts) or 'no'} blocks"
        )
    if not parts and "block.count" not in arch:
        raise ValueError(f"the architecture has no blocks; it needs names such as 'block.0.mlp_ratio': {dict(arch)}")
    return parts


class PatchEmbed(nn.Module):
    """Cut images (B, C, H, W) into the patches of a `vit` config and project each to a token of its width."""

    def __init__(self, vit: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(vit.in_channels, vit.embed_dim, vit.patch_size, stride=vit.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Return one token per patch, row by row."""
        return self.proj(images).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """A vision transformer of any blocks: images (B, C, H, W) in, logits (B, classes) out; the names are timm's.

    `vit` says what the images are cut into and how wide tokens are. `blocks` map tokens (B, N, D) to their own shape.
    """

    def __init__(self, vit: ViTConfig, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.vit = vit
        self.patch_embed = PatchEmbed(vit)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, vit.embed_dim)) if vit.has_class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, vit.tokens, vit.embed_dim))
        self.blocks = nn.ModuleList(blocks)
        self.norm: nn.Module = nn.LayerNorm(vit.embed_dim, eps=1e-6)
        self.head: nn.Module = nn.Linear(vit.embed_dim, vit.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)

    def embed(self, images: Tensor) -> Tensor:
        """Return the tokens of images."""
        tokens = self.patch_embed(images)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return tokens + self.pos_embed

    def classify(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, classes) that the class token gives, or the mean of the tokens."""
        tokens = self.norm(tokens)
        return self.head(tokens.mean(dim=1) if self.cls_token is None else tokens[:, 0])

    @torch.no_grad()
    def initialise(self, std: float, *, spared: Collection[nn.Module] = ()) -> None:
        """Draw weights as ViT does: truncated normal of `std` for Linear, class token and positions, biases 0.

        Linear layers among `spared` keep what torch drew for them.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear) and module not in spared:
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=std)
        nn.init.trunc_normal_(self.pos_embed, std=std)


def drop_path_rates(rate: float, blocks: int) -> list[float]:
    """Return stochastic depth's rates, growing linearly from 0 to `rate` over the blocks."""
    return [rate * i / max(1, blocks - 1) for i in range(blocks)]
