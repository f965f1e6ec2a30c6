"""A recipe as its command line sees it: presets, the problem that settings state, and its published networks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from nasx.arch import Arch
    from nasx.latency import Blocks
    from nasx.nn import ImageFrame
    from nasx.pipeline.images import FolderFacts, ImageTask
    from nasx.pipeline.problem import Problem
    from nasx.pipeline.stages import RunStage
    from nasx.pipeline.vit import ViTConfig, ViTProblem


@dataclass(frozen=True, slots=True)
class KnownNetwork:
    """A network with a name of its own, and the preset whose frame and space it belongs to."""

    arch: "Arch"
    preset: str


@dataclass(frozen=True, slots=True)
class Imported:
    """A network read from published weights, and what had to be assumed of them, in sentences."""

    network: "nn.Module"
    arch: "Arch"
    frame: "ImageFrame"
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a recipe of vision transformers brings to its command line.

    - `presets` are settings by name; `default_preset` is what commands without data start from.
    - `problem(config, task)` states the search of a run.
    - `frame(settings)` is the frame that exported settings describe, `build(frame, arch)` an untrained network in it.
    - `known` are networks by name, `fit(facts)` the settings for a folder of images, where the recipe has such.
    - `read_official(state, options)` reads published weights.
    - `alone(config, task, arch)` is the problem of training a network outside the space, None for others.
    - `blocks(frame, batch_size)` builds what latencies are measured of.
    """

    name: str
    title: str
    presets: "Mapping[str, ViTConfig]"
    default_preset: str
    problem: "Callable[[Any, ImageTask], ViTProblem[Any]]"
    frame: "Callable[[Mapping[str, Any]], ImageFrame]"
    build: "Callable[[Any, Arch], nn.Module]"
    read_official: "Callable[[Mapping[str, Any], ImportOptions], Imported]"
    known: Mapping[str, KnownNetwork] = field(default_factory=dict)
    fit: "Callable[[FolderFacts], ViTConfig] | None" = None
    alone: "Callable[[Any, ImageTask, Arch], ViTProblem[Any] | None] | None" = None
    foreign: "Callable[[str], Arch | None]" = lambda name: None
    """The architecture that a name outside the space stands for, such as that of a network of timm."""
    free: Sequence[str] = ()
    """Changes of the settings that leave every network of the space alone: what training one network takes."""
    blocks: "Callable[[Any, int], Blocks] | None" = None


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What is asked of an import; None leaves it to the weights."""

    classes: int | None = None
    image_size: int | None = None
    heads: int | None = None
    arch: "Arch | None" = None


def one_network(name: str, arch: "Arch") -> "Callable[[Problem[Any]], list[RunStage]]":
    """Return the stages that train one network alone and test it."""

    def stages(problem: "Problem[Any]") -> "list[RunStage]":
        from nasx.pipeline.stages import EvaluationStage, Pick, RetrainStage

        retrain = RetrainStage("network/retrain", archs=(arch,), halving=False)
        return [retrain, EvaluationStage("evaluation", {name: Pick(retrain.name)})]

    return stages
