"""The published supernets of AutoFormer: reading their weights by name and shape."""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from nasx import Arch, Space, one_of
from nasx.nn import Supernet
from nasx.space import Repeat
from nasx.weights import named_tensors, ratio_of
from recipes.autoformer.model import Frame
from recipes.autoformer.supernet import supernet as make_supernet

_OURS_TO_THEIRS = (
    (r"^embed\.proj\.", "patch_embed_super.proj."),
    (r"^embed\.", ""),
    (r"\.norm1\.", ".attn_layer_norm."),
    (r"\.norm2\.", ".ffn_layer_norm."),
    (r"\.mlp\.", "."),
    (r"\.positions\.key_(.).*", r".rel_pos_embed_k.embeddings_table_\1"),
    (r"\.positions\.value_(.).*", r".rel_pos_embed_v.embeddings_table_\1"),
)


def load_supernet(state_dict: Mapping[str, Tensor]) -> Supernet:
    """Return the supernet that a published state dict describes; its sizes are read from the tensors.

    Its networks equal those of the source: there, a block of H heads takes every third row of the packed weight for
    queries, for keys and for values, but the plain beginning of the packed bias. A state dict that does not fit is a
    ValueError with the first name and shape that differ.
    """
    state_dict = named_tensors(state_dict)
    largest, frame = _sizes(state_dict)
    supernet = make_supernet(_only(largest), frame, qkv_bias="packed")
    names = {ours: _their_name(ours) for ours in supernet.state_dict()}
    for ours, theirs in names.items():
        wanted = tuple(supernet.get_parameter(ours).shape)
        if _shape(state_dict, theirs) != wanted:
            raise ValueError(
                f"{theirs} must have shape {wanted} beside the other tensors, but has {_shape(state_dict, theirs)}"
            )
    for theirs in state_dict:
        if theirs not in names.values():
            raise ValueError(
                f"{theirs} of shape {tuple(state_dict[theirs].shape)} belongs to no AutoFormer supernet of depth "
                f"{largest['block.count']} with relative positions; give the published weights as they are"
            )
    weights = {ours: state_dict[theirs] for ours, theirs in names.items()}
    for name, weight in weights.items():
        if name.endswith("qkv.weight"):
            weights[name] = torch.cat([weight[third::3] for third in range(3)])
    supernet.load_state_dict(weights)
    return supernet


def _only(largest: Arch) -> Space:
    """Return the space of one network; a supernet runs all networks that are slices of it."""
    parts = tuple(Space(**part) for part in largest.parts("block"))
    return Space(embed_dim=largest["embed_dim"], block=Repeat(parts, one_of(len(parts))))


def _their_name(ours: str) -> str:
    for pattern, replacement in _OURS_TO_THEIRS:
        ours = re.sub(pattern, replacement, ours)
    return ours


def _shape(state_dict: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state_dict:
        wrapped = [key for key, value in state_dict.items() if not isinstance(value, Tensor)]
        mend = f"; it seems to lie inside the entry {wrapped[0]!r}" if wrapped else ""
        raise ValueError(f"the state dict has no {name}, which every AutoFormer supernet has{mend}")
    return tuple(state_dict[name].shape)


def _sizes(state_dict: Mapping[str, Tensor]) -> tuple[Arch, Frame]:
    """Return the largest network and the frame; what does not fit them in the other tensors, the caller finds."""

    def size(name: str, dim: int, of: int) -> int:
        shape = _shape(state_dict, name)
        if len(shape) != of or 0 in shape:
            raise ValueError(f"{name} must have {of} dimensions, none of them empty, but has shape {shape}")
        return shape[dim]

    dim = size("cls_token", 2, of=3)
    tokens = size("pos_embed", 1, of=3)
    patch_size = size("patch_embed_super.proj.weight", 3, of=4)
    table = "blocks.0.attn.rel_pos_embed_k.embeddings_table_v"
    head_dim = size(table, 1, of=2)
    side = math.isqrt(max(0, tokens - 1))
    if side == 0 or side**2 + 1 != tokens:
        raise ValueError(f"pos_embed must have a class token and a square of patches, but has {tokens} tokens")
    if size(table, 0, of=2) % 2:
        raise ValueError(f"{table} must have an even number of rows, but has {size(table, 0, of=2)}")
    frame = Frame(
        image_size=side * patch_size,
        patch_size=patch_size,
        in_channels=size("patch_embed_super.proj.weight", 1, of=4),
        num_classes=size("head.weight", 0, of=2),
        head_dim=head_dim,
        max_offset=size(table, 0, of=2) // 2 - 1,
    )
    blocks = sorted({int(found[1]) for name in state_dict if (found := re.match(r"blocks\.(\d+)\.", name))})
    largest: dict[str, int | float] = {"embed_dim": dim, "block.count": len(blocks)}
    for i in range(len(blocks)):
        rows, hidden = size(f"blocks.{i}.attn.qkv.weight", 0, of=2), size(f"blocks.{i}.fc1.weight", 0, of=2)
        if rows % (3 * head_dim):
            raise ValueError(
                f"blocks.{i}.attn.qkv.weight must have 3 times {head_dim} rows for each head, but has {rows}"
            )
        largest[f"block.{i}.num_heads"] = rows // (3 * head_dim)
        largest[f"block.{i}.mlp_ratio"] = ratio_of(hidden, dim)
    return Arch(largest), frame
