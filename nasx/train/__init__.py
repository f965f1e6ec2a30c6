"""Training: SPOS's one-shot loop, the plain loop, evaluation, BatchNorm recalibration, jobs side by side."""

from nasx.train.batchnorm import recalibrate
from nasx.train.device import autocast, device_of, pick_device, use_threads
from nasx.train.evaluate import Evaluation, evaluate
from nasx.train.jobs import run_jobs
from nasx.train.loops import NotFinite, Step, seeded, train, train_supernet
from nasx.train.optim import adamw, cosine_schedule, ema, nesterov_sgd
from nasx.train.paths import FairPaths, Paths, SandwichPaths, StratifiedPaths, UniformArchPaths, UniformPaths

__all__ = [
    "Evaluation",
    "FairPaths",
    "NotFinite",
    "Paths",
    "SandwichPaths",
    "Step",
    "StratifiedPaths",
    "UniformArchPaths",
    "UniformPaths",
    "adamw",
    "autocast",
    "cosine_schedule",
    "device_of",
    "ema",
    "evaluate",
    "nesterov_sgd",
    "pick_device",
    "recalibrate",
    "run_jobs",
    "seeded",
    "train",
    "train_supernet",
    "use_threads",
]
