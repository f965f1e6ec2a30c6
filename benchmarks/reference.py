"""GLiT written the plain way, for comparison: 1-D convolutions on transposed tokens and attention step by step.

It follows the paper's figures 2 and 3 and equation for attention literally, as most code of the field does. With the
weights of `recipes.glit` it gives the same outputs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nasx import Arch
from nasx.arch import Value
from recipes.glit.model import GLiT


class PlainAttention(nn.Module):
    """Attention of some heads with an explicit softmax."""

    def __init__(self, dim: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (inner // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * inner)
        self.proj = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) to (B, N, C)."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, -1))


class PlainConvolution(nn.Module):
    """The local sub-module on channels-first tokens."""

    def __init__(self, channels: int, expansion: int, kernel_size: int) -> None:
        super().__init__()
        hidden = expansion * channels
        self.expand = nn.Conv1d(channels, 2 * hidden, 1)
        self.glu = nn.GLU(dim=1)
        self.depthwise = nn.Conv1d(hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.act = nn.SiLU()
        self.project = nn.Conv1d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) to (B, N, C)."""
        x = self.glu(self.expand(x.transpose(1, 2)))
        return self.project(self.act(self.norm(self.depthwise(x)))).transpose(1, 2)


class PlainBlock(nn.Module):
    """Attention on the first heads and convolution on the others, then the feed-forward."""

    def __init__(self, dim: int, heads: int, part: Mapping[str, Value]) -> None:
        super().__init__()
        own = int(part["global_heads"])
        self.split = dim * own // heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = PlainAttention(self.split, own, int(self.split * float(part["qkv_ratio"]))) if own else None
        self.local = (
            PlainConvolution(dim - self.split, int(part["expansion"]), int(part["kernel_size"]))
            if own < heads
            else None
        )
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        hidden = int(dim * float(part["mlp_ratio"]))
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, D) to tokens (B, N, D)."""
        y, outputs = self.norm1(x), []
        if self.attn is not None:
            outputs.append(self.attn(y[..., : self.split]))
        if self.local is not None:
            outputs.append(self.local(y[..., self.split :]))
        x = x + torch.cat(outputs, dim=-1)
        return x + self.mlp(self.norm2(x))


class PlainGLiT(nn.Module):
    """The whole network: images (B, C, H, W) in, logits out."""

    def __init__(
        self,
        arch: Arch,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        num_classes: int = 1000,
        dim: int = 192,
        heads: int = 3,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (image_size // patch_size) ** 2 + 1, dim))
        self.blocks = nn.Sequential(*[PlainBlock(dim, heads, part) for part in arch.parts("block")])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])

    @torch.no_grad()
    def load(self, network: GLiT) -> "PlainGLiT":
        """Take the weights of a network of `recipes.glit`, and return itself."""
        renamed = {"patch_embed.proj": "patches", ".mlp.fc1.": ".mlp.0.", ".mlp.fc2.": ".mlp.2."}
        own = self.state_dict()
        for name, tensor in network.state_dict().items():
            for theirs, ours in renamed.items():
                name = name.replace(theirs, ours)
            own[name].copy_(tensor.view_as(own[name]))
        return self
