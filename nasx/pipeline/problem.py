"""What a run searches: a space, a builder of its networks, a task, and what can be replaced of the rest."""

import contextlib
import copy
import inspect
import itertools
import logging
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import numpy as np
import torch
from torch import nn

from nasx._filters import checked_budget
from nasx.arch import Arch
from nasx.cost import AdditiveCost, Budget, Cost, amount_of
from nasx.feasible import Attainable, attainable
from nasx.measure import counted
from nasx.nn import Supernet
from nasx.nn.builders import check_builder
from nasx.nn.parts import Parts
from nasx.nn.skeleton import Make as Make
from nasx.nn.skeleton import build_skeleton
from nasx.nn.survey import Survey, kept_surveys
from nasx.pipeline.config import RunConfig, TrainingSettings
from nasx.pipeline.presentation import Presentation
from nasx.pipeline.settle import settle
from nasx.pipeline.task import BaseTask
from nasx.space import ArchSet, Space

if TYPE_CHECKING:
    from nasx.pipeline.stages import RunStage

SupernetMaker = Callable[..., nn.Module]
"""Returns an untrained supernet of a builder and a space, such as `nasx.nn.Supernet` does."""

Configured = TypeVar("Configured", bound=RunConfig)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Baseline:
    """A network to compare the result with, and its label in tables."""

    label: str
    arch: Arch


