"""Trained networks with all that their use needs: read from runs and files, written as safetensors or ONNX."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nasx.arch import Arch
from nasx.measure import count_macs, count_params
from nasx.pipeline.images import recorded_images
from nasx.pipeline.networks import read_weights
from nasx.pipeline.outcome import FinishedRun
from nasx.pipeline.recipe import Recipe, one_network
from nasx.pipeline.vit import ViTProblem, ViTRunConfig
from nasx.run import write_bytes, write_json, write_text
from nasx.verify import compare_onnx, export_onnx
from nasx.weights import fit_weights

WEIGHTS, ARCH, CLASSES, ONNX, CARD = "model.safetensors", "arch.json", "classes.json", "model.onnx", "README.md"
KEY = "nasx"  # the one key of the weights' metadata, because safetensors orders several at random


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

    def images(self, batch: int) -> Tensor:
        """Return random images (B, C, H, W) of the size that it takes."""
        size, generator = self.vit["image_size"], torch.Generator().manual_seed(0)
        return torch.randn(batch, self.vit["in_channels"], size, size, generator=generator)

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
        network=_with_weights(problem.make(run.arch), weights),
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
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {})[KEY])
        arch, classes = Arch(described["arch"]), described["classes"]
        vit = recipe.vit(described["vit"])
    except KeyError:
        raise ValueError(
            f"{path} does not say which network it belongs to; name it with --arch and --preset, or give what "
            "`export` has written"
        ) from None
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no exported network: {error}") from error
    if described.get("recipe", recipe.name) != recipe.name:
        raise ValueError(f"{path} is a network of the recipe {described['recipe']!r}; use that recipe's commands")
    return ExportedModel(
        recipe=recipe.name,
        network=_with_weights(recipe.build(vit, arch), load_file(path)),
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
    return _with_weights(network, weights)


def write_safetensors(model: ExportedModel, directory: Path, *, force: bool = False) -> list[Path]:
    """Write weights, architecture and model card into a directory, and return the files.

    FileExistsError, before anything is written, names a file that is there already; `force` overwrites.
    """
    described = {
        "recipe": model.recipe,
        "arch": dict(model.arch),
        "vit": dict(model.vit),
        "classes": model.classes,
        "mean": model.mean,
        "std": model.std,
        "accuracies": dict(model.accuracies),
        "origin": model.origin,
    }
    _refuse_existing(directory, (WEIGHTS, ARCH, CLASSES, CARD), force)
    state = {name: tensor.contiguous() for name, tensor in model.network.state_dict().items()}
    write_bytes(directory / WEIGHTS, save(state, metadata={KEY: json.dumps(described, sort_keys=True)}))
    return [directory / WEIGHTS, *_write_beside(model, directory, WEIGHTS)]


def write_onnx(model: ExportedModel, directory: Path, *, force: bool = False, tolerance: float = 1e-4) -> list[Path]:
    """Write an ONNX file with a batch of any size, architecture and model card, and return the files.

    What onnxruntime computes of two batches is compared first: a difference above `tolerance`, relative to the
    largest logit or 1, is an ArithmeticError, and nothing is written. FileExistsError is as of `write_safetensors`.
    """
    _refuse_existing(directory, (ONNX, ARCH, CLASSES, CARD), force)
    network, images = model.network.float().cpu().eval(), model.images(2)
    content = export_onnx(network, images)
    if not (found := compare_onnx(content, network, images, tolerance=tolerance)).passed:
        raise ArithmeticError(f"{found}; nothing was kept")
    write_bytes(directory / ONNX, content)
    return [directory / ONNX, *_write_beside(model, directory, ONNX)]


def card(model: ExportedModel, weights: str) -> str:
    """Return the model card: what the network is, expects, answers, costs and achieves, and how it is loaded."""
    vit, counts, size = model.vit, model.counts(), model.vit["image_size"]
    name = str(model.arch.get("timm", model.recipe))
    lines = [f"# {name}, {model.num_classes} classes, {size} x {size} pixels", ""]
    lines += [model.origin, ""] if model.origin else []
    lines += ["| | |", "|---|---|"]
    lines += [f"| {part} accuracy | {accuracy:.2%} |" for part, accuracy in model.accuracies.items()]
    lines += [f"| parameters | {counts['params']:,} |", f"| multiply-adds, one image | {counts['macs']:,} |"]
    lines += [f"| input | float32, (batch, {vit['in_channels']}, {size}, {size}) |"]
    lines += [f"| normalisation, of 0..1 | mean {_listed(model.mean)}; std {_listed(model.std)} |"]
    lines += [f"| output | logits, (batch, {model.num_classes}), in the order of classes.json |", ""]
    lines += ["Images are resized by the shorter side, bicubic, and the centre is cropped.", ""]
    if weights == ONNX:
        code = (
            'import onnxruntime\n\nlogits = onnxruntime.InferenceSession("model.onnx").run(None, {"images": images})[0]'
        )
    else:
        code = (
            "from pathlib import Path\n\nfrom nasx.pipeline.exported import from_file\n"
            f"from recipes.{model.recipe}.recipe import RECIPE\n\n"
            'logits = from_file(RECIPE, Path("model.safetensors")).network(images)'
        )
    return "\n".join([*lines, f"```python\n{code}\n```", ""])


def _with_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    places = {name: (name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}
    network.load_state_dict(fit_weights(weights, places))
    return network.eval()


def _refuse_existing(directory: Path, names: Sequence[str], force: bool) -> None:
    present = [name for name in names if (directory / name).exists()]
    if present and not force:
        raise FileExistsError(
            f"{directory} holds {present[0]} already, which would be overwritten; choose another --out, or add --force"
        )
    directory.mkdir(parents=True, exist_ok=True)


def _write_beside(model: ExportedModel, directory: Path, weights: str) -> list[Path]:
    write_text(directory / ARCH, model.arch.to_json())
    classes = model.classes
    write_json(directory / CLASSES, list(classes) if isinstance(classes, tuple) else classes)
    write_text(directory / CARD, card(model, weights))
    return [directory / name for name in (ARCH, CLASSES, CARD)]


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
