"""Networks from published weights: GLiT's released checkpoint, and DeiT's and timm's plain vision transformers.

Shapes say nearly everything about an architecture. The one thing that they do not say is how many heads share the
width, which is 64 channels to a head in all published sizes.
"""

import argparse
import math
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nasx import Arch
from recipes.glit.model import Frame, GLiT, build_in

HEAD_WIDTH = 64

_TORCH_CHECKPOINTS = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9"  # zip; before torch 1.6, a pickled magic number

_PUBLISHED_LOCAL = {  # our name in a block: the published one
    "local.expand": "attn.net.1",
    "local.depthwise": "attn.net.3.conv",
    "local.norm": "attn.net.4",
    "local.project": "attn.net.6",
}


def load_glit(
    state_dict: Mapping[str, Any], *, num_classes: int | None = None, image_size: int | None = None, seed: int = 0
) -> GLiT:
    """Return the network of GLiT's published weights: images (B, C, H, W) to logits, in evaluation mode.

    The architecture is read off the shapes (`infer_glit`); `{"model": state_dict}` is accepted as well. Another number
    of classes draws a new head from the seed, another image size (in pixels) interpolates the position embeddings.
    Weights that do not fit are a ValueError that names the first that differs.
    """
    state = _weights(state_dict)
    frame, arch = infer_glit(state)
    return _load(state, frame, arch, _published_glit_name, num_classes, image_size, seed)


def load_deit(
    state_dict: Mapping[str, Any], *, num_classes: int | None = None, image_size: int | None = None, seed: int = 0
) -> GLiT:
    """Return the network of DeiT's or timm's ViT weights of any size; arguments and refusals are `load_glit`'s."""
    state = _weights(state_dict)
    frame, arch = infer_deit(state)
    return _load(state, frame, arch, lambda name: name, num_classes, image_size, seed)


def infer_glit(state_dict: Mapping[str, Any]) -> tuple[Frame, Arch]:
    """Return what the published names and shapes say: the frame, and the architecture of its blocks."""
    shapes = _Shapes(_weights(state_dict))
    frame = _frame(shapes)
    blocks = [_glit_block(shapes, frame, f"blocks.{i}.0") for i in range(_depth(shapes))]
    return frame, _joined(blocks)


def infer_deit(state_dict: Mapping[str, Any]) -> tuple[Frame, Arch]:
    """Return the same of DeiT's or timm's ViT weights: a network whose heads are all global."""
    shapes = _Shapes(_weights(state_dict))
    frame = _frame(shapes)
    blocks = [
        {"global_heads": frame.num_heads}
        | _attention(shapes, f"blocks.{i}", frame.num_heads)
        | _ffn(shapes, f"blocks.{i}")
        for i in range(_depth(shapes))
    ]
    return frame, _joined(blocks)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file from outside, on the CPU: safetensors or a torch checkpoint.

    The content decides which, not the name. A checkpoint's `model` entry is taken where it has one. Nothing in the file
    is executed: whatever is neither plain data nor tensors, or of another kind, is a ValueError.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(9)
        try:
            if _is_safetensors(start, path.stat().st_size):
                return _weights(load_file(path))
            if start.startswith(_TORCH_CHECKPOINTS):
                file.seek(0)
                # Training scripts keep their command line beside the weights, and a namespace is plain data. Given
                # the open file, torch does not look at the name.
                with torch.serialization.safe_globals([argparse.Namespace]):
                    return _weights(torch.load(file, map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{path} does not hold plain tensors and was not read ({reason}); convert it to safetensors where you "
                "trust it"
            ) from error
    raise ValueError(f"{path} is neither a safetensors file nor a torch checkpoint; it starts with {start[:8]!r}")


def _is_safetensors(start: bytes, size: int) -> bool:
    header = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and 8 + header <= size


def _weights(state_dict: object) -> dict[str, Tensor]:
    """Return the names and tensors, out of `{"model": ...}` where they are in one."""
    if isinstance(state_dict, Mapping) and isinstance(state_dict.get("model"), Mapping):
        state_dict = state_dict["model"]
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise ValueError(f"a state dict maps names to tensors, but got {type(state_dict).__name__} without any")
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"a state dict maps names to tensors, but {name!r} is a {type(tensor).__name__}")
    return dict(state_dict)


