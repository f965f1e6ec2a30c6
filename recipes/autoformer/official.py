"""The published supernets of AutoFormer: reading their weights by name and shape."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from nasx import Arch, Space, one_of
from nasx.nn import Supernet
from nasx.pipeline.recipe import Imported, ImportOptions
from nasx.space import Repeat
from nasx.weights import Shapes, fit_weights, named_tensors, ratio_of

from .model import AutoFormerConfig
from .supernet import supernet as make_supernet

_OURS_TO_THEIRS = (
    (r"^embed\.proj\.", "patch_embed_super.proj."),
    (r"^embed\.", ""),
    (r"\.norm1\.", ".attn_layer_norm."),
    (r"\.norm2\.", ".ffn_layer_norm."),
    (r"\.mlp\.", "."),
    (r"\.positions\.key_(.).*", r".rel_pos_embed_k.embeddings_table_\1"),
    (r"\.positions\.value_(.).*", r".rel_pos_embed_v.embeddings_table_\1"),
)


def load_supernet(state_dict: Mapping[str, Any]) -> Supernet:
    """Return the supernet that a published state dict describes; its sizes are read from the tensors.

    Its networks equal those of the source: there, a block of H heads takes every third row of the packed weight for
    queries, for keys and for values, but the plain beginning of the packed bias. The tables of relative positions say
    how wide a head is, so nothing has to be assumed. State dicts inside of checkpoints are found as by
    `nasx.weights.read_state_dict`. One that does not fit is a ValueError with the first name and shape that differ.
    """
    state = named_tensors(state_dict)
    vit, largest = infer_supernet(state)
    supernet = make_supernet(_only(largest), vit, qkv_bias="packed")
    places = {_their_name(ours): (ours, tuple(tensor.shape)) for ours, tensor in supernet.state_dict().items()}
    weights = fit_weights(state, places)
    for name, weight in weights.items():
        if name.endswith("qkv.weight"):
            weights[name] = torch.cat([weight[third::3] for third in range(3)])
    supernet.load_state_dict(weights)
    return supernet


def read_official(state: Mapping[str, Any], options: ImportOptions) -> Imported:
    """Return the network of an architecture with the weights of a published supernet."""
    if options.arch is None:
        raise ValueError("the file holds a supernet, of which every network is a slice; name one with --arch FILE")
    supernet = load_supernet(state)
    assert isinstance(supernet, Supernet)
    network = supernet.extract(supernet.space.canonical(options.arch)).eval()
    vit = supernet.make.args[0]  # type: ignore[attr-defined]
    return Imported(network, options.arch, vit, ("A slice of a published supernet of AutoFormer.",))


def infer_supernet(state_dict: Mapping[str, Any]) -> tuple[AutoFormerConfig, Arch]:
    """Return what published names and shapes say: the ViT config, and the largest network."""
    shapes = Shapes(state_dict)
    dim, channels, patch_size = shapes.square_patch("patch_embed_super.proj.weight")
    table = "blocks.0.attn.rel_pos_embed_k.embeddings_table_v"
    rows, head_dim = shapes.of(table, 2)
    if rows % 2 or rows < 4:
        raise shapes.refusal(table, "it has an even number of rows, 4 or more")
    depth = shapes.depth("blocks")
    vit = AutoFormerConfig(
        image_size=shapes.side("pos_embed") * patch_size,
        patch_size=patch_size,
        in_channels=channels,
        num_classes=shapes.of("head.weight", 2)[0],
        head_dim=head_dim,
        max_offset=rows // 2 - 1,
    )
    largest: dict[str, int | float] = {"embed_dim": dim, "block.count": depth}
    for i in range(depth):
        packed, hidden = f"blocks.{i}.attn.qkv.weight", shapes.of(f"blocks.{i}.fc1.weight", 2)[0]
        if shapes.of(packed, 2)[0] % (3 * head_dim):
            raise shapes.refusal(packed, f"it has 3 times {head_dim} rows for each head")
        largest[f"block.{i}.num_heads"] = shapes[packed][0] // (3 * head_dim)
        largest[f"block.{i}.mlp_ratio"] = ratio_of(hidden, dim)
    return vit, Arch(largest)


def _only(largest: Arch) -> Space:
    """Return the space of one network; a supernet runs all networks that are slices of it."""
    parts = tuple(Space(**part) for part in largest.parts("block"))
    return Space(embed_dim=largest["embed_dim"], block=Repeat(parts, one_of(len(parts))))


def _their_name(ours: str) -> str:
    for pattern, replacement in _OURS_TO_THEIRS:
        ours = re.sub(pattern, replacement, ours)
    return ours
