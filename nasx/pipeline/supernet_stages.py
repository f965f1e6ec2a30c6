"""The stages of a level's supernet: its training, the search, the test of its ranking, and inheriting its weights."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import nn

from nasx._words import number_of
from nasx.arch import Arch
from nasx.nn import SupernetLike
from nasx.pipeline.config import Search
from nasx.pipeline.context import Context
from nasx.pipeline.earlier import earlier_run_has, take_earlier, trained_supernet_of
from nasx.pipeline.errors import CorruptWeights, SearchFailed
from nasx.pipeline.estimate import Estimator, StageEstimate
from nasx.pipeline.events import StepTaken
from nasx.pipeline.fingerprint import digest_of, sharing_of
from nasx.pipeline.metrics_file import METRICS, MetricsFile
from nasx.pipeline.network_stages import retraining
from nasx.pipeline.networks import NetworkJob, Result, train_networks
from nasx.pipeline.paths import supernet_paths
from nasx.pipeline.picks import best_archs, with_winner
from nasx.pipeline.scoring import Scoring, networks_to_train
from nasx.pipeline.search_record import SearchRecord
from nasx.pipeline.searchers import (
    best_of,
    count_or_bound,
    evaluations_of,
    evenly_spaced,
    front_of,
    generations,
    make_searcher,
)
from nasx.pipeline.stages import Level, RunStage
from nasx.pipeline.training import (
    TrainingState,
    check_room,
    distillation_of,
    loss_curve,
    resumable,
    schedule_of,
    steps_of,
    supernet_optimizer,
)
from nasx.pipeline.trust import archs_across_costs, rank_statistics
from nasx.pipeline.weight_files import load_weights, write_validation, write_weights
from nasx.ranking import FEWEST
from nasx.run.checkpoints import unflatten_state
from nasx.run.files import flush_directory, remove
from nasx.run.stages import JOURNAL
from nasx.space import ArchSet, Space
from nasx.train import Step, Training, recalibrate, seeded, train_supernet, use_threads


@dataclass(frozen=True, slots=True)
class SupernetStage(RunStage):
    """Train the supernet of a level, for a number of times the configured epochs."""

    name: str
    level: Level
    epochs_factor: float = 1.0
    kind: ClassVar[str] = "supernet"
    sections: ClassVar[tuple[str, ...]] = ("supernet",)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the level needs."""
        return self.level.needs

    def work(self, context: Context) -> Result:
        """Train, from the last checkpoint on; the result says how many steps, and their losses.

        A supernet of the same space is taken from an earlier run where the settings name one.
        """
        problem, config, group, seed = context.problem, context.problem.config.supernet, context.group, context.seed
        archs = self.level.archs(context.inputs)
        if config.from_run is not None and (taken := take_earlier(context, archs.space)):
            return taken
        torch.manual_seed(seed)
        supernet = problem.supernet(archs.space).to(context.device)
        batches = problem.task.train_batches(config, seed=seed, part=group.part, workers=context.machine.workers)
        total = steps_of(config, batches.steps_per_epoch, self.epochs_factor)
        if group.first:
            check_room(context.directory, supernet)
        optimizer = supernet_optimizer(supernet, config)
        schedule = schedule_of(optimizer, config, total, batches.steps_per_epoch)
        state = TrainingState(supernet, optimizer, schedule)
        paths = supernet_paths(config, archs, problem.cost, seed)
        distillation = distillation_of(config, problem.teacher_of(config), context.device)

        def steps_from(start: int) -> Training:
            return train_supernet(
                supernet,
                seeded(batches.steps(start, total), seed, start),
                paths,
                optimizer,
                loss=problem.task.loss_of(config),
                unpack=problem.task.unpack,
                reduction=config.reduction,
                distillation=distillation,
                distill=config.paths == "sandwich" and distillation is None,
                schedule=schedule,
                clip_norm=config.clip_norm,
                batch_norm_group=config.batch_norm_group,
                start_step=start,
                recovery=state.recovery,
                group=group,
            )

        def on_step(step: Step) -> bool:
            context.show(step.step + 1, total, f"loss {step.loss:.3f}")
            if context.on_event:
                context.on_event(StepTaken(context.name, step.step, total, step.loss, step.lr, config.batch_size))
            return context.stop_requested()  # so that all ranks stop at one step

        with use_threads(problem.config.threads):
            losses = resumable(
                context.checkpoints,
                state,
                steps_from,
                total,
                on_step,
                group,
                batches_of=batches.steps,
                settings="supernet.lr",
                table=MetricsFile(context.directory / METRICS, config.batch_size, context.device),
            )
        return {
            "steps": total,
            "losses": loss_curve(losses),
            "skipped_steps": sum(not math.isfinite(loss) for loss in losses),
            "space_size": str(archs.space.size),
            "space_sha256": digest_of(archs.space),
            "sharing_sha256": sharing_of(supernet, archs.space),
        }

    def estimate(self, estimator: Estimator) -> StageEstimate:
        """Return the cost of its steps, or none where an earlier run has trained it."""
        archs = self.level.archs(estimator.inputs)
        config = estimator.problem.config.supernet
        if config.from_run is not None and not self.inputs and earlier_run_has(estimator.problem, archs.space):
            return StageEstimate(
                self.name,
                detail=f"taken from {config.from_run}",
                size=archs.space.size,
                feasible_size_bounds=archs.size_bounds,
                acceptance=_acceptance(archs),
                seconds=0.0,
            )
        steps = estimator.steps(config, self.epochs_factor)
        trained = steps * config.batch_size * len(estimator.paths(archs)(0))
        timing = estimator.supernet(archs)
        return StageEstimate(
            self.name,
            images=trained,
            trained_images=trained,
            detail=number_of(steps, "step"),
            size=archs.space.size,
            feasible_size_bounds=archs.size_bounds,
            depends_on=self.level.needs,
            acceptance=_acceptance(archs),
            seconds=timing.training(steps, config.batch_size, estimator.devices),
            peak_bytes=timing.peak_bytes,
            result={"steps": steps},
        )


