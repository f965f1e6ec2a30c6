"""The GLiT supernet: one module that runs any architecture of a space, with separate or entangled weights."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Literal

from torch import Tensor, nn

from nasx import Space
from nasx.arch import Value
from nasx.nn import DropPath, ElasticAttention, ElasticFeedForward, Switch, ViTSupernet, drop_path_rates
from recipes.glit.layers import ElasticHeads, ElasticLocalConv, Layer
from recipes.glit.model import (
    ACTIVATIONS,
    Block,
    BlockChoices,
    Frame,
    GLiT,
    hidden_width,
    inner_width,
    local_key,
    make_attention,
    make_ffn,
    make_local,
    make_projection,
    run_block,
)

Sharing = Literal["separate", "entangled"]


class _SeparateParts(nn.Module):
    """One module per candidate of each part that the space can reach."""

    def __init__(self, frame: Frame, reachable: list[BlockChoices]) -> None:
        super().__init__()
        self.frame, heads = frame, frame.num_heads
        attention = sorted({(c.global_heads, c.qkv_ratio) for c in reachable if c.global_heads})
        local = sorted({local_key(frame, c) for c in reachable if c.global_heads < heads})
        ffn = sorted({c.mlp_ratio for c in reachable})
        self.attention = Switch({key: make_attention(frame, *key) for key in attention}) if attention else None
        self.local = Switch({key: make_local(frame, key) for key in local}) if local else None
        self.ffn = Switch({ratio: make_ffn(frame, ratio) for ratio in ffn})
        self.proj = None
        if frame.variant.projection == "joint":  # what it joins depends on the heads alone
            self.proj = Switch({g: make_projection(frame) for g in sorted({c.global_heads for c in reachable})})

    def attend(self, c: BlockChoices) -> Layer:
        assert self.attention is not None
        return partial(self.attention, key=(c.global_heads, c.qkv_ratio))

    def convolve(self, c: BlockChoices) -> Layer:
        assert self.local is not None
        return partial(self.local, key=local_key(self.frame, c))

    def project(self, c: BlockChoices) -> Layer | None:
        return None if self.proj is None else partial(self.proj, key=c.global_heads)

    def feed(self, c: BlockChoices) -> Layer:
        return partial(self.ffn, key=c.mlp_ratio)

    def extract_attention(self, c: BlockChoices) -> nn.Module:
        assert self.attention is not None
        return self.attention.extract((c.global_heads, c.qkv_ratio))

    def extract_local(self, c: BlockChoices) -> nn.Module:
        assert self.local is not None
        return self.local.extract(local_key(self.frame, c))

    def extract_projection(self, c: BlockChoices) -> nn.Module | None:
        return None if self.proj is None else self.proj.extract(c.global_heads)

    def extract_ffn(self, c: BlockChoices) -> nn.Module:
        return self.ffn.extract(c.mlp_ratio)


class _EntangledParts(nn.Module):
    """One largest module per part, of which candidates are slices."""

    def __init__(self, frame: Frame, reachable: list[BlockChoices]) -> None:
        super().__init__()
        self.frame, variant = frame, frame.variant
        with_attention = [c for c in reachable if c.global_heads]
        with_local = [c for c in reachable if c.global_heads < frame.num_heads]
        self.attention: ElasticAttention | ElasticHeads | None = None
        self.local: ElasticLocalConv | ElasticHeads | None = None
        if with_attention:
            sizes = [(c.global_heads, c.qkv_ratio) for c in with_attention]
            self.attention = (self._attention if variant.projection == "separate" else self._heads)(sizes)
        if with_local:
            for c in with_local:
                local_key(frame, c)  # refuses what no slice could be
            heads = [self._local_heads(c) for c in with_local]
            if variant.locality == "window":
                ratios = [c.qkv_ratio for c in with_local]
                self.local = self._heads(list(zip(heads, ratios, strict=True)))
            else:
                expansions = [c.expansion for c in with_local]
                self.local = ElasticLocalConv(
                    frame.channels(max(heads)),
                    max_hidden=max(e * frame.channels(h) for h, e in zip(heads, expansions, strict=True)),
                    max_kernel_size=max(c.kernel_size for c in with_local),
                    max_in_channels=frame.channels_read(max(heads)),
                    grid=frame.grid if variant.locality == "conv2d" else None,
                    norm_every=variant.local_norm == "every",
                    dropout=variant.local_dropout,
                )
        self.ffn = ElasticFeedForward(
            frame.embed_dim,
            max(hidden_width(frame, c.mlp_ratio) for c in reachable),
            activation=ACTIVATIONS[variant.ffn_activation],
            dropout=variant.ffn_dropout,
        )
        self.proj = make_projection(frame) if variant.projection == "joint" else None

    def _attention(self, sizes: list[tuple[int, float]]) -> ElasticAttention:
        dim, inner, channels = self._largest(sizes)
        return ElasticAttention(dim, max_inner=inner, max_out=channels, dropout=self.frame.variant.attention_dropout)

    def _heads(self, sizes: list[tuple[int, float]]) -> ElasticHeads:
        dim, inner, channels = self._largest(sizes)
        variant = self.frame.variant
        return ElasticHeads(
            dim,
            max_inner=inner,
            max_channels=channels,
            projected=variant.projection == "separate",
            dropout=variant.attention_dropout,
        )

    def _largest(self, sizes: list[tuple[int, float]]) -> tuple[int, int, int]:
        """Return the largest width that is read, inner width and width that is given, of heads and their ratios."""
        heads = max(heads for heads, _ in sizes)
        inner = max(inner_width(self.frame, *size) for size in sizes)
        return self.frame.channels_read(heads), inner, self.frame.channels(heads)

    def _local_heads(self, c: BlockChoices) -> int:
        return self.frame.num_heads - c.global_heads

    def _attention_size(self, heads: int, qkv_ratio: float) -> dict[str, int]:
        inner = inner_width(self.frame, heads, qkv_ratio)
        return {"heads": heads, "inner": inner, "out_dim": self.frame.channels(heads)}

    def _local_size(self, c: BlockChoices) -> dict[str, int]:
        heads = self._local_heads(c)
        if self.frame.variant.locality == "window":
            return {"window": c.window, **self._attention_size(heads, c.qkv_ratio)}
        return {"channels": self.frame.channels(heads), "expansion": c.expansion, "kernel_size": c.kernel_size}

    def attend(self, c: BlockChoices) -> Layer:
        assert self.attention is not None
        return partial(self.attention, **self._attention_size(c.global_heads, c.qkv_ratio))

    def convolve(self, c: BlockChoices) -> Layer:
        assert self.local is not None
        return partial(self.local, **self._local_size(c))

    def project(self, c: BlockChoices) -> Layer | None:
        return self.proj

    def feed(self, c: BlockChoices) -> Layer:
        return partial(self.ffn, hidden=hidden_width(self.frame, c.mlp_ratio))

    def extract_attention(self, c: BlockChoices) -> nn.Module:
        assert self.attention is not None
        size = self._attention_size(c.global_heads, c.qkv_ratio)
        return self.attention.extract(self.frame.channels_read(c.global_heads), **size)

    def extract_local(self, c: BlockChoices) -> nn.Module:
        assert self.local is not None
        return self.local.extract(self.frame.channels_read(self._local_heads(c)), **self._local_size(c))

    def extract_projection(self, c: BlockChoices) -> nn.Module | None:
        return copy.deepcopy(self.proj)

    def extract_ffn(self, c: BlockChoices) -> nn.Module:
        return self.ffn.extract(self.frame.embed_dim, hidden=hidden_width(self.frame, c.mlp_ratio))


class _SuperBlock(nn.Module):
    def __init__(self, frame: Frame, space: Space, sharing: Sharing, drop_path: float) -> None:
        super().__init__()
        self.frame = frame
        self.norm1 = nn.LayerNorm(frame.embed_dim, eps=1e-6)
        self.norm2 = nn.LayerNorm(frame.embed_dim, eps=1e-6)
        self.drop_path = DropPath(drop_path)
        reachable = sorted({BlockChoices.of(part) for part in space})
        self.parts = (_SeparateParts if sharing == "separate" else _EntangledParts)(frame, reachable)

    def forward(self, x: Tensor, part: Mapping[str, Value]) -> Tensor:
        c, parts = BlockChoices.of(part), self.parts
        return run_block(
            x,
            self.norm1,
            self.norm2,
            self.drop_path,
            self.frame.split(c.global_heads),
            parts.attend(c) if c.global_heads else None,
            parts.convolve(c) if c.global_heads < self.frame.num_heads else None,
            parts.project(c),
            parts.feed(c),
        )

    def extract(self, part: Mapping[str, Value]) -> Block:
        c, parts = BlockChoices.of(part), self.parts
        return Block(
            copy.deepcopy(self.norm1),
            copy.deepcopy(self.norm2),
            parts.extract_ffn(c),
            split=self.frame.split(c.global_heads),
            attn=parts.extract_attention(c) if c.global_heads else None,
            local=parts.extract_local(c) if c.global_heads < self.frame.num_heads else None,
            proj=parts.extract_projection(c),
            drop_path=self.drop_path.rate,
        )


class GLiTSupernet(ViTSupernet[GLiT]):
    """All networks of a GLiT space in one module; `forward` takes the architecture as an argument.

    `sharing="separate"` holds one module per candidate of each part (SPOS), and only those that the space can reach:
    the attention by (G, qkv_ratio), the local sub-module by (G, K, E), the feed-forward by its ratio; the norms are
    shared. `sharing="entangled"` holds the largest of each and runs slices of it (AutoFormer).
    """

    plain = GLiT

    def __init__(
        self,
        space: Space,
        frame: Frame,
        *,
        sharing: Sharing = "separate",
        drop_path: float = 0.0,
        init_std: float = 0.02,
    ) -> None:
        if sharing not in ("separate", "entangled"):
            raise ValueError(f'sharing must be "separate" or "entangled", but got {sharing!r}')
        parts = space.parts("block")
        rates = drop_path_rates(drop_path, len(parts))
        blocks = (_SuperBlock(frame, part, sharing, rate) for part, rate in zip(parts, rates, strict=True))
        super().__init__(frame, blocks)
        self.initialise(init_std)
