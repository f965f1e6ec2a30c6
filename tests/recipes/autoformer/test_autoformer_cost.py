"""Formulas against what torch counts in the networks, and against the source's own parameter counts."""

from typing import Any

import numpy as np
import pytest
import torch

from nasx import Arch
from nasx.measure import count_macs, count_params
from recipes.autoformer.cost import macs, params
from recipes.autoformer.model import AutoFormer, AutoFormerConfig, build
from recipes.autoformer.space import BASE, SMALL, TINY, AutoFormerSpace, uniform
from recipes.autoformer.supernet import supernet as make_supernet


def _alternating(embed_dim: int, depth: int) -> Arch:
    entries: dict[str, float] = {"embed_dim": embed_dim, "block.count": depth}
    for i in range(depth):
        entries |= {f"block.{i}.num_heads": (3, 4)[i % 2], f"block.{i}.mlp_ratio": (3.5, 4)[i % 2]}
    return Arch(entries)


@pytest.mark.parametrize(
    ("arch", "expected"), [(_alternating(192, 12), 5_883_880), (uniform(240, 14, 4, 4), 10_517_272)]
)
def test_parameters_of_the_source_s_networks(arch: Arch, expected: int) -> None:
    assert params(arch) == expected
    model = build(arch)
    assert count_params(model) == expected
    assert count_macs(model, torch.zeros(1, 3, 224, 224)) == macs(arch)


def test_random_networks_of_all_sizes_cost_what_is_counted() -> None:
    rng = np.random.default_rng(0)
    images = torch.zeros(1, 3, 224, 224, device="meta")
    for space in (TINY, SMALL, BASE):
        for arch in space.sample(rng, 4):
            with torch.device("meta"):
                model = build(arch)
            assert count_macs(model, images) == macs(arch)
            assert count_params(model) == params(arch)


@pytest.mark.parametrize("relative_positions", [True, False])
def test_other_frames(relative_positions: bool) -> None:
    choices = AutoFormerSpace(embed_dim=(20, 24), depth=(1, 2, 3), num_heads=(1, 2, 3), mlp_ratio=(1, 1.5, 2))
    settings: dict[str, Any] = {
        "image_size": 12,
        "patch_size": 3,
        "in_channels": 1,
        "num_classes": 7,
        "head_dim": 6,
        "max_offset": 2,
        "relative_positions": relative_positions,
    }
    supernet = make_supernet(choices.space(), AutoFormerConfig(**settings))
    images = torch.zeros(1, 1, 12, 12)
    for arch in choices.space().sample(np.random.default_rng(1), 25):
        for network in (AutoFormer(AutoFormerConfig(**settings), arch), supernet.extract(arch)):
            assert count_macs(network, images) == macs.configured(**settings)(arch)
            assert count_params(network) == params.configured(**settings)(arch)


def test_relative_positions_cost_less_than_one_table_product_per_pair() -> None:
    arch = _alternating(192, 12)
    more = macs(arch) - macs.configured(relative_positions=False)(arch)
    heads = sum(int(arch[f"block.{i}.num_heads"]) for i in range(12))
    assert 0 < more < heads * 2 * 197**2 * 64
