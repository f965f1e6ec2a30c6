"""Published weights of vision transformers, as recipes import them into networks of their own."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nasx.arch import Arch
from nasx.nn import ImageConfig, ViT, ViTConfig
from nasx.pipeline.recipe import Imported, ImportOptions, as_sentence
from nasx.weights import Note, Shapes, assumed_heads, fit_weights

Shape = tuple[int, ...]
Configured = TypeVar("Configured", bound=ViTConfig)
Network = TypeVar("Network", bound=ViT)

PublishedAs = Callable[[str, Shape], tuple[str, Shape]]
"""Returns the published name and shape of a tensor of ours; its elements lie in the same order."""


def read_vit_config(
    kind: type[Configured],
    shapes: Shapes,
    num_heads: int | None,
    *,
    published: Mapping[tuple[int, int], tuple[str, int]],
    note: Note,
) -> Configured:
    """Return the ViT config that the shapes around the blocks `blocks.<i>` say; names are timm's.

    No weights say how many heads share the width: that is `num_heads`, or as `nasx.weights.assumed_heads` has it.
    """
    width, in_channels, patch = shapes.square_patch("patch_embed.proj.weight")
    return kind(
        image_size=shapes.side("pos_embed") * patch,
        patch_size=patch,
        in_channels=in_channels,
        num_classes=shapes.of("head.weight", 2)[0],
        embed_dim=width,
        num_heads=assumed_heads(width, shapes.depth("blocks"), num_heads, published=published, note=note),
    )


def load_vit(
    build: Callable[[Any, Arch], Network],
    vit: ViTConfig,
    arch: Arch,
    state: Mapping[str, Tensor],
    published_as: PublishedAs,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Network:
    """Return the network of an architecture with published weights, in evaluation mode.

    Another number of classes draws a new head from the seed, another image size (in pixels) interpolates the position
    embeddings. Weights that do not fit are a ValueError that names the first that differs.
    """
    with torch.device("meta"):
        own = {name: tuple(tensor.shape) for name, tensor in build(vit, arch).state_dict().items()}
    places = {}
    for ours, shape in own.items():
        name, expected = published_as(ours, shape)
        places[name] = ours, expected
    weights = {ours: tensor.reshape(own[ours]) for ours, tensor in fit_weights(state, places).items()}
    wanted = replace(
        vit,
        num_classes=vit.num_classes if num_classes is None else num_classes,
        image_size=vit.image_size if image_size is None else image_size,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(wanted, arch)
    if wanted.num_classes != vit.num_classes:
        weights |= {name: network.state_dict()[name] for name in ("head.weight", "head.bias")}
    if wanted.image_size != vit.image_size:
        weights["pos_embed"] = _interpolated(weights["pos_embed"], wanted)
    network.load_state_dict(weights)
    return network.eval()


def import_vit(
    infer: Callable[..., tuple[ViTConfig, Arch]],
    load: Callable[..., ViT],
    state: Mapping[str, Any],
    options: ImportOptions,
    origin: str,
) -> Imported:
    """Return a network of published weights as the command line asks for it, with a remark on each assumption.

    `infer(state, num_heads=, note=)` reads the ViT config and the architecture, `load(state, num_heads=, num_classes=,
    image_size=, note=)` the network; `origin` says whose weights they are, in a sentence.
    """
    remarks = [origin]
    vit, arch = infer(state, num_heads=options.heads, note=lambda remark: remarks.append(as_sentence(remark)))
    network = load(
        state,
        num_heads=vit.num_heads,
        num_classes=options.classes,
        image_size=options.image_size,
        note=lambda remark: None,
    )
    if network.vit.num_classes != vit.num_classes:
        remarks.append(f"The head for {network.vit.num_classes} classes is new and not trained.")
    if network.vit.image_size != vit.image_size:
        remarks.append(f"Positions are interpolated from images of {vit.image_size} pixels.")
    return Imported(network, arch, network.vit, tuple(remarks))


def _interpolated(positions: Tensor, vit: ImageConfig) -> Tensor:
    """Return position embeddings (1, N, D) for another grid of patches, bicubic, that of the class token kept."""
    class_token, patches = positions[:, :1].float(), positions[:, 1:].float()
    old = math.isqrt(patches.shape[1])
    grid = patches.transpose(1, 2).reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(vit.grid, vit.grid), mode="bicubic", align_corners=False)
    return torch.cat([class_token, grid.flatten(2).transpose(1, 2)], dim=1)
