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
from nasx.weights import Shapes, fit_weights, named_tensors, ratio_of
from recipes.localvit.model import Frame, LocalViT, build_in
from recipes.localvit.space import VARIANTS

HEAD_WIDTH = 48  # in both published sizes

_DEFAULT_VARIANT = {"none": 1, "se": 3, "eca": 4}


def load_localvit(state_dict: Mapping[str, Any], *, act: int | None = None, num_heads: int | None = None) -> LocalViT:
    """Return the network of LocalViT's published weights: images (B, C, H, W) to logits, in evaluation mode.

    The architecture is read off the shapes (`infer_localvit`); `{"model": state_dict}` is accepted as well. Weights
    that do not fit are a ValueError that names the first that differs.
    """
    state = named_tensors(state_dict)
    frame, arch = infer_localvit(state, act=act, num_heads=num_heads)
    with torch.device("meta"):
        network = build_in(frame, arch)
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


def infer_localvit(
    state_dict: Mapping[str, Any], *, act: int | None = None, num_heads: int | None = None
) -> tuple[Frame, Arch]:
    """Return what published names and shapes say: the frame, and the architecture of its blocks.

    `act` is the variant, 1 to 5. By default it is 1 (ReLU6) without channel attention, where the weights of 2
    (h-swish) look the same, 3 with squeeze-excitation, and 4 (sigmoid gate) with ECA, where those of 5 (h-sigmoid
    gate) look the same; one that contradicts the weights is a ValueError. `num_heads` is by default as many heads of
    48 channels as share the width, as in both published sizes. Blocks with DeiT's feed-forward (`mlp`) are known too.
    """
    if act is not None and act not in VARIANTS:
        raise ValueError(f"the variants are {', '.join(map(str, VARIANTS))}, but got {act}")
    shapes = Shapes(state_dict)
    frame = _frame(shapes, num_heads)
    depth = shapes.depth("blocks")
    entries = {
        f"block.{i}.{name}": value
        for i in range(depth)
        for name, value in _block(shapes, f"blocks.{i}", frame.embed_dim, act).items()
    }
    return frame, Arch(entries)


def _frame(shapes: Shapes, num_heads: int | None) -> Frame:
    width, in_channels, patch, _ = shapes.of("patch_embed.proj.weight", 4)
    if num_heads is None and not any(".conv.conv." in name for name in shapes):
        raise ValueError(
            "no block has LocalViT's feed-forward ('blocks.<i>.conv.conv'), so this is another network, such as DeiT; "
            "if it is meant, say how many heads it has with num_heads"
        )
    if num_heads is not None and num_heads < 1:
        raise ValueError(f"num_heads must be at least 1, but got {num_heads}")
    if num_heads is None and width % HEAD_WIDTH:
        raise shapes.refusal("patch_embed.proj.weight", f"its channels make heads of {HEAD_WIDTH}; give num_heads")
    return Frame(
        image_size=shapes.side("pos_embed") * patch,
        patch_size=patch,
        in_channels=in_channels,
        num_classes=shapes.of("head.weight", 2)[0],
        embed_dim=width,
        num_heads=width // HEAD_WIDTH if num_heads is None else num_heads,
    )


def _block(shapes: Shapes, prefix: str, width: int, act: int | None) -> dict[str, Value]:
    if f"{prefix}.mlp.fc1.weight" in shapes:
        return {"depthwise": False, "mlp_ratio": ratio_of(shapes.of(f"{prefix}.mlp.fc1.weight", 2)[0], width)}
    conv = f"{prefix}.conv.conv"
    hidden = shapes.of(f"{conv}.0.weight", 4)[0]
    kernel_size = shapes.of(f"{conv}.3.weight", 4)[-1]
    if kernel_size % 2 == 0:
        raise shapes.refusal(f"{conv}.3.weight", "its kernel is odd")
    squeeze = f"{conv}.6.fc.0.weight"
    kind = "se" if squeeze in shapes else "eca" if f"{conv}.6.conv.weight" in shapes else "none"
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
        if inside > hidden:
            raise shapes.refusal(squeeze, f"it squeezes {hidden} channels to fewer")
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
