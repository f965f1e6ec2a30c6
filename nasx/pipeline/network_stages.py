"""The stages of networks alone: training from scratch, fine-tuning, training on all samples, and the test."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from torch import nn

from nasx.arch import Arch
from nasx.pipeline.config import Retraining, RunConfig
from nasx.pipeline.context import Context
from nasx.pipeline.estimate import Estimator, StageEstimate
from nasx.pipeline.events import NetworkTested
from nasx.pipeline.networks import NetworkJob, NetworkTraining, Result, train_by_halving, train_networks
from nasx.pipeline.picks import BetterOf, Pick, best_archs, picked_from, with_winner
from nasx.pipeline.stages import Inputs, RunStage
from nasx.pipeline.weight_files import load_weights, read_weights, write_scores
from nasx.search import Halving
from nasx.train import use_threads


@dataclass(frozen=True, slots=True)
class RetrainStage(RunStage):
    """Train networks from scratch: the best that a search found, or given ones.

    Candidates of one rank have one seed, whichever stage trains them. `halving` allows to end the trainings of weak
    networks early, where the settings ask for it.
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
        shared = replace(retraining(context, self.training), rate="finetune.lr")
        return with_winner(train_networks(context, shared, jobs))

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
        trained = _load_network(context, arch, context.stage.run_directory / network["weights"], network["sha256"])
        size = problem.config.search.eval_batch_size
        batches = task.eval_batches("test", size, workers=context.machine.workers)
        scored = task.evaluate(trained, batches)
        result = {
            "params": problem.params(arch),
            "macs": problem.macs(arch),
            "val_score": network["val_score"],
            "test_score": scored.score,
        }
        if costs := problem.budget_costs(arch):
            result["budget_costs"] = costs
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


def _load_network(context: Context, arch: Arch, weights: Path, sha256: str) -> nn.Module:
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
