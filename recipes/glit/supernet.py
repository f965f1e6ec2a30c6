"""The GLiT supernet: one module that runs any architecture of a space, with separate or entangled weights."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from nasx import Arch, Space
from nasx.arch import Value
from nasx.nn import DropPath, ElasticAttention, ElasticFeedForward, Switch
from recipes.glit.layers import ElasticHeads, ElasticLocalConv, Layer
from recipes.glit.model import (
    ACTIVATIONS,
    Block,
    BlockChoices,
    Frame,
    GLiT,
    Trunk,
    drop_path_rates,
    hidden_width,
    inner_width,
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
        heads = frame.num_heads
        attention = sorted({(c.global_heads, c.qkv_ratio) for c in reachable if c.global_heads})
        local = sorted({(c.global_heads, c.kernel_size, c.expansion) for c in reachable if c.global_heads < heads})
        ffn = sorted({c.mlp_ratio for c in reachable})
        self.attention = Switch({key: make_attention(frame, *key) for key in attention}) if attention else None
        self.local = Switch({(g, k, e): make_local(frame, heads - g, k, e) for g, k, e in local}) if local else None
        self.ffn = Switch({ratio: make_ffn(frame, ratio) for ratio in ffn})
        self.proj = None
        if frame.variant.projection == "joint":  # what it joins depends on the heads alone
            self.proj = Switch({g: make_projection(frame) for g in sorted({c.global_heads for c in reachable})})

    def attend(self, c: BlockChoices) -> Layer:
        assert self.attention is not None
        return partial(self.attention, key=(c.global_heads, c.qkv_ratio))

    def convolve(self, c: BlockChoices) -> Layer:
        assert self.local is not None
        return partial(self.local, key=(c.global_heads, c.kernel_size, c.expansion))

    def project(self, c: BlockChoices) -> Layer | None:
        return None if self.proj is None else partial(self.proj, key=c.global_heads)

    def feed(self, c: BlockChoices) -> Layer:
        return partial(self.ffn, key=c.mlp_ratio)

    def extract_attention(self, c: BlockChoices) -> nn.Module:
        assert self.attention is not None
        return self.attention.extract((c.global_heads, c.qkv_ratio))

    def extract_local(self, c: BlockChoices) -> nn.Module:
        assert self.local is not None
        return self.local.extract((c.global_heads, c.kernel_size, c.expansion))

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
        self.local: ElasticLocalConv | None = None
        if with_attention:
            most, dropout = max(c.global_heads for c in with_attention), variant.attention_dropout
            dim, channels = frame.channels_read(most), frame.channels(most)
            inner = max(inner_width(frame, c.global_heads, c.qkv_ratio) for c in with_attention)
            if variant.projection == "joint":
                self.attention = ElasticHeads(dim, max_inner=inner, max_channels=channels, dropout=dropout)
            else:
                self.attention = ElasticAttention(dim, max_inner=inner, max_out=channels, dropout=dropout)
        if with_local:
            most = max(self._local_heads(c) for c in with_local)
            self.local = ElasticLocalConv(
                frame.channels(most),
                max_hidden=max(c.expansion * frame.channels(self._local_heads(c)) for c in with_local),
                max_kernel_size=max(c.kernel_size for c in with_local),
                max_in_channels=frame.channels_read(most),
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

    def _local_heads(self, c: BlockChoices) -> int:
        return self.frame.num_heads - c.global_heads

    def _attention_size(self, c: BlockChoices) -> dict[str, int]:
        inner, channels = inner_width(self.frame, c.global_heads, c.qkv_ratio), self.frame.channels(c.global_heads)
        return {"heads": c.global_heads, "inner": inner, "out_dim": channels}

    def attend(self, c: BlockChoices) -> Layer:
        assert self.attention is not None
        return partial(self.attention, **self._attention_size(c))

    def convolve(self, c: BlockChoices) -> Layer:
        assert self.local is not None
        channels = self.frame.channels(self._local_heads(c))
        return partial(self.local, channels=channels, expansion=c.expansion, kernel_size=c.kernel_size)

    def project(self, c: BlockChoices) -> Layer | None:
        return self.proj

    def feed(self, c: BlockChoices) -> Layer:
        return partial(self.ffn, hidden=hidden_width(self.frame, c.mlp_ratio))

    def extract_attention(self, c: BlockChoices) -> nn.Module:
        assert self.attention is not None
        return self.attention.extract(self.frame.channels_read(c.global_heads), **self._attention_size(c))

    def extract_local(self, c: BlockChoices) -> nn.Module:
        assert self.local is not None
        return self.local.extract(
            self.frame.channels(self._local_heads(c)),
            expansion=c.expansion,
            kernel_size=c.kernel_size,
            in_channels=self.frame.channels_read(self._local_heads(c)),
        )

    def extract_projection(self, c: BlockChoices) -> nn.Module | None:
        with torch.inference_mode(False):  # else the copy could never be trained
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
        c, parts, dim = BlockChoices.of(part), self.parts, self.frame.embed_dim
        block = Block(
            nn.LayerNorm(dim, eps=1e-6),
            nn.LayerNorm(dim, eps=1e-6),
            parts.extract_ffn(c),
            split=self.frame.split(c.global_heads),
            attn=parts.extract_attention(c) if c.global_heads else None,
            local=parts.extract_local(c) if c.global_heads < self.frame.num_heads else None,
            proj=parts.extract_projection(c),
            drop_path=self.drop_path.rate,
        )
        block.norm1.load_state_dict(self.norm1.state_dict())
        block.norm2.load_state_dict(self.norm2.state_dict())
        return block


class GLiTSupernet(Trunk):
    """All networks of a GLiT space in one module; `forward` takes the architecture as an argument.

    `sharing="separate"` holds one module per candidate of each part (SPOS), and only those that the space can reach:
    the attention by (G, qkv_ratio), the local sub-module by (G, K, E), the feed-forward by its ratio; the norms are
    shared. `sharing="entangled"` holds the largest of each and runs slices of it (AutoFormer).
    """

    def __init__(
        self,
        space: Space,
        frame: Frame,
        *,
        sharing: Sharing = "separate",
        drop_path: float = 0.0,
        init_std: float = 0.02,
    ) -> None:
        super().__init__(frame)
        if sharing not in ("separate", "entangled"):
            raise ValueError(f'sharing must be "separate" or "entangled", but got {sharing!r}')
        parts = space.parts("block")
        rates = drop_path_rates(drop_path, len(parts))
        self.blocks = nn.ModuleList(
            _SuperBlock(frame, part, sharing, rate) for part, rate in zip(parts, rates, strict=True)
        )
        self.initialise(init_std)

    def forward(self, images: Tensor, arch: Arch) -> Tensor:
        """Return the logits (B, classes) of images under an architecture."""
        x = self.embed(images)
        for block, part in zip(self.blocks, arch.parts("block"), strict=True):
            x = block(x, part)
        return self.classify(x)

    def extract(self, arch: Arch) -> GLiT:
        """Return an architecture's network as plain torch, with copies of its weights."""
        parts = zip(self.blocks, arch.parts("block"), strict=True)
        blocks = [block.extract(part) for block, part in parts if isinstance(block, _SuperBlock)]
        network = GLiT(self.frame, blocks)
        own = dict(self.state_dict())
        network.load_state_dict(
            {name: own[name] for name in network.state_dict() if not name.startswith("blocks.")}, strict=False
        )
        return network.to(self.pos_embed.device, self.pos_embed.dtype).train(self.training)
