"""Runs put together from stages."""

from collections.abc import Mapping
from typing import Any

from nasx.arch import Arch
from nasx.pipeline.network_stages import EvaluationStage, FinetuneStage, RefitStage, RetrainStage
from nasx.pipeline.picks import BetterOf, Pick
from nasx.pipeline.problem import Problem
from nasx.pipeline.scoring import networks_to_train
from nasx.pipeline.stages import Level, RunStage
from nasx.pipeline.supernet_stages import InheritStage, SearchStage, SupernetStage, TrustStage


def search_stages(problem: Problem[Any], level: str = "") -> list[RunStage]:
    """Return the stages of a search of one level, which may have a name: supernet, search, retraining, comparison."""
    searched = Level(lambda inputs: problem.inside)
    return [
        *level_stages(problem, level, searched, finetune=True),
        *final_stages(problem, found_in(problem, level)),
    ]


def level_stages(
    problem: Problem[Any],
    name: str,
    level: Level,
    *,
    epochs_factor: float = 1.0,
    retrain: bool = True,
    finetune: bool = False,
) -> list[RunStage]:
    """Return the stages of one level, named `<name>/supernet` and so on: train a supernet, search, retrain the best.

    Where the settings ask for it, `<name>/trust` measures the ranking, and with `finetune` the best are fine-tuned from
    the supernet's weights besides.
    """
    supernet, search = joined(name, "supernet"), joined(name, "search")
    stages: list[RunStage] = [
        SupernetStage(supernet, level, epochs_factor),
        SearchStage(search, level, supernet),
    ]
    if problem.config.trust.n:
        stages.append(TrustStage(joined(name, "trust"), level, supernet))
    if retrain:
        stages.append(RetrainStage(joined(name, "retrain"), search))
    if finetune and problem.config.finetune.epochs:
        inherit = InheritStage(joined(name, "inherit"), level, supernet, search)
        stages += [inherit, FinetuneStage(joined(name, "finetune"), inherit.name, problem.config.finetuning())]
    return stages


def found_in(problem: Problem[Any], name: str) -> dict[str, Pick | BetterOf]:
    """Return what a run's last level found: the best that was retrained or fine-tuned, and the best of either."""
    retrained = Pick(joined(name, "retrain"))
    if not problem.config.finetune.epochs:
        return {"searched": retrained}
    tuned = Pick(joined(name, "finetune"))
    return {"searched": BetterOf((retrained, tuned)), "fine-tuned": tuned, "retrained": retrained}


def final_stages(problem: Problem[Any], found: Mapping[str, Pick | BetterOf]) -> list[RunStage]:
    """Return the stages that end a run: the networks to compare with are trained, and the test samples read.

    `found` names what was found, and what was trained of it in another way. Beside the problem's baselines stand as
    many random networks from the budget as were retrained, trained with the same seeds rank by rank.
    """
    config = problem.config
    halving = config.retrain.method == "halving"
    baselines = [baseline.arch for baseline in problem.baselines.values()]
    drawn = problem.random_archs(networks_to_train(config))
    picks: dict[str, Pick | BetterOf] = dict(found)
    if halving:  # random networks are halved as the searched ones are
        stages: list[RunStage] = [
            RetrainStage("baselines", archs=tuple(baselines), ranks=(0,) * len(baselines), halving=False)
        ]
        stages = [*(stages if baselines else ()), RetrainStage("random", archs=tuple(drawn))]
        random_stage, random_ones = "random", None
    else:
        archs: list[Arch] = [*baselines, *drawn]
        ranks = (*(0 for _ in baselines), *range(len(drawn)))
        stages = [RetrainStage("baselines", archs=tuple(archs), ranks=ranks)]
        random_stage, random_ones = "baselines", tuple(range(len(baselines), len(archs)))
    picks |= {name: Pick("baselines", (number,)) for number, name in enumerate(problem.baselines)}
    picks["random"] = Pick(random_stage, random_ones)
    groups = {"random_all": picks["random"]}
    if config.search.method == "pareto":
        groups["front"] = next(iter(found.values()))
    if config.retrain.refit:
        stages.append(RefitStage("refit", picks))
    refitted = "refit" if config.retrain.refit else None
    return [*stages, EvaluationStage("evaluation", picks, groups, refitted)]


def joined(level: str, stage: str) -> str:
    """Return the name of a level's stage."""
    return f"{level}/{stage}" if level else stage
