"""Trained networks with all that their use needs, read from runs and from files that `export` has written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from nasx.arch import Arch
from nasx.measure import count_macs, count_params
from nasx.pipeline.finished_run import FinishedRun, read_run
from nasx.pipeline.image_sources import recorded_images
from nasx.pipeline.preprocessing import Preprocessing
from nasx.pipeline.recipe import Recipe, no_network, one_network, open_recipe, recipe_names
from nasx.pipeline.records import WEIGHTS
from nasx.pipeline.vit import ViTProblem, ViTRunConfig
from nasx.pipeline.weight_files import load_weights, read_weights
from nasx.run.stages import RUN
from nasx.train import device_of
from nasx.weights import fit_weights

KEY = "nasx"
"""The one key of the weights' metadata, because safetensors orders several at random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """A network in evaluation mode, its architecture, and what it was trained to expect and to answer.

    `vit` rebuilds it (`Recipe.vit`): sizes in pixels, channels and classes at least. `classes` are names, or their
    number where they have none. `mean` and `std` are of images in 0..1. `accuracies` are in 0..1, `origin` is a
    sentence.
    """

    recipe: str
    network: nn.Module
    arch: Arch
    vit: Mapping[str, Any]
    classes: tuple[str, ...] | int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accuracies: Mapping[str, float] = field(default_factory=dict)
    origin: str = ""

    @property
    def num_classes(self) -> int:
        """How many classes the network tells apart."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes in the order of the logits; their numbers where they have no names."""
        return tuple(map(str, range(self.classes))) if isinstance(self.classes, int) else self.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become its inputs."""
        return Preprocessing(
            image_size=self.vit["image_size"], channels=self.vit["in_channels"], mean=self.mean, std=self.std
        )

    def description(self) -> dict[str, Any]:
        """Return everything but the network as JSON values: what files of weights carry with them."""
        return {
            "recipe": self.recipe,
            "arch": dict(self.arch),
            "vit": dict(self.vit),
            "classes": self.classes,
            "mean": self.mean,
            "std": self.std,
            "accuracies": dict(self.accuracies),
            "origin": self.origin,
        }

    def images(self, batch: int) -> Tensor:
        """Return random images (B, C, H, W) of the size that it takes, on its device."""
        size, generator = self.vit["image_size"], torch.Generator().manual_seed(0)
        images = torch.randn(batch, self.vit["in_channels"], size, size, generator=generator)
        return images.to(device_of(self.network))

    def counts(self) -> dict[str, int]:
        """Return its parameters and multiply-adds, counted."""
        return {"params": count_params(self.network), "macs": count_macs(self.network, self.images(1))}


def config_of(recipe: Recipe, run: FinishedRun) -> ViTRunConfig:
    """Return the settings of a run; a ValueError where they are of no preset of the recipe."""
    any_preset = next(iter(recipe.presets.values()))
    return type(any_preset).model_validate(run.config)


def problem_of_run(recipe: Recipe, run: FinishedRun) -> ViTProblem[Any]:
    """Return the problem of a run that is read back, without its images."""
    config = config_of(recipe, run)
    task = recorded_images(config.data, run.split)
    asked = run.asked.get("arch")
    if asked is None:
        return recipe.problem(config, task)
    return alone(recipe, config, task, Arch(asked))


def alone(recipe: Recipe, config: Any, task: Any, arch: Arch) -> ViTProblem[Any]:
    """Return the problem of training one network."""
    if recipe.alone is not None and (problem := recipe.alone(config, task, arch)) is not None:
        return problem.with_stages(one_network("trained", arch))
    return recipe.problem(config, task).with_stages(one_network("trained", arch))


class NoRecipe(ValueError):
    """Weights are not said to be of one of the library's recipes; the message says what to do."""


def open_model(path: Path, recipe: Recipe | None = None) -> ExportedModel:
    """Return the network of a run, or of a folder or file that `export` or `import-official` has written.

    The recipe is what the run or the file says, and must be `recipe` where that is given. A ValueError says that there
    is no such network, or that it was built by code outside of the library's recipes.
    """
    if (path / RUN).is_file():
        run = read_run(path, recipe.name if recipe else None)
        return from_run(recipe or _library_recipe(run.recipe, path), run)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise ValueError(no_network(path))
    if recipe is None:
        recipe = _library_recipe(str(_described(file).get("recipe")), path)
    return from_file(recipe, file)


