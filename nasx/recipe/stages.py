"""The stages that searches are made of: supernet, search, trust, retraining, baselines, the final evaluation.

Each maker returns a `nasx.run.Stage`; a recipe strings them together. A level is one round of supernet, search and
retraining: GLiT has two, most searches one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from nasx.arch import Arch
from nasx.cli import bad_input
from nasx.cost import AdditiveCost, Budget
from nasx.feasible import Feasible, attainable
from nasx.nn import Supernet
from nasx.recipe.config import Retraining, Search, SupernetTraining
from nasx.recipe.machine import Machine
from nasx.recipe.problem import Level, Problem
from nasx.recipe.progress import Progress, silent
from nasx.recipe.scoring import Scoring
from nasx.recipe.training import (
    Damaged,
    NetworkJob,
    Stateful,
    checkpoint_bytes,
    loss_curve,
    read_weights,
    resumable,
    train_networks,
    write_weights,
)
from nasx.recipe.trust import judged, spread
from nasx.run import Stage, StageContext
from nasx.run.checkpoints import unflatten_state
from nasx.run.files import check_space
from nasx.search import Evolution, Searcher
from nasx.space import Space
from nasx.train import (
    ALONE,
    FairPaths,
    Group,
    Paths,
    SandwichPaths,
    Step,
    StratifiedPaths,
    Training,
    UniformArchPaths,
    UniformPaths,
    adamw,
    cosine_schedule,
    evaluate,
    nesterov_sgd,
    pick_device,
    recalibrate,
    seeded,
    train_supernet,
    use_threads,
)

Result = dict[str, Any]

Made = TypeVar("Made")


class Maker(Protocol[Made]):
    """What a recipe strings a run together with: `Stages` makes stages, `nasx.recipe.estimate` what they would cost."""

    problem: Any

    def level(
        self, name: str, of: Level, *, needs: tuple[str, ...] = (), epochs_factor: float = 1, retrain: bool = True
    ) -> list[Made]:
        """Make one level: a supernet, its search, and the retraining of the best."""

    def retrain(self, name: str, of: Level) -> list[Made]:
        """Make the retraining of a level's best, where `level` was told to leave it out."""

    def random(self) -> list[Made]:
        """Make random search."""

    def given(self, name: str, archs: Sequence[Arch]) -> list[Made]:
        """Make the stage `<name>/retrain` that trains given networks from scratch."""

    def test(self, name: str) -> list[Made]:
        """Make the stage that reads the test images for the winner of `<name>/retrain` alone, in place of `final`."""

    def inherit(self, name: str, of: Level, *, needs: tuple[str, ...] = ()) -> list[Made]:
        """Make the stage that takes the best of a level with the supernet's weights."""

    def finetune(self, name: str, training: Retraining) -> list[Made]:
        """Make the stage that trains those a little further."""

    def final(self, last: str, also: Mapping[str, str] = MappingProxyType({})) -> list[Made]:
        """Make the end of a run whose winner is that of the stage `last`."""