@dataclass(frozen=True, slots=True)
class SearchStage(RunStage):
    """Search a level's architectures with the weights of its supernet."""

    name: str
    level: Level
    supernet: str
    kind: ClassVar[str] = "search"
    sections: ClassVar[tuple[str, ...]] = ("search",)
    fields: ClassVar[tuple[str, ...]] = (
        "search.method",
        "search.population",
        "search.generations",
        "search.parents",
        "search.mutation_probability",
        "search.racing_error",
        "search.top_k",
        "retrain.method",  # this and the next say how many of the best are kept
        "retrain.start",
    )

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the level needs, and its supernet."""
        return (*self.level.needs, self.supernet)

    def work(self, context: Context) -> Result:
        """Search; the result has the best candidates and how many there were, the stage's journal all of them."""
        problem, config = context.problem, context.problem.config.search
        archs = self.level.archs(context.inputs)
        scoring = Scoring(context, archs.space, _trained_supernet(context, archs.space, self.supernet))
        record = SearchRecord(context, archs)
        archs = archs.with_fresh_counts()  # so that its acceptance is this search's, also after an interruption
        costs = problem.search_costs
        searcher = make_searcher(config, archs, costs, context.seed)
        wanted, there_are = evaluations_of(searcher), count_or_bound(archs)
        rows: list[dict[str, Any]] = []
        scores: dict[Arch, float] = {}
        with use_threads(problem.config.threads):
            for generation, asked in enumerate(generations(searcher, archs)):
                new = [arch for arch in asked if arch not in scores]  # a searcher of one's own may ask again
                best = best_of(rows, 1)
                expected = min(len(rows) + len(new) if wanted is None else wanted, there_are)
                note = f"best {best[0]['score']:.4f}" if best else "no score yet"

                def show(share: float, asked: int = len(new), expected: int = expected, note: str = note) -> None:
                    done = len(rows) + share * asked
                    context.show(done, max(done, expected), note)

                found = (
                    scoring.race_generation(new, generation, show) if scoring.races else scoring.score_all(new, show)
                )
                scores |= found
                searcher.tell({arch: scores[arch] for arch in asked})
                for arch, score in found.items():
                    amounts = [cost(arch) for cost in costs]
                    rows.append({"arch": arch, "generation": generation, "score": score, "costs": amounts})
                record.add(generation, found)
        best = best_of(rows, networks_to_train(problem.config))
        if not best:
            raise _without_score(context, len(rows))
        if config.method == "pareto":
            best = evenly_spaced(front_of(rows), networks_to_train(problem.config))
        context.show(len(rows), len(rows), f"best {max(row['score'] for row in best):.4f}")
        failed = sum(math.isnan(row["score"]) for row in rows)
        return {
            "best": [{"arch": dict(row["arch"]), "score": row["score"], "costs": row["costs"]} for row in best],
            "evaluations": len(rows),
            "failed": failed,
            "feasible_at_most": str(archs.size_bounds[1]),
            "acceptance": archs.acceptance,
            "validation_images": scoring.validation_images,
            "validation_images_in_full": len(rows) * scoring.validation,
            "recalibration_images": scoring.recalibration_images,
            "racing_error": scoring.error_probability,
        }

    def estimate(self, estimator: Estimator) -> StageEstimate:
        """Return the cost of scoring as many candidates as there will be at most."""
        config, archs = estimator.problem.config, self.level.archs(estimator.inputs)
        _check_top_k(config.search)
        searcher = make_searcher(config.search, archs, estimator.problem.search_costs, 0)  # refuses what does not fit
        wanted = evaluations_of(searcher)
        candidates = None if wanted is None else min(wanted, archs.size_bounds[1])
        best = [{"arch": dict(arch)} for arch in estimator.some(archs, networks_to_train(config))]
        together = config.search.population if isinstance(config.search.method, str) else candidates
        return estimator.scoring(self.name, archs, candidates, together=together, result={"best": best})


