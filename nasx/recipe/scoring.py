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
from nasx.recipe.config import Search
from nasx.recipe.problem import Problem
from nasx.run import Interrupted, StageContext
from nasx.search import race
from nasx.search.racing import FEWEST_SAMPLES
from nasx.space import Space
from nasx.train import ALONE, Evaluation, Group, evaluate, recalibrate

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Scoring:
    """Scores architectures on the validation images with a supernet's weights, their BatchNorm statistics recomputed.

    What was found is kept in the stage's journal, so an interruption loses no evaluation, and none is done twice. The
    ranks of a group share the candidates out; the scores do not depend on their number. A candidate whose outputs are
    not finite, or that runs out of memory even at a batch of one image, has failed and scores NaN.
    """

    problem: Problem[Any]
    space: Space
    supernet: nn.Module
    seed: int
    context: StageContext
    group: Group = ALONE
    validation_images: int = 0
    """Validation images evaluated, each counted for every candidate that saw it."""
    recalibration_images: int = 0
    """Images that statistics were recomputed from, once a candidate."""
    error_probability: float = 0.0
    """Of each generation's race (`nasx.search.Race`), the greatest of all; 0 where none dropped any candidate."""
    _scores: dict[str, float | None] = field(default_factory=dict)
    _hits: dict[tuple[str, int], Bools | None] = field(default_factory=dict)
    _statistics: dict[Arch, Mapping[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for record in self.context.journal:
            if "accuracy" in record:
                self._scores[record["index"]] = record["accuracy"]
            elif "hits" in record:
                self._hits[record["index"], record["look"]] = _unpacked(record)

    @property
    def races(self) -> bool:
        """Whether candidates race: asked for, and with enough validation images for the bounds to separate."""
        return races(self.problem.config.search, len(self.problem.task.dataset.val))

    def score_first(self, archs: Sequence[Arch]) -> dict[Arch, float]:
        """Return the accuracies of the first few of some architectures, one a rank, on all validation images."""
        few = {str(self.space.index(arch)): arch for arch in archs[: self.group.size]}
        unknown = [index for index in few if index not in self._scores]
        if unknown:
            self._heed_stop()
            self._statistics.clear()
            own = {index: self.score(few[index]).score for index in self.group.shared_out(unknown)}
            for index, score in self.group.gather(own).items():
                self._scores[index] = None if math.isnan(score) else score  # JSON has no NaN
                self.context.journal.append({"index": index, "accuracy": self._scores[index]})
        self._count(len(few), len(few) * len(self.problem.task.dataset.val))
        found = {arch: self._scores[index] for index, arch in few.items()}
        return {arch: math.nan if accuracy is None else accuracy for arch, accuracy in found.items()}

    def race_generation(
        self, archs: Sequence[Arch], number: int, on_progress: Callable[[float], object] = lambda share: None
    ) -> dict[Arch, float]:
        """Return the scores of a generation that races: accuracies for the best, estimates for those dropped early.

        The best `search.top_k`, and at least as many as become parents, are scored on all validation images, and no
        estimate is above theirs. `on_progress` is told what share of a full evaluation has been done.
        """
        self._statistics.clear()
        every = len(archs) * len(self.problem.task.dataset.val)
        done = 0
        rank_of = {arch: place % self.group.size for place, arch in enumerate(archs)}  # who keeps its statistics
        index_of = {arch: str(self.space.index(arch)) for arch in archs}
        look = 0

        def correct(asked: Sequence[Arch], images: Ints) -> list[Bools | None]:
            nonlocal look, done
            look += 1
            keys = {arch: (index_of[arch], look) for arch in asked}
            waiting: list[list[Arch]] = [[] for _ in range(self.group.size)]
            for arch, key in keys.items():
                if key not in self._hits:
                    waiting[rank_of[arch]].append(arch)
            done += (len(keys) - sum(map(len, waiting))) * len(images)
            for turn in range(max(map(len, waiting))):  # all ranks take as many, for they meet in each
                self._heed_stop()
                own = waiting[self.group.rank][turn : turn + 1]
                told = self.group.gather({keys[arch]: _packed(self._hits_of(arch, images)) for arch in own})
                for (index, at), packed in told.items():
                    self._hits[index, at] = _unpacked(packed)
                    self.context.journal.append({"index": index, "look": at, **packed})
                done += len(told) * len(images)
                on_progress(done / every)
            return [self._hits[key] for key in keys.values()]

        config = self.problem.config
        raced = race(
            archs,
            correct,
            len(self.problem.task.dataset.val),
            keep=max(config.search.top_k, config.search.parents),
            error_probability=config.search.racing_error,
            seed=self.seed + number,
        )
        self._count(len(archs), raced.samples)
        self.error_probability = max(self.error_probability, raced.error_probability)
        return dict(raced.scores)

    def score(self, arch: Arch, images: Ints | None = None) -> Evaluation:
        """Return the evaluation of an architecture on validation images, all by default; NaN where it failed."""
        task, size = self.problem.task, self.problem.config.search.eval_batch_size
        subnet = Subnet(self.supernet, arch)
        while True:
            try:
                self._recalibrate(subnet)
                scored = evaluate(subnet, task.eval_batches(task.dataset.val, size, images))
            except torch.OutOfMemoryError:
                if size == 1:
                    logger.warning("a candidate ran out of memory even image by image: %s", dict(arch))
                    return _FAILED
                size //= 2
                logger.warning("a candidate ran out of memory; scoring %d images at a time", size)
                continue
            return scored if math.isfinite(scored.loss) else _FAILED

    def _hits_of(self, arch: Arch, images: Ints) -> Bools | None:
        scored = self.score(arch, images)
        return None if math.isnan(scored.score) else scored.scores == 1

    def _recalibrate(self, subnet: Subnet) -> None:
        config = self.problem.config.search
        if not config.recalibration_batches:
            return
        if subnet.arch in self._statistics:
            subnet.load_state_dict(self._statistics[subnet.arch], strict=False)
            return
        batches = self.problem.task.recalibration_batches(seed=self.seed)
        self._statistics[subnet.arch] = recalibrate(subnet, batches.steps(0, config.recalibration_batches))

    def _count(self, candidates: int, images: int) -> None:
        config = self.problem.config.search
        self.validation_images += images
        self.recalibration_images += candidates * config.recalibration_batches * config.recalibration_batch_size

    def _heed_stop(self) -> None:
        if self.group.any(self.context.stop.requested):
            raise Interrupted("stopped between two candidates")


def races(config: Search, images: int) -> bool:
    """Return whether the candidates of a search race, given the number of validation images."""
    return config.racing_error > 0 and images >= FEWEST_SAMPLES


_FAILED = Evaluation(math.nan, math.nan, 0, np.zeros(0, bool))


def _packed(hits: Bools | None) -> dict[str, Any]:
    if hits is None:
        return {"hits": None}
    return {"hits": base64.b64encode(np.packbits(hits).tobytes()).decode(), "images": len(hits)}


def _unpacked(record: Mapping[str, Any]) -> Bools | None:
    if record["hits"] is None:
        return None
    packed = np.frombuffer(base64.b64decode(record["hits"]), np.uint8)
    return np.unpackbits(packed, count=record["images"]).astype(bool)
