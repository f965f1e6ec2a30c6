"""Networks written as folders for use elsewhere: safetensors (also for timm), ONNX, and torch.export's pt2."""

import contextlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from nasx.pipeline.errors import ExportFailed
from nasx.pipeline.exported import KEY, ExportedModel
from nasx.pipeline.model_card import CARD, MARK, Format, card
from nasx.pipeline.onnx_files import add_metadata, add_preprocessing
from nasx.pipeline.outputs import keep_runs
from nasx.pipeline.records import ARCH, WEIGHTS
from nasx.pipeline.timm_config import timm_config
from nasx.run import write_bytes
from nasx.verify import compare_onnx, export_onnx

CLASSES, CONFIG, ONNX, PT2 = "classes.json", "config.json", "model.onnx", "model.pt2"
DESCRIPTION = "nasx.json"
"""The extra file of a pt2 archive that describes the network."""


def write_safetensors(model: ExportedModel, directory: Path, *, force: bool = False) -> list[Path]:
    """Write weights, config.json, architecture and model card into a directory, and return the files.

    The directory has the layout of the Hugging Face Hub: `nasx.load(directory)` reads it, and so does
    `timm.create_model("local-dir:DIRECTORY", pretrained=True)` once `nasx.recipes.<recipe>.timm` is imported.

    FileExistsError, before anything is written, names a file that is there already. `force` overwrites what an export
    wrote, but neither a run directory nor a README.md from elsewhere. After any error the files are as they were.
    """
    names = (WEIGHTS, CONFIG)
    _refuse_existing(directory, names, force)
    # its tensors may share memory, which safetensors refuses
    state = {name: tensor.contiguous() for name, tensor in model.network.state_dict().items()}
    described = json.dumps(model.description(), sort_keys=True)
    files = {WEIGHTS: save(state, metadata={KEY: described}), CONFIG: _json(timm_config(model))}
    return _write(directory, files, model, "safetensors")


def write_onnx(
    model: ExportedModel, directory: Path, *, preprocess: bool = False, force: bool = False, tolerance: float = 1e-4
) -> list[Path]:
    """Write an ONNX file with a batch of any size, architecture and model card, and return the files.

    Its metadata hold what `ExportedModel.description` returns, each value as JSON. With `preprocess` its inputs are
    uint8 images (B, H, W, C) of any size, which the graph resizes, crops and normalises; else float32 (B, C, H, W).

    What onnxruntime computes of two batches is compared first: a difference above `tolerance`, relative to the
    largest logit or 1, is an ExportFailed, as is a network that torch cannot export; nothing is written then.
    ImportError without the packages of the extra `onnx`. FileExistsError is as of `write_safetensors`.
    """
    _refuse_existing(directory, (ONNX,), force)
    network, images = model.network.float().cpu().eval(), model.images(2)
    try:
        content = export_onnx(network, images)
    except torch.onnx.OnnxExporterError as error:
        raise ExportFailed(
            f"torch cannot export this network to ONNX: {_first_line(error.__cause__ or error)}"
        ) from error
    found = compare_onnx(content, network, images, tolerance=tolerance)
    if not found.passed:
        what = found.detail if found.difference is None else f"its logits differ by {found.difference:.3g}"
        raise ExportFailed(f"the ONNX file does not compute what the network does: {what}; nothing was written")
    if preprocess:
        content = add_preprocessing(content, model.preprocessing)
    files = {ONNX: add_metadata(content, model, preprocess=preprocess)}
    return _write(directory, files, model, "onnx-images" if preprocess else "onnx")


def write_pt2(model: ExportedModel, directory: Path, *, force: bool = False, tolerance: float = 1e-5) -> list[Path]:
    """Write what `torch.export` makes of the network, for a batch of any size, and return the files.

    `torch.export.load` reads it without nasx. The archive's extra file nasx.json holds what
    `ExportedModel.description` returns. What it computes of two batches is compared first, and errors are raised, as
    by `write_onnx`.
    """
    _refuse_existing(directory, (PT2,), force)
    network, images = model.network.float().cpu().eval(), model.images(2)
    try:
        with torch.no_grad():
            program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except RuntimeError as error:  # which all of torch.export's errors are
        raise ExportFailed(f"torch.export cannot export this network: {_first_line(error)}") from error
    exported = program.module()
    with torch.no_grad():
        for batch in (images[:1], torch.cat([images.flip(0), images[:1]])):
            expected = network(batch)
            difference = float((exported(batch) - expected).abs().max() / expected.abs().max().clamp(min=1))
            if not difference <= tolerance:
                raise ExportFailed(
                    "the exported program does not compute what the network does: its logits differ by "
                    f"{difference:.3g}; nothing was written"
                )
    buffer = io.BytesIO()
    described = model.description() | {"classes": model.class_names}
    torch.export.save(program, buffer, extra_files={DESCRIPTION: json.dumps(described, sort_keys=True)})
    return _write(directory, {PT2: buffer.getvalue()}, model, "pt2")


def _refuse_existing(directory: Path, names: Iterable[str], force: bool) -> None:
    keep_runs(directory, "--out")
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


def _write(directory: Path, files: Mapping[str, bytes], model: ExportedModel, kind: Format) -> list[Path]:
    """Write files, and those that every format has; where one cannot be written, those that are new go again."""
    classes = model.classes
    contents = {
        **files,
        ARCH: model.arch.to_json().encode(),
        CLASSES: _json(list(classes) if isinstance(classes, tuple) else classes),
        CARD: card(model, kind).encode(),
    }
    paths = [directory / name for name in contents]
    new = [path for path in (directory, *paths) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        for path, content in zip(paths, contents.values(), strict=True):
            write_bytes(path, content)
    except BaseException:
        for path in reversed(new):
            with contextlib.suppress(OSError):
                path.rmdir() if path == directory else path.unlink(missing_ok=True)
        raise
    return paths


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