class Problem(Generic[Configured]):
    """A search: a space, a builder, a task, and a budget.

    - `space` is a `Space`, or a part of one.
    - `make(arch)` returns an untrained network as plain torch. Where it has a keyword `drop_path`, trainings pass
      their rate of stochastic depth.
    - `task` is a `Task` or an `ImageTask`.
    - `budget` is one `Budget` or several. Those with an `AdditiveCost` are met exactly, all of them where few enough
      combinations of their sums occur and else the first; the others filter (`nasx.feasible.Feasible`).
    - `config` are the settings; those that are unset are fitted to data and networks (`nasx.pipeline.settle`).
    - `supernet(make, space)` returns the supernet, `nasx.nn.Supernet` by default.
    - `parts` maps a repeat of the space to its module list, such as `{"block": "encoder.layer"}`, where that is not
      called `block` or `blocks`; the supernet gets it as a keyword.
    - `macs` and `params` are costs of an architecture, counted by default.
    - `baselines` are networks to compare with, by name; the largest and the smallest by default. A run adds random
      networks from the budget, as many as it retrains.
    - `stages(problem)` returns the stages of a run, `nasx.pipeline.compose.search_stages` by default.
    - `check()` raises ValueError for what no stage could do, before any of them starts.
    - `teacher` is a network to learn from, in all trainings or, as a mapping, in "supernet" or "retrain"; settings may
      name one instead (`supernet.teacher`, `retrain.teacher`).
    - `name` is written down with a run; a problem of another name does not continue it.
    - `presentation` says how reports and commands show the problem and its networks.

    Raises ValueError for an empty budget and for settings that have no effect on the task, TypeError for an argument of
    another kind.
    """

    def __init__(
        self,
        space: ArchSet,
        make: Make,
        task: BaseTask,
        *,
        budget: Budget | Sequence[Budget] | None = None,
        config: Configured = RunConfig(),  # type: ignore[assignment]  # noqa: B008 - immutable
        supernet: SupernetMaker = Supernet,
        parts: Parts | None = None,
        macs: Cost | None = None,
        params: Cost | None = None,
        baselines: Mapping[str, Baseline] | None = None,
        stages: "Callable[[Problem[Any]], Sequence[RunStage]] | None" = None,
        teacher: nn.Module | Mapping[str, nn.Module] | None = None,
        check: Callable[[], object] = lambda: None,
        name: str = "search",
        presentation: Presentation = Presentation(),  # noqa: B008 - immutable
    ) -> None:
        _check_arguments(space, make, task, config, supernet, teacher)
        self.space, self.task, self.make = space.space, task, make
        self.name, self.presentation = name, presentation
        self.budgets = _budgets(budget)
        self.inside = space.within(*self.budgets) if self.budgets else space
        self._supernet = supernet if parts is None else partial(supernet, parts=parts)
        self._macs, self._params, self._parts = macs, params, parts
        self._baselines, self._stages = baselines, stages
        self._teachers = (
            {"supernet": teacher, "retrain": teacher} if isinstance(teacher, nn.Module) else dict(teacher or {})
        )
        self._check = check
        self._opened: dict[str, tuple[str, nn.Module]] = {}
        self._surveys: dict[Hashable, Survey] = {}
        self._disproof = ""  # why the MACs do not add up
        self._fits = False
        self.config: Configured = settle(config, task, self)

    @cached_property
    def macs(self) -> Cost:
        """Multiply-adds for one sample."""
        return self._macs or self._counted("macs")

    @cached_property
    def params(self) -> Cost:
        """Parameters."""
        return self._params or self._counted("params")

    @cached_property
    def cost(self) -> AdditiveCost | None:
        """The cost that paths and the spread of a trust stage go by: the first budget's that adds up, or the MACs.

        Where there is none, a warning says what is left out.
        """
        additive = [budget.cost for budget in self.inside.budgets if isinstance(budget.cost, AdditiveCost)]
        if additive:
            return additive[0]
        if isinstance(self.macs, AdditiveCost):
            return self.macs
        logger.warning(
            "no cost is known to add up over the parts of these networks, so there is no largest and no smallest "
            "network to compare with, plans and reports show no range of costs, and supernet.paths=stratified or "
            "sandwich and budgets in percent are refused%s",
            f"; the MACs are counted network by network, because {self._disproof} (a Problem takes them as "
            "macs=counted(...) and params=counted(...))"
            if self._disproof
            else "",
        )
        return None

    @property
    def search_costs(self) -> list[Cost]:
        """The costs that a Pareto search trades the score for: those of the budgets, or the MACs."""
        costs: list[Cost] = []
        for budget in self.inside.budgets:
            if budget.cost not in costs:  # by equality, because tables have no hash
                costs.append(budget.cost)
        return costs or [self.macs]

    def budget_costs(self, arch: Arch) -> dict[str, float]:
        """Return what an architecture costs in the budgets, by unit, beside parameters and MACs.

        What a cost does not know, such as the latency of a baseline's block that was not measured, is left out.
        """
        found: dict[str, float] = {}
        for cost in self.search_costs:
            if cost in (self.macs, self.params):
                continue
            name = str(getattr(cost, "unit", "") or getattr(cost, "__name__", type(cost).__name__))
            if name in found:  # such as the latencies on two devices
                name = next(f"{name} ({n})" for n in itertools.count(2) if f"{name} ({n})" not in found)
            with contextlib.suppress(ValueError):
                found[name] = amount_of(cost, arch)
        return found

    @cached_property
    def takes_drop_path(self) -> bool:
        """Whether the builder has a keyword `drop_path`."""
        try:
            return "drop_path" in inspect.signature(self.make).parameters
        except (TypeError, ValueError):  # a builder without a signature
            return False

    @cached_property
    def has_batch_norm(self) -> bool:
        """Whether networks of the space have BatchNorm, as far as some of them tell."""
        return any(
            isinstance(module, nn.modules.batchnorm._BatchNorm)
            for network in self._skeletons
            for module in network.modules()
        )

    @cached_property
    def some_params(self) -> int:
        """Parameters of the largest of some networks."""
        return max(sum(parameter.numel() for parameter in network.parameters()) for network in self._skeletons)

    @cached_property
    def _skeletons(self) -> list[nn.Module]:
        archs = [self.space[0], self.space[self.space.size - 1], *self.space.sample(0, 6)]
        return [build_skeleton(self.make, arch) for arch in archs]

    def maker(self, drop_path: float) -> Make:
        """Return the builder with a rate of stochastic depth."""
        make: Any = self.make
        return partial(make, drop_path=drop_path) if self.takes_drop_path else self.make

    @property
    def derives_supernet(self) -> bool:
        """Whether a supernet is made of the builder's networks, which then have to fit each other."""
        return getattr(self._supernet, "func", self._supernet) is Supernet

    def supernet(self, space: Space) -> nn.Module:
        """Return an untrained supernet for a space of the run."""
        with kept_surveys(self._surveys):  # for the stages that make it again
            return self._supernet(self.maker(self.config.supernet.drop_path), space)

    @cached_property
    def baselines(self) -> Mapping[str, Baseline]:
        """The networks to compare with, random ones aside."""
        if self._baselines is not None:
            return self._baselines
        if self.reach is None:
            return {}
        return {
            "largest": Baseline("largest", self.reach.high_arch),
            "smallest": Baseline("smallest", self.reach.low_arch),
        }

    @cached_property
    def reach(self) -> Attainable | None:
        """The least and the greatest cost in the whole space, where it adds up."""
        return None if self.cost is None else attainable(self.space, self.cost)

    def describe(self, arch: Arch) -> dict[str, Any]:
        """Return what a network costs, as JSON values, and what its presentation says beside."""
        return {"params": self.params(arch), "macs": self.macs(arch), **self.presentation.describe(arch)}

    def teacher_of(self, training: TrainingSettings) -> nn.Module | None:
        """Return the network that a training learns from, or None; a ValueError says why one cannot be opened."""
        if training.teacher is None:
            return self._teachers.get(training.section)
        if training.section not in self._opened or self._opened[training.section][0] != training.teacher:
            from nasx.pipeline.teachers import open_teacher

            try:
                opened = open_teacher(training.teacher, self)
            except (OSError, ValueError) as error:
                raise ValueError(f"{training.section}.teacher: {error}") from error
            self._opened[training.section] = training.teacher, opened
        return self._opened[training.section][1]

    def with_stages(self, stages: "Callable[[Any], Sequence[RunStage]]") -> Self:
        """Return the same problem with other stages."""
        same = copy.copy(self)
        same._stages = stages
        return same

    def stages(self) -> "list[RunStage]":
        """Return the stages of a run, in order; `plan`, `run` and reports read the same list."""
        from nasx.pipeline.compose import search_stages  # which needs problems

        return list((self._stages or search_stages)(self))

    def random_archs(self, count: int, purpose: str = "random") -> list[Arch]:
        """Return networks drawn uniformly from those that are searched, as many as there are at most."""
        return distinct_samples(self.inside, count, self.seed(purpose))

    def seed(self, name: str) -> int:
        """Return the seed of a purpose, from the run's seed and a name."""
        return zlib.crc32(f"{self.config.seed}/{name}".encode()) & 0x7FFFFFFF

    def network_seed(self, rank: int) -> int:
        """Return the seed that the candidate of a rank is trained with, in whichever stage.

        Networks of different origin are compared rank by rank, so their trainings are paired.
        """
        return self.seed(f"network/{rank}")

    def check(self) -> None:
        """Refuse what no stage could do, before any of them starts; a ValueError says what to change.

        What was found to fit is not looked at again.
        """
        if not self._fits:
            from nasx.pipeline.checks import check_problem  # which needs problems

            self._check()
            check_problem(self)
            self._fits = True

    def _counted(self, kind: Any) -> Cost:
        call = None if kind == "params" else self.task.call
        try:
            return counted(kind, self.make, self.space, call, parts=self._parts)
        except ValueError as error:  # networks whose parts do not add up
            if kind == "macs":
                self._disproof = str(error)
            return counted(kind, self.make, self.space, call, parts=self._parts, additive=False)

    def some_network(self, arch: Arch | None = None) -> nn.Module:
        """Return an untrained network for checks, any of those that are searched by default."""
        with torch.random.fork_rng(devices=[]):
            network: nn.Module = self.make(self.inside.sample(0) if arch is None else arch).cpu()
        return network


