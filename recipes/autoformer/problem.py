"""What an AutoFormer run searches: one space of widths, depths, heads and MLP ratios, inside one budget."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from nasx import Arch, Space
from nasx.pipeline.compose import final_stages, level_stages
from nasx.pipeline.images import ImageTask
from nasx.pipeline.network_stages import FinetuneStage, RetrainStage
from nasx.pipeline.picks import Pick
from nasx.pipeline.presentation import Presentation
from nasx.pipeline.problem import Baseline, Problem
from nasx.pipeline.recipe import Recipe
from nasx.pipeline.stages import Level, RunStage
from nasx.pipeline.supernet_stages import InheritStage
from nasx.pipeline.vit import ViTProblem
from nasx.report import BlockDrawing

from .config import PRESETS, Config
from .model import AutoFormer, AutoFormerConfig
from .official import read_official
from .space import AutoFormerSpace, uniform
from .supernet import supernet


def autoformer_problem(config: Config, task: ImageTask) -> ViTProblem[Config]:
    """Return the search that the settings ask for.

    It is compared with the smallest network whose blocks are all alike, as DeiT's are; that can lie below the budget.
    """
    vit, choices = config.vit_for(task), config.space
    alike = uniform(choices.embed_dim[0], choices.depth[0], choices.num_heads[0], choices.mlp_ratio[-1])
    return ViTProblem(
        config,
        task,
        space=choices.space(),
        vit=vit,
        build=AutoFormer,
        supernet=partial(wide_supernet, choices, config.model.supernet_dim),
        baselines={"deit_shaped": Baseline("DeiT-shaped (smallest, all alike)", alike)},
        one_block=choices.model_copy(update={"depth": (1,)}).space(),
        stages=autoformer_stages,
        name="autoformer",
        presentation=Presentation(
            title="AutoFormer",
            draw=partial(drawings, max(choices.num_heads)),
            legend="darker: more heads; below them the MLP ratio",
            describe=lambda arch: {"embed_dim": arch["embed_dim"]},
        ),
    )


def wide_supernet(
    choices: AutoFormerSpace, width: int | None, space: Space, vit: AutoFormerConfig, **settings: Any
) -> nn.Module:
    """Return the largest network, of which all others are slices; it may be wider than any of them."""
    if width and width not in choices.embed_dim:
        space = choices.model_copy(update={"embed_dim": (*choices.embed_dim, width)}).space()
    return supernet(space, vit, **settings)


def autoformer_stages(problem: Problem[Any]) -> list[RunStage]:
    """Return the stages: one supernet, one search, and three ways to weights for what it found.

    The best networks keep the supernet's weights, are fine-tuned from them, and are retrained from scratch; the paper's
    finding is that the three barely differ (section 4.3).
    """
    level = Level(lambda inputs: problem.inside)
    inherit = InheritStage("sizes/inherit", level, "sizes/supernet", "sizes/search")
    ways, tuned = {"searched": inherit.name}, list[RunStage]()
    if problem.config.finetune.epochs:
        ways["fine-tuned"] = "sizes/finetune"
        tuned = [FinetuneStage(ways["fine-tuned"], inherit.name, problem.config.finetuning())]
    ways["retrained"] = "sizes/retrain"
    return [
        *level_stages(problem, "sizes", level, retrain=False),
        inherit,
        *tuned,
        RetrainStage(ways["retrained"], "sizes/search", halving=False),
        *final_stages(problem, {name: Pick(stage, chosen_by=inherit.name) for name, stage in ways.items()}),
    ]


def drawings(most_heads: int, arch: Arch) -> Sequence[BlockDrawing]:
    """Return one box per block."""
    return [
        BlockDrawing(
            f"{part['num_heads']} heads", int(part["num_heads"]) / most_heads, (f"MLP ×{float(part['mlp_ratio']):g}",)
        )
        for part in arch.parts("block")
    ]


RECIPE = Recipe(
    name="autoformer",
    title="AutoFormer",
    presets=PRESETS,
    default_preset="autoformer-tiny",
    problem=autoformer_problem,
    vit=lambda settings: AutoFormerConfig(**settings),
    build=AutoFormer,
    read_official=read_official,
)
