"""What a step of a supernet costs over a step of the network that it runs. One thread, both in turns."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.cases import Case, Row, Run, digits_case, tiny_case, training_step
from benchmarks.pairs import alternate
from nasx import Arch, Space
from nasx.nn import Subnet, Supernet
from nasx.train import adamw, use_threads
from recipes.glit.model import GLiTConfig
from recipes.glit.space import GLiTSpace, heads_space, reduced, table2
from recipes.glit.supernet import Sharing, supernet

SHARINGS: tuple[Sharing, ...] = ("separate", "entangled")


def steps(seconds: float = 8.0) -> list[Row]:
    """Return supernet over extracted steps, at GLiT-Tiny's size and for the preset `digits`, with both sharings.

    Both take the same paths, and their own optimizers. `skeleton over step` is what a path costs that was not taken
    before: it is made once, and kept while memory allows. `of known blocks` is the same of a path whose blocks other
    paths have.
    """
    cases = (
        (digits_case(), digits_case().space.sample(0, 6)),
        (tiny_case(), [tiny_case().arch]),
    )
    with use_threads(1):
        return [
            {"network": case.name, "sharing": sharing, "batch": case.batch, **compared(case, sharing, archs, seconds)}
            for case, archs in cases
            for sharing in SHARINGS
        ]


def _put_together(whole: Supernet, archs: Sequence[Arch]) -> None:
    """Make what runs some paths again, of blocks that are known."""
    whole._networks.kept.clear()
    for arch in archs:
        whole._network_of(arch)


def compared(case: Case, sharing: Sharing, archs: Any, seconds: float) -> Row:
    """Return what a supernet's steps on some paths take, and the same of the extracted networks."""
    started = time.process_time()
    whole = supernet(case.space, case.vit, sharing=sharing, init_std=case.init_std)
    built = time.process_time() - started
    images, labels = case.images()
    optimizer = adamw(whole, lr=1e-4, weight_decay=0.05)
    shared = [training_step(whole, images, labels, arch, optimizer=optimizer) for arch in archs]
    alone = [training_step(whole.extract(arch).train(), images, labels) for arch in archs]
    functions: dict[str, Run] = {
        "supernet": lambda: [step() for step in shared],
        "extracted": lambda: [step() for step in alone],
        "skeleton": lambda: Subnet(whole, archs[0]),
        "known": partial(_put_together, whole, archs),
    }
    # the first networks that are put together are compared with built ones, which takes as long as building
    compared_first = whole._networks.blocks.FIRST
    for _ in range(compared_first):
        _put_together(whole, archs)
    timed = alternate(functions, seconds=seconds)
    low, high = timed.spread("supernet", to="extracted")
    return {
        "ratio": timed.ratio("supernet", to="extracted"),
        "quartile 1": low,
        "quartile 3": high,
        "skeleton over step": len(archs) * timed.ratio("skeleton", to="extracted"),
        "of known blocks": timed.ratio("known", to="extracted"),
        "supernet step, ms": 1e3 * timed.median("supernet") / len(archs),
        "built in s": built,
    }


def growth(seconds: float = 2.0) -> list[Row]:
    """Return the same over depth, tokens, width and candidates a block, one at a time from a middle size."""
    with use_threads(1):
        return [
            {"axis": axis, "value": value, **compared(case, "entangled", [arch], seconds)}
            for axis, value, case, arch in _grown()
        ]


MIDDLE = GLiTConfig(image_size=32, patch_size=4, embed_dim=96, num_classes=10)
CHOICES = GLiTSpace(blocks=4, kernel_size=(5, 9, 17), held_kernel_size=9)


def _grown() -> Iterator[tuple[str, int, Case, Arch]]:
    vits = {
        "tokens": [replace(MIDDLE, patch_size=size) for size in (8, 4, 2)],
        "width": [replace(MIDDLE, embed_dim=width) for width in (48, 96, 192)],
    }
    for axis, of_axis in vits.items():
        for vit in of_axis:
            yield axis, vit.tokens if axis == "tokens" else vit.embed_dim, *_case(vit, reduced(CHOICES))
    for blocks in (2, 4, 8, 16):
        yield "blocks", blocks, *_case(MIDDLE, reduced(CHOICES.with_blocks(blocks)))
    for make in (heads_space, reduced, table2):
        space = make(CHOICES)
        yield "candidates a block", sum(1 for _ in space.parts("block")[0]), *_case(MIDDLE, space)


def _case(vit: GLiTConfig, space: Space) -> tuple[Case, Arch]:
    arch = space.pin({"block.*.global_heads": 1}).sample(0)  # attention and convolution in every block
    return Case("", vit, space, arch, batch=16), arch
