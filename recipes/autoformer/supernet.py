"""The AutoFormer supernet: its largest network, of which every other one is a slice (weight entanglement)."""

from functools import partial

import torch
from torch import Tensor, nn

from nasx import Arch
from nasx.nn import DropPath, ElasticFeedForward, ElasticLayerNorm, ElasticLinear, drop_path_rates
from recipes.autoformer.layers import TABLES, ElasticEmbedding, ElasticRelativeAttention, QkvBias
from recipes.autoformer.model import (
    AutoFormer,
    Block,
    Frame,
    depth_of,
    hidden_width,
    initialise,
    mean_patch,
    run_block,
)


class _SuperBlock(nn.Module):
    def __init__(self, frame: Frame, max_dim: int, largest: Arch, qkv_bias: QkvBias, drop_path: float) -> None:
        super().__init__()
        self.norm1 = ElasticLayerNorm(max_dim)
        self.attn = ElasticRelativeAttention(
            max_dim,
            int(largest["num_heads"]),
            head_dim=frame.head_dim,
            positions=frame.positions(),
            qkv_bias=qkv_bias,
        )
        self.norm2 = ElasticLayerNorm(max_dim)
        self.mlp = ElasticFeedForward(max_dim, hidden_width(max_dim, largest))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, part: Arch) -> Tensor:
        attend = partial(self.attn, heads=int(part["num_heads"]))
        feed = partial(self.mlp, hidden=hidden_width(x.shape[-1], part))
        return run_block(x, self.norm1, attend, self.norm2, feed, self.drop_path)

    def extract(self, dim: int, part: Arch) -> Block:
        return Block(
            self.norm1.extract(dim),
            self.attn.extract(dim, heads=int(part["num_heads"])),
            self.norm2.extract(dim),
            self.mlp.extract(dim, hidden=hidden_width(dim, part)),
            self.drop_path.rate,
        )


class AutoFormerSupernet(nn.Module):
    """All networks up to a largest one in one module; `forward` takes the architecture as an argument.

    A network is a prefix of the blocks, of their widths and of their heads. An architecture that does not fit into
    the largest one is a ValueError. `qkv_bias` says which biases a block with fewer heads takes (see
    `ElasticRelativeAttention`). Drop path's rates grow over the largest depth and stay with their blocks.
    """

    def __init__(
        self,
        largest: Arch,
        frame: Frame,
        *,
        qkv_bias: QkvBias = "thirds",
        drop_path: float = 0.0,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        if qkv_bias not in ("thirds", "packed"):
            raise ValueError(f'qkv_bias must be "thirds" or "packed", but got {qkv_bias!r}')
        self.frame, self.largest = frame, largest
        depth, dim = depth_of(largest), int(largest["embed_dim"])
        parts = zip(largest.parts("block"), drop_path_rates(drop_path, depth), strict=True)
        self.embed = ElasticEmbedding(
            dim, tokens=frame.tokens, in_channels=frame.in_channels, patch_size=frame.patch_size
        )
        self.blocks = nn.ModuleList(_SuperBlock(frame, dim, part, qkv_bias, rate) for part, rate in parts)
        self.norm = ElasticLayerNorm(dim)
        self.head = ElasticLinear(dim, frame.num_classes)
        initialise(self, init_std)

    def _used(self, arch: Arch) -> list[tuple[_SuperBlock, Arch]]:
        if depth_of(arch) > len(self.blocks):
            raise ValueError(f"the supernet has {len(self.blocks)} blocks, but the architecture {depth_of(arch)}")
        parts = arch.parts("block", depth_of(arch))
        used = zip(self.blocks, parts, strict=False)  # blocks beyond the depth are left out
        return [(block, part) for block, part in used if isinstance(block, _SuperBlock)]

    def no_weight_decay(self) -> set[str]:
        """Return the parameters beside vectors, class token and positions that weight decay spares: relative tables."""
        return set(TABLES)

    def forward(self, images: Tensor, arch: Arch) -> Tensor:
        """Return the logits (B, classes) of images under an architecture."""
        used = self._used(arch)
        x = self.embed(images, int(arch["embed_dim"]))
        for block, part in used:
            x = block(x, part)
        return self.head(mean_patch(self.norm(x)))

    @torch.inference_mode(False)  # else the copies could never be trained
    def extract(self, arch: Arch) -> AutoFormer:
        """Return an architecture's network as plain torch, with copies of its weights."""
        used, head = self._used(arch), self.head
        dim = int(arch["embed_dim"])
        embed, norm = self.embed.extract(dim), self.norm.extract(dim)
        blocks = [block.extract(dim, part) for block, part in used]
        network = AutoFormer(embed, blocks, norm, head.extract(head.out_features, dim))
        return network.train(self.training)
