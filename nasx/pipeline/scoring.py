"""How candidates of a search are scored with a supernet's weights: one by one, or against each other in a race."""

import base64
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nasx.arch import Arch
from nasx.nn import Subnet
from nasx.pipeline.config import RunConfig, Search
from nasx.pipeline.context import Context
from nasx.pipeline.task import BaseTask
from nasx.run import Interrupted
from nasx.search import race
from nasx.search.racing import FEWEST_SAMPLES
from nasx.space import Space
from nasx.train import Evaluation, evaluate, recalibrate
from nasx.train.dataset_metrics import MetricFailed, is_dataset_metric

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Scoring:
    """Scores architectures on the validation samples with a supernet's weights, their BatchNorm statistics recomputed.

    What was found is kept in the stage's journal, so an interruption loses no evaluation, and none is done twice. The
    ranks of a group share the candidates out; the scores do not depend on their number. A candidate whose outputs or
    score are not finite, or that runs out of memory even at a batch of one sample, has failed and scores NaN.
    """

    context: Context
    space: Space
    supernet: nn.Module
    validation_images: int = 0
    """Validation samples evaluated, each counted for every candidate that saw it."""
    recalibration_images: int = 0
    """Samples that statistics were recomputed from, once a candidate."""
    error_probability: float = 0.0
    """Of each generation's race (`nasx.search.Race`), the greatest of all; 0 where none dropped any candidate."""
    _scores: dict[str, float | None] = field(default_factory=dict)
    _looks: dict[tuple[str, int], Floats | None] = field(default_factory=dict)
    _statistics: dict[Arch, Mapping[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for record in self.context.stage.journal:
            if "score" in record:
                self._scores[record["index"]] = record["score"]
            elif "look" in record:
                self._looks[record["index"], record["look"]] = _unpacked(record)

    @property
    def validation(self) -> int:
        """How many validation samples there are."""
        return self.context.problem.task.counts["val"]

    @property
    def races(self) -> bool:
        """Whether candidates race."""
        problem = self.context.problem
        return races(problem.config.search, problem.task)

    def score_all(
        self, archs: Sequence[Arch], on_progress: Callable[[float], object] = lambda share: None
    ) -> dict[Arch, float]:
        """Return the scores of architectures on all validation samples; `on_progress` is called with the share done."""
        group, journal = self.context.group, self.context.stage.journal
        found: dict[Arch, float] = {}
        for first in range(0, len(archs), group.size):
            few = {str(self.space.index(arch)): arch for arch in archs[first : first + group.size]}
            unknown = [index for index in few if index not in self._scores]
            if unknown:
                self._stop_if_requested()
                self._statistics.clear()
                own = {index: self.score(few[index]).score for index in group.shared_out(unknown)}
                for index, score in group.gather(own).items():
                    self._scores[index] = None if math.isnan(score) else score  # JSON has no NaN
                    journal.append({"index": index, "score": self._scores[index]})
            self._count(len(few), len(few) * self.validation)
            for index, arch in few.items():
                known = self._scores[index]
                found[arch] = math.nan if known is None else known
            on_progress(len(found) / len(archs))
        return found

    def race_generation(
        self, archs: Sequence[Arch], number: int, on_progress: Callable[[float], object] = lambda share: None
    ) -> dict[Arch, float]:
        """Return the scores of a generation that races: scores for the best, estimates for those dropped early.

        The best `search.top_k`, and at least as many as become parents, are scored on all validation samples, and no
        estimate is above theirs. `on_progress` is called with the share of a full evaluation that is done.
        """
        if not archs:  # a searcher of one's own may ask for known ones alone
            return {}
        group, journal = self.context.group, self.context.stage.journal
        self._statistics.clear()
        every = len(archs) * self.validation
        done = 0
        rank_of = {arch: place % group.size for place, arch in enumerate(archs)}  # who keeps its statistics
        index_of = {arch: str(self.space.index(arch)) for arch in archs}
        look = 0

        def scores_of(asked: Sequence[Arch], samples: Ints) -> list[Any]:
            nonlocal look, done
            look += 1
            keys = {arch: (index_of[arch], look) for arch in asked}
            waiting: list[list[Arch]] = [[] for _ in range(group.size)]
            for arch, key in keys.items():
                if key not in self._looks:
                    waiting[rank_of[arch]].append(arch)
            done += (len(keys) - sum(map(len, waiting))) * len(samples)
            for turn in range(max(map(len, waiting))):  # all ranks take as many, for they meet in each
                self._stop_if_requested()
                own = waiting[group.rank][turn : turn + 1]
                gathered = group.gather({keys[arch]: _packed(self._scores_of(arch, samples)) for arch in own})
                for (index, at), packed in gathered.items():
                    self._looks[index, at] = _unpacked(packed)
                    journal.append({"index": index, "look": at, **packed})
                done += len(gathered) * len(samples)
                on_progress(done / every)
            kind = bool if self.context.problem.task.scores_hits else float
            found = [self._looks[key] for key in keys.values()]
            return [None if scores is None else scores.astype(kind) for scores in found]

        config = self.context.problem.config.search
        raced = race(
            archs,
            scores_of,
            self.validation,
            keep=max(networks_to_train(self.context.problem.config), config.bred_from),
            error_probability=config.racing_error,
            seed=self.context.seed + number,
        )
        self._count(len(archs), raced.samples)
        self.error_probability = max(self.error_probability, raced.error_probability)
        return dict(raced.scores)

    def score(self, arch: Arch, samples: Ints | None = None) -> Evaluation:
        """Return the evaluation of an architecture on validation samples, all by default; NaN where it failed."""
        problem = self.context.problem
        task, size = problem.task, problem.config.search.eval_batch_size
        subnet = Subnet(self.supernet, arch)
        while True:
            try:
                self._recalibrate(subnet)
                batches = task.eval_batches("val", size, indices=samples, workers=self.context.machine.workers)
                scored = evaluate(subnet, batches, loss=task.loss, metric=task.metric, unpack=task.unpack)
            except MetricFailed as error:  # it was tried before the run, so this is about the candidate
                logger.warning("a candidate failed: %s", error)
                return FAILED
            except torch.OutOfMemoryError:
                if size == 1:
                    logger.warning("a candidate ran out of memory even sample by sample: %s", dict(arch))
                    return FAILED
                size //= 2
                logger.warning("a candidate ran out of memory; scoring %d samples at a time", size)
                continue
            if math.isfinite(scored.loss) and not math.isfinite(scored.score):
                logger.warning("a candidate failed, because its metric %s is %s", task.metric_name, scored.score)
                return FAILED
            return scored if math.isfinite(scored.loss) else FAILED

    def _scores_of(self, arch: Arch, samples: Ints) -> Floats | None:
        scored = self.score(arch, samples)
        return None if math.isnan(scored.score) else scored.scores

    def _recalibrate(self, subnet: Subnet) -> None:
        problem = self.context.problem
        config = problem.config.search
        if not config.recalibration_batches:
            return
        if subnet.arch in self._statistics:
            subnet.load_state_dict(self._statistics[subnet.arch], strict=False)
            return
        batches = problem.task.recalibration_batches(
            problem.config, seed=self.context.seed, workers=self.context.machine.workers
        )
        steps = batches.steps(0, config.recalibration_batches)
        self._statistics[subnet.arch] = recalibrate(subnet, steps, unpack=problem.task.unpack)

    def _count(self, candidates: int, samples: int) -> None:
        config = self.context.problem.config.search
        self.validation_images += samples
        self.recalibration_images += candidates * config.recalibration_batches * config.recalibration_batch_size

    def _stop_if_requested(self) -> None:
        if self.context.stop_requested():
            raise Interrupted("stopped between two candidates")


def races(config: Search, task: BaseTask) -> bool:
    """Return whether the candidates of a search race: asked for, with enough validation samples.

    A Pareto search needs the scores of all, for it keeps more than the best; what a searcher of one's own does with
    them is not known. A metric of the whole data set says nothing about a part of it.
    """
    known = config.method in ("evolution", "random", "local") and not is_dataset_metric(task.metric)
    return known and config.racing_error > 0 and task.counts["val"] >= FEWEST_SAMPLES


def networks_to_train(config: RunConfig) -> int:
    """Return how many of a search's best are trained from scratch, at least at first."""
    retrain = config.retrain
    return max(config.search.top_k, retrain.start) if retrain.method == "halving" else config.search.top_k


FAILED = Evaluation(math.nan, math.nan, 0, np.zeros(0))


def _packed(scores: Floats | None) -> dict[str, Any]:
    """Return scores as JSON: a bit each where all are 0 or 1, else single precision."""
    if scores is None:
        return {"scores": None}
    hits = bool(np.isin(scores, (0.0, 1.0)).all())
    content = np.packbits(scores.astype(bool)) if hits else scores.astype("<f4")
    return {"scores": base64.b64encode(content.tobytes()).decode(), "samples": len(scores), "bits": hits}


def _unpacked(record: Mapping[str, Any]) -> Floats | None:
    if record["scores"] is None:
        return None
    content = base64.b64decode(record["scores"])
    if record["bits"]:
        return np.unpackbits(np.frombuffer(content, np.uint8), count=record["samples"]).astype(float)
    return np.frombuffer(content, "<f4").astype(float)
