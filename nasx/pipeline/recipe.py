"""A recipe as its command line sees it: presets, the problem that settings state, and its published networks."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from nasx.cli import nearest
from nasx.pipeline.records import WEIGHTS, read_asked
from nasx.run.stages import RUN

if TYPE_CHECKING:
    from torch import nn

    from nasx.arch import Arch
    from nasx.nn import ImageConfig
    from nasx.pipeline.image_sources import FolderFacts
    from nasx.pipeline.images import ImageTask
    from nasx.pipeline.problem import Problem
    from nasx.pipeline.stages import RunStage
    from nasx.pipeline.vit import ViTProblem, ViTRunConfig


@dataclass(frozen=True, slots=True)
class KnownNetwork:
    """A network with a name of its own, and the preset whose sizes and space it belongs to."""

    arch: "Arch"
    preset: str


@dataclass(frozen=True, slots=True)
class Imported:
    """A network read from published weights, and what had to be assumed of them, in sentences."""

    network: "nn.Module"
    arch: "Arch"
    vit: "ImageConfig"
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a recipe of vision transformers brings to its command line.

    - `presets` are settings by name; `default_preset` is what commands without data start from.
    - `problem(config, task)` states the search of a run.
    - `vit(settings)` is the ViT config that exported settings describe, `build(vit, arch, *, drop_path=0.0)` an
      untrained network of it.
    - `known` are networks by name, `fit(facts)` the settings for a folder of images, where the recipe has such.
    - `read_official(state, options)` reads published weights.
    - `alone(config, task, arch)` is the problem of training a network outside the space, None for others.
    """

    name: str
    title: str
    presets: "Mapping[str, ViTRunConfig]"
    default_preset: str
    problem: "Callable[[Any, ImageTask], ViTProblem[Any]]"
    vit: "Callable[[Mapping[str, Any]], ImageConfig]"
    build: "Callable[..., nn.Module]"
    read_official: "Callable[[Mapping[str, Any], ImportOptions], Imported]"
    known: Mapping[str, KnownNetwork] = field(default_factory=dict)
    fit: "Callable[[FolderFacts], ViTRunConfig] | None" = None
    alone: "Callable[[Any, ImageTask, Arch], ViTProblem[Any] | None] | None" = None
    foreign: "Callable[[str], Arch | None]" = lambda name: None
    """The architecture that a name outside the space stands for, such as that of a network of timm."""
    free: Sequence[str] = ("budget.at_least=null", "budget.at_most=null")
    """Changes of the settings that leave every network of the space alone: what training one network takes."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What is asked of an import; None leaves it to the weights."""

    classes: int | None = None
    image_size: int | None = None
    heads: int | None = None
    arch: "Arch | None" = None


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the library."""
    import nasx.recipes

    return sorted(module.name for module in iter_modules(nasx.recipes.__path__) if module.ispkg)


def recipe_module(name: str, module: str) -> Any:
    """Return a module of one of the library's recipes, such as `problem`; a ValueError says that there is none such.

    In a checkout that runs `recipes.<name>`, it is that copy of the files.
    """
    if name not in recipe_names():
        raise ValueError(f"there is no recipe {name!r}{nearest(name, recipe_names())}")
    package = f"recipes.{name}" if f"recipes.{name}" in sys.modules else f"nasx.recipes.{name}"
    return import_module(f"{package}.{module}")


def open_recipe(name: str) -> Recipe:
    """Return one of the library's recipes; a ValueError says that there is none such."""
    recipe: Recipe = recipe_module(name, "problem").RECIPE
    return recipe


def recipe_of(path: Path) -> str | None:
    """Return the name of the recipe that a run or an exported network belongs to, None where it does not say.

    A ValueError says that the record of a run is damaged.
    """
    if (path / RUN).is_file():
        name = read_asked(path)["config"].get("recipe")
        return None if name is None else str(name)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        return None
    with file.open("rb") as opened:  # the header of safetensors: its length, then JSON; torch is not needed
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(length) if length < file.stat().st_size else b""
    try:
        return str(json.loads(json.loads(header)["__metadata__"]["nasx"])["recipe"])
    except (KeyError, ValueError):
        return None


def no_network(path: Path) -> str:
    """Return why there is no network to read at a path, in words and with the mend."""
    if not path.exists():
        return f"there is no {path}; name a run directory, or a network that was exported or imported"
    for name in ("model.onnx", "model.pt2"):
        if (path / name).is_file():
            return (
                f"{path} holds {name}, for use without nasx, as its README.md shows; for nasx, export with "
                "--format safetensors"
            )
    return f"{path} is neither a run directory nor a network that was exported or imported"


def as_sentence(remark: str) -> str:
    """Return a remark with a capital letter and a full stop."""
    return f"{remark[:1].upper()}{remark[1:].rstrip('.')}."


def one_network(name: str, arch: "Arch") -> "Callable[[Problem[Any]], list[RunStage]]":
    """Return the stages that train one network alone and test it."""

    def stages(problem: "Problem[Any]") -> "list[RunStage]":
        from nasx.pipeline.network_stages import EvaluationStage, RetrainStage
        from nasx.pipeline.picks import Pick

        retrain = RetrainStage("network/retrain", archs=(arch,), halving=False)
        return [retrain, EvaluationStage("evaluation", {name: Pick(retrain.name)})]

    return stages