def check_classes(model: ExportedModel, classes: tuple[str, ...]) -> None:
    """Refuse data with other classes than a network was trained for."""
    if model.num_classes != len(classes):
        raise ValueError(
            f"the network tells {model.num_classes} classes apart, but the data have {len(classes)}; give the data "
            "that it was trained for"
        )
    if isinstance(model.classes, tuple) and model.classes != classes:
        ours, other = next((a, b) for a, b in zip(model.classes, classes, strict=True) if a != b)
        raise ValueError(f"the network was trained for other classes: {ours!r} where the data have {other!r}")


def _library_recipe(name: str, path: Path) -> Recipe:
    if name not in recipe_names():
        raise NoRecipe(
            f"the network in {path} was built by code of your own ({name!r}), not by one of the library's recipes "
            f"({', '.join(recipe_names())}); run the same problem again and take the `network` of what `run` returns"
        )
    return open_recipe(name)


def _described(path: Path) -> dict[str, Any]:
    """Return the description in exported weights; a ValueError says that there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            described: dict[str, Any] = json.loads((file.metadata() or {})[KEY])
    except KeyError:
        raise NoRecipe(
            f"{path} does not say which network it belongs to; name it with --arch and --preset, or give what "
            "`export` has written"
        ) from None
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no exported network: {error}") from error
    return described


def from_run(recipe: Recipe, run: FinishedRun) -> ExportedModel:
    """Return the network that a finished run found or trained; CorruptWeights where its file was damaged."""
    problem = problem_of_run(recipe, run)
    winner = run.winner
    weights = read_weights(run.weights, winner["sha256"])
    names = tuple(run.split["train"]["per_class"])
    config = config_of(recipe, run)
    searched = "searched" in run.summary["networks"]
    method = f", method {run.summary['method']}" if searched and "method" in run.summary else ""
    return ExportedModel(
        recipe=recipe.name,
        network=load_weights(problem.make(run.arch), weights).eval(),
        arch=run.arch,
        vit=problem.vit_settings,
        classes=names,
        mean=tuple(run.summary["normalisation"]["mean"]),
        std=tuple(run.summary["normalisation"]["std"]),
        accuracies={"validation": winner["val_score"], "test": winner["test_score"]},
        origin=f"{'Searched' if searched else 'Trained'} with the preset {config.preset}{method}, seed {config.seed}.",
    )


def from_file(recipe: Recipe, path: Path) -> ExportedModel:
    """Return the network of exported weights, whose metadata hold all that its use needs."""
    described = _described(path)
    if described.get("recipe", recipe.name) != recipe.name:
        raise ValueError(f"{path} is a network of the recipe {described['recipe']!r}; use that recipe's commands")
    try:
        arch, classes = Arch(described["arch"]), described["classes"]
        vit = recipe.vit(described["vit"])
    except KeyError as error:
        raise ValueError(f"{path} does not say what its network's {error} is; export it again") from None
    return ExportedModel(
        recipe=recipe.name,
        network=load_weights(recipe.build(vit, arch), load_file(path)).eval(),
        arch=arch,
        vit=described["vit"],
        classes=classes if isinstance(classes, int) else tuple(classes),
        mean=tuple(described["mean"]),
        std=tuple(described["std"]),
        accuracies=described["accuracies"],
        origin=described["origin"],
    )


def with_weights(network: nn.Module, num_classes: int, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a network with weights from outside, in evaluation mode; a ValueError names one that does not fit."""
    state = network.state_dict()
    for name in ("head.weight", "fc.weight"):
        if name in state and name in weights and len(weights[name]) != num_classes:
            raise ValueError(
                f"the weights are of {len(weights[name])} classes, but {num_classes} are expected; give data or "
                f"--classes {len(weights[name])} that they belong to"
            )
    fitting = fit_weights(weights, {name: (name, tuple(tensor.shape)) for name, tensor in state.items()})
    network.load_state_dict(fitting)
    return network.eval()
