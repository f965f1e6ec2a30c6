"""Building blocks of supernets: separate weights (`Switch`, `Cell`), entangled ones (elastic layers), plain parts."""

from nasx.nn.cell import Cell
from nasx.nn.elastic import (
    ElasticAttention,
    ElasticBatchNorm1d,
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticDepthwiseConv1d,
    ElasticDepthwiseConv2d,
    ElasticFeedForward,
    ElasticLayerNorm,
    ElasticLinear,
)
from nasx.nn.layers import Attention, DropPath, FeedForward, depthwise_conv1d, drop_path
from nasx.nn.supernet import Subnet, Supernet
from nasx.nn.switch import Switch
from nasx.nn.vit import ImageFrame, PatchEmbed, SuperBlock, ViT, ViTFrame, ViTSupernet, ViTTrunk, drop_path_rates

__all__ = [
    "Attention",
    "Cell",
    "DropPath",
    "ElasticAttention",
    "ElasticBatchNorm1d",
    "ElasticBatchNorm2d",
    "ElasticConv2d",
    "ElasticDepthwiseConv1d",
    "ElasticDepthwiseConv2d",
    "ElasticFeedForward",
    "ElasticLayerNorm",
    "ElasticLinear",
    "FeedForward",
    "ImageFrame",
    "PatchEmbed",
    "Subnet",
    "SuperBlock",
    "Supernet",
    "Switch",
    "ViT",
    "ViTFrame",
    "ViTSupernet",
    "ViTTrunk",
    "depthwise_conv1d",
    "drop_path",
    "drop_path_rates",
]
