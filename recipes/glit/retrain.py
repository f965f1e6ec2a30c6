"""Training one network from scratch with DeiT's recipe, as a job that any process can run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from nasx import Arch
from nasx.data import eval_batches
from nasx.run.files import write_bytes
from nasx.train import adamw, cosine_schedule, evaluate, pick_device, seeded, train
from recipes.glit.config import Config
from recipes.glit.model import build_in
from recipes.glit.problem import load_problem


@dataclass(frozen=True, slots=True)
class RetrainJob:
    """Which network to train, on what, and where its weights go."""

    config: Config
    data_path: Path | None
    arch: Arch
    seed: int
    weights: Path
    device: str


def retrain(job: RetrainJob, report: Callable[[int, int], None]) -> dict[str, Any]:
    """Train a network, write its weights, and return its validation accuracy and loss curve."""
    problem = load_problem(job.config, job.data_path)
    config, (mean, std) = job.config.retrain, problem.statistics
    torch.manual_seed(job.seed)
    model = build_in(problem.frame, job.arch, drop_path=config.drop_path, init_std=job.config.model.init_std)
    model.to(pick_device(job.device))
    batches = problem.retrain_batches(seed=job.seed)
    steps = max(1, round(config.epochs * batches.steps_per_epoch))
    optimizer = adamw(model, lr=config.lr, weight_decay=config.weight_decay)
    schedule = cosine_schedule(
        optimizer,
        steps=steps,
        warmup_steps=min(round(config.warmup_epochs * batches.steps_per_epoch), steps - 1),
        warmup_lr=config.warmup_lr,
        final_lr=min(config.final_lr, config.lr),
    )
    soft = bool(config.mixup or config.cutmix)  # then the targets carry the smoothing
    losses: list[float] = []
    for step in train(
        model,
        seeded(batches.steps(0, steps), job.seed),
        optimizer,
        schedule=schedule,
        label_smoothing=0.0 if soft else config.label_smoothing,
        clip_norm=config.clip_norm,
    ):
        losses.append(step.loss)
        report(step.step + 1, steps)
    scored = evaluate(model, eval_batches(problem.dataset.val, job.config.search.eval_batch_size, mean, std))
    write_bytes(job.weights, save({name: tensor.cpu() for name, tensor in model.state_dict().items()}))
    return {
        "arch": dict(job.arch),
        "val_accuracy": scored.accuracy,
        "val_loss": scored.loss,
        "losses": loss_curve(losses),
    }


def loss_curve(losses: Sequence[float], points: int = 100) -> list[tuple[int, float]]:
    """Return the mean loss of up to `points` equal spans of a training, each with the step that it ends at.

    Losses of skipped steps, which were not finite, do not count.
    """
    span = max(1, -(-len(losses) // points))
    curve = []
    for first in range(0, len(losses), span):
        finite = [loss for loss in losses[first : first + span] if math.isfinite(loss)]
        if finite:
            curve.append((min(first + span, len(losses)), sum(finite) / len(finite)))
    return curve
