"""Networks from LocalViT's published weights.

Names and shapes say nearly everything: widths, kernels, the depthwise stage, the kind of channel attention. What they
do not say are functions without weights, which a variant's number names, and how many heads share the width.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch

from nasx import Arch
from nasx.arch import Value
from nasx.pipeline.recipe import Imported, ImportOptions, as_sentence
from nasx.weights import Note, Shapes, assumed_heads, fit_weights, log_assumption, named_tensors, ratio_of

from .layers import squeezed_width
from .model import LocalViT, LocalViTConfig, build_in
from .space import VARIANTS

PUBLISHED_HEADS = {(192, 12): ("tiny", 4), (384, 12): ("small", 8)}
"""The published sizes by width and depth: the name, and how many heads it has."""

_DEFAULT_VARIANT = {"none": 1, "se": 3, "eca": 4}
_LOOKS_LIKE = {"none": 2, "eca": 5}  # the variant whose weights have the same names and shapes


def load_localvit(
    state_dict: Mapping[str, Any],
    *,
    act: int | None = None,
    num_heads: int | None = None,
    note: Note = log_assumption,
) -> LocalViT:
    """Return the network of LocalViT's published weights: images (B, C, H, W) to logits, in evaluation mode.

    The architecture is read off the shapes (`infer_localvit`); state dicts inside of checkpoints are found as by
    `nasx.weights.read_state_dict`. Weights that do not fit are a ValueError that names the first that differs.
    """
    state = named_tensors(state_dict)
    vit, arch = infer_localvit(state, act=act, num_heads=num_heads, note=note)
    with torch.device("meta"):
        network = build_in(vit, arch)
    own = network.state_dict()
    attended = {name.split(".")[1] for name in own if ".local.attention." in name}
    places = {}
    for ours, tensor in own.items():
        pointwise = ours.endswith((".expand.weight", ".project.weight"))  # there convolutions, Linear layers here
        places[_published_name(ours, attended)] = ours, (*tensor.shape, 1, 1) if pointwise else tuple(tensor.shape)
    weights = {ours: tensor.reshape(own[ours].shape) for ours, tensor in fit_weights(state, places).items()}
    network = network.to_empty(device="cpu")
    network.load_state_dict(weights)
    return network.eval()


def read_official(state: Mapping[str, Any], options: ImportOptions) -> Imported:
    """Return the network of LocalViT's published weights."""
    remarks = ["Read from published weights of LocalViT."]
    vit, arch = infer_localvit(
        state, num_heads=options.heads, note=lambda sentence: remarks.append(as_sentence(sentence))
    )
    network = load_localvit(state, num_heads=vit.num_heads, note=lambda sentence: None)
    return Imported(network, arch, vit, tuple(remarks))


def infer_localvit(
    state_dict: Mapping[str, Any],
    *,
    act: int | None = None,
    num_heads: int | None = None,
    note: Note = log_assumption,
) -> tuple[LocalViTConfig, Arch]:
    """Return what published names and shapes say: the ViT config, and the architecture of its blocks.

    `act` is the variant, 1 to 5. By default it is 1 (ReLU6) without channel attention, where the weights of 2
    (h-swish) look the same, 3 with squeeze-excitation, and 4 (sigmoid gate) with ECA, where those of 5 (h-sigmoid
    gate) look the same; one that contradicts the weights is a ValueError. `num_heads` is by default that of the
    published size of this width and depth; of any other it is asked for by a ValueError. `note` is called with a
    sentence on each of these assumptions, which logs it by default. Blocks with DeiT's feed-forward (`mlp`) are known
    too.
    """
    if act is not None and act not in VARIANTS:
        raise ValueError(f"the variants are {', '.join(map(str, VARIANTS))}, but got {act}")
    shapes = Shapes(state_dict)
    depth = shapes.depth("blocks")
    vit = _vit(shapes, depth, num_heads, note)
    if act is None:
        _note_variant(shapes, depth, note)
    entries = {
        f"block.{i}.{name}": value
        for i in range(depth)
        for name, value in _block(shapes, f"blocks.{i}", vit.embed_dim, act).items()
    }
    return vit, Arch(entries)


