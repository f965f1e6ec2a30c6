"""What a LocalViT run searches: one space of feed-forwards with and without locality, inside one budget."""

from collections.abc import Sequence
from functools import partial

from nasx import Arch
from nasx.pipeline.compose import search_stages
from nasx.pipeline.images import ImageTask
from nasx.pipeline.presentation import Presentation
from nasx.pipeline.problem import Baseline
from nasx.pipeline.recipe import KnownNetwork, Recipe
from nasx.pipeline.vit import ViTProblem
from nasx.report import BlockDrawing

from .config import PRESETS, Config
from .model import LOCALVIT_TINY_ACT1, LOCALVIT_TINY_ACT3, LocalViT, LocalViTConfig
from .official import read_official
from .space import locality, variant
from .supernet import supernet


def localvit_problem(config: Config, task: ImageTask) -> ViTProblem[Config]:
    """Return the search that the settings ask for; it is compared with DeiT and with the published way."""
    vit, blocks = config.vit_for(task), config.space.blocks
    return ViTProblem(
        config,
        task,
        space=locality(config.space),
        vit=vit,
        build=LocalViT,
        supernet=supernet,
        baselines={
            "deit_shaped": Baseline("DeiT-shaped (no locality)", variant(2, blocks=blocks, local=())),
            "localvit_shaped": Baseline("LocalViT (locality in every block)", variant(2, blocks=blocks)),
        },
        one_block=locality(config.space.model_copy(update={"blocks": 1})),
        stages=partial(search_stages, level="locality"),
        name="localvit",
        presentation=Presentation(
            title="LocalViT",
            draw=drawings,
            legend="dark: with the depthwise stage, of kernel K; SE and ECA attend over channels",
        ),
    )


def drawings(arch: Arch) -> Sequence[BlockDrawing]:
    """Return one box per block."""
    boxes = []
    for part in arch.parts("block"):
        lines = [f"MLP ×{float(part['mlp_ratio']):g}"]
        if part["depthwise"]:
            attention = str(part["channel_attention"])
            lines += [str(part["activation"]), *([attention.upper()] if attention != "none" else [])]
        title = f"K {part['kernel_size']}" if part["depthwise"] else "plain"
        boxes.append(BlockDrawing(title, 0.7 if part["depthwise"] else 0.1, tuple(lines)))
    return boxes


RECIPE = Recipe(
    name="localvit",
    title="LocalViT",
    presets=PRESETS,
    default_preset="localvit-tiny",
    problem=localvit_problem,
    vit=lambda settings: LocalViTConfig(**settings),
    build=LocalViT,
    read_official=read_official,
    known={
        "localvit-tiny-act1": KnownNetwork(LOCALVIT_TINY_ACT1, "localvit-tiny"),
        "localvit-tiny-act3": KnownNetwork(LOCALVIT_TINY_ACT3, "localvit-tiny"),
    },
)