def _without_score(context: Context, candidates: int) -> SearchFailed:
    """Forget the scores of a search, of which none is finite, and return the error that says why."""
    problem, why = context.problem, None
    if context.group.first:
        remove(context.directory / JOURNAL)
        flush_directory(context.directory)
        with torch.no_grad():
            why = problem.task.scored_not_finite(
                problem.some_network().eval(), problem.config, seed=context.seed, workers=context.machine.workers
            )
    sample = context.group.from_first(why)
    if sample is not None:
        return SearchFailed(
            f"all {candidates} candidates failed, because {sample} has values that are not finite; correct it, and run "
            "the same command again: the supernet is kept"
        )
    return SearchFailed(
        f"all {candidates} candidates failed: no score was a finite number, though the weights of the supernet are "
        "finite; look for values that are not finite in data, loss and metric; if there are none, lower supernet.lr or "
        "set supernet.clip_norm, and choose another run directory, because in this one the supernet is trained"
    )


def _check_top_k(config: Search) -> None:
    scored = config.population * config.generations
    if isinstance(config.method, str) and config.top_k > scored:
        raise ValueError(
            f"search.top_k must be at most the {scored:,} candidates that are scored (search.population times "
            f"search.generations), but got {config.top_k:,}"
        )


@dataclass(frozen=True, slots=True)
class TrustStage(RunStage):
    """Compare a level's supernet with networks trained alone."""

    name: str
    level: Level
    supernet: str
    kind: ClassVar[str] = "trust"
    sections: ClassVar[tuple[str, ...]] = ("trust", "retrain", "search")

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the level needs, and its supernet."""
        return (*self.level.needs, self.supernet)

    def work(self, context: Context) -> Result:
        """Score and train networks spread over the budget; the result has both, and a verdict."""
        problem, config = context.problem, context.problem.config.trust
        archs = self.level.archs(context.inputs)
        scoring = Scoring(context, archs.space, _trained_supernet(context, archs.space, self.supernet))
        chosen = archs_across_costs(archs, problem.cost, config.n, context.seed)
        with use_threads(problem.config.threads):
            scores = scoring.score_all(
                chosen, lambda share: context.show(share * len(chosen), len(chosen), of="scores")
            )
        jobs = {
            number: NetworkJob(arch, problem.seed(f"network/{number % len(chosen)}/{number // len(chosen)}"), path)
            for number, arch in enumerate(chosen * config.seeds)
            for path in [context.directory / f"{number}.safetensors"]
        }
        networks = train_networks(context, retraining(context), jobs)
        rows = []
        for number, arch in enumerate(chosen):
            trained = [networks[number + turn * len(chosen)]["val_score"] for turn in range(config.seeds)]
            row = {
                "arch": dict(arch),
                "score": scores[arch],
                "trained_score": sum(trained) / len(trained),
                "trained_scores": trained,
                "macs": problem.macs(arch),
            }
            if problem.task.scores_accuracy:
                row["accuracy"] = row["trained_score"]
            if not math.isnan(scores[arch]):
                rows.append(row)
        return {"architectures": rows, **rank_statistics(rows)}

    def estimate(self, estimator: Estimator) -> StageEstimate:
        """Return the cost of scoring and of training the networks."""
        config, archs = estimator.problem.config, self.level.archs(estimator.inputs)
        networks = min(config.trust.n, archs.size_bounds[1])
        if networks < FEWEST:
            raise ValueError(
                f"{self.name} judges a ranking by at least {FEWEST} networks, but there are only {networks} to search; "
                "widen the space or the budget, or set trust.n=0"
            )
        scoring = estimator.scoring(self.name, archs, networks)
        return scoring.and_then(estimator.training(self.name, networks * config.trust.seeds, config.retrain))


@dataclass(frozen=True, slots=True)
class InheritStage(RunStage):
    """Take the best of a level with the supernet's weights as they are."""

    name: str
    level: Level
    supernet: str
    source: str
    kind: ClassVar[str] = "inherit"
    sections: ClassVar[tuple[str, ...]] = ("search",)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the level needs, its supernet and its search."""
        return (*self.level.needs, self.supernet, self.source)

    def work(self, context: Context) -> Result:
        """Extract, recalibrate and score; the result is a retraining's."""
        problem, task, config = context.problem, context.problem.task, context.problem.config
        space = self.level.archs(context.inputs).space
        trained = cast("SupernetLike", _trained_supernet(context, space, self.supernet))
        shared = retraining(context)
        networks: dict[int, Result] = {}
        best = best_archs(context.inputs, self.source)[: config.search.top_k]
        with use_threads(config.threads):
            for number, arch in context.group.shared_out(list(enumerate(best))):
                network = trained.extract(arch)
                if config.search.recalibration_batches:
                    batches = task.recalibration_batches(
                        config, seed=problem.seed(self.source), workers=context.machine.workers
                    )
                    recalibrate(network, batches.steps(0, config.search.recalibration_batches), unpack=task.unpack)
                weights = context.directory / f"{number}.safetensors"
                result = {"arch": dict(arch), "losses": [], **write_validation(weights, shared.evaluate(network))}
                networks[number] = {**result, "sha256": write_weights(weights, network)}
                context.show(number + 1, len(best), f"{result['val_score']:.4f}")
        return with_winner(context.group.gather(networks))

    def estimate(self, estimator: Estimator) -> StageEstimate:
        """Return the cost of a few scores."""
        archs = self.level.archs(estimator.inputs)
        best = estimator.inputs[self.source]["best"][: estimator.problem.config.search.top_k]
        result = {"networks": best, "winner": best[0]["arch"]}
        return estimator.scoring(self.name, archs, len(best), result=result)


def first_supernets(stages: Iterable[RunStage]) -> Iterator[SupernetStage]:
    """Yield the stages that train supernets of spaces which are known from the start."""
    return (stage for stage in stages if isinstance(stage, SupernetStage) and not stage.inputs)


def _trained_supernet(context: Context, space: Space, stage: str) -> nn.Module:
    """Return a level's supernet with the weights that its training stage, an input of this one, kept."""
    checkpoint = trained_supernet_of(context.stage.run_directory, stage, context.inputs[stage])
    if checkpoint is None:
        raise CorruptWeights(
            f"the trained supernet of {stage} is damaged or missing in {context.stage.stage_directory(stage)}; "
            "start again in a new run directory"
        )
    torch.manual_seed(0)  # weights that are replaced at once
    supernet = context.problem.supernet(space)
    return load_weights(supernet, unflatten_state(checkpoint.tensors, checkpoint.state)["model"]).to(context.device)


def _acceptance(archs: ArchSet) -> float:
    """Return which share of the draws met every budget; few draws, because they may meet some of them rarely."""
    fresh = archs.with_fresh_counts()
    fresh.sample(0, 100)
    return fresh.acceptance
