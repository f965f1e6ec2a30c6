"""The global-local vision transformer as plain torch: what is retrained, scored, exported and shipped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nasx import Arch
from nasx.arch import Value
from nasx.nn import DropPath, FeedForward, ViT, ViTConfig, block_parts, drop_path_rates, hidden_width

from .layers import Heads, LocalConv
from .space import BASE, SMALL, TINY, block_arch, same_heads
from .variant import OFFICIAL, Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class GLiTConfig(ViTConfig):
    """All that a network's blocks share: images, patches, width, heads, classes, and how they compute.

    Defaults are Tiny's.
    """

    variant: Variant = OFFICIAL

    @property
    def has_class_token(self) -> bool:
        """Whether a class token is classified, rather than the mean of the patches' tokens."""
        return self.variant.locality != "conv2d"

    def channels(self, heads: int) -> int:
        """Return the width of some of the heads."""
        return self.embed_dim * heads // self.num_heads

    def channels_read(self, heads: int) -> int:
        """Return how many channels the sub-module of some heads reads."""
        return self.embed_dim if self.variant.submodule_input == "full" else self.channels(heads)

    def inner_width(self, heads: int, qkv_ratio: float) -> int:
        """Return d_k of some heads: qkv_ratio times their channels, which must divide among them."""
        inner = self.channels(heads) * qkv_ratio
        if inner < 1 or inner != int(inner) or int(inner) % heads:
            raise ValueError(
                f"qkv_ratio must give each of {heads} heads, {self.channels(heads)} channels together, a whole inner "
                f"width, but got {qkv_ratio}; write 1, or another ratio that does"
            )
        return int(inner)


TINY_VIT = GLiTConfig()
SMALL_VIT = GLiTConfig(embed_dim=384, num_heads=6)
BASE_VIT = GLiTConfig(embed_dim=768, num_heads=12)


class BlockChoices(NamedTuple):
    """One block of an architecture, with 0 for the choices that it does not have."""

    global_heads: int
    qkv_ratio: float
    kernel_size: int
    expansion: int
    window: int
    mlp_ratio: float

    @classmethod
    def of(cls, vit: GLiTConfig, part: Mapping[str, Value]) -> "BlockChoices":
        """Return the choices of one part of an architecture; ValueError names the choice that a block lacks."""
        c = cls(
            int(part["global_heads"]),
            float(part.get("qkv_ratio", 0)),
            int(part.get("kernel_size", 0)),
            int(part.get("expansion", 0)),
            int(part.get("window", 0)),
            float(part["mlp_ratio"]),
        )
        windows = vit.variant.locality == "window"
        if c.global_heads < vit.num_heads:
            if not all((c.window, c.qkv_ratio) if windows else (c.kernel_size, c.expansion)):
                names = "'window' and 'qkv_ratio'" if windows else "'kernel_size' and 'expansion'"
                raise ValueError(
                    f"local heads need {names} where the locality is {vit.variant.locality!r}, but got {c}; "
                    "take GLiTSpace of this locality"
                )
            if windows and vit.patches % c.window:
                raise ValueError(f"window must divide the {vit.patches} patches, but got {c.window}")
        return c


ACTIVATIONS: Mapping[str, type[nn.Module]] = {"gelu": nn.GELU, "swish": nn.SiLU}


def make_heads(vit: GLiTConfig, heads: int, qkv_ratio: float, window: int | None = None) -> Heads:
    """Return some heads of attention, global or in windows: inner width qkv_ratio times their channels."""
    return Heads(
        vit.channels_read(heads),
        heads,
        inner=vit.inner_width(heads, qkv_ratio),
        channels=vit.channels(heads),
        projected=vit.variant.projection == "separate",
        window=window,
        dropout=vit.variant.attention_dropout,
    )


def make_local(vit: GLiTConfig, c: BlockChoices) -> LocalConv | Heads:
    """Return the sub-module of a block's local heads."""
    heads, variant = vit.num_heads - c.global_heads, vit.variant
    if variant.locality == "window":
        return make_heads(vit, heads, c.qkv_ratio, c.window)
    return LocalConv(
        vit.channels(heads),
        expansion=c.expansion,
        kernel_size=c.kernel_size,
        in_channels=vit.channels_read(heads),
        grid=vit.grid if variant.locality == "conv2d" else None,
        norm_every=variant.local_norm == "every",
        dropout=variant.local_dropout,
    )


