"""Networks from LocalViT's published weights.

Names and shapes say nearly everything: widths, kernels, the depthwise stage, the kind of channel attention. What they
do not say are functions without weights, which a variant's number names, and how many heads share the width.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from nasx import Arch
from nasx.arch import Value
from nasx.pipeline.recipe import Imported, ImportOptions
from nasx.pipeline.vit_weights import Shape, import_vit, load_vit, read_vit_config
from nasx.weights import Note, Shapes, log_assumption, named_tensors, ratio_of

from .model import LocalViT, LocalViTConfig
from .space import VARIANTS

PUBLISHED_HEADS = {(192, 12): ("tiny", 4), (384, 12): ("small", 8)}
"""The published sizes by width and depth: the name, and how many heads it has."""

_PLACES = {"expand": 0, "norm1": 1, "depthwise": 3, "norm2": 4, "attention": 6, "project": 6, "norm3": 7}
"""Our layers in a published feed-forward without channel attention, which pushes the last two by 1."""

_ATTENTION_WEIGHTS = {"se": "6.fc.0.weight", "eca": "6.conv.weight"}


def load_localvit(
    state_dict: Mapping[str, Any],
    *,
    act: int | None = None,
    num_heads: int | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    note: Note = log_assumption,
) -> LocalViT:
    """Return the network of LocalViT's published weights: images (B, C, H, W) to logits, in evaluation mode.

    The architecture is read off the shapes (`infer_localvit`), and the weights are loaded as
    `nasx.pipeline.vit_weights.load_vit` does. State dicts inside of checkpoints are found as by
    `nasx.weights.read_state_dict`.
    """
    state = named_tensors(state_dict)
    vit, arch = infer_localvit(state, act=act, num_heads=num_heads, note=note)
    as_published = partial(_as_published, Shapes(state))
    return load_vit(LocalViT, vit, arch, state, as_published, num_classes=num_classes, image_size=image_size, seed=seed)


def read_official(state: Mapping[str, Any], options: ImportOptions) -> Imported:
    """Return the network of LocalViT's published weights."""
    return import_vit(infer_localvit, load_localvit, state, options, "Read from published weights of LocalViT.")


def infer_localvit(
    state_dict: Mapping[str, Any],
    *,
    act: int | None = None,
    num_heads: int | None = None,
    note: Note = log_assumption,
) -> tuple[LocalViTConfig, Arch]:
    """Return what published names and shapes say: the ViT config, and the architecture of its blocks.

    `act` is the variant, 1 to 5. By default it is the first of those whose weights look the same: 1 (ReLU6) of 1 and 2,
    3, or 4 (sigmoid gate) of 4 and 5. `num_heads` is by default that of the published size of this width and depth.
    `note` is called with a sentence on each assumption, which logs it by default. A ValueError refuses a variant that
    contradicts the weights, and asks for the heads of a size that is not published. Blocks with DeiT's feed-forward
    (`mlp`) are known too.
    """
    if act is not None and act not in VARIANTS:
        raise ValueError(f"the variants are {', '.join(map(str, VARIANTS))}, but got {act}")
    shapes = Shapes(state_dict)
    if num_heads is None and not any(".conv.conv." in name for name in shapes):
        raise ValueError(
            "no block has LocalViT's feed-forward ('blocks.<i>.conv.conv'), so this is another network, such as DeiT; "
            "if it is meant, say how many heads it has with num_heads (--heads)"
        )
    vit = read_vit_config(LocalViTConfig, shapes, num_heads, published=PUBLISHED_HEADS, note=note)
    names = [f"blocks.{i}" for i in range(shapes.depth("blocks"))]
    kinds = {_channel_attention(shapes, name) for name in names if f"{name}.conv.conv.0.weight" in shapes}
    for assumed, *others in (_variants(kind) for kind in sorted(kinds) if act is None):
        if others:
            note(
                f"assuming variant {assumed} (--act), of which the weights of {others[0]} look the same; give act "
                "where they are of that one"
            )
    return vit, Arch.from_parts("block", [_block(shapes, name, vit.embed_dim, act) for name in names])


def _channel_attention(shapes: Shapes, block: str) -> str:
    found = [kind for kind, name in _ATTENTION_WEIGHTS.items() if f"{block}.conv.conv.{name}" in shapes]
    return found[0] if found else "none"


def _variants(channel_attention: str) -> list[int]:
    """Return the variants with a kind of channel attention, whose weights look the same; the first is assumed."""
    return [act for act, choices in VARIANTS.items() if choices["channel_attention"] == channel_attention]


def _block(shapes: Shapes, block: str, width: int, act: int | None) -> dict[str, Value]:
    if f"{block}.mlp.fc1.weight" in shapes:
        return {"depthwise": False, "mlp_ratio": ratio_of(shapes.of(f"{block}.mlp.fc1.weight", 2)[0], width)}
    conv, kind = f"{block}.conv.conv", _channel_attention(shapes, block)
    hidden = shapes.of(f"{conv}.0.weight", 4)[0]
    kernel_size = shapes.kernel_size(f"{conv}.3.weight", 4)
    fitting = _variants(kind)
    if act is not None and act not in fitting:
        raise ValueError(
            f"act {act} does not fit the weights: {conv!r} has the channel attention {kind!r}, which is that of act "
            f"{' or '.join(map(str, fitting))}"
        )
    sizes: dict[str, Value] = {"depthwise": True, "mlp_ratio": ratio_of(hidden, width), "kernel_size": kernel_size}
    choices = sizes | dict(VARIANTS[fitting[0] if act is None else act])
    if kind == "se":
        squeeze = f"{conv}.{_ATTENTION_WEIGHTS[kind]}"
        inside = shapes.of(squeeze, 2)[0]
        if inside > hidden or hidden // (hidden // inside) != inside:
            raise shapes.refusal(squeeze, f"it squeezes {hidden} channels by a whole factor")
        choices["reduction"] = hidden // inside
    return choices


def _as_published(shapes: Shapes, ours: str, shape: Shape) -> tuple[str, Shape]:
    """Return the published name and shape; pointwise layers are convolutions there, Linear here."""
    if not (match := re.match(r"(blocks\.\d+)\.local\.(\w+)\.(.+)", ours)):
        return ours, shape
    block, part, tensor = match.groups()
    place = _PLACES[part] + (part in ("project", "norm3") and _channel_attention(shapes, block) != "none")
    return f"{block}.conv.conv.{place}.{tensor}", (*shape, 1, 1) if part in ("expand", "project") else shape
