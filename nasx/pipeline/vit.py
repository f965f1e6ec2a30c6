"""Searches of vision transformers on images: what recipes of them share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from typing import Any, ClassVar, Self, TypeVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import nn

from nasx.arch import Arch
from nasx.cost import Budget, Cost
from nasx.measure import CountedViTCost
from nasx.nn import ImageConfig
from nasx.pipeline.config import RunConfig, Section
from nasx.pipeline.images import ImageTask
from nasx.pipeline.problem import Baseline, Problem
from nasx.space import ArchSet, Space

Configured = TypeVar("Configured", bound="ViTRunConfig")


class ViTModel(Section):
    """What all networks of a run share; the fields that a recipe's ViT config has are the ViT config's."""

    patch_size: PositiveInt = Field(16, description="height and width of a patch, in pixels")
    init_std: PositiveFloat = Field(0.02, description="standard deviation of initial weights")


class HeadedModel(ViTModel):
    """What all networks share where their blocks have one width and one number of heads."""

    embed_dim: PositiveInt = Field(192, description="width of all networks, in channels")
    num_heads: PositiveInt = Field(3, description="heads of every block, global and local together")

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.embed_dim % self.num_heads:
            fitting = -(-self.embed_dim // self.num_heads) * self.num_heads
            raise ValueError(
                f"model.embed_dim must be a multiple of model.num_heads, but got {self.embed_dim} and "
                f"{self.num_heads}; write model.embed_dim={fitting}"
            )
        return self


class ViTRunConfig(RunConfig):
    """The settings of a run of vision transformers."""

    model: ViTModel = Field(ViTModel(), description="sizes that all networks share")
    vit_type: ClassVar[type[ImageConfig]]

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        size, patch = self.data.image_size, self.model.patch_size
        if size % patch:
            mend = f"data.image_size={max(1, round(size / patch)) * patch}"
            if self.data.source == "digits":  # whose size is given
                fitting = (side for side in range(2, min(patch, size - 1) + 1) if size % side == 0)
                mend = f"model.patch_size={max(fitting, default=1)}"
            raise ValueError(
                f"data.image_size must be a multiple of model.patch_size, but got {size} and {patch}; write {mend}"
            )
        return self

    def vit(self, *, in_channels: int = 3, num_classes: int = 1000, **more: Any) -> Any:
        """Return the ViT config of this run's networks for a data set; the defaults are ImageNet's."""
        known = {field.name for field in fields(self.vit_type)} - more.keys()
        model = {name: value for name, value in self.model if name in known}
        return self.vit_type(
            image_size=self.data.image_size, in_channels=in_channels, num_classes=num_classes, **model, **more
        )

    def vit_for(self, task: ImageTask) -> Any:
        """Return the ViT config of this run's networks for its images."""
        return self.vit(in_channels=task.dataset.channels, num_classes=len(task.dataset.classes))


class ViTProblem(Problem[Configured]):
    """A search of vision transformers of one size, which are built by `build(vit, arch, drop_path=, init_std=)`.

    `supernet(space, vit, drop_path=, init_std=)` returns a supernet. The costs `macs` and `params` are counted block by
    block by default, and `budget` is what the settings bound of them. `one_block` is the space of one block, of which
    every network is built before a run, because sizes may not divide.
    """

    def __init__(
        self,
        config: Configured,
        task: ImageTask,
        *,
        space: ArchSet,
        vit: ImageConfig,
        build: Callable[..., nn.Module],
        supernet: Callable[..., nn.Module],
        macs: Cost | None = None,
        params: Cost | None = None,
        budget: Sequence[Budget] | None = None,
        baselines: Mapping[str, Baseline],
        one_block: Space | None = None,
        **more: Any,
    ) -> None:
        self.vit, self.images = vit, task
        if one_block is not None:
            more["check"] = partial(check_sizes, partial(build, vit), one_block)
        macs = CountedViTCost(vit, build, "macs") if macs is None else macs
        params = CountedViTCost(vit, build, "params") if params is None else params
        bounds: Any = config  # a recipe's settings have the section
        budget = bounds.budget.budgets(macs, params, asdict(vit)) if budget is None else budget
        init_std = config.model.init_std

        def supernet_of(make: Any, space: Space) -> nn.Module:
            return supernet(space, vit, drop_path=config.supernet.drop_path, init_std=init_std)

        with settings_named(space.space):
            super().__init__(
                space,
                partial(build, vit, init_std=init_std),
                task,
                budget=budget,
                config=config,
                supernet=supernet_of,
                macs=macs,
                params=params,
                baselines=baselines,
                **more,
            )

    @property
    def vit_settings(self) -> dict[str, Any]:
        """`vit` as JSON values, from which a network can be built again."""
        return asdict(self.vit)


def check_sizes(build: Callable[[Arch], nn.Module], space: Space) -> None:
    """Build every network of a space, without computing; a ValueError says which setting's sizes do not divide."""
    with torch.device("meta"):
        for arch in space:
            with settings_named(space):
                build(arch)


@contextmanager
def settings_named(space: Space) -> Iterator[None]:
    """Name the setting `space.<choice>` in the message of a ValueError that begins with the name of a choice."""
    try:
        yield
    except ValueError as error:
        choice = str(error).partition(" ")[0]
        if type(error) is not ValueError or choice not in {name.rpartition(".")[2] for name, _ in space.walk()}:
            raise
        raise ValueError(f"space.{error}") from error
