"""What is looked at before a run starts, so that no stage refuses after hours what was known from the start."""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from nasx.arch import Arch, matches
from nasx.data.seeding import globals_kept
from nasx.pipeline.config import TrainingSettings
from nasx.pipeline.earlier import check_earlier
from nasx.pipeline.estimate import Estimator, estimates
from nasx.pipeline.fingerprint import untrained_network
from nasx.pipeline.machine import Machine
from nasx.pipeline.problem import Problem
from nasx.pipeline.task import FEWEST_VALIDATION, PartName
from nasx.pipeline.training import distillation_of
from nasx.space import name_patterns
from nasx.train import Loss, Unpacked, autocast, evaluate, pick_device, use_precision
from nasx.train.batch import batch_size, described
from nasx.train.compiled import missing_for_compilation
from nasx.train.dataset_metrics import is_dataset_metric, on_few_samples
from nasx.train.distillation import check_distillation
from nasx.train.losses import check_depends, compute_loss, name_of, on_device, targets_like
from nasx.train.modes import evaluating

_PARTS = {"val": "validation", "test": "test"}


def check_run(problem: Problem[Any], machine: Machine, processes: int = 1, *, finished: Collection[str] = ()) -> None:
    """Refuse, as ValueError, what a run on a machine, in some processes together, could not do.

    Stages that are `finished` need no earlier run any more.
    """
    check(problem, finished=finished)
    _check_on(problem, pick_device(machine.device))
    estimates(Estimator(problem, machine, timing=False))
    if problem.config.retrain.compile is True and (missing := missing_for_compilation(pick_device(machine.device))):
        raise ValueError(f"retrain.compile=true cannot be followed: {missing}; write retrain.compile=auto")
    if problem.config.supernet.batch_size % processes:
        raise ValueError(
            f"supernet.batch_size {problem.config.supernet.batch_size} does not divide among {processes} processes; "
            "choose a multiple"
        )


def check(problem: Problem[Any], *, finished: Collection[str] = ()) -> None:
    """Refuse, as ValueError, what no machine could do; the estimates of the stages refuse what is left."""
    problem.check()
    _check_trainings(problem)
    check_earlier(problem, finished)


def check_problem(problem: Problem[Any]) -> None:
    """Refuse, as ValueError, data, settings and networks that do not fit each other; `Problem.check` asks once."""
    _check_counts(problem)
    _check_patterns(problem)
    _check_network(problem, problem.inside.sample(0))  # budgets that filter may be met by no network at all
    if problem.derives_supernet:
        with torch.random.fork_rng(devices=[]):
            problem.supernet(problem.space)


def _check_counts(problem: Problem[Any]) -> None:
    config, counts = problem.config, problem.task.counts
    train, val = counts["train"], counts["val"]
    sizes = {
        "supernet.batch_size": config.supernet.batch_size,
        "retrain.batch_size": config.retrain.batch_size,
    }
    if config.search.recalibration_batches:
        sizes["search.recalibration_batch_size"] = config.search.recalibration_batch_size
    for name, size in sizes.items():
        if size > train:
            raise ValueError(f"{name} must be at most the {train:,} training samples, but got {size:,}; lower {name}")
    for training in (config.supernet, config.retrain):
        if training.mixes and training.batch_size % 2:
            raise ValueError(
                f"{training.section}.batch_size must be even, because mixup and cutmix mix pairs, but got "
                f"{training.batch_size}; write {training.batch_size + 1}"
            )
        problem.task.check(training)
    if config.search.recalibration_batches:
        problem.task.check_recalibration(config)
    ones = [name for name, size in sizes.items() if size == 1]
    if ones and problem.has_batch_norm:
        _check_single(problem, ones[0])
    if val < FEWEST_VALIDATION:
        raise ValueError(
            f"{val} validation samples are too few to choose a network by; hold out at least {FEWEST_VALIDATION}, "
            f"better a hundred and more, with {problem.task.held_out_by}"
        )


def _check_single(problem: Problem[Any], name: str) -> None:
    """Train a network on one sample: BatchNorm needs several values of each channel."""
    args, kwargs, _ = problem.task.example()
    try:
        with torch.no_grad():
            problem.some_network().train()(*args, **kwargs)
    except ValueError as error:
        raise ValueError(f"{name} must be at least 2 for networks with BatchNorm, but got 1: {error}") from error


def _check_patterns(problem: Problem[Any]) -> None:
    probability = problem.config.search.mutation_probability
    choices = list(problem.space.walk())
    for pattern in probability if isinstance(probability, dict) else ():
        if not any(matches(pattern, name) for name, _ in choices):
            raise ValueError(
                f"search.mutation_probability has the pattern {pattern!r}, which fits no choice of the space; "
                f"there are {', '.join(name_patterns(choices))}"
            )


