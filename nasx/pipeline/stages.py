"""The stages that runs are made of, as values: supernet, search, trust, retraining, inherited weights, evaluation.

A stage knows its name, the stages whose results it reads, the sections of the settings that it depends on, its work,
what that would cost, and what reports show of its result. `nasx.pipeline.compose` puts them together.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn

from nasx._words import number_of
from nasx.arch import Arch
from nasx.nn import SupernetLike
from nasx.pipeline.config import Retraining, RunConfig, Search
from nasx.pipeline.context import Context
from nasx.pipeline.earlier import earlier_run_has, take_earlier, trained_supernet_of
from nasx.pipeline.errors import CorruptWeights, SupernetDiverged
from nasx.pipeline.estimate import Estimator, StageEstimate
from nasx.pipeline.events import NetworkTested, StepTaken
from nasx.pipeline.fingerprint import digest_of, sharing_of
from nasx.pipeline.metrics_file import METRICS, MetricsFile
from nasx.pipeline.networks import (
    NetworkJob,
    NetworkTraining,
    Result,
    train_by_halving,
    train_networks,
    validation_key,
)
from nasx.pipeline.paths import supernet_paths
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
from nasx.pipeline.stage_reports import REPORTS, StageReport
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
from nasx.pipeline.weight_files import load_weights, read_weights, write_scores, write_validation, write_weights
from nasx.ranking import FEWEST
from nasx.run.checkpoints import unflatten_state
from nasx.search import Halving
from nasx.space import ArchSet, Space
from nasx.train import Step, Training, recalibrate, seeded, train_supernet, use_threads

Inputs = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Level:
    """The architectures that a level searches, which may follow from the results of earlier stages (`needs`)."""

    archs: Callable[[Inputs], ArchSet]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pick:
    """One of the networks that a stage trained: the best on validation, of all or of some of them.

    `chosen_by` names the stage whose scores decide, where several stages trained the same networks.
    """

    stage: str
    among: tuple[int, ...] | None = None
    chosen_by: str | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The stages whose results it reads."""
        return (self.stage,) if self.chosen_by is None else (self.stage, self.chosen_by)

    def number(self, inputs: Inputs) -> int:
        """Return the number of the network."""
        networks = inputs[self.chosen_by or self.stage]["networks"]
        return best_number(networks, self._numbers(networks))

    def network(self, inputs: Inputs) -> Result:
        """Return the network's result, with its place in the run as `weights`."""
        return self._placed(inputs, self.number(inputs))

    def all(self, inputs: Inputs) -> list[Result]:
        """Return the results of all networks that it could pick."""
        return [self._placed(inputs, number) for number in self._numbers(inputs[self.stage]["networks"])]

    def _numbers(self, networks: Sequence[Result]) -> list[int]:
        return [n for n in fully_trained(networks) if self.among is None or n in self.among]

    def _placed(self, inputs: Inputs, number: int) -> Result:
        return {**inputs[self.stage]["networks"][number], "weights": f"{self.stage}/{number}.safetensors"}