def _check_arguments(space: Any, make: Any, task: Any, config: Any, supernet: Any, teacher: Any) -> None:
    """Refuse arguments of another kind, most of which are two that changed places."""
    check_builder(make, space, "Problem(space, make, task)")
    if not isinstance(task, BaseTask):
        raise TypeError(
            f"`task` must be a Task or an ImageTask, but got {task!r}; write Problem(space, make, Task(dataset))"
        )
    if not isinstance(config, RunConfig):
        how = "RunConfig(**settings)" if isinstance(config, Mapping) else "RunConfig(search=Search(generations=5))"
        raise TypeError(f"`config` must be a RunConfig, but got {config!r}; write config={how}")
    if isinstance(supernet, nn.Module) or not callable(supernet):
        raise TypeError(
            f"`supernet` must be a function that makes a supernet, supernet(make, space), but got {supernet!r}; leave "
            "it out for a nasx.nn.Supernet, or pass partial(Supernet, separate=...)"
        )
    networks = teacher if isinstance(teacher, Mapping) else {"supernet": teacher}
    if not all(name in ("supernet", "retrain") for name in networks):
        raise ValueError(
            f"`teacher` has networks for 'supernet' and 'retrain', but got {', '.join(map(repr, networks))}"
        )
    for network in networks.values():
        if not isinstance(network, nn.Module | None):
            raise TypeError(
                f"`teacher` must be a network, or a mapping to networks, but got {network!r}; names of teachers are "
                "settings, supernet.teacher and retrain.teacher"
            )


def _budgets(given: Any) -> tuple[Budget, ...]:
    if given is None or isinstance(given, Budget):
        return () if given is None else (given,)
    budgets = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str | Mapping) else (given,)
    return tuple(checked_budget(budget, "`budget` must be a Budget or several") for budget in budgets)


def distinct_samples(archs: ArchSet, count: int, seed: int) -> list[Arch]:
    """Return up to `count` different architectures, drawn uniformly."""
    rng = np.random.default_rng(seed)
    found: dict[Arch, None] = {}
    for _ in range(100 * count):
        if len(found) == min(count, archs.size_bounds[1]):
            break
        found.setdefault(archs.sample(rng))
    return list(found)
