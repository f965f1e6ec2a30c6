"""A GLiT run's spaces, budgets and networks, checked before anything is trained."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import nn

from nasx import Arch, Budget, Space
from nasx.feasible import Feasible
from nasx.recipe.problem import Problem
from nasx.report import BlockDrawing
from recipes.glit.config import Config
from recipes.glit.cost import Macs, PaperMacs, Params
from recipes.glit.model import Frame, build_in
from recipes.glit.picture import block_drawings
from recipes.glit.space import Axes, details_space, heads_space, same_heads, table2, with_heads
from recipes.glit.supernet import supernet


class GLiTProblem(Problem[Config]):
    """The global-local spaces of a run, stage by stage, inside their budgets."""

    title = "GLiT"
    drawing_legend = "darker: more local heads; G global (attention) and L local (convolution) heads per block"

    @cached_property
    def frame(self) -> Frame:
        """What all networks of the run share."""
        dataset = self.task.dataset
        return self.config.frame(in_channels=dataset.channels, num_classes=len(dataset.classes))

    @cached_property
    def axes(self) -> Axes:
        """The axes of the search."""
        return self.config.axes()

    @cached_property
    def macs(self) -> Macs:
        """Exact multiply-adds in this run's frame."""
        return Macs(self.frame)

    @cached_property
    def params(self) -> Params:
        """Parameters in this run's frame."""
        return Params(self.frame)

    @cached_property
    def cost(self) -> Macs:
        """The cost that budgets bound."""
        return self.macs if self.config.budget.cost == "macs" else PaperMacs(self.frame)

    @property
    def details_budget(self) -> Budget:
        """The budget of the last stage, and so of the network that is found."""
        budget = self.config.budget
        return Budget(self.cost, budget.details_at_least, budget.details_at_most)

    @cached_property
    def heads(self) -> Feasible:
        """Stage one's architectures: inside its upper bound, and with details inside the last stage's budget.

        A ValueError says where no heads have both.
        """
        budget, missing = self.config.budget, MissingDetails(self)
        upper = Budget(self.cost, at_most=budget.heads_at_most)
        space = heads_space(self.axes)
        inside = space.within(upper)
        every = combinations_with_replacement(self.axes.global_heads, self.axes.blocks)
        orderless = (with_heads(heads, self.axes) for heads in every)
        if all(arch not in upper or missing(arch) for arch in orderless):
            raise ValueError(
                f"no heads inside {upper} (stage one) have details inside {self.details_budget} (the last stage); "
                f"held details give {inside.attainable.low:,} to {inside.attainable.high:,} {self.cost.unit}"
            )
        return space.within(upper, Budget(missing, at_most=0))

    def details(self, heads: Arch) -> Feasible:
        """Return stage two's architectures for the heads that stage one chose."""
        return details_space(heads, self.axes).within(self.details_budget)

    @cached_property
    def joint_space(self) -> Space:
        """The joint space of table 2."""
        return table2(self.axes)

    @cached_property
    def joint(self) -> Feasible:
        """The joint space inside the last stage's budget, for the baselines that search it at once."""
        return self.joint_space.within(self.details_budget)

    def heads_level(self, inputs: Mapping[str, Any]) -> tuple[Space, Feasible]:
        """Stage one: the heads of every block, details held."""
        return heads_space(self.axes), self.heads

    def details_level(self, inputs: Mapping[str, Any]) -> tuple[Space, Feasible]:
        """Stage two: the details of every block, heads as the winner of stage one has them."""
        heads = Arch(inputs["heads/retrain"]["winner"])
        return details_space(heads, self.axes), self.details(heads)

    def joint_level(self, inputs: Mapping[str, Any]) -> tuple[Space, Feasible]:
        """The joint space, for the baseline without a hierarchy."""
        return self.joint_space, self.joint

    def supernet(self, space: Space) -> nn.Module:
        """Return an untrained supernet for a space of the run."""
        model, drop_path = self.config.model, self.config.supernet.drop_path
        return supernet(space, self.frame, sharing=model.sharing, drop_path=drop_path, init_std=model.init_std)

    def network(self, arch: Arch) -> Callable[[], nn.Module]:
        """Return what builds a network, with the drop path of the retraining."""
        config = self.config
        return partial(build_in, self.frame, arch, drop_path=config.retrain.drop_path, init_std=config.model.init_std)

    def baselines(self) -> Mapping[str, tuple[str, Arch]]:
        """Return the network whose heads are all global."""
        return {"deit_shaped": ("DeiT-shaped (all heads global)", self.deit_shaped)}

    @property
    def deit_shaped(self) -> Arch:
        """The network whose heads are all global."""
        return same_heads(self.config.model.num_heads, self.axes)

    def drawings(self, arch: Arch) -> Sequence[BlockDrawing]:
        """Return one box per block (paper, figure 5)."""
        return block_drawings(arch, self.config.model.num_heads)

    def check(self) -> None:
        """Refuse what no stage could do, before any of them starts; a ValueError says what to change."""
        with torch.device("meta"):  # refuses widths that do not divide, without computing
            for block in table2(self.axes.with_blocks(1)):
                build_in(self.frame, block)
        super().check()
        if self.config.method == "hierarchical":
            self.heads.sample(0)


class MissingDetails:
    """Costs 0 where the heads of an architecture have details inside the last stage's budget, and 1 where not.

    Costs do not depend on the order of blocks, so one answer serves all orders of the same heads.
    """

    unit = "heads without details in the budget"

    def __init__(self, problem: GLiTProblem) -> None:
        self._problem = problem
        self._known: dict[tuple[int, ...], int] = {}

    def __call__(self, arch: Arch) -> int:
        """Return 0 or 1."""
        heads = tuple(sorted(int(value) for value in arch.only("block.*.global_heads").values()))
        if heads not in self._known:
            try:
                self._problem.details(Arch({f"block.{i}.global_heads": h for i, h in enumerate(heads)}))
                self._known[heads] = 0
            except ValueError:
                self._known[heads] = 1
        return self._known[heads]
