"""How the networks of a GLiT space share weights: separate copies per candidate, or slices of the largest ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import torch

from nasx import Space
from nasx.arch import Value
from nasx.nn import Index, Rule, Supernet, centred, prefix, stacked, suffix

from .model import GLiTConfig, build_in

Sharing = Literal["separate", "entangled"]
Shape = tuple[int, ...]


def supernet(
    space: Space, vit: GLiTConfig, *, sharing: Sharing = "separate", drop_path: float = 0.0, init_std: float = 0.02
) -> Supernet:
    """Return the supernet of a GLiT space.

    `sharing="separate"` holds a copy of each sub-module per candidate (SPOS): attention by the heads and d_k, the local
    sub-module by the heads, K and E, the feed-forward by its ratio; norms are shared. `sharing="entangled"` holds the
    largest of each (AutoFormer), laid out so that a shared element belongs to the same channel, head and hidden neuron
    in every network.
    """
    make = partial(build_in, vit, drop_path=drop_path, init_std=init_std)
    if sharing == "separate":
        return Supernet(make, space, separate=separate(vit, space))
    if sharing == "entangled":
        return Supernet(make, space, layout=layout(vit, space))
    raise ValueError(f'sharing must be "separate" or "entangled", but got {sharing!r}')


def separate(vit: GLiTConfig, space: Space) -> dict[str, Sequence[str]]:
    """Return the choices that each sub-module of a space exists once for."""
    local = ("window", "qkv_ratio") if vit.variant.locality == "window" else ("kernel_size", "expansion")
    copies: dict[str, Sequence[str]] = {"blocks.*.mlp": ("mlp_ratio",)}
    attention, convolution = _used(vit, space)
    if attention:
        copies["blocks.*.attn"] = ("global_heads", "qkv_ratio")
    if convolution:
        copies["blocks.*.local"] = ("global_heads", *local)
    if vit.variant.projection == "joint":
        copies["blocks.*.proj"] = ("global_heads",)  # what it joins depends on the heads alone
    return copies


def layout(vit: GLiTConfig, space: Space) -> dict[str, Rule | Mapping[int, Rule]]:
    """Return which slices of the largest sub-modules a block uses.

    Attention has the first heads and channels of a block, the local sub-module the last, so that an element of a
    weight belongs to the same channels in every block. Kernels are centred, the halves of a GLU keep a prefix each,
    and a head of any width is a prefix of the same head.
    """
    rules: dict[str, Rule | Mapping[int, Rule]] = {}
    variant, (attention, local) = vit.variant, _used(vit, space)
    rows, columns = HeadRows(vit, space), HeadColumns(vit, space)
    if attention:
        rules["*.attn.qkv"] = rows
    if attention and variant.projection == "separate":
        rules["*.attn.proj.weight"] = columns
    if local and variant.locality == "window":
        rules["*.local.qkv"] = rows
        if variant.projection == "separate":
            rules |= {"*.local.proj.weight": columns, "*.local.proj.bias": suffix}
    elif local:
        rules |= {
            "*.local.expand.weight": {0: stacked(2), 1: suffix if variant.submodule_input == "split" else prefix},
            "*.local.expand.bias": stacked(2),
            "*.local.depthwise.weight": centred,
            "*.local.project.weight": {0: suffix},
            "*.local.project.bias": suffix,
        }
        if variant.local_norm == "every":
            rules |= {"*.local.expand_norm.*": stacked(2), "*.local.project_norm.*": suffix}
    return rules


def _used(vit: GLiTConfig, space: Space) -> tuple[bool, bool]:
    """Return whether any block of a space has global heads, and whether any has local ones."""
    heads = {int(option["global_heads"]) for part in space.parts("block") for option in part}
    return max(heads) > 0, min(heads) < vit.num_heads


@dataclass(frozen=True)
class _HeadWidths:
    """How wide queries, keys and values of a head are, at most and in a block."""

    vit: GLiTConfig
    space: Space

    def of(self, name: str, choices: Mapping[str, Value]) -> tuple[list[tuple[int, int]], range, int]:
        """Return the largest and the wanted width of a head in each of q, k and v, the heads, and all heads' number."""
        _, number, module, *_ = name.split(".")
        ratio, fewest, most = self._reach[int(number)]
        vit, head = self.vit, self.vit.channels(1)
        wide, own = int(head * ratio), int(head * float(choices["qkv_ratio"]))
        values = (wide, own) if vit.variant.projection == "separate" else (head, head)
        total, heads = vit.num_heads, int(choices["global_heads"])
        if module == "attn":
            return [(wide, own), (wide, own), values], range(heads), most
        local = total - fewest
        return [(wide, own), (wide, own), values], range(local - (total - heads), local), local

    @cached_property
    def _reach(self) -> list[tuple[float, int, int]]:
        """The widest ratio, the fewest and the most global heads of each block."""
        found = []
        for part in self.space.parts("block"):
            options = list(part)
            ratios = [float(option["qkv_ratio"]) for option in options if "qkv_ratio" in option]
            heads = [int(option["global_heads"]) for option in options]
            found.append((max(ratios, default=1.0), min(heads), max(heads)))
        return found


class HeadRows(_HeadWidths):
    """The rows of packed queries, keys and values that belong to some heads, each a prefix of the widest head."""

    def __call__(self, name: str, largest: Shape, wanted: Shape, choices: Mapping[str, Value]) -> tuple[Index, ...]:
        """Return the index of the rows, and of the columns that the heads read."""
        widths, heads, most = self.of(name, choices)
        if largest[0] != most * sum(wide for wide, _ in widths):
            raise ValueError("no block has both the most heads and the widest; share weights separately")
        index: list[int] = []
        start = 0
        for wide, own in widths:
            index += [start + head * wide + row for head in heads for row in range(own)]
            start += most * wide
        rows = torch.tensor(index)
        if len(largest) == 1:
            return (rows,)
        local = name.split(".")[2] == "local" and self.vit.variant.submodule_input == "split"
        return rows, slice(largest[1] - wanted[1], largest[1]) if local else slice(0, wanted[1])


class HeadColumns(_HeadWidths):
    """The columns of an output projection that belong to some heads, and the rows of the channels that they give."""

    def __call__(self, name: str, largest: Shape, wanted: Shape, choices: Mapping[str, Value]) -> tuple[Index, ...]:
        """Return the index of the rows and of the columns."""
        widths, heads, _ = self.of(name, choices)
        wide, own = widths[-1]
        columns = torch.tensor([head * wide + column for head in heads for column in range(own)])
        if name.split(".")[2] == "local":
            return slice(largest[0] - wanted[0], largest[0]), columns
        return slice(0, wanted[0]), columns
