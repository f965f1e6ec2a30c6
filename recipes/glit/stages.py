"""The stages of a GLiT search (paper, section 3.3 and figure 4): what each reads, computes and returns.

hierarchical: supernet, search and retraining over the heads, then the same over the details of the winner's heads.
spos: the same once over the joint space, its supernet trained twice as long (table 5). random: retraining alone, of
networks drawn from the budget. Then, for all methods, the two comparison networks and the final evaluation.
"""

import json
import math
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from safetensors.torch import load_file

from nasx import Arch, Space
from nasx.data import eval_batches
from nasx.feasible import Feasible
from nasx.nn import Subnet
from nasx.run import Stage, StageContext
from nasx.run.checkpoints import flatten_state, unflatten_state
from nasx.search import Evolution
from nasx.train import (
    UniformPaths,
    adamw,
    cosine_schedule,
    evaluate,
    nesterov_sgd,
    pick_device,
    recalibrate,
    run_jobs,
    seeded,
    train_supernet,
    use_threads,
)
from recipes.glit.config import Machine
from recipes.glit.model import build_in
from recipes.glit.problem import Problem
from recipes.glit.retrain import RetrainJob, loss_curve, retrain
from recipes.glit.space import details_space, heads_space
from recipes.glit.supernet import GLiTSupernet

Result = dict[str, Any]

_CHECKPOINTS = 10  # of each supernet's training, beside the one that an interruption leaves


class Progress(Protocol):
    """Where stages say how far they are."""

    def __call__(self, description: str, done: float, total: float, note: str = "") -> None:
        """Show one task's state."""


class Level(Protocol):
    """One level of the search: which space its supernet holds, and which architectures are searched."""

    def __call__(self, problem: Problem, inputs: Mapping[str, Any]) -> tuple[Space, Feasible]:
        """Return the supernet's space and the architectures inside the budget."""


def heads_level(problem: Problem, inputs: Mapping[str, Any]) -> tuple[Space, Feasible]:
    """Stage one: the heads of every block, details held."""
    return heads_space(problem.axes), problem.heads


def details_level(problem: Problem, inputs: Mapping[str, Any]) -> tuple[Space, Feasible]:
    """Stage two: the details of every block, heads as the winner of stage one has them."""
    heads = Arch(inputs["heads/retrain"]["winner"])
    return details_space(heads, problem.axes), problem.details(heads)


def joint_level(problem: Problem, inputs: Mapping[str, Any]) -> tuple[Space, Feasible]:
    """The joint space, for the baseline without a hierarchy."""
    return problem.joint_space, problem.joint


def plan_stages(problem: Problem, machine: Machine, progress: Progress) -> list[Stage]:
    """Return the stages of the configured method, in order."""
    bound: Callable[..., Any] = partial(partial, problem=problem, machine=machine, progress=progress)

    def level(name: str, of: Level, needs: tuple[str, ...] = (), epochs_factor: int = 1) -> list[Stage]:
        supernet, search, retraining = f"{name}/supernet", f"{name}/search", f"{name}/retrain"
        return [
            Stage(supernet, bound(train_level, level=of, epochs_factor=epochs_factor), needs),
            Stage(search, bound(search_level, level=of, supernet_stage=supernet), (*needs, supernet)),
            Stage(retraining, bound(retrain_best, source=search), (search,)),
        ]

    match problem.config.method:
        case "hierarchical":
            stages = [*level("heads", heads_level), *level("details", details_level, ("heads/retrain",))]
        case "spos":
            stages = level("joint", joint_level, epochs_factor=2)
        case "random":
            stages = [
                Stage("random/draw", bound(draw_random)),
                Stage("random/retrain", bound(retrain_best, source="random/draw"), ("random/draw",)),
            ]
    last = stages[-1].name
    return [
        *stages,
        Stage("baselines", bound(retrain_baselines)),
        Stage("evaluation", bound(final_evaluation, last=last), (last, "baselines")),
    ]


def stage_seed(problem: Problem, name: str) -> int:
    """Return a stage's own seed, from the run's seed and the stage's name."""
    return zlib.crc32(f"{problem.config.seed}/{name}".encode()) & 0x7FFFFFFF


