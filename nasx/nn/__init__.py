"""Supernets derived from plain builders, slice rules, and plain layers that recipes share."""

import torch

from nasx.arch import Arch
from nasx.nn.cell import Cell
from nasx.nn.depthwise import depthwise_conv1d
from nasx.nn.importance import Member, Units, heads, neurons, order_by_importance
from nasx.nn.layers import Attention, DropPath, FeedForward, attend, drop_path
from nasx.nn.layout import Index, Rule, Stack, centred, prefix, stacked, suffix
from nasx.nn.supernet import Subnet, Supernet, SupernetLike
from nasx.nn.vit import ImageConfig, PatchEmbed, ViT, ViTConfig, block_parts, drop_path_rates, hidden_width

# an Arch is names with numbers and texts, so that checkpoints which hold one load with `weights_only=True`
torch.serialization.add_safe_globals([Arch])

__all__ = [
    "Attention",
    "Cell",
    "DropPath",
    "FeedForward",
    "ImageConfig",
    "Index",
    "Member",
    "PatchEmbed",
    "Rule",
    "Stack",
    "Subnet",
    "Supernet",
    "SupernetLike",
    "Units",
    "ViT",
    "ViTConfig",
    "attend",
    "block_parts",
    "centred",
    "depthwise_conv1d",
    "drop_path",
    "drop_path_rates",
    "heads",
    "hidden_width",
    "neurons",
    "order_by_importance",
    "prefix",
    "stacked",
    "suffix",
]
