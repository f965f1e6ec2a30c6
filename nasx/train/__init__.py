"""Training: SPOS's one-shot loop, the plain loop, evaluation, recalibration, jobs side by side, several devices."""

from nasx._memory import keep_freed_memory
from nasx.train.average import WeightAverage, ema
from nasx.train.batch import Batches, Unpack, Unpacked, batch_size, move, unpack
from nasx.train.batchnorm import recalibrate
from nasx.train.batchnorm_groups import BatchNormGroups
from nasx.train.compiled import compiled_blocks
from nasx.train.dataset_metrics import DatasetMetric, over_dataset
from nasx.train.device import (
    Precision,
    autocast,
    device_name,
    device_of,
    pick_device,
    use_deterministic_algorithms,
    use_precision,
    use_threads,
)
from nasx.train.distillation import Distillation
from nasx.train.distributed import ALONE, Group, process_group
from nasx.train.evaluate import Evaluation, evaluate, recalibrate_and_evaluate
from nasx.train.in_memory import InMemorySamples, load_into_memory
from nasx.train.jobs import run_jobs
from nasx.train.loops import Step, Training, seeded, train, train_supernet
from nasx.train.losses import Loss, check_targets, is_cross_entropy, logits_of
from nasx.train.metrics import Metric
from nasx.train.optim import adamw, cosine_schedule, nesterov_sgd
from nasx.train.paths import FairPaths, Paths, SandwichPaths, StratifiedPaths, UniformArchPaths, UniformPaths
from nasx.train.recovery import NotFinite, Recovery
from nasx.train.stacked import StackedNetworks, stacked_batches, stacked_loss
from nasx.train.whole_batch import Rows, WholeBatch, sync_batch_norm

__all__ = [
    "ALONE",
    "BatchNormGroups",
    "Batches",
    "DatasetMetric",
    "Distillation",
    "Evaluation",
    "FairPaths",
    "Group",
    "InMemorySamples",
    "Loss",
    "Metric",
    "NotFinite",
    "Paths",
    "Precision",
    "Recovery",
    "Rows",
    "SandwichPaths",
    "StackedNetworks",
    "Step",
    "StratifiedPaths",
    "Training",
    "UniformArchPaths",
    "UniformPaths",
    "Unpack",
    "Unpacked",
    "WeightAverage",
    "WholeBatch",
    "adamw",
    "autocast",
    "batch_size",
    "check_targets",
    "compiled_blocks",
    "cosine_schedule",
    "device_name",
    "device_of",
    "ema",
    "evaluate",
    "is_cross_entropy",
    "keep_freed_memory",
    "load_into_memory",
    "logits_of",
    "move",
    "nesterov_sgd",
    "over_dataset",
    "pick_device",
    "process_group",
    "recalibrate",
    "recalibrate_and_evaluate",
    "run_jobs",
    "seeded",
    "stacked_batches",
    "stacked_loss",
    "sync_batch_norm",
    "train",
    "train_supernet",
    "unpack",
    "use_deterministic_algorithms",
    "use_precision",
    "use_threads",
]
