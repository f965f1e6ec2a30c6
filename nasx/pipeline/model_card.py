"""The README.md of an exported network: what it is and achieves, and code that uses it, which runs as printed."""

from typing import Literal

from nasx.pipeline.exported import ExportedModel
from nasx.pipeline.preprocessing import reading_code

CARD = "README.md"
MARK = "<!-- nasx wrote this file. `export --force` replaces it as long as this line is in it. -->"
Format = Literal["safetensors", "onnx", "onnx-images", "pt2"]
"""What an export is: `onnx-images` has the preprocessing in its graph."""

_LIBRARY = {"safetensors": "timm", "onnx": "onnx", "onnx-images": "onnx", "pt2": "pytorch"}


def card(model: ExportedModel, kind: Format) -> str:
    """Return the model card: what the network is, expects, answers, costs and achieves, and code to use it.

    The code runs in the folder of the card, beside an image.jpg. Its head is what the Hugging Face Hub reads.
    """
    vit, counts, size = model.vit, model.counts(), model.vit["image_size"]
    name = str(model.arch.get("timm", model.recipe))
    lines = ["---", f"library_name: {_LIBRARY[kind]}", "pipeline_tag: image-classification"]
    lines += ["tags:", "- image-classification", "- nasx", "---", ""]
    lines += [f"# {name}, {model.num_classes} classes, {size} x {size} pixels", ""]
    lines += [model.origin, ""] if model.origin else []
    lines += ["| | |", "|---|---|"]
    lines += [f"| {part} accuracy | {accuracy:.2%} |" for part, accuracy in model.accuracies.items()]
    lines += [f"| parameters | {counts['params']:,} |", f"| multiply-adds, one image | {counts['macs']:,} |"]
    if kind == "onnx-images":
        lines += [f"| input | uint8, (batch, height, width, {vit['in_channels']}), of any height and width |"]
    else:
        lines += [f"| input | float32, (batch, {vit['in_channels']}, {size}, {size}) |"]
    lines += [f"| normalisation, of 0..1 | mean {_listed(model.mean)}; std {_listed(model.std)} |"]
    lines += [f"| output | logits, (batch, {model.num_classes}), in the order of classes.json |", ""]
    side = model.preprocessing.resized_side
    crop = "" if side == size else f", and the centre of {size} x {size} pixels is cut out"
    lines += [f"Images are resized (bicubic) so that their shorter side has {side} pixels{crop}"]
    lines[-1] += "." if side != size else f"; the centre of {size} x {size} pixels is used."
    return "\n".join([*lines, "", *_use(model, kind), MARK, ""])


def _use(model: ExportedModel, kind: Format) -> list[str]:
    """Return paragraphs and blocks of code."""
    preprocess = model.preprocessing.as_code()
    by_hand = ["`preprocess` needs Pillow and numpy alone and does what the evaluation of the network did.", ""]
    by_hand.append(_block(preprocess))
    match kind:
        case "safetensors":
            return [
                "With nasx (`pip install 'nasx[recipes]'`):",
                "",
                _block(_WITH_NASX),
                "With timm, and the preprocessing written out:",
                "",
                *by_hand,
                _block(_with_timm(model)),
            ]
        case "onnx":
            return ["With `pip install onnxruntime pillow`:", "", *by_hand, _block(_WITH_ONNX)]
        case "onnx-images":
            channels = model.vit["in_channels"]
            axes = "[None, :, :, None]" if channels == 1 else "[None]"
            return [
                "With `pip install onnxruntime pillow`; resizing, cropping and normalising are part of the graph:",
                "",
                _block(_ONNX_OF_IMAGES.format(read=reading_code(channels), axes=axes)),
            ]
        case "pt2":
            return ["With `pip install torch pillow`, without nasx:", "", *by_hand, _block(_WITH_TORCH)]


_WITH_NASX = """\
import nasx

network = nasx.load(".")
for name, probability in network.predict("image.jpg")[:3]:
    print(f"{name}: {probability:.1%}")
"""

_WITH_ONNX = """\
import json

import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
logits = session.run(None, {"images": preprocess("image.jpg")})[0]
print(classes[logits[0].argmax()])
"""

_ONNX_OF_IMAGES = """\
import json

import numpy as np
import onnxruntime
from PIL import Image


{read}

session = onnxruntime.InferenceSession("model.onnx")
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
pixels = np.asarray(read("image.jpg")){axes}
logits = session.run(None, {{"images": pixels}})[0]
print(classes[logits[0].argmax()])
"""

_WITH_TORCH = """\
import json

import torch

description = {"nasx.json": ""}
network = torch.export.load("model.pt2", extra_files=description).module()
classes = json.loads(description["nasx.json"])["classes"]
with torch.no_grad():
    logits = network(torch.from_numpy(preprocess("image.jpg")))
print(classes[int(logits[0].argmax())])
"""


def _with_timm(model: ExportedModel) -> str:
    registers = "" if "timm" in model.arch else f"\nimport nasx.recipes.{model.recipe}.timm  # registers it with timm\n"
    return f"""\
import timm
import torch
{registers}
network = timm.create_model("local-dir:.", pretrained=True).eval()
with torch.no_grad():
    logits = network(torch.from_numpy(preprocess("image.jpg")))
print(network.pretrained_cfg["label_names"][int(logits[0].argmax())])
"""


def _block(code: str) -> str:
    return f"```python\n{code}```\n"


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
