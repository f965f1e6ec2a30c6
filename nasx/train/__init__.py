"""Training: SPOS's one-shot loop, the plain loop, evaluation, recalibration, jobs side by side, several devices."""

from nasx.train.batchnorm import recalibrate
from nasx.train.device import autocast, device_of, pick_device, use_deterministic_algorithms, use_threads
from nasx.train.distributed import ALONE, Group, process_group
from nasx.train.evaluate import Evaluation, evaluate
from nasx.train.jobs import run_jobs
from nasx.train.loops import NotFinite, Step, seeded, train, train_supernet
from nasx.train.optim import adamw, cosine_schedule, ema, nesterov_sgd
from nasx.train.paths import FairPaths, Paths, SandwichPaths, StratifiedPaths, UniformArchPaths, UniformPaths
from nasx.train.whole_batch import Rows, WholeBatch, sync_batch_norm

__all__ = [
    "ALONE",
    "Evaluation",
    "FairPaths",
    "Group",
    "NotFinite",
    "Paths",
    "Rows",
    "SandwichPaths",
    "Step",
    "StratifiedPaths",
    "UniformArchPaths",
    "UniformPaths",
    "WholeBatch",
    "adamw",
    "autocast",
    "cosine_schedule",
    "device_of",
    "ema",
    "evaluate",
    "nesterov_sgd",
    "pick_device",
    "process_group",
    "recalibrate",
    "run_jobs",
    "seeded",
    "sync_batch_norm",
    "train",
    "train_supernet",
    "use_deterministic_algorithms",
    "use_threads",
]
