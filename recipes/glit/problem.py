"""What a GLiT run searches: global and local heads, stage by stage or at once, inside its budgets."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

from torch import nn

from nasx import Arch, Budget
from nasx.completion import completable
from nasx.cost import AdditiveCost
from nasx.feasible import Feasible
from nasx.nn import ImageConfig
from nasx.pipeline.compose import final_stages, found_in, level_stages
from nasx.pipeline.images import ImageTask
from nasx.pipeline.network_stages import RetrainStage
from nasx.pipeline.picks import BetterOf, Pick
from nasx.pipeline.presentation import Presentation
from nasx.pipeline.problem import Baseline, Problem
from nasx.pipeline.recipe import KnownNetwork, Recipe
from nasx.pipeline.stages import Level, RunStage
from nasx.pipeline.vit import ViTProblem

from .config import PRESETS, TINY, Budgets, Config, fit
from .cost import Macs, PaperMacs, Params
from .model import DEIT_BASE, DEIT_SMALL, DEIT_TINY, GLIT_TINY, GLiTConfig, build_in
from .official import read_official
from .picture import block_drawings
from .space import GLiTSpace, details_space, heads_space, reduced, same_heads, table2
from .supernet import supernet
from .variant import Variant


@dataclass(frozen=True)
class Levels:
    """The architectures of the hierarchical search's two levels (paper, section 3.3), and of the joint one."""

    choices: GLiTSpace
    cost: AdditiveCost
    budget: Budgets
    further: tuple[Budget, ...] = ()

    @property
    def details_budget(self) -> Budget:
        """The budget of the last level, and so of the network that is found."""
        names = ("budget.details_at_least", "budget.details_at_most")
        return Budget(self.cost, self.budget.details_at_least, self.budget.details_at_most, names=names)

    @cached_property
    def heads(self) -> Feasible:
        """The first level: the heads of every block inside its upper bound, with details inside the last level's."""
        upper = Budget(self.cost, at_most=self.budget.heads_at_most, names=("", "budget.heads_at_most"))
        last = reduced(self.choices).within(self.details_budget, *self.further)
        return completable(heads_space(self.choices).within(upper), last, "block.*.global_heads")

    def details(self, inputs: Mapping[str, Any]) -> Feasible:
        """The second level: the details of every block, heads as the winner of the first level has them."""
        heads = Arch(inputs["heads/retrain"]["winner"])
        return details_space(heads, self.choices).within(self.details_budget, *self.further)


def levels_in(vit: GLiTConfig, config: Config) -> Levels:
    """Return the levels of the search that the settings ask for."""
    macs, budget = Macs(vit), config.budget
    cost = macs if budget.cost == "macs" else PaperMacs(vit)
    return Levels(config.choices(), cost, budget, tuple(budget.further(macs, Params(vit), asdict(vit))))


def levels_of(problem: ViTProblem[Config]) -> Levels:
    """Return the levels of a problem's search."""
    assert isinstance(problem.vit, GLiTConfig)
    return levels_in(problem.vit, problem.config)


def glit_problem(config: Config, task: ImageTask) -> ViTProblem[Config]:
    """Return the search that the settings ask for; it is compared with the network whose heads are all global."""
    vit, choices = config.vit_for(task), config.choices()
    levels = levels_in(vit, config)
    deit = same_heads(config.model.num_heads, choices)

    def describe(arch: Arch) -> dict[str, Any]:
        return {"paper_macs": PaperMacs(vit)(arch), "variant": config.model.variant, "locality": choices.locality}

    return ViTProblem(
        config,
        task,
        space=table2(choices),
        vit=vit,
        build=build_in,
        supernet=partial(supernet, sharing=config.model.sharing),
        macs=Macs(vit),
        params=Params(vit),
        budget=[levels.details_budget, *levels.further],
        baselines={"deit_shaped": Baseline("DeiT-shaped (all heads global)", deit)},
        stages=partial(glit_stages, levels),
        one_block=table2(choices.with_blocks(1)),
        name="glit",
        presentation=Presentation(
            title="GLiT",
            draw=partial(block_drawings, num_heads=config.model.num_heads),
            legend="darker: more local heads; G global (attention) and L local (convolution) heads per block",
            describe=describe,
        ),
    )