def train_level(
    context: StageContext,
    *,
    problem: Problem,
    machine: Machine,
    progress: Progress,
    level: Level,
    epochs_factor: int = 1,
) -> Result:
    """Train the supernet of a level and keep its weights; an interrupted training goes on where it was."""
    config, seed = problem.config.supernet, stage_seed(problem, context.name)
    space, _ = level(problem, context.inputs)
    torch.manual_seed(seed)
    supernet = make_supernet(problem, space).to(pick_device(machine.device))
    batches = problem.supernet_batches(seed=seed)
    steps = max(1, round(config.epochs * epochs_factor * batches.steps_per_epoch))
    make_optimizer = nesterov_sgd if config.optimizer == "sgd" else adamw
    optimizer = make_optimizer(supernet, lr=config.lr, weight_decay=config.weight_decay)
    warmup = min(round(config.warmup_epochs * batches.steps_per_epoch), steps - 1)
    schedule = cosine_schedule(optimizer, steps=steps, warmup_steps=warmup)
    losses: list[float] = []
    start = 0
    if checkpoint := context.checkpoints.latest():
        state = unflatten_state(checkpoint.tensors, checkpoint.state)
        supernet.load_state_dict(state["supernet"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        losses, start = state["losses"], checkpoint.step

    def save(step: int) -> None:
        state = {
            "supernet": supernet.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "losses": losses,
        }
        context.checkpoints.save(step, *flatten_state(state))

    with use_threads(problem.config.threads):
        running = train_supernet(
            supernet,
            seeded(batches.steps(start, steps), seed, start),
            UniformPaths(space, seed),
            optimizer,
            schedule=schedule,
            label_smoothing=config.label_smoothing,
            clip_norm=config.clip_norm,
            start_step=start,
        )
        for step in running:
            losses.append(step.loss)
            done = step.step + 1
            progress(context.name, done, steps, f"loss {step.loss:.3f}")
            if done == steps or context.stop.requested or done % (-(-steps // _CHECKPOINTS)) == 0:
                save(done)
            if done < steps:
                context.stop.raise_if_requested()
    return {"steps": steps, "losses": loss_curve(losses), "space_size": str(space.size)}


def make_supernet(problem: Problem, space: Space) -> GLiTSupernet:
    """Return an untrained supernet for a space of the run."""
    model = problem.config.model
    return GLiTSupernet(space, problem.frame, sharing=model.sharing, init_std=model.init_std)


def search_level(
    context: StageContext, *, problem: Problem, machine: Machine, progress: Progress, level: Level, supernet_stage: str
) -> Result:
    """Search a level with its supernet; every score is journaled, so that none is computed twice."""
    config, seed = problem.config.search, stage_seed(problem, context.name)
    space, inside = level(problem, context.inputs)
    supernet = load_supernet(problem, space, context, supernet_stage).to(pick_device(machine.device))
    mean, std = problem.statistics
    batches = problem.recalibration_batches(seed=seed)
    scored = {record["index"]: record["accuracy"] for record in context.journal}
    searcher = Evolution(
        inside,
        population=config.population,
        generations=config.generations,
        parents=config.parents,
        mutation_probability=config.mutation_probability,
        seed=seed,
    )
    with use_threads(problem.config.threads):
        while not searcher.done:
            for arch in searcher.ask():
                index = str(space.index(arch))
                if index not in scored:
                    context.stop.raise_if_requested()
                    subnet = Subnet(supernet, arch)
                    recalibrate(subnet, batches.steps(0, config.recalibration_batches))
                    validation = eval_batches(problem.dataset.val, config.eval_batch_size, mean, std)
                    scored[index] = evaluate(subnet, validation).accuracy
                    context.journal.append({"index": index, "accuracy": scored[index]})
                searcher.tell({arch: scored[index]})
                best = searcher.best()[0].score
                progress(context.name, len(searcher.history), searcher.evaluations, f"best {best:.2%}")
    progress(context.name, len(searcher.history), len(searcher.history), f"best {searcher.best()[0].score:.2%}")
    return {
        "best": [{"arch": dict(s.arch), "accuracy": s.score} for s in searcher.best(config.top_k)],
        "candidates": [[s.generation, problem.macs(s.arch), s.score] for s in searcher.history],
        "evaluations": len(searcher.history),
        "feasible_at_most": str(inside.size_bounds[1]),
    }


def load_supernet(problem: Problem, space: Space, context: StageContext, stage: str) -> GLiTSupernet:
    """Return a level's supernet with the weights that its training stage kept."""
    checkpoint = context.checkpoints_of(stage).latest()
    if checkpoint is None or checkpoint.step != context.inputs[stage]["steps"]:
        raise ValueError(
            f"the trained supernet of {stage} is damaged or missing in {context.stage_directory(stage)}; "
            "start again in a new run directory"
        )
    supernet = make_supernet(problem, space)
    supernet.load_state_dict(unflatten_state(checkpoint.tensors, checkpoint.state)["supernet"])
    return supernet


def draw_random(context: StageContext, *, problem: Problem, machine: Machine, progress: Progress) -> Result:
    """Draw the networks of random search from the budget."""
    drawn = problem.joint.sample(stage_seed(problem, context.name), problem.config.search.top_k)
    return {"best": [{"arch": dict(arch)} for arch in drawn]}


def retrain_best(
    context: StageContext, *, problem: Problem, machine: Machine, progress: Progress, source: str
) -> Result:
    """Train a search's best candidates from scratch and keep the winner on the validation images."""
    archs = [Arch(candidate["arch"]) for candidate in context.inputs[source]["best"]]
    networks = train_networks(context, problem, machine, progress, archs)

    # the loss decides between equal accuracies, which a few hundred images often give
    def merit(number: int) -> tuple[float, float]:
        loss = networks[number]["val_loss"]
        return networks[number]["val_accuracy"], -math.inf if loss is None else -loss

    winner = max(range(len(networks)), key=merit)
    return {"networks": networks, "winner_index": winner, "winner": networks[winner]["arch"]}


def retrain_baselines(context: StageContext, *, problem: Problem, machine: Machine, progress: Progress) -> Result:
    """Train the DeiT-shaped network and one drawn from the budget in the same way."""
    drawn = problem.joint.sample(stage_seed(problem, context.name))
    networks = train_networks(context, problem, machine, progress, [problem.deit_shaped, drawn])
    return {"deit_shaped": networks[0], "random": networks[1]}


def train_networks(
    context: StageContext, problem: Problem, machine: Machine, progress: Progress, archs: list[Arch]
) -> list[Result]:
    """Train networks side by side; those that an interrupted run had finished are not trained again."""
    finished = {record["number"]: record["network"] for record in context.journal}
    waiting = [number for number in range(len(archs)) if number not in finished]
    jobs = [
        RetrainJob(
            config=problem.config,
            data_path=problem.data_path,
            arch=archs[number],
            seed=stage_seed(problem, f"{context.name}/{number}"),
            weights=context.directory / f"{number}.safetensors",
            device=machine.device,
        )
        for number in waiting
    ]
    done = [0.0] * len(jobs)

    def on_progress(job: int, step: int, total: int) -> None:
        context.stop.raise_if_requested()
        done[job] = step / total
        progress(context.name, len(finished) + sum(done), len(archs), f"{len(archs)} networks")

    def on_result(job: int, network: Result) -> None:
        context.journal.append({"number": waiting[job], "network": network})

    trained = run_jobs(
        retrain,
        jobs,
        processes=machine.processes_for(pick_device(machine.device)),
        on_progress=on_progress,
        on_result=on_result,
    )
    finished |= dict(zip(waiting, json.loads(json.dumps(trained)), strict=True))
    progress(context.name, len(archs), len(archs), f"{len(archs)} networks")
    return [finished[number] for number in range(len(archs))]


def final_evaluation(
    context: StageContext, *, problem: Problem, machine: Machine, progress: Progress, last: str
) -> Result:
    """Read the test images, for the only time, and score the searched network and the baselines on them."""
    mean, std = problem.statistics
    retrained = context.inputs[last]
    networks = {
        "searched": (retrained["networks"][retrained["winner_index"]], last, retrained["winner_index"]),
        "deit_shaped": (context.inputs["baselines"]["deit_shaped"], "baselines", 0),
        "random": (context.inputs["baselines"]["random"], "baselines", 1),
    }
    test = problem.dataset.open_test()
    results = {}
    with use_threads(problem.config.threads):
        for number, (name, (network, stage, index)) in enumerate(networks.items(), 1):
            arch = Arch(network["arch"])
            model = build_in(problem.frame, arch)
            model.load_state_dict(load_file(context.stage_directory(stage) / f"{index}.safetensors"))
            model.to(pick_device(machine.device))
            tested = evaluate(model, eval_batches(test, problem.config.search.eval_batch_size, mean, std))
            results[name] = {
                "params": problem.params(arch),
                "macs": problem.macs(arch),
                "val_accuracy": network["val_accuracy"],
                "test_accuracy": tested.accuracy,
                "arch": network["arch"],
                "weights": f"{stage}/{index}.safetensors",
            }
            progress(context.name, number, len(networks), f"{name} {tested.accuracy:.2%}")
    return results
