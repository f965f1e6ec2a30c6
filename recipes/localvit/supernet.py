"""The LocalViT supernet: one module that runs any architecture of a space."""

import copy
from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from nasx import Space
from nasx.arch import Value
from nasx.nn import Attention, DropPath, ElasticFeedForward, Switch, ViTSupernet, drop_path_rates
from recipes.localvit.layers import (
    ElasticECA,
    ElasticLocalFeedForward,
    ElasticSqueezeExcitation,
    Layer,
    beside_class_token,
)
from recipes.localvit.model import Block, FFNChoices, Frame, LocalViT


class _SuperLocal(nn.Module):
    """The local feed-forwards of one activation: sizes are slices, kinds of channel attention are separate."""

    def __init__(self, dim: int, reachable: list[FFNChoices]) -> None:
        super().__init__()
        hidden = max(c.hidden for c in reachable)
        self.ffn = ElasticLocalFeedForward(
            dim, hidden, max_kernel_size=max(c.kernel_size for c in reachable), activation=reachable[0].activation
        )
        attentions: dict[str, nn.Module] = {c.gate: ElasticECA(hidden, c.gate) for c in reachable if c.gate}
        if squeezed := max(c.squeezed for c in reachable):
            attentions["se"] = ElasticSqueezeExcitation(hidden, squeezed)
        self.attention = Switch({key: attentions[key] for key in sorted(attentions)}) if attentions else None

    def forward(self, x: Tensor, c: FFNChoices) -> Tensor:
        return self.ffn(x, hidden=c.hidden, kernel_size=c.kernel_size, attend=self._attend(c))

    def _attend(self, c: FFNChoices) -> Layer | None:
        if c.channel_attention == "none":
            return None
        assert self.attention is not None
        if c.channel_attention == "se":
            return partial(self.attention["se"], squeezed=c.squeezed)
        return self.attention[c.gate]

    def extract(self, c: FFNChoices) -> nn.Module:
        attention: nn.Module | None = None
        if c.channel_attention != "none":
            assert self.attention is not None
            whole = self.attention[c.gate or "se"]
            if isinstance(whole, ElasticSqueezeExcitation):
                attention = whole.extract(c.hidden, c.squeezed)
            elif isinstance(whole, ElasticECA):
                attention = whole.extract(c.hidden)
        return self.ffn.extract(hidden=c.hidden, kernel_size=c.kernel_size, attention=attention)


class _SuperBlock(nn.Module):
    def __init__(self, frame: Frame, space: Space, drop_path: float) -> None:
        super().__init__()
        self.frame, dim = frame, frame.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, frame.num_heads)
        self.drop_path = DropPath(drop_path)
        reachable = sorted({FFNChoices.of(frame, part) for part in space})
        plain = [c.hidden for c in reachable if not c.kernel_size]
        self.norm2 = nn.LayerNorm(dim, eps=1e-6) if plain else None
        self.mlp = ElasticFeedForward(dim, max(plain)) if plain else None
        activations = sorted({c.activation for c in reachable if c.kernel_size})
        self.local = (
            Switch({a: _SuperLocal(dim, [c for c in reachable if c.activation == a]) for a in activations})
            if activations
            else None
        )

    def _local(self, c: FFNChoices) -> _SuperLocal:
        assert self.local is not None
        found = self.local[c.activation]
        assert isinstance(found, _SuperLocal)
        return found

    def forward(self, x: Tensor, part: Mapping[str, Value]) -> Tensor:
        c = FFNChoices.of(self.frame, part)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        if c.kernel_size:
            return beside_class_token(x, partial(self._local(c), c=c))
        assert self.norm2 is not None
        assert self.mlp is not None
        return x + self.drop_path(self.mlp(self.norm2(x), hidden=c.hidden))

    def extract(self, part: Mapping[str, Value]) -> Block:
        c, rate = FFNChoices.of(self.frame, part), self.drop_path.rate
        norm1, attn, norm2 = copy.deepcopy((self.norm1, self.attn, self.norm2))
        if c.kernel_size:
            return Block(norm1, attn, local=self._local(c).extract(c), drop_path=rate)
        assert self.mlp is not None
        mlp = self.mlp.extract(self.frame.embed_dim, hidden=c.hidden)
        return Block(norm1, attn, norm2=norm2, mlp=mlp, drop_path=rate)


class LocalViTSupernet(ViTSupernet[LocalViT]):
    """All networks of a LocalViT space in one module; `forward` takes the architecture as an argument.

    Sizes are entangled: hidden widths, kernels and reductions are slices of the largest that the space reaches.
    Structures are separate: DeiT's feed-forward, the local one of each activation, and in that each kind of channel
    attention have weights (and BatchNorm statistics) of their own. Attention is one for all.
    """

    plain = LocalViT

    def __init__(self, space: Space, frame: Frame, *, drop_path: float = 0.0, init_std: float = 0.02) -> None:
        parts = space.parts("block")
        rates = drop_path_rates(drop_path, len(parts))
        super().__init__(frame, (_SuperBlock(frame, part, rate) for part, rate in zip(parts, rates, strict=True)))
        self.initialise(init_std)
