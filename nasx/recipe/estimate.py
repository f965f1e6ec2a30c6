"""What a run would cost: sizes, budgets, and time and memory per stage, from a few seconds of real steps."""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from nasx.arch import Arch
from nasx.feasible import Feasible, attainable
from nasx.nn import Subnet
from nasx.recipe.config import Retraining
from nasx.recipe.machine import Machine
from nasx.recipe.problem import Level, Problem
from nasx.recipe.scoring import races
from nasx.recipe.stages import Maker, evolution, supernet_optimizer, supernet_paths
from nasx.report import duration, si
from nasx.train import Paths, adamw, evaluate, pick_device, train, train_supernet, use_threads

_BINS, _DRAWS = 10, 2000
_SECONDS = 1.0  # of real steps for each kind of work, after one to warm up


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """A stage before it runs: images through the network forwards, and how many of them backwards too.

    `seconds` and `peak_bytes` are None where nothing was measured. Time is divided by the devices, whose exchange of
    gradients is not counted. Memory is one device's; on a CPU, the most that this process has had so far, times the
    processes side by side, which is no less than what a stage of its own takes.
    """

    name: str
    images: int = 0
    trained_images: int = 0
    detail: str = ""
    size: int | None = None
    feasible_size_bounds: tuple[int, int] | None = None
    acceptance: float | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    warning: str = ""


