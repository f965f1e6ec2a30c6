"""What an ONNX file of a network carries beside it: metadata, and the preprocessing of images as nodes of the graph."""

import json
from importlib import import_module
from typing import Any

import numpy as np

from nasx.pipeline.exported import ExportedModel
from nasx.pipeline.preprocessing import Preprocessing

_PREFIX = "preprocess/"


def add_metadata(content: bytes, model: ExportedModel, *, preprocess: bool = False) -> bytes:
    """Return an ONNX file whose `metadata_props` describe the network, each value as JSON.

    `classes`, `image_size`, `channels`, `mean`, `std`, `crop_pct`, `preprocessing_in_graph`, `arch`, `recipe`, `vit`,
    `accuracies` and `origin`.
    """
    onnx = import_module("onnx")
    proto = onnx.load_from_string(content)
    described = model.description() | {
        "classes": model.class_names,
        "image_size": model.vit["image_size"],
        "channels": model.vit["in_channels"],
        "crop_pct": model.preprocessing.crop_pct,
        "preprocessing_in_graph": preprocess,
    }
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in sorted(described.items())})
    result: bytes = proto.SerializeToString()
    return result


def add_preprocessing(content: bytes, preprocessing: Preprocessing) -> bytes:
    """Return an ONNX file that takes uint8 images (B, H, W, C) of any height and width.

    The nodes are Pillow's bicubic resize of the shorter side, the crop of the centre, and the normalisation. A pixel in
    a thousand or fewer can differ from Pillow's, whose weights are whole numbers, by one or two levels of 255. Of tall
    images some versions of Pillow resize the height first; there a few pixels at hard edges differ by more.
    """
    onnx = import_module("onnx")
    proto = onnx.load_from_string(content)
    (images,) = proto.graph.input
    graph = _preprocessing_graph(onnx, preprocessing)
    for node in proto.graph.node:  # the network's input is what the new nodes give
        for position, name in enumerate(node.input):
            if name == images.name:
                node.input[position] = f"{_PREFIX}pixels"
    nodes = [*graph.node, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(graph.initializer)
    images.CopyFrom(
        onnx.helper.make_tensor_value_info(
            images.name, onnx.TensorProto.UINT8, ["batch", "height", "width", preprocessing.channels]
        )
    )
    onnx.checker.check_model(proto)
    result: bytes = proto.SerializeToString()
    return result


def _preprocessing_graph(onnx: Any, preprocessing: Preprocessing) -> Any:
    """Return a graph from `images` to `preprocess/pixels`, in operators of version 18 and later."""
    size = preprocessing.image_size
    nodes, constants = [], []

    def constant(name: str, value: Any) -> str:
        constants.append(onnx.numpy_helper.from_array(value, _PREFIX + name))
        return _PREFIX + name

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        name = _PREFIX + output
        nodes.append(onnx.helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def normaliser(values: tuple[float, ...]) -> Any:
        return np.array(values, np.float32).reshape(-1, 1, 1)

    two, three, four = (constant(str(value), np.array([value], np.int64)) for value in (2, 3, 4))
    floats = add("Cast", ["images"], "floats", to=onnx.TensorProto.FLOAT)
    planes = add("Transpose", [floats], "planes", perm=[0, 3, 1, 2])
    # new height and width: side * pixels // shorter, in whole numbers
    sides = add("Shape", [planes], "sides", start=2, end=4)
    shorter = add("ReduceMin", [sides], "shorter", keepdims=1)
    scaled = add("Mul", [sides, constant("side", np.array([preprocessing.resized_side], np.int64))], "scaled")
    new_sides = add("Div", [scaled, shorter], "new_sides")
    # As in Pillow, width before height, each followed by rounding to levels of 0..255.
    batch, height = add("Shape", [planes], "batch", start=0, end=2), add("Shape", [planes], "height", start=2, end=3)
    new_width = add("Gather", [new_sides, constant("second", np.array([1], np.int64))], "new_width")
    half, black, white = (constant(f"level{level}", np.array(level, np.float32)) for level in (0.5, 0, 255))
    levels = planes
    for way, sizes in (("wide", [batch, height, new_width]), ("high", [batch, new_sides])):
        resized = add(
            "Resize",
            [levels, "", "", add("Concat", sizes, f"{way}/sizes", axis=0)],
            f"{way}/resized",
            mode="cubic",
            cubic_coeff_a=-0.5,  # Pillow's
            antialias=1,
            exclude_outside=1,  # at the borders, Pillow weights only pixels that exist
            coordinate_transformation_mode="half_pixel",
        )
        rounded = add("Floor", [add("Add", [resized, half], f"{way}/raised")], f"{way}/rounded")
        levels = add("Clip", [rounded, black, white], f"{way}/levels")
    # half of the margin, rounded half to even as Python does: floor((margin + (margin % 4 == 3)) / 2)
    margin = add("Sub", [new_sides, constant("size", np.array([size], np.int64))], "margin")
    is_three = add("Equal", [add("Mod", [margin, four], "remainder"), three], "is_three")
    upwards = add("Add", [margin, add("Cast", [is_three], "odd", to=onnx.TensorProto.INT64)], "upwards")
    start = add("Div", [upwards, two], "start")
    end = add("Add", [start, constant("length", np.array([size], np.int64))], "end")
    cropped = add("Slice", [levels, start, end, constant("axes", np.array([2, 3], np.int64))], "cropped")
    shares = add("Div", [cropped, white], "shares")
    centred = add("Sub", [shares, constant("mean", normaliser(preprocessing.mean))], "centred")
    add("Div", [centred, constant("std", normaliser(preprocessing.std))], "pixels")
    return onnx.helper.make_graph(nodes, "preprocess", [], [], constants)