@dataclass(slots=True)
class Stages(Maker[Stage]):
    """Makes the stages of a problem's run on one machine."""

    problem: Problem[Any]
    machine: Machine
    progress: Progress = silent
    group: Group = ALONE

    def level(
        self, name: str, of: Level, *, needs: tuple[str, ...] = (), epochs_factor: float = 1, retrain: bool = True
    ) -> list[Stage]:
        """Return the stages of one level; `of` is handed the results of the stages that it needs.

        `<name>/supernet` trains, for `epochs_factor` times the configured epochs; `<name>/search` searches;
        `<name>/trust`, where the configuration asks for it, measures the ranking; `<name>/retrain` trains the best
        from scratch.
        """
        supernet, search = f"{name}/supernet", f"{name}/search"
        stages = [
            Stage(supernet, partial(self._train_supernet, level=of, epochs_factor=epochs_factor), needs),
            Stage(search, partial(self._search, level=of, supernet=supernet), (*needs, supernet)),
        ]
        if self.problem.config.trust.n:
            stages.append(self.trust(name, of, needs=needs))
        return [*stages, *self.retrain(name, of)] if retrain else stages

    def retrain(self, name: str, of: Level) -> list[Stage]:
        """Return the stage `<name>/retrain` that trains the best of a level from scratch."""
        search = f"{name}/search"
        return [Stage(f"{name}/retrain", partial(self._retrain_best, source=search), (search,))]

    def trust(self, name: str, of: Level, *, needs: tuple[str, ...] = ()) -> Stage:
        """Return the stage that compares a level's supernet with networks trained alone."""

        supernet = f"{name}/supernet"
        return Stage(f"{name}/trust", partial(self._measure_trust, level=of, supernet=supernet), (*needs, supernet))

    def random(self) -> list[Stage]:
        """Return the stages of random search: networks drawn from the budget are trained from scratch."""
        return [
            Stage("random/draw", self._draw_random),
            Stage("random/retrain", partial(self._retrain_best, source="random/draw"), ("random/draw",)),
        ]

    def given(self, name: str, archs: Sequence[Arch]) -> list[Stage]:
        """Return the stage `<name>/retrain` that trains given networks from scratch."""

        def train_given(context: StageContext) -> Result:
            return _with_winner(self.train_networks(context, archs))

        return [Stage(f"{name}/retrain", train_given)]

    def test(self, name: str) -> list[Stage]:
        """Return the stage `<name>/test` that reads the test images for the winner of `<name>/retrain` alone.

        It takes the place of `final` where nothing is compared within the run.
        """
        retrained = f"{name}/retrain"
        return [Stage(f"{name}/test", partial(self._test_winner, source=retrained), (retrained,))]

    def inherit(self, name: str, of: Level, *, needs: tuple[str, ...] = ()) -> list[Stage]:
        """Return the stage `<name>/inherit` that takes the best of a level with the supernet's weights as they are."""
        supernet, search = f"{name}/supernet", f"{name}/search"
        work = partial(self._inherit, level=of, supernet=supernet, source=search)
        return [Stage(f"{name}/inherit", work, (*needs, supernet, search))]

    def finetune(self, name: str, training: Retraining) -> list[Stage]:
        """Return the stage `<name>/finetune` that trains what `<name>/inherit` took a little further."""
        inherited = f"{name}/inherit"
        return [Stage(f"{name}/finetune", partial(self._finetune, source=inherited, training=training), (inherited,))]

    def final(self, last: str, also: Mapping[str, str] = MappingProxyType({})) -> list[Stage]:
        """Return the stages that train the baselines and read the test images, for the only time.

        The network found is the winner of the stage `last`; `also` names stages that trained the same networks in
        another way, by what tables call them.
        """
        evaluated = partial(self._evaluate, last=last, also=also)
        return [
            Stage("baselines", self._retrain_baselines),
            Stage("evaluation", evaluated, (last, *also.values(), "baselines")),
        ]

    def _train_supernet(self, context: StageContext, *, level: Level, epochs_factor: float) -> Result:
        problem, config = self.problem, self.problem.config.supernet
        seed = problem.seed(context.name)
        space, inside = level(context.inputs)
        torch.manual_seed(seed)
        supernet = problem.supernet(space).to(pick_device(self.machine.device))
        batches = problem.task.supernet_batches(seed=seed, part=self.group.part)
        total = max(1, round(config.epochs * epochs_factor * batches.steps_per_epoch))
        if self.group.first:
            with bad_input():
                check_space(context.directory, checkpoint_bytes(supernet))
        optimizer = supernet_optimizer(supernet, config)
        warmup = min(round(config.warmup_epochs * batches.steps_per_epoch), total - 1)
        schedule = cosine_schedule(optimizer, steps=total, warmup_steps=warmup)
        paths = supernet_paths(config, space, inside, problem.cost, seed)
        soft = bool(config.mixup or config.cutmix)  # then the targets carry the smoothing

        def steps_from(start: int) -> Training:
            return train_supernet(
                supernet,
                seeded(batches.steps(start, total), seed, start),
                paths,
                optimizer,
                schedule=schedule,
                loss=partial(F.cross_entropy, label_smoothing=0.0 if soft else config.label_smoothing),
                distill=config.paths == "sandwich",
                clip_norm=config.clip_norm,
                start_step=start,
                group=self.group,
            )

        def on_step(step: Step) -> bool:
            self.progress(context.name, step.step + 1, total, f"loss {step.loss:.3f}")
            return self.group.any(context.stop.requested)  # so that all ranks stop at one step

        parts: dict[str, Stateful] = {"supernet": supernet, "optimizer": optimizer, "schedule": schedule}
        with use_threads(problem.config.threads):
            losses = resumable(context.checkpoints, parts, steps_from, total, on_step, self.group)
        return {"steps": total, "losses": loss_curve(losses), "space_size": str(space.size)}

    def trained_supernet(self, space: Space, context: StageContext, stage: str) -> nn.Module:
        """Return a level's supernet with the weights that its training stage, an input of this one, kept."""
        checkpoint = context.checkpoints_of(stage).latest()
        if checkpoint is None or checkpoint.step != context.inputs[stage]["steps"]:
            raise Damaged(
                f"the trained supernet of {stage} is damaged or missing in {context.stage_directory(stage)}; "
                "start again in a new run directory"
            )
        supernet = self.problem.supernet(space)
        supernet.load_state_dict(unflatten_state(checkpoint.tensors, checkpoint.state)["supernet"])
        return supernet.to(pick_device(self.machine.device))

    def _search(self, context: StageContext, *, level: Level, supernet: str) -> Result:
        problem, config = self.problem, self.problem.config.search
        seed = problem.seed(context.name)
        space, inside = level(context.inputs)
        scoring = self._scoring(context, space, supernet, seed)
        inside = inside.with_fresh_counts()  # so that its acceptance is this search's, also after an interruption
        searcher = evolution(config, inside, seed)

        def show(share: float = 0.0) -> None:
            found, waiting = searcher.best(), searcher.evaluations - len(searcher.history)
            done = len(searcher.history) + share * min(config.population, waiting)
            note = f"best {found[0].score:.2%}" if found else "none has a score yet"
            self.progress(context.name, done, searcher.evaluations, note)

        with use_threads(problem.config.threads):
            while not searcher.done:
                asked = searcher.ask()
                if scoring.races:
                    searcher.tell(scoring.race_generation(asked, searcher.generation, show))
                else:
                    searcher.tell(scoring.score_first(asked))
                show()
        if not searcher.best():
            raise ArithmeticError(
                f"all {len(searcher.history)} candidates failed: no output of the supernet was finite; "
                "train it with a lower supernet.lr"
            )
        self.progress(
            context.name, len(searcher.history), len(searcher.history), f"best {searcher.best()[0].score:.2%}"
        )
        return {
            "best": [{"arch": dict(s.arch), "accuracy": s.score} for s in searcher.best(config.top_k)],
            "candidates": [
                [s.generation, problem.macs(s.arch), s.score] for s in searcher.history if not math.isnan(s.score)
            ],
            "evaluations": len(searcher.history),
            "failed": searcher.failed,
            "feasible_at_most": str(inside.size_bounds[1]),
            "acceptance": inside.acceptance,
            "validation_images": scoring.validation_images,
            "validation_images_in_full": len(searcher.history) * len(problem.task.dataset.val),
            "recalibration_images": scoring.recalibration_images,
            "racing_error": scoring.error_probability,
        }

    def _scoring(self, context: StageContext, space: Space, supernet: str, seed: int) -> Scoring:
        trained = self.trained_supernet(space, context, supernet)
        return Scoring(self.problem, space, trained, seed, context, self.group)

    def _measure_trust(self, context: StageContext, *, level: Level, supernet: str) -> Result:
        problem, seed = self.problem, self.problem.seed(context.name)
        space, inside = level(context.inputs)
        scoring = self._scoring(context, space, supernet, seed)
        archs = spread(problem, space, inside, problem.config.trust.n, seed)
        scores: dict[Arch, float] = {}
        with use_threads(problem.config.threads):
            while len(scores) < len(archs):
                scores |= scoring.score_first(archs[len(scores) :])
                self.progress(f"{context.name} scores", len(scores), len(archs))
        networks = self.train_networks(context, archs)
        rows = [
            {"arch": dict(arch), "score": scores[arch], "accuracy": network["val_accuracy"], "macs": problem.macs(arch)}
            for arch, network in zip(archs, networks, strict=True)
            if not math.isnan(scores[arch])
        ]
        return {"architectures": rows, **judged(rows)}

    def _draw_random(self, context: StageContext) -> Result:
        drawn = self.problem.joint.sample(self.problem.seed(context.name), self.problem.config.search.top_k)
        return {"best": [{"arch": dict(arch)} for arch in drawn]}

    def _retrain_best(self, context: StageContext, *, source: str) -> Result:
        archs = [Arch(candidate["arch"]) for candidate in context.inputs[source]["best"]]
        return _with_winner(self.train_networks(context, archs))

    def _inherit(self, context: StageContext, *, level: Level, supernet: str, source: str) -> Result:
        problem, task = self.problem, self.problem.task
        space, _ = level(context.inputs)
        trained = self.trained_supernet(space, context, supernet)
        networks: dict[int, Result] = {}
        best = [Arch(candidate["arch"]) for candidate in context.inputs[source]["best"]]
        with use_threads(problem.config.threads):
            for number, arch in self.group.shared_out(list(enumerate(best))):
                network = cast("Supernet", trained).extract(arch)
                if problem.config.search.recalibration_batches:
                    batches = task.recalibration_batches(seed=problem.seed(source))
                    recalibrate(network, batches.steps(0, problem.config.search.recalibration_batches))
                scored = evaluate(network, task.eval_batches(task.dataset.val))
                networks[number] = {
                    "arch": dict(arch),
                    "sha256": write_weights(context.directory / f"{number}.safetensors", network),
                    "val_accuracy": scored.score,
                    "val_loss": scored.loss if math.isfinite(scored.loss) else None,
                    "losses": [],
                }
                self.progress(context.name, number + 1, len(best), f"{scored.score:.2%}")
        gathered = self.group.gather(networks)
        return _with_winner([gathered[number] for number in range(len(best))])

    def _finetune(self, context: StageContext, *, source: str, training: Retraining) -> Result:
        inherited = context.inputs[source]["networks"]
        archs = [Arch(network["arch"]) for network in inherited]
        weights = [
            (context.stage_directory(source) / f"{number}.safetensors", str(network["sha256"]))
            for number, network in enumerate(inherited)
        ]
        return _with_winner(self.train_networks(context, archs, training=training, start_from=weights))

    def _retrain_baselines(self, context: StageContext) -> Result:
        baselines = {name: arch for name, (_, arch) in self.problem.baselines().items()}
        baselines["random"] = self.problem.joint.sample(self.problem.seed(context.name))
        networks = self.train_networks(context, list(baselines.values()))
        return dict(zip(baselines, networks, strict=True))

    def train_networks(
        self,
        context: StageContext,
        archs: Sequence[Arch],
        *,
        training: Retraining | None = None,
        start_from: Sequence[tuple[Path, str]] | None = None,
    ) -> list[Result]:
        """Train networks side by side, from scratch or from weights (files and their SHA-256).

        `<number>.safetensors` appear in the stage's folder.
        """
        problem = self.problem
        jobs = [
            NetworkJob(
                config=problem.config,
                data_path=problem.task.data_path,
                arch=arch,
                build=problem.network(arch),
                seed=problem.seed(f"{context.name}/{number}"),
                weights=context.directory / f"{number}.safetensors",
                machine=self.machine,
                training=training,
                start_from=start_from[number] if start_from else None,
            )
            for number, arch in enumerate(archs)
        ]
        return train_networks(context, jobs, self.machine, self.progress, self.group)

    def _evaluate(self, context: StageContext, *, last: str, also: Mapping[str, str]) -> Result:
        if not self.group.first:
            return {}
        best = context.inputs[last]["winner_index"]
        networks = {
            name: (context.inputs[stage]["networks"][best], f"{stage}/{best}.safetensors")
            for name, stage in {"searched": last, **also}.items()
        }
        for number, (name, network) in enumerate(context.inputs["baselines"].items()):
            networks[name] = network, f"baselines/{number}.safetensors"
        return self._tested(context, networks)

    def _test_winner(self, context: StageContext, *, source: str) -> Result:
        best = context.inputs[source]["winner_index"]
        winner = context.inputs[source]["networks"][best], f"{source}/{best}.safetensors"
        return self._tested(context, {"winner": winner})["winner"] if self.group.first else {}

    def _tested(self, context: StageContext, networks: Mapping[str, tuple[Result, str]]) -> dict[str, Result]:
        problem, test = self.problem, self.problem.task.dataset.open_test()
        results = {}
        with use_threads(problem.config.threads):
            for number, (name, (network, weights)) in enumerate(networks.items(), 1):
                arch = Arch(network["arch"])
                trained = self.load(arch, context.run_directory / weights, network["sha256"])
                tested = evaluate(trained, problem.task.eval_batches(test))
                results[name] = {
                    "params": problem.params(arch),
                    "macs": problem.macs(arch),
                    "val_accuracy": network["val_accuracy"],
                    "test_accuracy": tested.score,
                    "arch": network["arch"],
                    "weights": weights,
                    "sha256": network["sha256"],
                }
                self.progress(context.name, number, len(networks), f"{name} {tested.score:.2%}")
        return results

    def load(self, arch: Arch, weights: Path, sha256: str) -> nn.Module:
        """Return a network with weights from a file of the run, on the machine's device."""
        model = self.problem.network(arch)()
        model.load_state_dict(read_weights(weights, sha256))
        return model.to(pick_device(self.machine.device))