@dataclass(slots=True)
class Estimator(Maker[StageEstimate]):
    """Makes estimates where `Stages` makes stages; a drawn network stands for the winner of an earlier level."""

    problem: Problem[Any]
    machine: Machine = field(default_factory=Machine)
    devices: int = 1
    timing: bool = True
    _winners: dict[str, Any] = field(default_factory=dict)
    _image_seconds: dict[str, float | None] = field(default_factory=dict)

    def level(
        self, name: str, of: Level, *, needs: tuple[str, ...] = (), epochs_factor: float = 1, retrain: bool = True
    ) -> list[StageEstimate]:
        """Return the estimates of one level's stages."""
        config = self.problem.config
        space, inside = of(self._winners)
        steps = self._steps(config.supernet.epochs * epochs_factor, config.supernet.batch_size)
        candidates = min(config.search.population * config.search.generations, inside.size_bounds[1])
        paths = supernet_paths(config.supernet, space, inside, self.problem.cost, 0)
        evolution(config.search, inside, 0)
        trained = steps * config.supernet.batch_size * len(paths(0))
        step_seconds, image_seconds, peak = self._measure_supernet(space, inside, paths)
        self._image_seconds[name] = image_seconds
        estimates = [
            StageEstimate(
                f"{name}/supernet",
                images=trained,
                trained_images=trained,
                detail=f"{steps:,} steps",
                size=space.size,
                feasible_size_bounds=inside.size_bounds,
                acceptance=_acceptance(inside),
                seconds=None if step_seconds is None else steps * step_seconds / self.devices,
            ),
            self._scoring(f"{name}/search", candidates, image_seconds),
        ]
        if config.trust.n:
            scoring = self._scoring(f"{name}/trust", config.trust.n, image_seconds)
            training = self._training(f"{name}/trust", config.trust.n, inside)
            estimates.append(_joined(scoring, training))
        estimates = [replace(e, peak_bytes=max(filter(None, (e.peak_bytes, peak)), default=None)) for e in estimates]
        return [*estimates, *self.retrain(name, of)] if retrain else estimates

    def retrain(self, name: str, of: Level) -> list[StageEstimate]:
        """Return the estimate of training the best of a level from scratch."""
        _, inside = of(self._winners)
        self._winners[f"{name}/retrain"] = {"winner": dict(inside.sample(0))}
        count = min(self.problem.config.search.top_k, inside.size_bounds[1])
        return [self._training(f"{name}/retrain", count, inside)]

    def random(self) -> list[StageEstimate]:
        """Return the estimates of random search's stages."""
        k = self.problem.config.search.top_k
        return [StageEstimate("random/draw"), self._training("random/retrain", k, self.problem.joint)]

    def given(self, name: str, archs: Sequence[Arch]) -> list[StageEstimate]:
        """Return the estimate of training given networks, for which networks drawn from the budget stand."""
        return [self._training(f"{name}/retrain", len(archs), self.problem.joint)]

    def test(self, name: str) -> list[StageEstimate]:
        """Return nothing measured: only a run may read the test images."""
        return [StageEstimate(f"{name}/test")]

    def inherit(self, name: str, of: Level, *, needs: tuple[str, ...] = ()) -> list[StageEstimate]:
        """Return the estimate of taking the best with the supernet's weights: a few scores."""
        return [self._scoring(f"{name}/inherit", self.problem.config.search.top_k, self._image_seconds.get(name))]

    def finetune(self, name: str, training: Retraining) -> list[StageEstimate]:
        """Return the estimate of training those a little further."""
        return [self._training(f"{name}/finetune", self.problem.config.search.top_k, self.problem.joint, training)]

    def final(self, last: str, also: Mapping[str, str] = MappingProxyType({})) -> list[StageEstimate]:
        """Return the estimates of the baselines; the test images, which only a run may read, are left out."""
        count = len(self.problem.baselines()) + 1
        return [self._training("baselines", count, self.problem.joint), StageEstimate("evaluation")]

    def _steps(self, epochs: float, batch_size: int) -> int:
        return max(1, round(epochs * (len(self.problem.task.dataset.train) // batch_size)))

    def _scoring(self, name: str, candidates: int, image_seconds: float | None) -> StageEstimate:
        config, validation = self.problem.config.search, len(self.problem.task.dataset.val)
        recalibration = config.recalibration_batches * config.recalibration_batch_size
        images = candidates * (recalibration + validation)
        told = f"{candidates:,} candidates x ({recalibration:,} recalibration + {validation:,} validation images)"
        if name.endswith("/search") and races(config, validation):
            told += ", of which racing needs a part"
        # a candidate is one device's, and a generation waits for all of its candidates
        together = min(candidates, config.population) if name.endswith("/search") else candidates
        rounds = candidates / together * math.ceil(together / self.devices)
        seconds = None if image_seconds is None else rounds * images / candidates * image_seconds
        return StageEstimate(name, images, detail=told, seconds=seconds)

    def _training(self, name: str, count: int, inside: Feasible, training: Retraining | None = None) -> StageEstimate:
        config = training or self.problem.config.retrain
        steps = self._steps(config.epochs, config.batch_size)
        images = count * steps * config.batch_size
        estimate = StageEstimate(name, images, images, f"{count} networks x {steps:,} steps")
        if not self.timing:
            return estimate
        side_by_side = self.machine.processes_for(pick_device(self.machine.device)) if self.devices == 1 else 1
        step_seconds, peak = self._measure_network(inside)
        rounds: float = math.ceil(count / (side_by_side * self.devices))
        if self.devices > count and config.batch_size % self.devices == 0:
            rounds = count / self.devices  # all train one network after the other together
        return replace(estimate, seconds=rounds * steps * step_seconds, peak_bytes=peak * min(count, side_by_side))

    def _measure_supernet(
        self, space: Any, inside: Feasible, paths: Paths
    ) -> tuple[float | None, float | None, int | None]:
        if not self.timing:
            return None, None, None
        problem, config = self.problem, self.problem.config
        device = pick_device(self.machine.device)
        _reset_peak(device)
        with use_threads(config.threads):
            supernet = problem.supernet(space).to(device)
            batches = problem.task.supernet_batches(seed=0)
            optimizer = supernet_optimizer(supernet, config.supernet)
            steps = train_supernet(
                supernet, _repeated(batches), paths, optimizer, distill=config.supernet.paths == "sandwich"
            )
            step_seconds = _seconds_each(steps, device)
            subnet, images = Subnet(supernet, inside.sample(0)), problem.task.eval_batches(problem.task.dataset.val)
            first = next(iter(images))
            per_batch = _seconds_each((evaluate(subnet, [first]) for _ in iter(int, 1)), device)
        return step_seconds, per_batch / len(first[1]), _peak(device)

    def _measure_network(self, inside: Feasible) -> tuple[float, int]:
        device = pick_device(self.machine.device)
        _reset_peak(device)
        archs = inside.sample(1, 3)
        with use_threads(1 if device.type == "cpu" else self.problem.config.threads):
            seconds = [self._step_seconds(arch, device) for arch in archs]
        return sum(seconds) / len(seconds), _peak(device)

    def _step_seconds(self, arch: Arch, device: torch.device) -> float:
        network = self.problem.network(arch)().to(device)
        optimizer = adamw(network, lr=1e-9, weight_decay=0.0)
        batches = self.problem.task.retrain_batches(seed=0)
        return _seconds_each(train(network, _repeated(batches), optimizer), device)


def plan_document(
    problem: Problem[Any],
    stages: Callable[[Maker[StageEstimate]], list[StageEstimate]],
    *,
    devices: int = 1,
    time_limit: float | None = None,
    timing: bool = True,
) -> dict[str, Any]:
    """Return what `plan` prints, as JSON values; `time_limit` in hours."""
    if devices < 1:
        raise ValueError(f"a run needs at least one device, but got {devices}")
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"a time limit is a number of hours above 0, but got {time_limit}")
    space = problem.joint.space
    reach = attainable(space, problem.cost)
    low, high = problem.joint.size_bounds
    estimates = stages(Estimator(problem, devices=devices, timing=timing))
    costs = [problem.cost(arch) for arch in space.sample(0, _DRAWS)]
    counts, edges = np.histogram(costs, bins=_BINS, range=(reach.low, reach.high))
    document: dict[str, Any] = {
        "size": space.size,
        "feasible_size": high if low == high else None,
        "feasible_size_bounds": [low, high],
        "cost_min": reach.low,
        "cost_max": reach.high,
        "cost": problem.cost.unit,
        "budgets": [str(budget) for budget in problem.joint.budgets],
        "cost_histogram": {
            "edges": [float(edge) for edge in edges],
            "shares": [round(float(count) / len(costs), 4) for count in counts],
            "of": f"{len(costs)} architectures drawn uniformly from the whole space",
        },
        "baselines": {
            name: {"macs": problem.macs(arch), "params": problem.params(arch)}
            for name, (_, arch) in problem.baselines().items()
        },
        "images": {"train": len(problem.task.dataset.train), "val": len(problem.task.dataset.val)},
        "devices": devices,
        "stages": [asdict(_warned(estimate, time_limit)) for estimate in estimates],
        "config": problem.config.model_dump(mode="json"),
    }
    times = [estimate.seconds for estimate in estimates if estimate.seconds is not None]
    document["seconds"] = sum(times) if times else None
    return document


def plan_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a plan for people."""
    unit = document["cost"]
    low, high = document["feasible_size_bounds"]
    feasible = f"{high:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    yield f"whole space   {document['size']:.4g} networks, {document['cost_min']:,} to {document['cost_max']:,} {unit}"
    yield f"inside        {feasible} networks: {'; '.join(document['budgets'])}"
    for name, counts in document["baselines"].items():
        yield f"{name:<13} {counts['macs']:,} MACs, {counts['params']:,} parameters"
    images = document["images"]
    yield f"images        {images['train']:,} train, {images['val']:,} validation"
    yield ""
    histogram = document["cost_histogram"]
    yield f"costs in {unit} of {histogram['of']}"
    for left, right, share in zip(histogram["edges"], histogram["edges"][1:], histogram["shares"], strict=False):
        yield f"{si(left):>9} to {si(right):<9} {share:7.2%} {'#' * round(60 * share)}"
    yield ""
    for stage in document["stages"]:
        told = [stage["detail"]]
        if stage["seconds"] is not None:
            told.append(f"about {duration(stage['seconds'])}")
        if stage["peak_bytes"]:
            told.append(f"up to {stage['peak_bytes'] / 2**20:,.0f} MiB")
        if stage["size"] is not None:
            told.append(f"{stage['feasible_size_bounds'][1]:.4g} of {stage['size']:.4g} networks inside the budget")
            if stage["acceptance"] < 1:
                told.append(f"{stage['acceptance']:.2%} of draws from it met every budget")
        yield f"{stage['name']:<18} {'; '.join(filter(None, told))}"
        if stage["warning"]:
            yield f"  warning: {stage['warning']}"
    if document["seconds"] is not None:
        plural = "" if document["devices"] == 1 else "s"
        yield f"all                about {duration(document['seconds'])} on {document['devices']} device{plural}"
    yield ""
    yield from (f"{name} = {value}" for name, value in _flat(document["config"]))


def _warned(estimate: StageEstimate, time_limit: float | None) -> StageEstimate:
    if time_limit is None or estimate.seconds is None or estimate.seconds <= 3600 * time_limit:
        return estimate
    told = (
        f"would take about {duration(estimate.seconds)}, more than the {time_limit:g} h given: "
        "use more devices, fewer epochs, or continue the run in several jobs"
    )
    return replace(estimate, warning=told)


def _acceptance(inside: Feasible) -> float:
    """Return which share of the draws met every budget; few draws, because they may meet some of them rarely."""
    anew = inside.with_fresh_counts()
    anew.sample(0, 100)
    return anew.acceptance


def _joined(first: StageEstimate, second: StageEstimate) -> StageEstimate:
    seconds = None if first.seconds is None or second.seconds is None else first.seconds + second.seconds
    return replace(
        second,
        images=first.images + second.images,
        detail=f"{first.detail}; {second.detail}",
        seconds=seconds,
    )


def _repeated(batches: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield one real batch again and again: reading is not what is timed."""
    batch = next(iter(batches.steps(0, 1)))
    while True:
        yield batch


def _seconds_each(work: Iterator[object], device: torch.device) -> float:
    next(work)
    spent: list[float] = []
    while sum(spent) < _SECONDS or len(spent) < 2:
        start = time.perf_counter()
        next(work)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - start)
    return sum(spent) / len(spent)  # the mean, because paths differ in cost


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