def _check_network(problem: Problem[Any], arch: Arch) -> None:
    """Score an untrained network on a few samples: loss, metric and targets must fit each other."""
    task, network = problem.task, problem.some_network(arch)
    for name, value in network.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"the state of the networks has {name!r}, which is no tensor, so that it cannot be written with "
                "their weights; register it as a buffer, or leave it out of get_extra_state"
            )
    _check_trainable(network)
    batch = task.first_batch(8)
    unpacked = task.unpack(batch)
    try:
        evaluate(network, [batch], loss=task.loss, metric=on_few_samples(task.metric), unpack=task.unpack)
    except ValueError:  # which says what to change
        raise
    except Exception as error:
        args, kwargs, targets = (described(value) for value in unpacked)
        given = f"arguments {args}, keyword arguments {kwargs} and targets {targets}"
        error.add_note(f"while an untrained network was scored, in evaluation mode, on a validation batch with {given}")
        raise
    batch_size(unpacked.targets)
    with torch.no_grad(), evaluating(network):
        task.check_samples(network)
    _check_training_loss(problem, network, unpacked)
    if is_dataset_metric(task.metric):
        _check_dataset_metric(problem, arch)


def _check_training_loss(problem: Problem[Any], network: nn.Module, batch: Unpacked) -> None:
    """Compute the loss of a batch as trainings do; a gradient must go through it."""
    device = torch.device("cpu")
    precision = use_precision(problem.config.precision)
    with globals_kept(), torch.enable_grad(), precision, autocast(device):
        outputs = network.train()(*batch.args, **batch.kwargs)
        check_depends(compute_loss(on_device(problem.task.loss, device), outputs, batch.targets))


def _check_trainable(network: nn.Module) -> None:
    """Refuse networks that no training changes, and gradients that no optimizer of a run takes."""
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(
            "the networks have no parameter that requires a gradient, so that there is nothing to train; freeze no "
            "more than a part of them"
        )
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse and module.weight.requires_grad:
            raise ValueError(
                f"{name or 'the network'!r} has sparse=True, but the optimizers of a run take no sparse gradients; "
                "write sparse=False"
            )


def _check_dataset_metric(problem: Problem[Any], arch: Arch) -> None:
    """Have a metric score some samples of each part, or all where some are not enough for it.

    Test images of an `ImageTask` stay unread.
    """
    with globals_kept():
        network = untrained_network(problem, arch)
    parts: tuple[PartName, ...] = ("val", "test") if "test" in problem.task.counts else ("val",)
    with use_precision(problem.config.precision):
        for part in parts:
            try:
                _check_score(problem, network, part)
            except ValueError as error:
                raise ValueError(f"{error} (on the {_PARTS[part]} data)") from error


def _check_score(problem: Problem[Any], network: nn.Module, part: PartName) -> None:
    task = problem.task
    if not math.isfinite(task.score_of_some(network, part)):
        task.evaluate(network, task.eval_batches(part, problem.config.search.eval_batch_size))


def _check_on(problem: Problem[Any], device: torch.device) -> None:
    """Score an untrained network on the device of a run, where losses and metrics may meet tensors of another one."""
    if device.type == "cpu":  # as `check` did
        return
    task = problem.task
    with globals_kept():
        network = untrained_network(problem, problem.inside.sample(0)).to(device)
    try:
        with use_precision(problem.config.precision):
            if is_dataset_metric(task.metric):
                _check_score(problem, network, "val")
            else:
                evaluate(network, [task.first_batch(8)], loss=task.loss, metric=task.metric, unpack=task.unpack)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"the networks, the loss or the metric do not work on {device}: {error}; tensors of their own must be "
            "where the outputs are"
        ) from error


def _check_trainings(problem: Problem[Any]) -> None:
    """Refuse teachers that cannot be opened or cannot teach these networks, and losses that cannot be distilled."""
    task, config = problem.task, problem.config
    for training in (config.supernet, config.retrain):
        teacher = problem.teacher_of(training)
        if teacher is not None:
            _check_distillation(training, task.loss)
            for samples in (2, 8):  # sequences of one length may have as many positions as classes by chance
                _check_teacher(training, teacher, problem.some_network(), task.example(samples), task.loss)
    if config.supernet.paths == "sandwich" and problem.teacher_of(config.supernet) is None:
        _check_sandwich(task.loss)


def _check_distillation(config: TrainingSettings, loss: Loss) -> None:
    """Raise ValueError where a training cannot learn from its teacher in the way that is set."""
    try:
        check_distillation(loss, config.distillation, config.distillation_temperature)
    except ValueError as error:
        raise ValueError(f"{config.section}.distillation: {error}") from error


def _check_sandwich(loss: Loss) -> None:
    """Raise ValueError where a sandwich's largest network cannot teach the others by its outputs."""
    try:
        targets_like(loss, torch.zeros(1, 2))
    except ValueError as error:
        raise ValueError(
            "supernet.paths=sandwich has the largest network teach the others, which goes with torch's cross-entropy "
            f"and regression losses, but not with {name_of(loss)}; choose other supernet.paths, such as uniform"
        ) from error


def _check_teacher(
    config: TrainingSettings, teacher: nn.Module, network: nn.Module, batch: Unpacked, loss: Loss
) -> None:
    """Raise ValueError where a network cannot learn from a teacher on a batch, on the CPU."""
    distillation = distillation_of(config, teacher, torch.device("cpu"))
    assert distillation is not None
    try:
        taught = distillation.outputs(batch)
    except Exception as error:
        raise ValueError(f"{config.section}.teacher cannot be called with this task's inputs: {error}") from error
    with torch.no_grad(), evaluating(network):
        outputs = network(*batch.args, **batch.kwargs)
        try:
            distillation.loss(torch.zeros(()), outputs, taught, loss, batch.targets)
        except ValueError as error:
            raise ValueError(f"{config.section}.teacher: {error}") from error
