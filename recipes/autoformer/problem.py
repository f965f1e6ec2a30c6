"""An AutoFormer run's space, budget and networks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from torch import nn

from nasx import Arch, Budget, Space
from nasx.cost import AdditiveCost
from nasx.feasible import Feasible
from nasx.recipe.problem import Problem
from nasx.report import BlockDrawing
from recipes.autoformer.config import Config
from recipes.autoformer.cost import Macs, Params
from recipes.autoformer.model import Frame, build_in
from recipes.autoformer.space import Axes, uniform
from recipes.autoformer.supernet import supernet


class AutoFormerProblem(Problem[Config]):
    """One space of widths, depths, heads and MLP ratios, inside one budget."""

    title = "AutoFormer"
    drawing_legend = "darker: more heads; below them the MLP ratio"

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
    def cost(self) -> AdditiveCost:
        """The cost that budgets bound."""
        return self.params if self.config.budget.cost == "params" else self.macs

    @cached_property
    def joint(self) -> Feasible:
        """The space inside the budget."""
        budget = self.config.budget
        return self.axes.space().within(Budget(self.cost, budget.at_least, budget.at_most))

    def sizes_level(self, inputs: Mapping[str, Any]) -> tuple[Space, Feasible]:
        """The only level: all sizes at once."""
        return self.joint.space, self.joint

    def supernet(self, space: Space) -> nn.Module:
        """Return the untrained largest network, of which all others are slices."""
        axes, config = self.axes, self.config
        if config.model.supernet_dim and config.model.supernet_dim not in axes.embed_dim:
            space = replace(axes, embed_dim=(*axes.embed_dim, config.model.supernet_dim)).space()
        return supernet(space, self.frame, drop_path=config.supernet.drop_path, init_std=config.model.init_std)

    def network(self, arch: Arch) -> Callable[[], nn.Module]:
        """Return what builds a network, with the drop path of the retraining."""
        config = self.config
        return partial(build_in, self.frame, arch, drop_path=config.retrain.drop_path, init_std=config.model.init_std)

    def baselines(self) -> Mapping[str, tuple[str, Arch]]:
        """Return the smallest network of DeiT's shape: all blocks alike; it can lie below the budget."""
        axes = self.axes
        alike = uniform(axes.embed_dim[0], axes.depth[0], axes.num_heads[0], axes.mlp_ratio[-1])
        return {"deit_shaped": ("DeiT-shaped (smallest, all alike)", alike)}

    def drawings(self, arch: Arch) -> Sequence[BlockDrawing]:
        """Return one box per block."""
        most = max(self.axes.num_heads)
        return [
            BlockDrawing(
                f"{part['num_heads']} heads", int(part["num_heads"]) / most, (f"MLP ×{float(part['mlp_ratio']):g}",)
            )
            for part in arch.parts("block")
        ]
