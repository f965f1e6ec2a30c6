"""Trained networks with all that their use needs: read from runs and files, written as safetensors or ONNX."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nasx import Arch
from nasx.measure import count_macs, count_params
from nasx.pipeline.outcome import Finished
from nasx.run import write_bytes, write_json, write_text
from nasx.verify import compare_onnx, export_onnx
from nasx.weights import fit_weights, read_state_dict
from recipes.glit.config import IMAGENET_MEAN, IMAGENET_STD, Config
from recipes.glit.model import Frame, build_in
from recipes.glit.official import infer_deit, infer_glit, load_deit, load_glit
from recipes.glit.timm_problem import build_timm
from recipes.glit.variant import Variant

WEIGHTS, ARCH, ONNX, CARD = "model.safetensors", "arch.json", "model.onnx", "README.md"
KEY = "nasx"  # the one key of the weights' metadata, because safetensors orders several at random


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """A network in evaluation mode, its architecture and frame, and what it was trained to expect and to answer.

    `classes` are names, or their number where they have none. `mean` and `std` are of images in 0..1. The frame of a
    network of timm says no more than image size, channels and classes. `accuracies` are in 0..1, `told` is where the
    network comes from, in a sentence.
    """

    network: nn.Module
    arch: Arch
    frame: Frame
    classes: tuple[str, ...] | int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accuracies: Mapping[str, float] = field(default_factory=dict)
    told: str = ""

    @property
    def name(self) -> str:
        """What the card calls it."""
        return str(self.arch.get("timm", "GLiT"))

    def images(self, batch: int) -> Tensor:
        """Return random images (B, C, H, W) of the size that it takes."""
        size, generator = self.frame.image_size, torch.Generator().manual_seed(0)
        return torch.randn(batch, self.frame.in_channels, size, size, generator=generator)

    def counts(self) -> dict[str, int]:
        """Return its parameters and multiply-adds, counted."""
        return {"params": count_params(self.network), "macs": count_macs(self.network, self.images(1))}


def build(arch: Arch, frame: Frame) -> nn.Module:
    """Return an untrained network: a global-local one, or timm's where the architecture names one."""
    if "timm" not in arch:
        return build_in(frame, arch)
    return build_timm(
        str(arch["timm"]),
        num_classes=frame.num_classes,
        image_size=frame.image_size,
        in_channels=frame.in_channels,
    )


def with_weights(arch: Arch, frame: Frame, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a network with weights, in evaluation mode; a ValueError names the first that does not fit."""
    network = build(arch, frame)
    places = {name: (name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}
    head = [name for name in ("head.weight", "fc.weight") if name in places and name in weights]
    for name in head:
        if len(weights[name]) != frame.num_classes:
            raise ValueError(
                f"the weights are of {len(weights[name])} classes, but {frame.num_classes} are expected; give data or "
                f"--classes {len(weights[name])} that they belong to"
            )
    network.load_state_dict(fit_weights(weights, places))
    return network.eval()


def frame_of(config: Config, arch: Arch, num_classes: int) -> Frame:
    """Return the frame of a run's networks for its number of classes."""
    channels = 1 if config.data.source == "digits" else 3
    if "timm" in arch:
        return Frame(image_size=config.data.image_size, patch_size=1, in_channels=channels, num_classes=num_classes)
    return config.frame(in_channels=channels, num_classes=num_classes)


def from_run(run: Finished, config: Config) -> Shipped:
    """Return the network that a finished run found or trained."""
    classes = tuple(run.split["train"]["per_class"])
    frame = frame_of(config, run.arch, len(classes))
    winner = next(iter(run.summary["networks"].values()))
    method = f", method {config.method}" if "searched" in run.summary["networks"] else ""
    return Shipped(
        network=with_weights(run.arch, frame, load_file(run.weights)),
        arch=run.arch,
        frame=frame,
        classes=classes,
        mean=tuple(run.summary["normalisation"]["mean"]),
        std=tuple(run.summary["normalisation"]["std"]),
        accuracies={"validation": winner["val_accuracy"], "test": winner["test_accuracy"]},
        told=f"{'Searched' if method else 'Trained'} with the preset {config.preset}{method}, seed {config.seed}.",
    )


def from_file(path: Path) -> Shipped:
    """Return the network of exported weights, whose metadata say all that its use needs."""
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})[KEY])
        frame = Frame(**{**told["frame"], "variant": Variant(**told["frame"]["variant"])})
        arch, classes = Arch(told["arch"]), told["classes"]
    except KeyError:
        raise ValueError(
            f"{path} does not say which network it belongs to; name it with --arch and --preset, or give what "
            "`export` has written"
        ) from None
    return Shipped(
        network=with_weights(arch, frame, load_file(path)),
        arch=arch,
        frame=frame,
        classes=classes if isinstance(classes, int) else tuple(classes),
        mean=tuple(told["mean"]),
        std=tuple(told["std"]),
        accuracies=told["accuracies"],
        told=told["told"],
    )


