"""Networks from published weights: GLiT's released checkpoint, and DeiT's and timm's plain vision transformers.

Shapes say nearly everything about an architecture, but not how many heads share the width. Published sizes are known by
their pair of width and depth, and assumed; of any other the number of heads is asked for.
"""

import re
from collections.abc import Mapping
from typing import Any

from nasx import Arch
from nasx.pipeline.recipe import Imported, ImportOptions
from nasx.pipeline.vit_weights import Shape, import_vit, load_vit, read_vit_config
from nasx.weights import Note, Shapes, log_assumption, named_tensors, ratio_of

from .model import GLiT, GLiTConfig, build_in

PUBLISHED_HEADS = {  # (width, depth): the name of the size, and how many heads it has
    (192, 12): ("tiny", 3),
    (384, 12): ("small", 6),
    (768, 12): ("base", 12),
    (1024, 24): ("large", 16),
    (1280, 32): ("huge", 16),
    (1408, 40): ("giant", 16),
}
"""DeiT's and ViT's sizes; GLiT's are the first three. Widths of 64 channels a head end at large."""

_PUBLISHED_LOCAL = {  # our name in a block: the published one
    "local.expand": "attn.net.1",
    "local.depthwise": "attn.net.3.conv",
    "local.norm": "attn.net.4",
    "local.project": "attn.net.6",
}


def load_glit(
    state_dict: Mapping[str, Any],
    num_heads: int | None = None,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    note: Note = log_assumption,
) -> GLiT:
    """Return the network of GLiT's published weights: images (B, C, H, W) to logits, in evaluation mode.

    The architecture is read off the shapes (`infer_glit`), but for the number of heads, which is `num_heads` or that of
    the published size; `note` is called with a sentence on each assumption, which logs it by default. State dicts
    inside of checkpoints are found as by `nasx.weights.read_state_dict`. Another number of classes draws a new head
    from the seed, another image size (in pixels) interpolates the position embeddings. Weights that do not fit are a
    ValueError that names the first that differs, or `num_heads`.
    """
    state = named_tensors(state_dict)
    vit, arch = infer_glit(state, num_heads, note=note)
    return load_vit(build_in, vit, arch, state, _as_in_glit, num_classes=num_classes, image_size=image_size, seed=seed)


def load_deit(
    state_dict: Mapping[str, Any],
    num_heads: int | None = None,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    note: Note = log_assumption,
) -> GLiT:
    """Return the network of DeiT's or timm's ViT weights of any size; arguments and refusals are `load_glit`'s."""
    state = named_tensors(state_dict)
    vit, arch = infer_deit(state, num_heads, note=note)
    return load_vit(
        build_in,
        vit,
        arch,
        state,
        lambda ours, shape: (ours, shape),
        num_classes=num_classes,
        image_size=image_size,
        seed=seed,
    )


def read_official(state: Mapping[str, Any], options: ImportOptions) -> Imported:
    """Return the network of GLiT's published checkpoint, or of DeiT's or timm's weights of a plain ViT."""
    if any(name.startswith("blocks.0.0.") for name in state):  # there a block is a list of one
        return import_vit(infer_glit, load_glit, state, options, "Read from published weights of GLiT.")
    origin = "Read from published weights of a plain vision transformer."
    return import_vit(infer_deit, load_deit, state, options, origin)


def infer_glit(
    state_dict: Mapping[str, Any], num_heads: int | None = None, *, note: Note = log_assumption
) -> tuple[GLiTConfig, Arch]:
    """Return what the published names and shapes say: the ViT config, and the architecture of its blocks."""
    shapes = Shapes(state_dict)
    vit = _vit(shapes, num_heads, note)
    blocks = (_glit_block(shapes, vit, f"blocks.{i}.0") for i in range(shapes.depth("blocks")))
    return vit, Arch.from_parts("block", blocks)


def infer_deit(
    state_dict: Mapping[str, Any], num_heads: int | None = None, *, note: Note = log_assumption
) -> tuple[GLiTConfig, Arch]:
    """Return the same of DeiT's or timm's ViT weights: a network whose heads are all global."""
    shapes = Shapes(state_dict)
    if "dist_token" in shapes:
        raise ValueError(
            "the weights do not fit: 'dist_token' is of a distilled DeiT, which has two heads; give the plain weights"
        )
    vit = _vit(shapes, num_heads, note)
    blocks = [
        {"global_heads": vit.num_heads}
        | _attention(shapes, vit, f"blocks.{i}", vit.num_heads)
        | _ffn(shapes, f"blocks.{i}")
        for i in range(shapes.depth("blocks"))
    ]
    return vit, Arch.from_parts("block", blocks)


def _vit(shapes: Shapes, num_heads: int | None, note: Note) -> GLiTConfig:
    return read_vit_config(GLiTConfig, shapes, num_heads, published=PUBLISHED_HEADS, note=note)


def _glit_block(shapes: Shapes, vit: GLiTConfig, prefix: str) -> dict[str, float]:
    local, heads = f"{prefix}.attn.net.1.weight", vit.num_heads
    entries: dict[str, float] = {}
    if local in shapes:
        rows, channels, _ = shapes.of(local, 3)
        wide = vit.embed_dim // vit.num_heads
        if rows % (2 * channels) or channels % wide or channels > vit.embed_dim:
            raise shapes.refusal(local, f"it gives 2E rows for each channel of some heads of {wide}")
        heads -= channels // wide
        kernel_size = shapes.kernel_size(f"{prefix}.attn.net.3.conv.weight", 3)
        entries = {"kernel_size": kernel_size, "expansion": rows // (2 * channels)}
    if heads:
        entries |= _attention(shapes, vit, prefix, heads)
    return {"global_heads": heads} | entries | _ffn(shapes, prefix)


def _attention(shapes: Shapes, vit: GLiTConfig, prefix: str, heads: int) -> dict[str, float]:
    name = f"{prefix}.attn.qkv.weight"
    rows, channels = shapes.of(name, 2)
    if rows % (3 * heads) or channels != vit.channels(heads):
        raise shapes.refusal(
            name, f"it gives queries, keys and values of {heads} heads for {vit.channels(heads)} channels"
        )
    return {"qkv_ratio": ratio_of(rows // 3, channels)}


def _ffn(shapes: Shapes, prefix: str) -> dict[str, float]:
    return {"mlp_ratio": ratio_of(*shapes.of(f"{prefix}.mlp.fc1.weight", 2))}


def _as_in_glit(ours: str, shape: Shape) -> tuple[str, Shape]:
    """Return the published name and shape; pointwise layers are convolutions of width 1 there, Linear here."""
    if not (match := re.match(r"(blocks\.\d+)\.(.+)", ours)):
        return ours, shape
    block, inside = match.groups()
    for part, published in _PUBLISHED_LOCAL.items():
        inside = inside.replace(f"{part}.", f"{published}.")
    return f"{block}.0.{inside}", (*shape, 1) if inside.endswith((".net.1.weight", ".net.6.weight")) else shape
