"""A LocalViT run's space, budget and networks."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from torch import nn

from nasx import Arch, Budget, Space
from nasx.cost import AdditiveCost
from nasx.feasible import Feasible
from nasx.recipe.problem import Problem
from nasx.report import BlockDrawing
from recipes.localvit.config import Config
from recipes.localvit.cost import Macs, Params
from recipes.localvit.model import Frame, build_in
from recipes.localvit.space import locality, variant
from recipes.localvit.supernet import supernet


class LocalViTProblem(Problem[Config]):
    """One space of feed-forwards with and without locality, inside one budget."""

    title = "LocalViT"
    drawing_legend = "dark: with the depthwise stage, of kernel K; SE and ECA attend over channels"

    @cached_property
    def frame(self) -> Frame:
        """What all networks of the run share."""
        dataset = self.task.dataset
        return self.config.frame(in_channels=dataset.channels, num_classes=len(dataset.classes))

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
        return self.macs if self.config.budget.cost == "macs" else self.params

    @cached_property
    def joint(self) -> Feasible:
        """The space inside the budget."""
        budget = self.config.budget
        return locality(self.config.axes()).within(Budget(self.cost, budget.at_least, budget.at_most))

    def locality_level(self, inputs: Mapping[str, Any]) -> tuple[Space, Feasible]:
        """The only level: every block's feed-forward at once."""
        return self.joint.space, self.joint

    def supernet(self, space: Space) -> nn.Module:
        """Return an untrained supernet for a space of the run."""
        config = self.config
        return supernet(space, self.frame, drop_path=config.supernet.drop_path, init_std=config.model.init_std)

    def network(self, arch: Arch) -> Callable[[], nn.Module]:
        """Return what builds a network, with the drop path of the retraining."""
        config = self.config
        return partial(build_in, self.frame, arch, drop_path=config.retrain.drop_path, init_std=config.model.init_std)

    def baselines(self) -> Mapping[str, tuple[str, Arch]]:
        """Return DeiT, without locality, and the published way: the same locality in every block."""
        blocks = self.config.space.blocks
        return {
            "deit_shaped": ("DeiT-shaped (no locality)", variant(2, blocks=blocks, local=())),
            "localvit_shaped": ("LocalViT (locality in every block)", variant(2, blocks=blocks)),
        }

    def drawings(self, arch: Arch) -> Sequence[BlockDrawing]:
        """Return one box per block."""
        boxes = []
        for part in arch.parts("block"):
            lines = [f"MLP ×{float(part['mlp_ratio']):g}"]
            if part["depthwise"]:
                attention = str(part["channel_attention"])
                lines += [str(part["activation"]), *([attention.upper()] if attention != "none" else [])]
            title = f"K {part['kernel_size']}" if part["depthwise"] else "plain"
            boxes.append(BlockDrawing(title, 0.7 if part["depthwise"] else 0.1, tuple(lines)))
        return boxes
