"""The transformer over characters, plain and as a supernet with entangled weights."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nasx import Arch
from nasx.nn import ElasticAttention, ElasticFeedForward

from .data import LENGTH, MODULES, VOCABULARY
from .space import DIM


class Block(nn.Module):
    """A pre-norm block on tokens (B, N, D)."""

    def __init__(self, norm1: nn.Module, attention: nn.Module, norm2: nn.Module, ffn: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2, self.ffn = norm1, attention, norm2, ffn

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens to themselves."""
        x = x + self.attention(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class TextTransformer(nn.Module):
    """Character codes (B, N) to logits (B, classes): embeddings, blocks, the mean over all characters, a head."""

    def __init__(self, blocks: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, DIM)
        self.positions = nn.Embedding(LENGTH, DIM)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, len(MODULES))

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the tokens' vectors (B, N, D)."""
        return self.characters(tokens) + self.positions.weight[: tokens.shape[1]]

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits of vectors (B, N, D)."""
        return self.head(self.norm(x).mean(dim=1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of texts."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)


class ElasticBlock(nn.Module):
    """A block of which heads and hidden width vary."""

    def __init__(self, max_ratio: float, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attention = ElasticAttention(DIM, max_inner=DIM)
        self.ffn = ElasticFeedForward(DIM, int(DIM * max_ratio), dropout=dropout)

    def forward(self, x: Tensor, heads: int, hidden: int) -> Tensor:
        """Map tokens to themselves with some heads and some hidden width."""
        x = x + self.attention(self.norm1(x), heads=heads)
        return x + self.ffn(self.norm2(x), hidden=hidden)

    def extract(self, heads: int, hidden: int) -> Block:
        """Return the plain block."""
        norm1, norm2 = copy.deepcopy(self.norm1), copy.deepcopy(self.norm2)
        return Block(norm1, self.attention.extract(DIM, heads=heads), norm2, self.ffn.extract(DIM, hidden=hidden))


class TextSupernet(nn.Module):
    """All text transformers of the space in one: the first blocks, slices of each."""

    def __init__(self, *, max_depth: int = 3, max_ratio: float = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.frame = TextTransformer()
        self.blocks = nn.ModuleList(ElasticBlock(max_ratio, dropout) for _ in range(max_depth))

    def forward(self, tokens: Tensor, arch: Arch) -> Tensor:
        """Return the logits of texts under an architecture."""
        x = self.frame.embed(tokens)
        for block, (heads, hidden) in zip(self.blocks, sizes(arch), strict=False):
            x = block(x, heads, hidden)
        return self.frame.classify(x)

    def extract(self, arch: Arch) -> TextTransformer:
        """Return an architecture's network on its own."""
        network = copy.deepcopy(self.frame)
        pairs = zip(self.blocks, sizes(arch), strict=False)
        network.blocks.extend(block.extract(*size) for block, size in pairs if isinstance(block, ElasticBlock))
        return network.train(self.training)


def sizes(arch: Arch) -> list[tuple[int, int]]:
    """Return the heads and the hidden width of each block."""
    return [(int(part["num_heads"]), int(DIM * float(part["mlp_ratio"]))) for part in arch.parts("block")]


def build(arch: Arch) -> TextTransformer:
    """Return an architecture's network with weights of its own."""
    with torch.no_grad():
        return TextSupernet().extract(arch)
