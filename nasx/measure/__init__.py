"""Counting what networks compute and hold, of one network at a time or of every network of a space."""

from nasx.measure.blocks import NetworkBlocks
from nasx.measure.count import Call, count_activations, count_macs, count_params, count_peak_memory
from nasx.measure.counted import counted
from nasx.measure.tables import CachedCost, CountedCost
from nasx.measure.vit import CountedViTCost, ViTBlocks, ViTCost

__all__ = [
    "CachedCost",
    "Call",
    "CountedCost",
    "CountedViTCost",
    "NetworkBlocks",
    "ViTBlocks",
    "ViTCost",
    "count_activations",
    "count_macs",
    "count_params",
    "count_peak_memory",
    "counted",
]