def supernet_optimizer(supernet: nn.Module, config: SupernetTraining) -> torch.optim.Optimizer:
    """Return the optimizer that a configuration asks for."""
    make = nesterov_sgd if config.optimizer == "sgd" else adamw
    return make(supernet, lr=config.lr, weight_decay=config.weight_decay)


def evolution(config: Search, inside: Feasible, seed: int) -> Searcher:
    """Return the search that a configuration asks for."""
    return Evolution(
        inside,
        population=config.population,
        generations=config.generations,
        parents=config.parents,
        mutation_probability=config.mutation_probability,
        seed=seed,
    )


def supernet_paths(config: SupernetTraining, space: Space, inside: Feasible, cost: AdditiveCost, seed: int) -> Paths:
    """Return the paths that a configuration asks for, over a level's space and what of it is searched.

    Strata are bins of the cost that the search is bounded by, between the bounds. A ValueError says why a space has no
    such paths.
    """
    match config.paths:
        case "uniform":
            return UniformPaths(space, seed)
        case "architectures":
            return UniformArchPaths(space, seed)
        case "budget":
            return UniformArchPaths(inside, seed)
        case "stratified":
            reach = attainable(space, cost)
            bounds = next((budget for budget in inside.budgets if budget.cost == cost), Budget(cost))
            low = max(reach.low, math.ceil(bounds.lower)) if math.isfinite(bounds.lower) else reach.low
            high = min(reach.high, math.floor(bounds.upper)) if math.isfinite(bounds.upper) else reach.high
            return StratifiedPaths(space, cost, config.strata, seed, at_least=low, at_most=high)
        case "sandwich":
            return SandwichPaths(space, cost, seed)
        case "fair":
            return FairPaths(space, seed)


def _with_winner(networks: list[Result]) -> Result:
    # the loss decides between equal accuracies, which a few hundred images often give
    def merit(number: int) -> tuple[float, float]:
        loss = networks[number]["val_loss"]
        return networks[number]["val_accuracy"], -math.inf if loss is None else -loss

    winner = max(range(len(networks)), key=merit)
    return {"networks": networks, "winner_index": winner, "winner": networks[winner]["arch"]}


def labels(problem: Problem[Any]) -> Mapping[str, str]:
    """Return what tables call the networks of a finished run."""
    named = {name: label for name, (label, _) in problem.baselines().items()}
    return {"searched": "searched", **named, "random": "random in the budget"}
