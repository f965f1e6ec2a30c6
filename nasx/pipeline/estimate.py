"""What the stages of a run would cost: samples, time and memory, from a few seconds of real steps."""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from nasx._words import number_of
from nasx.arch import Arch
from nasx.nn import Subnet
from nasx.pipeline.config import Retraining, TrainingSettings
from nasx.pipeline.machine import Machine
from nasx.pipeline.paths import supernet_paths
from nasx.pipeline.problem import Problem
from nasx.pipeline.scoring import races
from nasx.pipeline.training import distillation_of, steps_of, supernet_optimizer
from nasx.space import ArchSet, Space
from nasx.train import (
    Distillation,
    Paths,
    adamw,
    evaluate,
    pick_device,
    train,
    train_supernet,
    use_precision,
    use_threads,
)
from nasx.train.dataset_metrics import on_few_samples

_SECONDS = 1.0  # of real steps for each kind of work, after one to warm up
_TIMED_ON_CPU = 64  # samples of a timed batch at most, where time grows with them
_FEW = 16  # samples of a batch at first, which are enough where a step of them is slow
_SLOW = _SECONDS / 4

OnTiming = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """A stage before it runs: samples through the network forwards, and how many of them backwards too.

    `seconds` and `peak_bytes` are None where nothing was measured. Time is divided by the devices, whose exchange of
    gradients is not counted. Memory is one device's; on a CPU, the most that this process has had so far, times the
    processes side by side, which is no less than what a stage of its own takes. `result` stands for the stage's result
    in the estimates of later stages: networks that were drawn.
    """

    name: str
    images: int = 0
    trained_images: int = 0
    detail: str = ""
    size: int | None = None
    feasible_size_bounds: tuple[int, int] | None = None
    depends_on: tuple[str, ...] = ()
    """The stages whose results decide what is searched; the sizes are those of some results."""
    acceptance: float | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    warning: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)

    def and_then(self, other: "StageEstimate") -> "StageEstimate":
        """Return the estimate of a stage that does one after the other."""
        both = self.seconds is not None and other.seconds is not None
        return replace(
            other,
            images=self.images + other.images,
            detail=f"{self.detail}; {other.detail}",
            seconds=(self.seconds or 0) + (other.seconds or 0) if both else None,
            peak_bytes=max(filter(None, (self.peak_bytes, other.peak_bytes)), default=None),
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds for one sample, of training and of scoring, and the memory of it; None where nothing was measured."""

    train_seconds: float | None = None
    score_seconds: float | None = None
    peak_bytes: int | None = None

    def training(self, steps: int, batch_size: int, devices: int) -> float | None:
        """Return the seconds of some steps."""
        return None if self.train_seconds is None else steps * batch_size * self.train_seconds / devices


@dataclass(slots=True)
class Estimator:
    """What an estimate is made with: a problem, stand-ins for the results of earlier stages, and a clock.

    What takes real steps is timed once for each kind of work; `on_timing` is called with its name.
    """

    problem: Problem[Any]
    machine: Machine
    devices: int = 1
    timing: bool = True
    on_timing: OnTiming = lambda what: None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    _paths: dict[ArchSet, Paths] = field(default_factory=dict)
    _supernets: dict[Space, Timing] = field(default_factory=dict)
    _networks: dict[tuple[int, float, nn.Module | None], Timing] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where it is measured."""
        return pick_device(self.machine.device)

    def steps(self, training: TrainingSettings, factor: float = 1.0) -> int:
        """Return how many steps a training takes."""
        return steps_of(training, self.problem.task.counts["train"] // training.batch_size, factor)

    def some(self, archs: ArchSet, count: int) -> list[Arch]:
        """Return some architectures of a set."""
        return list(archs.sample(0, min(count, archs.size_bounds[1])))

    def paths(self, archs: ArchSet) -> Paths:
        """Return the paths of a supernet's training."""
        if archs not in self._paths:
            self._paths[archs] = supernet_paths(self.problem.config.supernet, archs, self.problem.cost, 0)
        return self._paths[archs]

    def supernet(self, archs: ArchSet) -> Timing:
        """Return what a supernet's steps and scores take."""
        if not self.timing:
            return Timing()
        if archs.space not in self._supernets:
            self.on_timing("steps of a supernet and a candidate's score")
            self._supernets[archs.space] = self._time_supernet(archs)
        return self._supernets[archs.space]

    def scoring(
        self, name: str, archs: ArchSet, candidates: int | None, *, together: int | None = None, result: Any = None
    ) -> StageEstimate:
        """Return the estimate of scoring candidates, in generations of some number, with a supernet's weights.

        Where nobody knows how many candidates there will be, it has no time.
        """
        config, validation = self.problem.config.search, self.problem.task.counts["val"]
        recalibration = config.recalibration_batches * config.recalibration_batch_size
        each_takes = f"({recalibration:,} recalibration + {validation:,} validation samples)"
        if candidates is None:
            detail = f"as many candidates as search.method asks for x {each_takes}; time unknown"
            return StageEstimate(name, detail=detail, result=result or {})
        images = candidates * (recalibration + validation)
        detail = f"{candidates:,} candidates x {each_takes}"
        if together is not None and races(config, self.problem.task):
            detail += " at most; racing needs fewer"
        # a candidate is one device's, and a generation waits for all of its candidates
        generation = min(candidates, together or candidates)
        rounds = candidates / generation * math.ceil(generation / self.devices)
        timing = self.supernet(archs)
        each = timing.score_seconds
        seconds = None if each is None else rounds * images / candidates * each
        return StageEstimate(
            name, images, detail=detail, seconds=seconds, peak_bytes=timing.peak_bytes, result=result or {}
        )

    def training(
        self, name: str, count: int, training: Retraining, *, whole: float | None = None, result: Any = None
    ) -> StageEstimate:
        """Return the estimate of training networks; `whole` is how many whole trainings they come to."""
        trainings = count if whole is None else whole
        steps = self.steps(training)
        images = round(trainings * steps * training.batch_size)
        detail = f"{number_of(count, 'network')} x {number_of(steps, 'step')}" + (
            "" if whole in (None, count) else f", halved to {whole:.3g}"
        )
        estimate = StageEstimate(name, images, images, detail, result=result or {})
        if not self.timing:
            return estimate
        side_by_side = self.machine.processes_for(self.device) if self.devices == 1 else 1
        timing = self._network(training)
        rounds = math.ceil(count / (side_by_side * self.devices)) * trainings / count
        if self.devices > count and training.batch_size % self.devices == 0:
            rounds = trainings / self.devices  # all train one network after the other together
        peak = None if timing.peak_bytes is None else timing.peak_bytes * min(count, side_by_side)
        seconds = timing.training(steps, training.batch_size, 1)
        return replace(estimate, seconds=None if seconds is None else rounds * seconds, peak_bytes=peak)

    def _network(self, training: Retraining) -> Timing:
        key = training.batch_size, training.drop_path, self.problem.teacher_of(training)
        if key not in self._networks:
            self.on_timing("steps of networks on their own")
            self._networks[key] = self._time_networks(training)
        return self._networks[key]

    def _distillation(self, training: TrainingSettings) -> Distillation | None:
        return distillation_of(training, self.problem.teacher_of(training), self.device)

    def _step_seconds(self, training: TrainingSettings, steps: Callable[[Iterator[Any]], Iterator[object]]) -> float:
        """Return the seconds of training steps for one sample; a CPU gets small batches where they take long enough."""
        whole = training.batch_size
        sizes = sorted({min(_FEW, whole), min(_TIMED_ON_CPU, whole)}) if self.device.type == "cpu" else [whole]
        for size in sizes:
            seconds = _seconds_each(steps(self._batches(training, size)), self.device)
            if seconds > _SLOW:
                break
        return seconds / size

    def _batches(self, training: TrainingSettings, size: int) -> Iterator[Any]:
        """Return one real batch of a size again and again, because reading is not what is timed."""
        changes: dict[str, Any] = {"batch_size": size, "mix_group": None, "batch_norm_group": None}
        steps = self.problem.task.train_batches(training.model_copy(update=changes), seed=0).steps(0, 1)
        batch = next(iter(steps))
        return (batch for _ in iter(int, 1))

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return process + self.problem.task.bytes_to_keep(self.machine.image_bytes)

    def _time_supernet(self, archs: ArchSet) -> Timing:
        problem, config, device = self.problem, self.problem.config, self.device
        task = problem.task
        _reset_peak(device)
        with use_threads(config.threads), use_precision(config.precision):
            supernet = problem.supernet(archs.space).to(device)
            optimizer = supernet_optimizer(supernet, config.supernet)
            distillation = self._distillation(config.supernet)
            steps = partial(
                train_supernet,
                supernet,
                paths=self.paths(archs),
                optimizer=optimizer,
                loss=task.loss,
                unpack=task.unpack,
                distillation=distillation,
                distill=config.supernet.paths == "sandwich" and distillation is None,
            )
            step_seconds = self._step_seconds(config.supernet, steps)
            # a sample's score takes less than its training, so a batch takes less than the time that is given
            count = min(config.search.eval_batch_size, task.counts["val"], max(_FEW, int(_SECONDS / step_seconds)))
            batch = task.first_batch(count)
            subnets = [Subnet(supernet, arch) for arch in self.some(archs, 4)]
            metric = on_few_samples(task.metric)

            def scores() -> Iterator[object]:
                while True:
                    for subnet in subnets:
                        yield evaluate(subnet, [batch], loss=task.loss, metric=metric, unpack=task.unpack)

            per_batch = _seconds_each(scores(), device)
        return Timing(step_seconds, per_batch / count, self._peak())

    def _time_networks(self, training: Retraining) -> Timing:
        problem, device = self.problem, self.device
        _reset_peak(device)
        seconds = []
        threads = 1 if device.type == "cpu" else problem.config.threads
        with use_threads(threads), use_precision(problem.config.precision):
            for arch in self.some(problem.inside, 3):
                network = problem.maker(training.drop_path)(arch).to(device)
                optimizer = adamw(network, lr=1e-9, weight_decay=0.0)
                task = problem.task
                steps = partial(
                    train,
                    network,
                    optimizer=optimizer,
                    loss=task.loss,
                    unpack=task.unpack,
                    distillation=self._distillation(training),
                )
                seconds.append(self._step_seconds(training, steps))
        return Timing(sum(seconds) / len(seconds), None, self._peak())


def estimates(estimator: Estimator) -> list[StageEstimate]:
    """Return the estimates of a problem's stages, in order; refuses what a later stage would refuse after hours."""
    found: dict[str, StageEstimate] = {}
    for stage in estimator.problem.stages():
        estimator.inputs = {name: found[name].result for name in stage.inputs}
        found[stage.name] = stage.estimate(estimator)
    return list(found.values())


def _seconds_each(work: Iterator[object], device: torch.device) -> float:
    begun = time.perf_counter()
    next(work)
    warm = time.perf_counter() - begun
    spent: list[float] = []
    while sum(spent) < _SECONDS and (len(spent) < 2 or warm < _SECONDS):
        start = time.perf_counter()
        next(work)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - start)
    return sum(spent) / len(spent)  # the mean, because paths differ in cost


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
