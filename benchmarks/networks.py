"""Whole networks beside the same ones written the plain way and timm's, and their share of the matrix rate."""

from typing import Any

import timm
import torch
from torch import nn

from benchmarks.cases import Case, Row, Run, bench_case, digits_case, forward_pass, tiny_case, training_step
from benchmarks.pairs import alternate
from benchmarks.rate import MatrixProduct, inference_flops, training_flops
from benchmarks.reference import PlainGLiT
from nasx.train import use_threads
from recipes.glit.cost import Macs
from recipes.glit.model import DEIT_TINY, GLiT, build


def training(seconds: float = 10.0) -> list[Row]:
    """Return training steps of GLiT and DeiT: `ratio` is over the plain or timm's network. One thread."""
    return _compared("training", seconds)


def inference(seconds: float = 5.0) -> list[Row]:
    """Return the same for forward passes in evaluation mode."""
    return _compared("inference", seconds)


def pairs(device: torch.device | str = "cpu", batch: int = 8) -> dict[str, tuple[nn.Module, nn.Module, int]]:
    """Return networks of 224 pixels with what each is compared with, and their multiply-adds."""
    torch.manual_seed(0)
    tiny = tiny_case(batch)
    glit = tiny.network()
    assert isinstance(glit, GLiT)
    found: dict[str, tuple[nn.Module, nn.Module, int]] = {
        "GLiT-Tiny": (glit, PlainGLiT(tiny.arch).load(glit), tiny.macs),
        "DeiT-Tiny": (build(DEIT_TINY), timm.create_model("deit_tiny_patch16_224"), Macs(tiny.vit)(DEIT_TINY)),
    }
    return {name: (ours.to(device), other.to(device), macs) for name, (ours, other, macs) in found.items()}


def plain(case: Case) -> nn.Module:
    """Return a small network of a case written the plain way, with the same weights."""
    f, network = case.vit, case.network()
    assert isinstance(network, GLiT)
    sizes: dict[str, Any] = {
        "image_size": f.image_size,
        "patch_size": f.patch_size,
        "in_channels": f.in_channels,
        "num_classes": f.num_classes,
        "dim": f.embed_dim,
        "heads": f.num_heads,
    }
    return PlainGLiT(case.arch, **sizes).load(network)


def _compared(what: str, seconds: float) -> list[Row]:
    make, flops = (training_step, training_flops) if what == "training" else (forward_pass, inference_flops)
    rows: list[Row] = []
    with use_threads(1):
        product = MatrixProduct()
        cases: list[tuple[str, nn.Module, nn.Module, int, Case]] = [
            (name, ours, other, macs, tiny_case(8)) for name, (ours, other, macs) in pairs().items()
        ]
        cases += [(c.name, c.network(), plain(c), c.macs, c) for c in (digits_case(), bench_case())]
        for name, ours, other, macs, case in cases:
            images, labels = case.images()
            given = (images, labels) if what == "training" else (images,)
            functions: dict[str, Run] = {"ours": make(ours, *given), "other": make(other, *given), "product": product}
            timed = alternate(functions, seconds=seconds)
            low, high = timed.spread("ours", to="other")
            done = flops(macs, case.batch)
            share = done / product.flops
            rows.append(
                {
                    "network": name,
                    "over": "timm's" if name == "DeiT-Tiny" else "plain",
                    "batch": case.batch,
                    "ratio": timed.ratio("ours", to="other"),
                    "quartile 1": low,
                    "quartile 3": high,
                    "share of the matrix rate": share / timed.ratio("ours", to="product"),
                    "share of the other": share / timed.ratio("other", to="product"),
                    "images/s": case.batch / timed.median("ours"),
                    "matrix product, GFLOP/s": product.flops / timed.median("product") / 1e9,
                }
            )
    return rows
