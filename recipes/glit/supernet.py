"""The GLiT supernet: one module that runs any architecture of a space, with separate or entangled weights."""

from collections.abc import Mapping
from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor, nn

from nasx import Arch, Space
from nasx.arch import Value
from nasx.nn import DropPath, ElasticAttention, ElasticFeedForward, FeedForward, Switch
from recipes.glit.layers import ElasticLocalConv, Layer, LocalConv
from recipes.glit.model import (
    Block,
    Frame,
    GLiT,
    Trunk,
    drop_path_rates,
    inner_width,
    make_attention,
    run_block,
)

Sharing = Literal["separate", "entangled"]


class _Choices(NamedTuple):
    """One block's choices, with 0 for the parts that it does not have."""

    global_heads: int
    qkv_ratio: float
    kernel_size: int
    expansion: int
    mlp_ratio: float

    @classmethod
    def of(cls, part: Mapping[str, Value]) -> "_Choices":
        return cls(
            int(part["global_heads"]),
            float(part.get("qkv_ratio", 0)),
            int(part.get("kernel_size", 0)),
            int(part.get("expansion", 0)),
            float(part["mlp_ratio"]),
        )


class _SeparateParts(nn.Module):
    """One module per candidate of each part that the space can reach."""

    def __init__(self, frame: Frame, reachable: list[_Choices]) -> None:
        super().__init__()
        heads, dim = frame.num_heads, frame.embed_dim
        attention = sorted({(c.global_heads, c.qkv_ratio) for c in reachable if c.global_heads})
        local = sorted({(c.global_heads, c.kernel_size, c.expansion) for c in reachable if c.global_heads < heads})
        ffn = sorted({c.mlp_ratio for c in reachable})
        self.attention = Switch({key: make_attention(frame, *key) for key in attention}) if attention else None
        self.local = (
            Switch({(g, k, e): LocalConv(frame.channels(heads - g), expansion=e, kernel_size=k) for g, k, e in local})
            if local
            else None
        )
        self.ffn = Switch({ratio: FeedForward(dim, int(dim * ratio)) for ratio in ffn})

    def attend(self, c: _Choices) -> Layer:
        assert self.attention is not None
        return partial(self.attention, key=(c.global_heads, c.qkv_ratio))

    def convolve(self, c: _Choices) -> Layer:
        assert self.local is not None
        return partial(self.local, key=(c.global_heads, c.kernel_size, c.expansion))

    def feed(self, c: _Choices) -> Layer:
        return partial(self.ffn, key=c.mlp_ratio)

    def extract_attention(self, c: _Choices) -> nn.Module:
        assert self.attention is not None
        return self.attention.extract((c.global_heads, c.qkv_ratio))

    def extract_local(self, c: _Choices) -> nn.Module:
        assert self.local is not None
        return self.local.extract((c.global_heads, c.kernel_size, c.expansion))

    def extract_ffn(self, c: _Choices) -> nn.Module:
        return self.ffn.extract(c.mlp_ratio)


class _EntangledParts(nn.Module):
    """One largest module per part, of which candidates are slices."""

    def __init__(self, frame: Frame, reachable: list[_Choices]) -> None:
        super().__init__()
        self.frame = frame
        with_attention = [c for c in reachable if c.global_heads]
        with_local = [c for c in reachable if c.global_heads < frame.num_heads]
        self.attention = self.local = None
        if with_attention:
            self.attention = ElasticAttention(
                max(frame.channels(c.global_heads) for c in with_attention),
                max_inner=max(inner_width(frame, c.global_heads, c.qkv_ratio) for c in with_attention),
            )
        if with_local:
            channels = [frame.channels(frame.num_heads - c.global_heads) for c in with_local]
            self.local = ElasticLocalConv(
                max(channels),
                max_hidden=max(c.expansion * width for c, width in zip(with_local, channels, strict=True)),
                max_kernel_size=max(c.kernel_size for c in with_local),
            )
        self.ffn = ElasticFeedForward(frame.embed_dim, max(self._hidden(c) for c in reachable))

    def _hidden(self, c: _Choices) -> int:
        return int(self.frame.embed_dim * c.mlp_ratio)

    def attend(self, c: _Choices) -> Layer:
        assert self.attention is not None
        inner = inner_width(self.frame, c.global_heads, c.qkv_ratio)
        return partial(self.attention, heads=c.global_heads, inner=inner)

    def convolve(self, c: _Choices) -> Layer:
        assert self.local is not None
        return partial(self.local, expansion=c.expansion, kernel_size=c.kernel_size)

    def feed(self, c: _Choices) -> Layer:
        return partial(self.ffn, hidden=self._hidden(c))

    def extract_attention(self, c: _Choices) -> nn.Module:
        assert self.attention is not None
        inner = inner_width(self.frame, c.global_heads, c.qkv_ratio)
        return self.attention.extract(self.frame.channels(c.global_heads), heads=c.global_heads, inner=inner)

    def extract_local(self, c: _Choices) -> nn.Module:
        assert self.local is not None
        channels = self.frame.channels(self.frame.num_heads - c.global_heads)
        return self.local.extract(channels, expansion=c.expansion, kernel_size=c.kernel_size)

    def extract_ffn(self, c: _Choices) -> nn.Module:
        return self.ffn.extract(self.frame.embed_dim, hidden=self._hidden(c))


class _SuperBlock(nn.Module):
    def __init__(self, frame: Frame, space: Space, sharing: Sharing, drop_path: float) -> None:
        super().__init__()
        self.frame = frame
        self.norm1 = nn.LayerNorm(frame.embed_dim, eps=1e-6)
        self.norm2 = nn.LayerNorm(frame.embed_dim, eps=1e-6)
        self.drop_path = DropPath(drop_path)
        reachable = sorted({_Choices.of(part) for part in space})
        self.parts = (_SeparateParts if sharing == "separate" else _EntangledParts)(frame, reachable)

    def forward(self, x: Tensor, part: Mapping[str, Value]) -> Tensor:
        c, parts = _Choices.of(part), self.parts
        return run_block(
            x,
            self.norm1,
            self.norm2,
            self.drop_path,
            self.frame.channels(c.global_heads),
            parts.attend(c) if c.global_heads else None,
            parts.convolve(c) if c.global_heads < self.frame.num_heads else None,
            parts.feed(c),
        )

    def extract(self, part: Mapping[str, Value]) -> Block:
        c, parts, dim = _Choices.of(part), self.parts, self.frame.embed_dim
        block = Block(
            nn.LayerNorm(dim, eps=1e-6),
            nn.LayerNorm(dim, eps=1e-6),
            parts.extract_ffn(c),
            global_channels=self.frame.channels(c.global_heads),
            attn=parts.extract_attention(c) if c.global_heads else None,
            local=parts.extract_local(c) if c.global_heads < self.frame.num_heads else None,
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