class _Shapes(dict[str, tuple[int, ...]]):
    """Shapes by name, in which a missing one, or one of another rank, is refused in words."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__({name: tuple(tensor.shape) for name, tensor in state.items()})

    def of(self, name: str, rank: int) -> tuple[int, ...]:
        if name not in self:
            raise ValueError(f"the weights do not fit: {name!r} is missing; is this another model's state dict?")
        if len(self[name]) != rank or 0 in self[name]:
            raise self.refusal(name, f"it has {rank} dimensions, none of them 0")
        return self[name]

    def refusal(self, name: str, rule: str) -> ValueError:
        return ValueError(f"the weights do not fit: {name!r} has the shape {self[name]}, but {rule}")


def _ratio(size: int, per: int) -> float:
    """Return how many there are of a size for each of another, as an int where that is whole."""
    return size / per if size % per else size // per


def _frame(shapes: _Shapes) -> Frame:
    width, in_channels, patch, _ = shapes.of("patch_embed.proj.weight", 4)
    if width % HEAD_WIDTH:
        raise shapes.refusal("patch_embed.proj.weight", f"its channels make heads of {HEAD_WIDTH}")
    side = math.isqrt(max(0, shapes.of("pos_embed", 3)[1] - 1))
    if not side or side**2 + 1 != shapes["pos_embed"][1]:
        raise shapes.refusal("pos_embed", "its tokens are a class token and a square of patches")
    return Frame(
        image_size=side * patch,
        patch_size=patch,
        in_channels=in_channels,
        num_classes=shapes.of("head.weight", 2)[0],
        embed_dim=width,
        num_heads=width // HEAD_WIDTH,
    )


def _depth(shapes: _Shapes) -> int:
    """Return how many blocks there are from the first on; later ones are met as weights that do not belong."""
    found = {match[1] for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name))}
    depth = next(i for i in count() if str(i) not in found)
    if not depth:
        raise ValueError("the weights do not fit: 'blocks.0' is missing; is this another model's state dict?")
    return depth


def _glit_block(shapes: _Shapes, frame: Frame, prefix: str) -> dict[str, float]:
    local, heads = f"{prefix}.attn.net.1.weight", frame.num_heads
    entries: dict[str, float] = {}
    if local in shapes:
        rows, channels, _ = shapes.of(local, 3)
        if rows % (2 * channels) or channels % HEAD_WIDTH or channels > frame.embed_dim:
            raise shapes.refusal(local, f"it gives 2E rows for each channel of some heads of {HEAD_WIDTH}")
        heads -= channels // HEAD_WIDTH
        depthwise = f"{prefix}.attn.net.3.conv.weight"
        kernel_size = shapes.of(depthwise, 3)[-1]
        if kernel_size % 2 == 0:
            raise shapes.refusal(depthwise, "its kernel is odd")
        entries = {"kernel_size": kernel_size, "expansion": rows // (2 * channels)}
    if heads:
        entries |= _attention(shapes, prefix, heads)
    return {"global_heads": heads} | entries | _ffn(shapes, prefix)


def _attention(shapes: _Shapes, prefix: str, heads: int) -> dict[str, float]:
    name = f"{prefix}.attn.qkv.weight"
    rows, channels = shapes.of(name, 2)
    if rows % (3 * heads) or channels != heads * HEAD_WIDTH:
        raise shapes.refusal(
            name, f"it gives queries, keys and values of {heads} heads for {heads * HEAD_WIDTH} channels"
        )
    return {"qkv_ratio": _ratio(rows // 3, channels)}


def _ffn(shapes: _Shapes, prefix: str) -> dict[str, float]:
    return {"mlp_ratio": _ratio(*shapes.of(f"{prefix}.mlp.fc1.weight", 2))}


def _joined(blocks: list[dict[str, float]]) -> Arch:
    return Arch({f"block.{i}.{name}": value for i, block in enumerate(blocks) for name, value in block.items()})


def _published_glit_name(ours: str) -> str:
    if not (match := re.match(r"(blocks\.\d+)\.(.+)", ours)):
        return ours
    block, inside = match.groups()
    for part, published in _PUBLISHED_LOCAL.items():
        inside = inside.replace(f"{part}.", f"{published}.")
    return f"{block}.0.{inside}"


def _load(
    state: Mapping[str, Tensor],
    frame: Frame,
    arch: Arch,
    published_name: Callable[[str], str],
    num_classes: int | None,
    image_size: int | None,
    seed: int,
) -> GLiT:
    with torch.device("meta"):
        names = {
            published_name(ours): (ours, tensor.shape) for ours, tensor in build_in(frame, arch).state_dict().items()
        }
    weights = {}
    for name, (ours, shape) in names.items():
        pointwise = name.endswith((".net.1.weight", ".net.6.weight"))  # there convolutions of width 1, Linear here
        expected = (*shape, 1) if pointwise else tuple(shape)
        if name not in state:
            raise ValueError(f"the weights do not fit: {name!r} of shape {expected} is missing")
        if tuple(state[name].shape) != expected:
            raise ValueError(
                f"the weights do not fit: {name!r} has the shape {tuple(state[name].shape)}, not {expected}"
            )
        weights[ours] = state[name].squeeze(-1) if pointwise else state[name]
    for name in state:
        if name not in names:
            raise ValueError(f"the weights do not fit: {name!r} of shape {tuple(state[name].shape)} has no place here")
    wanted = replace(
        frame,
        num_classes=frame.num_classes if num_classes is None else num_classes,
        image_size=frame.image_size if image_size is None else image_size,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_in(wanted, arch)
    if wanted.num_classes != frame.num_classes:
        weights |= {name: network.state_dict()[name] for name in ("head.weight", "head.bias")}
    if wanted.image_size != frame.image_size:
        weights["pos_embed"] = _interpolated(weights["pos_embed"], wanted)
    network.load_state_dict(weights)
    return network.eval()


def _interpolated(positions: Tensor, frame: Frame) -> Tensor:
    """Return position embeddings (1, N, D) for another grid of patches, bicubic, that of the class token kept."""
    class_token, patches = positions[:, :1].float(), positions[:, 1:].float()
    old, new = math.isqrt(patches.shape[1]), math.isqrt(frame.patches)
    grid = patches.transpose(1, 2).reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([class_token, grid.flatten(2).transpose(1, 2)], dim=1)
