"""The global-local vision transformer as plain torch: what is retrained, scored, exported and shipped."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from nasx import Arch
from nasx.arch import Value
from nasx.nn import Attention, DropPath, FeedForward, ViT, ViTFrame, drop_path_rates
from recipes.glit.layers import Heads, Layer, LocalConv, mix
from recipes.glit.space import BASE, SMALL, TINY, block_arch, same_heads
from recipes.glit.variant import OFFICIAL, Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame(ViTFrame):
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

    def split(self, global_heads: int) -> int | None:
        """Return where the channels that attention reads end, or None where both sub-modules read all."""
        return None if self.variant.submodule_input == "full" else self.channels(global_heads)


TINY_FRAME = Frame()
SMALL_FRAME = Frame(embed_dim=384, num_heads=6)
BASE_FRAME = Frame(embed_dim=768, num_heads=12)


class BlockChoices(NamedTuple):
    """One block of an architecture, with 0 for the axes that it does not have."""

    global_heads: int
    qkv_ratio: float
    kernel_size: int
    expansion: int
    window: int
    mlp_ratio: float

    @classmethod
    def of(cls, part: Mapping[str, Value]) -> "BlockChoices":
        """Return the choices of one part of an architecture."""
        return cls(
            int(part["global_heads"]),
            float(part.get("qkv_ratio", 0)),
            int(part.get("kernel_size", 0)),
            int(part.get("expansion", 0)),
            int(part.get("window", 0)),
            float(part["mlp_ratio"]),
        )


def run_block(
    x: Tensor,
    norm1: Layer,
    norm2: Layer,
    drop_path: Layer,
    split: int | None,
    attend: Layer | None,
    convolve: Layer | None,
    project: Layer | None,
    ffn: Layer,
) -> Tensor:
    """Apply one pre-norm block to tokens (B, N, D)."""
    x = x + drop_path(mix(norm1(x), split, attend, convolve, project))
    return x + drop_path(ffn(norm2(x)))


class Block(nn.Module):
    """A global-local block: attention on G heads, convolution on the others, then the feed-forward."""

    def __init__(
        self,
        norm1: nn.Module,
        norm2: nn.Module,
        ffn: nn.Module,
        *,
        split: int | None,
        attn: nn.Module | None,
        local: nn.Module | None,
        proj: nn.Module | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1, self.attn, self.local, self.proj, self.norm2, self.mlp = norm1, attn, local, proj, norm2, ffn
        self.drop_path = DropPath(drop_path)
        self.split = split

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, D) to tokens (B, N, D)."""
        return run_block(
            x, self.norm1, self.norm2, self.drop_path, self.split, self.attn, self.local, self.proj, self.mlp
        )


def make_attention(frame: Frame, heads: int, qkv_ratio: float) -> Attention | Heads:
    """Return the global sub-module of some heads: inner width qkv_ratio times their channels."""
    dim, channels, inner = frame.channels_read(heads), frame.channels(heads), inner_width(frame, heads, qkv_ratio)
    dropout = frame.variant.attention_dropout
    if frame.variant.projection == "joint":
        return Heads(dim, heads, inner=inner, channels=channels, dropout=dropout)
    return Attention(dim, heads=heads, inner=inner, out_dim=channels, dropout=dropout)


LocalKey = tuple[int, int, float]


def local_key(frame: Frame, c: BlockChoices) -> LocalKey:
    """Return what tells a block's local sub-module from others: global heads, kernel and expansion, or window and d_k.

    A block without them, or a window that does not divide the patches, is a ValueError.
    """
    locality = frame.variant.locality
    key = (c.window, c.qkv_ratio) if locality == "window" else (c.kernel_size, c.expansion)
    if not all(key):
        names = "'window' and 'qkv_ratio'" if locality == "window" else "'kernel_size' and 'expansion'"
        raise ValueError(
            f"local heads need {names} where the locality is {locality!r}, but got {c}; take Axes of this locality"
        )
    if c.window and locality == "window" and frame.patches % c.window:
        raise ValueError(f"a window must divide the {frame.patches} patches, but got {c.window}")
    return (c.global_heads, *key)


def make_local(frame: Frame, key: LocalKey) -> LocalConv | Heads:
    """Return the local sub-module of a key."""
    global_heads, *details = key
    heads, variant = frame.num_heads - global_heads, frame.variant
    if variant.locality == "window":
        window, qkv_ratio = details
        return Heads(
            frame.channels_read(heads),
            heads,
            inner=inner_width(frame, heads, qkv_ratio),
            channels=frame.channels(heads),
            projected=variant.projection == "separate",
            window=int(window),
            dropout=variant.attention_dropout,
        )
    kernel_size, expansion = map(int, details)
    return LocalConv(
        frame.channels(heads),
        expansion=expansion,
        kernel_size=kernel_size,
        in_channels=frame.channels_read(heads),
        grid=frame.grid if variant.locality == "conv2d" else None,
        norm_every=variant.local_norm == "every",
        dropout=variant.local_dropout,
    )