def glit_stages(levels: Levels, problem: Problem[Config]) -> list[RunStage]:
    """Return the stages of the configured method (paper, section 3.3 and figure 4).

    hierarchical: supernet, search and retraining over the heads, then the same over the details of the winner's heads.
    spos: the same once over the joint space, its supernet trained twice as long (table 5). random: retraining alone, of
    networks drawn from the budget. The best of the last level are fine-tuned too, where the settings ask for it.
    """
    found: Mapping[str, Pick | BetterOf]
    match problem.config.method:
        case "hierarchical":
            stages, found = hierarchical_stages(levels, problem, finetune=True), found_in(problem, "details")
        case "spos":
            stages, found = joint_stages(problem, epochs_factor=2, finetune=True), found_in(problem, "joint")
        case "random":
            stages, found = [random_stage(problem)], {"searched": Pick("random/retrain")}
    return [*stages, *final_stages(problem, found)]


def hierarchical_stages(levels: Levels, problem: Problem[Any], *, finetune: bool = False) -> list[RunStage]:
    """Return both levels of the search."""
    heads = Level(lambda inputs: levels.heads)
    details = Level(levels.details, needs=("heads/retrain",))
    return [*level_stages(problem, "heads", heads), *level_stages(problem, "details", details, finetune=finetune)]


def joint_stages(problem: Problem[Any], epochs_factor: float = 1, *, finetune: bool = False) -> list[RunStage]:
    """Return one search of all choices at once."""
    level = Level(lambda inputs: problem.inside)
    return level_stages(problem, "joint", level, epochs_factor=epochs_factor, finetune=finetune)


def random_stage(problem: Problem[Any]) -> RunStage:
    """Return random search: as many networks as a search retrains, drawn from the budget."""
    archs = problem.random_archs(problem.config.search.top_k, "random/retrain")
    return RetrainStage("random/retrain", archs=tuple(archs))


def vit_of(settings: Mapping[str, Any]) -> ImageConfig:
    """Return the config that exported settings describe; timm's networks have an `ImageConfig`."""
    if "variant" not in settings:
        return ImageConfig(**settings)
    return GLiTConfig(**{**settings, "variant": Variant(**settings["variant"])})


def build(vit: Any, arch: Arch, *, drop_path: float = 0.0) -> nn.Module:
    """Return an untrained network: a global-local one, or timm's."""
    if "timm" not in arch:
        return build_in(vit, arch, drop_path=drop_path)
    from . import timm_problem

    return timm_problem.build_in(vit, arch, drop_path=drop_path)


def alone(config: Config, task: ImageTask, arch: Arch) -> ViTProblem[Config] | None:
    """Return the training of a network outside the space, which is one of timm's; None for others."""
    if "timm" not in arch:
        return None
    from .timm_problem import timm_problem  # timm takes its time to import

    return timm_problem(config, task, arch)


def foreign(name: str) -> Arch | None:
    """Return the architecture that `timm:NAME` stands for, None for other names."""
    if not name.startswith("timm:"):
        return None
    from .timm_problem import timm_arch

    return timm_arch(name)


RECIPE = Recipe(
    name="glit",
    title="GLiT",
    presets=PRESETS,
    default_preset=TINY.preset,
    problem=glit_problem,
    vit=vit_of,
    build=build,
    read_official=read_official,
    known={
        "glit-tiny": KnownNetwork(GLIT_TINY, "glit-tiny"),
        "deit-tiny": KnownNetwork(DEIT_TINY, "glit-tiny"),
        "deit-small": KnownNetwork(DEIT_SMALL, "glit-small"),
        "deit-base": KnownNetwork(DEIT_BASE, "glit-base"),
    },
    fit=fit,
    alone=alone,
    foreign=foreign,
    free=(
        "method=random",
        "budget.heads_at_most=null",
        "budget.details_at_least=null",
        "budget.details_at_most=null",
    ),
)