class Block(nn.Module):
    """A global-local block: attention on the first G heads, convolution on the others, then the feed-forward.

    Attention reads the first channels and convolution the last, or both read all; each projects what it gives, or one
    layer projects both.
    """

    def __init__(self, vit: GLiTConfig, part: Mapping[str, Value], drop_path: float = 0.0) -> None:
        super().__init__()
        c, dim, variant = BlockChoices.of(vit, part), vit.embed_dim, vit.variant
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = make_heads(vit, c.global_heads, c.qkv_ratio) if c.global_heads else None
        self.local = make_local(vit, c) if c.global_heads < vit.num_heads else None
        self.proj = nn.Linear(dim, dim) if variant.projection == "joint" else None
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(
            dim,
            hidden_width(dim, c.mlp_ratio),
            activation=ACTIVATIONS[variant.ffn_activation],
            dropout=variant.ffn_dropout,
        )
        self.drop_path = DropPath(drop_path)
        self.split = None if variant.submodule_input == "full" else vit.channels(c.global_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, D) to tokens (B, N, D)."""
        x = x + self.drop_path(self.mix(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def mix(self, x: Tensor) -> Tensor:
        """Run attention and convolution side by side and join what they give."""
        to_attn, to_local = (x, x) if self.split is None else (x[..., : self.split], x[..., self.split :])
        outputs = []
        if self.attn is not None:
            outputs.append(self.attn(to_attn))
        if self.local is not None:
            outputs.append(self.local(to_local))
        joined = torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]
        return joined if self.proj is None else self.proj(joined)


class GLiT(ViT):
    """A global-local vision transformer: images (B, C, H, W) in, logits (B, classes) out."""

    vit: GLiTConfig

    def __init__(
        self, vit: GLiTConfig, parts: Sequence[Mapping[str, Value]], *, drop_path: float = 0.0, init_std: float = 0.02
    ) -> None:
        rates = drop_path_rates(drop_path, len(parts))
        super().__init__(vit, [Block(vit, part, rate) for part, rate in zip(parts, rates, strict=True)])
        # the released code draws nn.Linear alone; its pointwise convolutions keep torch's uniform weights and biases
        pointwise = {layer for m in self.modules() if isinstance(m, LocalConv) for layer in (m.expand, m.project)}
        self.initialise(init_std, spared=pointwise if vit.variant.pointwise_init == "uniform" else ())


def build(
    arch: Arch,
    num_classes: int = 1000,
    image_size: int = 224,
    *,
    drop_path: float = 0.0,
    init_std: float = 0.02,
    **sizes: Any,
) -> GLiT:
    """Return the network of an architecture with fresh weights; the defaults are GLiT-Tiny's on ImageNet.

    `sizes` are other fields of `GLiTConfig`: `patch_size`, `in_channels`, `embed_dim`, `num_heads`, `variant`.
    """
    vit = GLiTConfig(num_classes=num_classes, image_size=image_size, **sizes)
    return build_in(vit, arch, drop_path=drop_path, init_std=init_std)


def build_in(vit: GLiTConfig, arch: Arch, *, drop_path: float = 0.0, init_std: float = 0.02) -> GLiT:
    """Return an architecture's network with fresh weights."""
    return GLiT(vit, block_parts(arch), drop_path=drop_path, init_std=init_std)


def _published() -> Arch:
    names = "global_heads", "kernel_size", "expansion", "qkv_ratio", "mlp_ratio"
    rows = [  # 0 where the block has no such part
        (3, 0, 0, 0.5, 4),
        (0, 31, 2, 0, 4),
        (1, 31, 4, 1.0, 6),
        (3, 0, 0, 1.0, 4),
        (0, 45, 4, 0, 4),
        (1, 31, 4, 1.0, 6),
        (3, 0, 0, 1.0, 2),
        (1, 31, 4, 1.0, 2),
        (0, 45, 4, 0, 4),
        (3, 0, 0, 1.0, 4),
        (0, 31, 4, 0, 4),
        (3, 0, 0, 2.0, 6),
    ]
    blocks = [block_arch(TINY, row[0], dict(zip(names, row, strict=True))) for row in rows]
    return Arch.from_parts("block", blocks)


GLIT_TINY = _published()
"""The published GLiT-Tiny (paper, figure 5; details from the authors' released network)."""

DEIT_TINY = same_heads(3)
"""DeiT-Tiny as a point of the space: all heads global."""

DEIT_SMALL = same_heads(6, SMALL)
"""DeiT-Small, in `SMALL_VIT`."""

DEIT_BASE = same_heads(12, BASE)
"""DeiT-Base, in `BASE_VIT`."""