def make_projection(frame: Frame) -> nn.Linear:
    """Return what projects the joined outputs of sub-modules that do not project their own."""
    return nn.Linear(frame.embed_dim, frame.embed_dim)


ACTIVATIONS: Mapping[str, type[nn.Module]] = {"gelu": nn.GELU, "swish": nn.SiLU}


def make_ffn(frame: Frame, mlp_ratio: float) -> FeedForward:
    """Return the feed-forward of a ratio."""
    return FeedForward(
        frame.embed_dim,
        hidden_width(frame, mlp_ratio),
        activation=ACTIVATIONS[frame.variant.ffn_activation],
        dropout=frame.variant.ffn_dropout,
    )


def inner_width(frame: Frame, heads: int, qkv_ratio: float) -> int:
    """Return d_k of some heads: qkv_ratio times their channels, which must divide among them."""
    inner = frame.channels(heads) * qkv_ratio
    if inner < 1 or inner != int(inner) or int(inner) % heads:
        raise ValueError(f"qkv_ratio {qkv_ratio} gives {heads} heads of width {frame.embed_dim} no whole inner width")
    return int(inner)


def hidden_width(frame: Frame, mlp_ratio: float) -> int:
    """Return the hidden width of the feed-forward, at least 1."""
    hidden = int(frame.embed_dim * mlp_ratio)
    if hidden < 1:
        raise ValueError(f"mlp_ratio {mlp_ratio} leaves no hidden width at width {frame.embed_dim}; give at least 1")
    return hidden


def make_block(frame: Frame, choices: Mapping[str, Value], drop_path: float) -> Block:
    """Return a plain block from one part of an architecture."""
    c, dim = BlockChoices.of(choices), frame.embed_dim
    local = make_local(frame, local_key(frame, c)) if c.global_heads < frame.num_heads else None
    return Block(
        nn.LayerNorm(dim, eps=1e-6),
        nn.LayerNorm(dim, eps=1e-6),
        make_ffn(frame, c.mlp_ratio),
        split=frame.split(c.global_heads),
        attn=make_attention(frame, c.global_heads, c.qkv_ratio) if c.global_heads else None,
        local=local,
        proj=make_projection(frame) if frame.variant.projection == "joint" else None,
        drop_path=drop_path,
    )


class GLiT(ViT):
    """A global-local vision transformer: images (B, C, H, W) in, logits (B, classes) out."""

    frame: Frame


def build(
    arch: Arch,
    num_classes: int = 1000,
    image_size: int = 224,
    *,
    patch_size: int = 16,
    in_channels: int = 3,
    embed_dim: int = 192,
    num_heads: int = 3,
    variant: Variant = OFFICIAL,
    drop_path: float = 0.0,
    init_std: float = 0.02,
) -> GLiT:
    """Return the network of an architecture with fresh weights; the defaults are GLiT-Tiny's on ImageNet."""
    frame = Frame(
        image_size=image_size,
        patch_size=patch_size,
        in_channels=in_channels,
        num_classes=num_classes,
        embed_dim=embed_dim,
        num_heads=num_heads,
        variant=variant,
    )
    return build_in(frame, arch, drop_path=drop_path, init_std=init_std)


def build_in(frame: Frame, arch: Arch, *, drop_path: float = 0.0, init_std: float = 0.02) -> GLiT:
    """Return the network of an architecture in a frame, with fresh weights."""
    parts = arch.parts("block")
    if not parts:
        raise ValueError(f"the architecture has no blocks; it needs names such as 'block.0.global_heads': {dict(arch)}")
    rates = drop_path_rates(drop_path, len(parts))
    model = GLiT(frame, [make_block(frame, part, rate) for part, rate in zip(parts, rates, strict=True)])
    model.initialise(init_std)
    return model


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
    return Arch({f"block.{i}.{name}": value for i, block in enumerate(blocks) for name, value in block.items()})


GLIT_TINY = _published()
"""The published GLiT-Tiny (paper, figure 5; details from the authors' released network)."""

DEIT_TINY = same_heads(3)
"""DeiT-Tiny as a point of the space: all heads global."""

DEIT_SMALL = same_heads(6, SMALL)
"""DeiT-Small, in `SMALL_FRAME`."""

DEIT_BASE = same_heads(12, BASE)
"""DeiT-Base, in `BASE_FRAME`."""
