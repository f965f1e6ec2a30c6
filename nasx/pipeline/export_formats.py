"""Networks written as folders for use elsewhere: safetensors (also for timm), ONNX, and torch.export's pt2."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from nasx.pipeline.exported import KEY, WEIGHTS, ExportedModel
from nasx.pipeline.model_card import CARD, MARK, Format, card
from nasx.pipeline.onnx_files import add_metadata, add_preprocessing
from nasx.pipeline.timm_config import timm_config
from nasx.run import write_bytes, write_json, write_text
from nasx.run.stages import RUN
from nasx.verify import compare_onnx, export_onnx

ARCH, CLASSES, CONFIG, ONNX, PT2 = "arch.json", "classes.json", "config.json", "model.onnx", "model.pt2"
DESCRIPTION = "nasx.json"
"""The extra file of a pt2 archive that describes the network."""


def write_safetensors(model: ExportedModel, directory: Path, *, force: bool = False) -> list[Path]:
    """Write weights, config.json, architecture and model card into a directory, and return the files.

    The directory has the layout of the Hugging Face Hub: `nasx.load(directory)` reads it, and so does
    `timm.create_model("local-dir:DIRECTORY", pretrained=True)` once `nasx.recipes.<recipe>.timm` is imported.

    FileExistsError, before anything is written, names a file that is there already. `force` overwrites what an export
    wrote, but neither a run directory nor a README.md from elsewhere.
    """
    names = (WEIGHTS, CONFIG)
    _refuse_existing(directory, names, force)
    # its tensors may share memory, which safetensors refuses
    state = {name: tensor.contiguous() for name, tensor in model.network.state_dict().items()}
    described = json.dumps(model.description(), sort_keys=True)
    write_bytes(directory / WEIGHTS, save(state, metadata={KEY: described}))
    write_json(directory / CONFIG, timm_config(model))
    return _with_card(model, directory, names, "safetensors")


def write_onnx(
    model: ExportedModel, directory: Path, *, preprocess: bool = False, force: bool = False, tolerance: float = 1e-4
) -> list[Path]:
    """Write an ONNX file with a batch of any size, architecture and model card, and return the files.

    Its metadata hold what `ExportedModel.description` returns, each value as JSON. With `preprocess` its inputs are
    uint8 images (B, H, W, C) of any size, which the graph resizes, crops and normalises; else float32 (B, C, H, W).

    What onnxruntime computes of two batches is compared first: a difference above `tolerance`, relative to the
    largest logit or 1, is an ArithmeticError, and nothing is written. ImportError without the packages of the extra
    `onnx`. FileExistsError is as of `write_safetensors`.
    """
    _refuse_existing(directory, (ONNX,), force)
    network, images = model.network.float().cpu().eval(), model.images(2)
    content = export_onnx(network, images)
    if not (found := compare_onnx(content, network, images, tolerance=tolerance)).passed:
        raise ArithmeticError(f"{found}; nothing was kept")
    if preprocess:
        content = add_preprocessing(content, model.preprocessing)
    write_bytes(directory / ONNX, add_metadata(content, model, preprocess=preprocess))
    return _with_card(model, directory, (ONNX,), "onnx-images" if preprocess else "onnx")


def write_pt2(model: ExportedModel, directory: Path, *, force: bool = False, tolerance: float = 1e-5) -> list[Path]:
    """Write what `torch.export` makes of the network, for a batch of any size, and return the files.

    `torch.export.load` reads it without nasx. The archive's extra file nasx.json holds what
    `ExportedModel.description` returns. What it computes of two batches is compared first, as by `write_onnx`.
    """
    _refuse_existing(directory, (PT2,), force)
    network, images = model.network.float().cpu().eval(), model.images(2)
    with torch.no_grad():
        program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        exported = program.module()
        for batch in (images[:1], torch.cat([images.flip(0), images[:1]])):
            expected = network(batch)
            difference = float((exported(batch) - expected).abs().max() / expected.abs().max().clamp(min=1))
            if not difference <= tolerance:
                raise ArithmeticError(f"the exported program's logits differ by {difference:.3g}; nothing was kept")
    buffer = io.BytesIO()
    described = model.description() | {"classes": model.class_names}
    torch.export.save(program, buffer, extra_files={DESCRIPTION: json.dumps(described, sort_keys=True)})
    write_bytes(directory / PT2, buffer.getvalue())
    return _with_card(model, directory, (PT2,), "pt2")


def _refuse_existing(directory: Path, names: Sequence[str], force: bool) -> None:
    if (directory / RUN).exists():
        raise FileExistsError(f"{directory} is a run directory, whose files must stay; choose another --out")
    present = [name for name in (*names, ARCH, CLASSES, CARD) if (directory / name).exists()]
    if present and not force:
        raise FileExistsError(
            f"{directory} holds {present[0]} already, which would be overwritten; choose another --out, or add --force"
        )
    if CARD in present and MARK not in (directory / CARD).read_text(encoding="utf-8", errors="replace"):
        raise FileExistsError(
            f"{directory / CARD} was not written by `export`, and is kept even with --force; move it away, or choose "
            "another --out"
        )
    directory.mkdir(parents=True, exist_ok=True)


def _with_card(model: ExportedModel, directory: Path, names: Sequence[str], kind: Format) -> list[Path]:
    write_text(directory / ARCH, model.arch.to_json())
    classes = model.classes
    write_json(directory / CLASSES, list(classes) if isinstance(classes, tuple) else classes)
    write_text(directory / CARD, card(model, kind))
    return [directory / name for name in (*names, ARCH, CLASSES, CARD)]
