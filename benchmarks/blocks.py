"""How near each kind of block comes to the rate of the matrix product. One thread."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.cases import Row, Run, bench_case, digits_case, tiny_case
from benchmarks.pairs import alternate
from benchmarks.rate import MatrixProduct, training_flops
from nasx.arch import Value
from nasx.measure import count_macs
from nasx.nn import FeedForward
from nasx.train import use_threads
from recipes.glit.layers import Heads, LocalConv
from recipes.glit.model import Block, GLiTConfig


@dataclass(frozen=True)
class Piece:
    """A module of a block, and the number of channels that it reads."""

    name: str
    module: nn.Module
    channels: int


def shares(seconds: float = 2.0) -> list[Row]:
    """Return forward and backward passes of blocks and of their parts, at three sizes.

    `share of the matrix rate` is the time that the multiply-adds take in one large matrix product over the time taken.
    """
    rows: list[Row] = []
    with use_threads(1):
        product = MatrixProduct()
        for case in (digits_case(), bench_case(), tiny_case(8)):
            kernel, expansion = (31, 4) if case.vit.tokens > 100 else (5, 4)
            for piece in pieces(case.vit, kernel, expansion):
                timed = alternate({"piece": run(piece, case.vit, case.batch), "product": product}, seconds=seconds)
                tokens = torch.zeros(1, case.vit.tokens, piece.channels)
                macs = count_macs(piece.module, tokens)
                share = training_flops(macs, case.batch) / product.flops / timed.ratio("piece", to="product")
                rows.append(
                    {
                        "size": f"{case.vit.tokens} tokens, width {case.vit.embed_dim}, batch {case.batch}",
                        "part": piece.name,
                        "MACs": macs,
                        "share of the matrix rate": share,
                        "ms": 1e3 * timed.median("piece"),
                    }
                )
    return rows


def pieces(vit: GLiTConfig, kernel_size: int, expansion: int, mlp_ratio: float = 4) -> list[Piece]:
    """Return the kinds of blocks of a ViT config, and the parts that they consist of."""
    dim, heads = vit.embed_dim, vit.num_heads
    common: Mapping[str, Value] = {"kernel_size": kernel_size, "expansion": expansion, "qkv_ratio": 1.0}
    blocks = [
        Piece(name, Block(vit, {"global_heads": count, "mlp_ratio": mlp_ratio, **common}), dim)
        for name, count in (("block, all global", heads), ("block, one global head", 1), ("block, all local", 0))
    ]
    return [
        *blocks,
        Piece("attention", Heads(dim, heads, inner=dim, channels=dim), dim),
        Piece("convolution", LocalConv(dim, expansion=expansion, kernel_size=kernel_size), dim),
        Piece("feed-forward", FeedForward(dim, int(mlp_ratio * dim)), dim),
        Piece("layer norm", nn.LayerNorm(dim, eps=1e-6), dim),
    ]


def run(piece: Piece, vit: GLiTConfig, batch: int, device: torch.device | str = "cpu") -> Run:
    """Return a function that computes a piece forward and backward."""
    generator = torch.Generator().manual_seed(0)
    shape = batch, vit.tokens, piece.channels
    tokens, gradient = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    tokens.requires_grad_()
    module = piece.module.to(device)
    wanted: list[Tensor] = [tokens, *module.parameters()]

    def passes() -> None:
        torch.autograd.grad(module(tokens), wanted, gradient)

    return passes
