"""The space, and its networks as plain torch."""

import torch
from torch import Tensor, nn

from nasx import Arch, Space, one_of, repeat

from .data import LENGTH, MODULES, VOCABULARY

DIM = 24
TEXT = Space(block=repeat(Space(num_heads=one_of(1, 2, 4), hidden=one_of(12, 24, 48)), one_of(1, 2, 3)))


class TextTransformer(nn.Module):
    """Character codes (B, N) to logits (B, classes): embeddings, blocks, the mean over all characters, a head."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, DIM)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, DIM))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(DIM, int(part["num_heads"]), int(part["hidden"]), batch_first=True)
            for part in arch.parts("block")
        )
        self.head = nn.Linear(DIM, len(MODULES))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of texts."""
        x = self.characters(tokens) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=1))
