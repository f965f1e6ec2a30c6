"""Settings that were left open are fitted to data and networks; those without an effect are noted or refused."""

import logging
import math
from typing import TYPE_CHECKING, Any, TypeVar

from nasx.pipeline.config import Augmentation, Data, RunConfig, TrainingSettings
from nasx.pipeline.task import BaseTask
from nasx.train.dataset_metrics import is_dataset_metric, metric_name

if TYPE_CHECKING:
    from nasx.pipeline.problem import Problem

Configured = TypeVar("Configured", bound=RunConfig)

FITTED = "custom"
"""The preset whose open settings are fitted; all others mean what they say."""

_SMALL = 1_000_000  # parameters

NEUTRAL: dict[str, Any] = {"label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0, "augment": Augmentation()}

logger = logging.getLogger(__name__)


def settle(config: Configured, task: BaseTask, problem: "Problem[Any]") -> Configured:
    """Return the settings of a run as they will be used.

    Where a task has no use for a field, or a builder for `drop_path`, it becomes neutral; a ValueError says that it
    was set to something else. With the preset "custom", batch sizes, epochs, optimizer and recalibration that were
    left open are fitted to the number of samples and to the networks.
    """
    from nasx.pipeline.images import ImageTask

    changes: dict[str, Any] = {"data": _data(config, task.data if isinstance(task, ImageTask) else None)}
    if config.preset == FITTED:
        _note_unused(config, problem)
    for training in (config.supernet, config.retrain):
        settled = _without_unused(training, task, problem)
        if config.preset == FITTED:
            settled = _fitted(settled, task.counts["train"])
        changes[training.section] = _with_short_warmup(settled)
    if config.preset == FITTED:
        changes["search"] = _fitted_search(config, task, problem)
        if "threads" not in config.model_fields_set and problem.some_params < _SMALL:
            changes["threads"] = 1  # a second one gains nothing, and waits for the first
    return config.model_copy(update=changes)


def fitting_batch_size(samples: int) -> int:
    """Return the power of two nearest to the square root of a number of samples, 8 to 1,024, and at most all."""
    return max(1, min(samples, 1024, max(8, 2 ** round(math.log2(max(1.0, math.sqrt(samples)))))))


def fitting_epochs(samples: int, batch_size: int, steps: int) -> int:
    """Return the epochs that come to about some number of steps, 30 to 300."""
    return max(30, min(300, math.ceil(steps / max(1, samples // batch_size))))


def _data(config: RunConfig, images: Data | None) -> Data:
    given = config.data.model_fields_set
    if images is None:
        if given:
            raise ValueError(
                f"data.{sorted(given)[0]} is a setting of image folders and has no effect on this task; remove it"
            )
        return config.data
    for name in sorted(given):
        if getattr(config.data, name) != getattr(images, name):
            raise ValueError(
                f"data.{name} is {getattr(config.data, name)!r} in the settings, but {getattr(images, name)!r} in the "
                "image task; set it in one place"
            )
    return images


def _note_unused(config: RunConfig, problem: "Problem[Any]") -> None:
    """Log what somebody set without effect; presets set many fields, for whatever else is chosen."""
    found = config.unused()
    if is_dataset_metric(metric := problem.task.metric) and config.search.racing_error:
        found["search.racing_error"] = f"{metric_name(metric)} is a metric of the whole data set"
    for path, why in found.items():
        *sections, field = path.split(".")
        section: Any = config
        for name in sections:
            section = getattr(section, name)
        value = getattr(section, field)
        taught = field.startswith("distillation") and problem.teacher_of(section) is not None
        if field in section.model_fields_set and value != type(section).model_fields[field].default and not taught:
            logger.warning("%s=%r has no effect, because %s", path, value, why)


def _without_unused(training: TrainingSettings, task: BaseTask, problem: "Problem[Any]") -> TrainingSettings:
    neutral_values = {name: NEUTRAL[name] for name in task.unused_settings}
    if not problem.takes_drop_path:
        neutral_values["drop_path"] = 0.0
    for name, neutral in neutral_values.items():
        value = getattr(training, name)
        if name in training.model_fields_set and value != neutral:
            why = "the builder has no keyword `drop_path`" if name == "drop_path" else f"the loss is {task.loss_name}"
            if name in ("mixup", "cutmix", "augment"):
                why = "this task does not change its samples; use transforms in its dataset"
            raise ValueError(f"{training.section}.{name}={value!r} has no effect, because {why}; remove it")
    return _set(training, neutral_values)


def _fitted(training: TrainingSettings, samples: int) -> TrainingSettings:
    given = training.model_fields_set
    changes: dict[str, Any] = {}
    size = training.batch_size if "batch_size" in given else fitting_batch_size(samples)
    changes["batch_size"] = size
    supernet = training.section == "supernet"
    if "epochs" not in given:
        changes["epochs"] = fitting_epochs(samples, size, 3000 if supernet else 2000)
    if supernet and not given & {"optimizer", "lr", "weight_decay"}:
        changes |= {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.05}
        if "clip_norm" not in given:
            changes["clip_norm"] = 1.0
    if "warmup_epochs" not in given:
        changes["warmup_epochs"] = changes.get("epochs", training.epochs) / 20
    return _set(training, changes)


def _with_short_warmup(training: TrainingSettings) -> TrainingSettings:
    if "warmup_epochs" not in training.model_fields_set and training.warmup_epochs >= training.epochs:
        return _set(training, {"warmup_epochs": training.epochs / 10})
    return training


def _fitted_search(config: RunConfig, task: BaseTask, problem: "Problem[Any]") -> Any:
    search, train = config.search, task.counts["train"]
    given = search.model_fields_set
    changes: dict[str, Any] = {}
    if "recalibration_batch_size" not in given:
        changes["recalibration_batch_size"] = min(search.recalibration_batch_size, train)
    if "recalibration_batches" not in given:
        size = changes.get("recalibration_batch_size", search.recalibration_batch_size)
        enough = min(search.recalibration_batches, max(1, train // size))
        changes["recalibration_batches"] = enough if problem.has_batch_norm else 0
    return search.model_copy(update=changes)


def _set(training: TrainingSettings, changes: dict[str, Any]) -> TrainingSettings:
    """Return a training with changes that do not count as set by anybody."""
    changed = training.model_copy(update=changes)
    changed.__pydantic_fields_set__.intersection_update(training.model_fields_set)
    return changed