def from_published(path: Path, *, num_classes: int | None = None, image_size: int | None = None) -> Shipped:
    """Return the network of GLiT's published checkpoint, or of DeiT's or timm's weights of a plain ViT.

    Another number of classes has a new head, another image size interpolated positions.
    """
    state = read_state_dict(path)
    glit = any(name.startswith("blocks.0.0.") for name in state)  # there a block is a list of one
    frame, arch = infer_glit(state) if glit else infer_deit(state)
    network = (load_glit if glit else load_deit)(state, num_classes=num_classes, image_size=image_size)
    told = f"Read from published weights of {'GLiT' if glit else 'a plain vision transformer'}."
    if network.frame.num_classes != frame.num_classes:
        told += f" The head for {network.frame.num_classes} classes is new and not trained."
    if network.frame.image_size != frame.image_size:
        told += f" Positions are interpolated from images of {frame.image_size} pixels."
    return Shipped(
        network=network,
        arch=arch,
        frame=network.frame,
        classes=network.frame.num_classes,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        told=told,
    )


def write_safetensors(shipped: Shipped, directory: Path) -> list[Path]:
    """Write weights, architecture and model card into a directory, and return the files."""
    told = {
        "arch": dict(shipped.arch),
        "frame": asdict(shipped.frame),
        "classes": shipped.classes,
        "mean": shipped.mean,
        "std": shipped.std,
        "accuracies": dict(shipped.accuracies),
        "told": shipped.told,
    }
    state = {name: tensor.contiguous() for name, tensor in shipped.network.state_dict().items()}
    directory.mkdir(parents=True, exist_ok=True)
    write_bytes(directory / WEIGHTS, save(state, metadata={KEY: json.dumps(told, sort_keys=True)}))
    return [directory / WEIGHTS, *_write_beside(shipped, directory, WEIGHTS)]


def write_onnx(shipped: Shipped, directory: Path, *, tolerance: float = 1e-4) -> list[Path]:
    """Write an ONNX file with a batch of any size, architecture and model card, and return the files.

    What onnxruntime computes of two batches is compared first: a difference above `tolerance`, relative to the
    largest logit or 1, is an ArithmeticError, and nothing is written.
    """
    network, images = shipped.network.float().cpu().eval(), shipped.images(2)
    content = export_onnx(network, images)
    if not (found := compare_onnx(content, network, images, tolerance=tolerance)).passed:
        raise ArithmeticError(f"{found}; nothing was kept")
    directory.mkdir(parents=True, exist_ok=True)
    write_bytes(directory / ONNX, content)
    return [directory / ONNX, *_write_beside(shipped, directory, ONNX)]


def _write_beside(shipped: Shipped, directory: Path, weights: str) -> list[Path]:
    write_text(directory / ARCH, shipped.arch.to_json())
    classes = shipped.classes
    write_json(directory / "classes.json", list(classes) if isinstance(classes, tuple) else classes)
    write_text(directory / CARD, card(shipped, weights))
    return [directory / name for name in (ARCH, "classes.json", CARD)]


def card(shipped: Shipped, weights: str) -> str:
    """Return the model card: what the network is, expects, answers, costs and achieves, and how it is loaded."""
    frame, counts = shipped.frame, shipped.counts()
    classes = shipped.classes if isinstance(shipped.classes, int) else len(shipped.classes)
    lines = [f"# {shipped.name}, {classes} classes, {frame.image_size} x {frame.image_size} pixels", ""]
    lines += [shipped.told, ""] if shipped.told else []
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name} accuracy | {accuracy:.2%} |" for name, accuracy in shipped.accuracies.items()]
    lines += [f"| parameters | {counts['params']:,} |", f"| multiply-adds, one image | {counts['macs']:,} |"]
    lines += [f"| input | float32, (batch, {frame.in_channels}, {frame.image_size}, {frame.image_size}) |"]
    lines += [f"| normalisation, of 0..1 | mean {_listed(shipped.mean)}; std {_listed(shipped.std)} |"]
    lines += [f"| output | logits, (batch, {classes}), in the order of classes.json |", ""]
    lines += ["Images are resized by the shorter side, bicubic, and the centre is cropped.", ""]
    if weights == ONNX:
        code = (
            'import onnxruntime\n\nlogits = onnxruntime.InferenceSession("model.onnx").run(None, {"images": images})[0]'
        )
    else:
        code = (
            "from pathlib import Path\n\nfrom recipes.glit.deploy import from_file\n\n"
            'logits = from_file(Path("model.safetensors")).network(images)'
        )
    return "\n".join([*lines, f"```python\n{code}\n```", ""])


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