@dataclass(frozen=True, slots=True)
class BetterOf:
    """The best on validation of what several stages made of a search's networks."""

    picks: tuple[Pick, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The stages whose results it reads."""
        return tuple(dict.fromkeys(stage for pick in self.picks for stage in pick.inputs))

    def number(self, inputs: Inputs) -> int:
        """Return the number of the network in the stage that it is of."""
        return self._best(inputs).number(inputs)

    def network(self, inputs: Inputs) -> Result:
        """Return the network's result, with its place in the run as `weights`."""
        return self._best(inputs).network(inputs)

    def all(self, inputs: Inputs) -> list[Result]:
        """Return the results of all networks that it could pick."""
        return [network for pick in self.picks for network in pick.all(inputs)]

    def _best(self, inputs: Inputs) -> Pick:
        return max(self.picks, key=lambda pick: validation_key(pick.network(inputs)))


class RunStage(ABC):
    """A stage of a run; all are frozen dataclasses, and none keeps anything between calls."""

    name: str
    kind: ClassVar[str]
    """What reading a run back knows the stage by."""
    sections: ClassVar[tuple[str, ...]]
    """The sections of the settings that its result depends on."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """The earlier stages whose results it reads."""

    @abstractmethod
    def work(self, context: Context) -> Result:
        """Do the stage and return its result, a JSON value."""

    @abstractmethod
    def estimate(self, estimator: Estimator) -> StageEstimate:
        """Return what the stage would cost, with a result that stands for its own in the estimates of later stages."""

    def report(self, result: Any) -> StageReport:
        """Return what reports show of the stage's result."""
        return REPORTS[self.kind](result)


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
                acceptance=acceptance(archs),
                seconds=0.0,
            )
        steps = estimator.steps(config, self.epochs_factor)
        paths = supernet_paths(config, archs, estimator.problem.cost, 0)
        trained = steps * config.batch_size * len(paths(0))
        timing = estimator.supernet(archs, paths)
        return StageEstimate(
            self.name,
            images=trained,
            trained_images=trained,
            detail=number_of(steps, "step"),
            size=archs.space.size,
            feasible_size_bounds=archs.size_bounds,
            depends_on=self.level.needs,
            acceptance=acceptance(archs),
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

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the level needs, and its supernet."""
        return (*self.level.needs, self.supernet)

    def work(self, context: Context) -> Result:
        """Search; the result has the best candidates and how many there were, the stage's journal all of them."""
        problem, config = context.problem, context.problem.config.search
        archs = self.level.archs(context.inputs)
        scoring = Scoring(context, archs.space, trained_supernet(context, archs.space, self.supernet))
        record = SearchRecord(context, archs)
        archs = archs.with_fresh_counts()  # so that its acceptance is this search's, also after an interruption
        costs = problem.search_costs
        searcher = make_searcher(config, archs, costs, context.seed)
        wanted, there_are = evaluations_of(searcher), count_or_bound(archs)
        rows: list[dict[str, Any]] = []
        with use_threads(problem.config.threads):
            for generation, asked in enumerate(generations(searcher, archs)):
                best = best_of(rows, 1)
                expected = min(len(rows) + len(asked) if wanted is None else wanted, there_are)
                note = f"best {best[0]['score']:.4f}" if best else "no score yet"

                def show(share: float, asked: int = len(asked), expected: int = expected, note: str = note) -> None:
                    done = len(rows) + share * asked
                    context.show(done, max(done, expected), note)

                scores = (
                    scoring.race_generation(asked, generation, show)
                    if scoring.races
                    else scoring.score_all(asked, show)
                )
                searcher.tell(scores)
                for arch in asked:
                    found = {"arch": arch, "generation": generation, "score": scores[arch]}
                    rows.append({**found, "costs": [cost(arch) for cost in costs]})
                record.add(generation, {arch: scores[arch] for arch in asked})
        best = best_of(rows, networks_to_train(problem.config))
        if not best:
            raise SupernetDiverged(
                f"all {len(rows)} candidates failed: no score was a finite number; lower supernet.lr or set "
                "supernet.clip_norm, and choose another run directory, because in this one the supernet is trained"
            )
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
        scoring = Scoring(context, archs.space, trained_supernet(context, archs.space, self.supernet))
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
class RetrainStage(RunStage):
    """Train networks from scratch: the best that a search found, or given ones.

    Candidates of one rank have one seed, whichever stage trains them. `finalists` is how many halving brings to the
    end, where the settings ask for it; by default as many as are retrained.
    """

    name: str
    source: str | None = None
    archs: tuple[Arch, ...] = ()
    ranks: tuple[int, ...] | None = None
    halving: bool = True
    kind: ClassVar[str] = "retrain"
    sections: ClassVar[tuple[str, ...]] = ("retrain",)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The search whose best are trained."""
        return () if self.source is None else (self.source,)

    def work(self, context: Context) -> Result:
        """Train; the result has all networks, and the winner on the validation samples."""
        problem, config = context.problem, context.problem.config
        archs = self._chosen(context.inputs, config)
        ranks = self.ranks or range(len(archs))
        jobs = {
            number: NetworkJob(arch, problem.network_seed(rank), context.directory / f"{number}.safetensors")
            for number, (arch, rank) in enumerate(zip(archs, ranks, strict=True))
        }
        if self._halves(config, len(jobs)):
            return with_winner(train_by_halving(context, retraining(context), jobs, config.search.top_k))
        return with_winner(train_networks(context, retraining(context), jobs))

    def _halves(self, config: RunConfig, networks: int) -> bool:
        return self.halving and config.retrain.method == "halving" and networks > config.search.top_k

    def _chosen(self, inputs: Inputs, config: RunConfig) -> list[Arch]:
        if self.source is None:
            return list(self.archs)
        return best_archs(inputs, self.source)[: None if self.halving else config.search.top_k]

    def estimate(self, estimator: Estimator) -> StageEstimate:
        """Return the cost of the trainings."""
        config = estimator.problem.config
        archs = self._chosen(estimator.inputs, config)
        whole = float(len(archs))
        if self._halves(config, len(archs)):
            whole = Halving(len(archs), config.search.top_k).trainings
        result = {"networks": [{"arch": dict(arch)} for arch in archs], "winner": dict(archs[0])}
        return estimator.training(self.name, len(archs), config.retrain, whole=whole, result=result)


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
        trained = cast("SupernetLike", trained_supernet(context, space, self.supernet))
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


@dataclass(frozen=True, slots=True)
class FinetuneStage(RunStage):
    """Train the networks of another stage a little further, from the weights that it left."""

    name: str
    source: str
    training: Retraining
    kind: ClassVar[str] = "finetune"
    sections: ClassVar[tuple[str, ...]] = ("retrain", "finetune")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The stage whose networks are trained."""
        return (self.source,)

    def work(self, context: Context) -> Result:
        """Train; the result is a retraining's."""
        folder = context.stage.stage_directory(self.source)
        jobs = {
            number: NetworkJob(
                Arch(network["arch"]),
                context.problem.network_seed(number),
                context.directory / f"{number}.safetensors",
                start_from=(folder / f"{number}.safetensors", str(network["sha256"])),
            )
            for number, network in enumerate(context.inputs[self.source]["networks"])
        }
        return with_winner(train_networks(context, retraining(context, self.training), jobs))

    def estimate(self, estimator: Estimator) -> StageEstimate:
        """Return the cost of the trainings."""
        result = estimator.inputs[self.source]
        return estimator.training(self.name, len(result["networks"]), self.training, result=result)


@dataclass(frozen=True, slots=True)
class RefitStage(RunStage):
    """Train chosen networks again, on training and validation samples together, with the seeds that they had."""

    name: str
    networks: Mapping[str, Pick | BetterOf]
    kind: ClassVar[str] = "refit"
    sections: ClassVar[tuple[str, ...]] = ("retrain",)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The stages that trained the networks before."""
        return picked_from(self.networks)

    def work(self, context: Context) -> Result:
        """Train; the result has the networks by name."""
        problem = context.problem
        before = {name: pick.network(context.inputs) for name, pick in self.networks.items()}
        jobs = {
            number: NetworkJob(
                Arch(network["arch"]),
                problem.network_seed(pick.number(context.inputs)),
                context.directory / f"{number}.safetensors",
                keep=network["kept"],
            )
            for number, (pick, network) in enumerate(zip(self.networks.values(), before.values(), strict=True))
        }
        trained = train_networks(context, replace(retraining(context), with_validation=True), jobs)
        return {"networks": dict(zip(before, trained.values(), strict=True))}

    def estimate(self, estimator: Estimator) -> StageEstimate:
        """Return the cost of the trainings."""
        return estimator.training(self.name, len(self.networks), estimator.problem.config.retrain)


@dataclass(frozen=True, slots=True)
class EvaluationStage(RunStage):
    """Read the test samples, for the only time: score chosen networks, the one that was found first.

    `groups` names picks whose networks are all scored, such as every random one. Where `refitted` names a stage, the
    weights that it trained are scored.
    """

    name: str
    networks: Mapping[str, Pick | BetterOf]
    groups: Mapping[str, Pick | BetterOf] = field(default_factory=dict)
    refitted: str | None = None
    kind: ClassVar[str] = "evaluation"
    sections: ClassVar[tuple[str, ...]] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The stages that trained the networks."""
        refitted = () if self.refitted is None else (self.refitted,)
        return tuple(dict.fromkeys((*picked_from(self.networks), *picked_from(self.groups), *refitted)))

    def work(self, context: Context) -> Result:
        """Score the networks; each is read and scored once, however often it is named."""
        if not context.group.first:
            return {}
        inputs = context.inputs
        chosen = {name: pick.network(inputs) for name, pick in self.networks.items()}
        members = {name: pick.all(inputs) for name, pick in self.groups.items()}
        if self.refitted is not None:
            for number, (name, network) in enumerate(inputs[self.refitted]["networks"].items()):
                weights = f"{self.refitted}/{number}.safetensors"
                chosen[name] = {**chosen[name], "sha256": network["sha256"], "weights": weights}
        every = [*chosen.values(), *(network for group in members.values() for network in group)]
        asked = {network["weights"]: network for network in every}
        tested = {}
        with use_threads(context.problem.config.threads):
            for number, (weights, network) in enumerate(asked.items(), 1):
                tested[weights] = self._tested(context, network, number - 1)
                context.show(number, len(asked), f"{tested[weights]['test_score']:.4f}")
        groups = {name: [tested[network["weights"]] for network in group] for name, group in members.items()}
        named = {name: tested[network["weights"]] for name, network in chosen.items()}
        if context.on_event:
            for name, result in named.items():
                context.on_event(NetworkTested(context.name, name, Arch(result["arch"]), result))
        return {"networks": named, **groups}

    def _tested(self, context: Context, network: Result, number: int) -> Result:
        problem, task = context.problem, context.problem.task
        arch = Arch(network["arch"])
        trained = load_network(context, arch, context.stage.run_directory / network["weights"], network["sha256"])
        size = problem.config.search.eval_batch_size
        batches = task.eval_batches("test", size, workers=context.machine.workers)
        scored = task.evaluate(trained, batches)
        result = {
            "params": problem.params(arch),
            "macs": problem.macs(arch),
            "val_score": network["val_score"],
            "test_score": scored.score,
        }
        if task.scores_accuracy:
            result |= {"val_accuracy": network["val_score"], "test_accuracy": scored.score}
        kept = {"weights_kept": network["kept"]} if "kept" in network else {}
        files: dict[str, str | None] = {"val_scores": None, "test_scores": None}
        if "val_scores" in network:
            files["val_scores"] = Path(network["weights"]).with_name(network["val_scores"]).as_posix()
        if len(scored.scores):
            path = context.directory / f"{number}.test.npy"
            write_scores(path, scored.scores)
            files["test_scores"] = f"{self.name}/{path.name}"
        return {
            **result,
            "arch": network["arch"],
            **kept,
            "weights": network["weights"],
            "sha256": network["sha256"],
            **files,
        }

    def estimate(self, estimator: Estimator) -> StageEstimate:
        """Return nothing measured: only a run may read the test samples."""
        return StageEstimate(self.name)


def best_archs(inputs: Inputs, search: str) -> list[Arch]:
    """Return the best candidates that a search found, best first."""
    return [Arch(candidate["arch"]) for candidate in inputs[search]["best"]]


def first_supernets(stages: Iterable[RunStage]) -> Iterator[SupernetStage]:
    """Yield the stages that train supernets of spaces which are known from the start."""
    return (stage for stage in stages if isinstance(stage, SupernetStage) and not stage.inputs)


def trained_supernet(context: Context, space: Space, stage: str) -> nn.Module:
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


def load_network(context: Context, arch: Arch, weights: Path, sha256: str) -> nn.Module:
    """Return a network with weights from a file of the run, on the machine's device."""
    return load_weights(context.problem.make(arch), read_weights(weights, sha256)).to(context.device)


def retraining(context: Context, training: Retraining | None = None) -> NetworkTraining:
    """Return how a stage's networks are trained, as the settings ask by default."""
    problem = context.problem
    config = training or problem.config.retrain
    return NetworkTraining(
        task=problem.task,
        make=problem.maker(config.drop_path),
        training=config,
        eval_batch_size=problem.config.search.eval_batch_size,
        machine=context.machine,
        teacher=problem.teacher_of(config),
        precision=problem.config.precision,
    )


def with_winner(networks: Mapping[int, Result]) -> Result:
    """Return a stage's result of trained networks, with the best of those that came to the end."""
    ordered = [networks[number] for number in range(len(networks))]
    winner = best_number(ordered, fully_trained(ordered))
    return {"networks": ordered, "winner": ordered[winner]["arch"]}


def fully_trained(networks: Sequence[Result]) -> list[int]:
    """Return the numbers of the networks that were trained to the end, which halving leaves few of."""
    return [n for n, network in enumerate(networks) if network.get("share", 1) == 1]


def best_number(networks: list[Result], among: list[int]) -> int:
    """Return the number of the best network on validation, of those at some numbers; the first of equals."""
    return max(among, key=lambda number: validation_key(networks[number]))


def picked_from(networks: Mapping[str, Pick | BetterOf]) -> tuple[str, ...]:
    """Return the stages that picks read."""
    return tuple(dict.fromkeys(stage for pick in networks.values() for stage in pick.inputs))


def acceptance(archs: ArchSet) -> float:
    """Return which share of the draws met every budget; few draws, because they may meet some of them rarely."""
    fresh = archs.with_fresh_counts()
    fresh.sample(0, 100)
    return fresh.acceptance