def _vit(shapes: Shapes, depth: int, num_heads: int | None, note: Note) -> LocalViTConfig:
    width, in_channels, patch = shapes.square_patch("patch_embed.proj.weight")
    if num_heads is None and not any(".conv.conv." in name for name in shapes):
        raise ValueError(
            "no block has LocalViT's feed-forward ('blocks.<i>.conv.conv'), so this is another network, such as DeiT; "
            "if it is meant, say how many heads it has with num_heads (--heads)"
        )
    return LocalViTConfig(
        image_size=shapes.side("pos_embed") * patch,
        patch_size=patch,
        in_channels=in_channels,
        num_classes=shapes.of("head.weight", 2)[0],
        embed_dim=width,
        num_heads=assumed_heads(width, depth, num_heads, published=PUBLISHED_HEADS, note=note),
    )


def _note_variant(shapes: Shapes, depth: int, note: Note) -> None:
    """Note which of two variants is assumed where their weights look the same."""
    kinds = {_attention_kind(shapes, f"blocks.{i}.conv.conv") for i in range(depth) if _has_conv(shapes, i)}
    for kind in sorted(kinds & set(_LOOKS_LIKE)):
        note(
            f"assuming variant {_DEFAULT_VARIANT[kind]} (--act), of which the weights of {_LOOKS_LIKE[kind]} look the "
            "same; give act where they are of that one"
        )


def _has_conv(shapes: Shapes, block: int) -> bool:
    return f"blocks.{block}.conv.conv.0.weight" in shapes


def _attention_kind(shapes: Shapes, conv: str) -> str:
    return "se" if f"{conv}.6.fc.0.weight" in shapes else "eca" if f"{conv}.6.conv.weight" in shapes else "none"


def _block(shapes: Shapes, prefix: str, width: int, act: int | None) -> dict[str, Value]:
    if f"{prefix}.mlp.fc1.weight" in shapes:
        return {"depthwise": False, "mlp_ratio": ratio_of(shapes.of(f"{prefix}.mlp.fc1.weight", 2)[0], width)}
    conv = f"{prefix}.conv.conv"
    hidden = shapes.of(f"{conv}.0.weight", 4)[0]
    kernel_size = shapes.of(f"{conv}.3.weight", 4)[-1]
    if kernel_size % 2 == 0:
        raise shapes.refusal(f"{conv}.3.weight", "its kernel is odd")
    squeeze = f"{conv}.6.fc.0.weight"
    kind = _attention_kind(shapes, conv)
    variant = VARIANTS[_DEFAULT_VARIANT[kind] if act is None else act]
    if variant["channel_attention"] != kind:
        fitting = [str(number) for number, other in VARIANTS.items() if other["channel_attention"] == kind]
        raise ValueError(
            f"act {act} does not fit the weights: {conv!r} has the channel attention {kind!r}, which is that of act "
            f"{' or '.join(fitting)}"
        )
    entries: dict[str, Value] = {"mlp_ratio": ratio_of(hidden, width), "kernel_size": kernel_size}
    if kind == "se":
        inside = shapes.of(squeeze, 2)[0]
        if inside > hidden or squeezed_width(hidden, hidden // inside) != inside:
            raise shapes.refusal(squeeze, f"it squeezes {hidden} channels by a whole factor")
        return {"depthwise": True} | entries | dict(variant) | {"reduction": hidden // inside}
    return {"depthwise": True} | entries | dict(variant)


def _published_name(ours: str, attended: Collection[str]) -> str:
    """Return the published name of one of ours; `attended` are the numbers of the blocks with channel attention."""
    if not (match := re.match(r"(blocks\.(\d+)\.)local\.(.+)\.(\w+)$", ours)):
        return ours
    block, number, part, tensor = match.groups()
    after = 6 + (number in attended)  # one more entry in the list of layers pushes what follows
    published = {
        "expand": "0",
        "norm1": "1",
        "depthwise": "3",
        "norm2": "4",
        "attention.fc1": "6.fc.0",
        "attention.fc2": "6.fc.2",
        "attention.conv": "6.conv",
        "project": str(after),
        "norm3": str(after + 1),
    }
    return f"{block}conv.conv.{published[part]}.{tensor}"
