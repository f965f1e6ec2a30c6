"""Sizes by closed formulas, the published networks as members, and no choice without effect."""

import json

import numpy as np
import pytest
import torch

from nasx import Budget
from nasx.testing import SpaceContract
from recipes.localvit.cost import macs
from recipes.localvit.model import (
    LOCALVIT_SMALL_ACT3,
    LOCALVIT_TINY_ACT1,
    LOCALVIT_TINY_ACT3,
    LocalViT,
    LocalViTConfig,
)
from recipes.localvit.space import LOCALVIT_SPACE, SMALL, TINY, LocalViTSpace, locality, variant


class TestLocalViTSpace(SpaceContract):
    space = LOCALVIT_SPACE
    importable = "recipes.localvit.space:LOCALVIT_SPACE"
    samples = 15


@pytest.mark.parametrize(
    "choices",
    [
        TINY,
        SMALL,
        LocalViTSpace(blocks=3, depthwise=(True,), kernel_size=(3,), channel_attention=("se",), reduction=(2, 4)),
        LocalViTSpace(blocks=2, depthwise=(False,), mlp_ratio=(1, 2, 3, 4)),
        LocalViTSpace(
            blocks=5, mlp_ratio=(2,), activation=("relu6",), channel_attention=("none", "eca"), gate=("sigmoid",)
        ),
    ],
    ids=["tiny", "small", "only-local", "only-plain", "no-squeeze"],
)
def test_size(choices: LocalViTSpace) -> None:
    attentions = {"none": 1, "se": len(choices.reduction), "eca": len(choices.gate)}
    local = (
        len(choices.kernel_size) * len(choices.activation) * sum(attentions[name] for name in choices.channel_attention)
    )
    block = len(choices.mlp_ratio) * ((False in choices.depthwise) + (True in choices.depthwise) * local)
    assert locality(choices).size == block**choices.blocks


def test_default_block_has_111_candidates() -> None:
    assert LOCALVIT_SPACE.size == 111**12


def test_published_networks_and_all_variants_are_members() -> None:
    assert LOCALVIT_TINY_ACT1 in LOCALVIT_SPACE
    assert LOCALVIT_TINY_ACT3 in LOCALVIT_SPACE
    assert LOCALVIT_SMALL_ACT3 in locality(SMALL)
    for act in range(1, 6):
        assert variant(act) in LOCALVIT_SPACE
        assert variant(act, local=range(4)) in LOCALVIT_SPACE  # locality in the lower layers only
        assert variant(act, local=()) == variant(1, local=())  # DeiT, whatever the variant


def test_no_two_architectures_are_one_network() -> None:
    with torch.device("meta"):
        described = [str(LocalViT(LocalViTConfig(), arch)) for arch in locality(LocalViTSpace(blocks=1))]
    assert len(described) == len(set(described)) == 111


def test_architectures_hold_only_what_their_blocks_use() -> None:
    block = LocalViTSpace(blocks=1)
    for arch in locality(block):
        names = {name.split(".")[-1] for name in arch}
        kind = arch.get("block.0.channel_attention")
        assert ("reduction" in names) == (kind == "se")
        assert ("gate" in names) == (kind == "eca")
        assert ({"kernel_size", "activation"} <= names) == bool(arch["block.0.depthwise"])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="'none', 'se' or 'eca'"):
        locality(LocalViTSpace(channel_attention=("squeeze",)))
    with pytest.raises(ValueError, match="1, 2, 3, 4, 5, but got 6"):
        variant(6)


def test_budgets_draw_exactly() -> None:
    choices = LocalViTSpace(blocks=2, kernel_size=(3, 5), reduction=(4, 8))
    space, cost = locality(choices), macs.configured(image_size=16, patch_size=4, embed_dim=16, num_classes=3)
    costs = sorted(cost(arch) for arch in space)
    budget = Budget(cost, at_least=costs[len(costs) // 3], at_most=costs[len(costs) // 3 + 40])
    inside = {arch for arch in space if budget.lower <= cost(arch) <= budget.upper}
    feasible = space.within(budget)
    assert feasible.size == len(inside) < space.size
    assert set(feasible) == inside
    drawn = feasible.sample(np.random.default_rng(0), 100 * len(inside))
    counts = dict.fromkeys(inside, 0)
    for arch in drawn:
        counts[arch] += 1
    chi_square = sum((count - 100) ** 2 / 100 for count in counts.values())
    freedom = len(inside) - 1
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5  # uniform


def test_budgets_of_the_whole_space_draw_inside() -> None:
    feasible = LOCALVIT_SPACE.within(Budget(macs, at_least=1.2e9, at_most=1.3e9))
    assert LOCALVIT_TINY_ACT3 in feasible
    assert LOCALVIT_TINY_ACT1 not in feasible
    for arch in feasible.sample(0, 30):
        assert 1.2e9 <= macs(arch) <= 1.3e9
    assert feasible.acceptance > 0.99


def test_architectures_come_back_from_json_with_their_types() -> None:
    entries = json.loads(LOCALVIT_SPACE.canonical(LOCALVIT_TINY_ACT3).to_json())
    assert entries["block.0.depthwise"] is True
    assert entries["block.11.reduction"] == 192
