"""Sums over blocks against what torch counts in whole networks, and against the published figures."""

import pytest
import torch

from nasx import Arch
from nasx.measure import count_macs, count_params
from nasx.testing import CostContract
from recipes.localvit.cost import macs, params
from recipes.localvit.model import (
    LOCALVIT_SMALL_ACT3,
    LOCALVIT_TINY_ACT1,
    LOCALVIT_TINY_ACT3,
    SMALL_VIT,
    LocalViT,
    LocalViTConfig,
)
from recipes.localvit.space import LOCALVIT_SPACE, LocalViTSpace, locality, variant

DIGITS = {"image_size": 16, "patch_size": 4, "in_channels": 1, "num_classes": 7, "embed_dim": 24}


@pytest.mark.parametrize(
    ("arch", "parameters", "multiply_adds"),
    [(LOCALVIT_TINY_ACT3, 5_908_696, 1_266_475_008), (LOCALVIT_TINY_ACT1, 7_655_080, 1_621_346_304)],
    ids=["act3", "act1"],
)
def test_published_tiny_networks(arch: Arch, parameters: int, multiply_adds: int) -> None:
    model = LocalViT(LocalViTConfig(), arch)
    assert params(arch) == count_params(model) == parameters
    assert macs(arch) == count_macs(model, torch.zeros(1, 3, 224, 224)) == multiply_adds


def test_without_the_depthwise_stage_it_is_deit() -> None:
    deit = variant(1, local=())
    assert (params(deit), macs(deit)) == (5_717_416, 1_253_683_200)


def test_published_small_network() -> None:
    with torch.device("meta"):
        model = LocalViT(SMALL_VIT, LOCALVIT_SMALL_ACT3)
        settings = {"embed_dim": 384, "num_heads": 8}
        parameters = params.configured(**settings)(LOCALVIT_SMALL_ACT3)
        multiply_adds = macs.configured(**settings)(LOCALVIT_SMALL_ACT3)
        assert count_params(model) == parameters
        assert count_macs(model, torch.zeros(1, 3, 224, 224)) == multiply_adds
    assert round(parameters / 1e6, 1) == 22.4
    assert round(multiply_adds / 1e9, 1) == 4.6


class _Counted(CostContract):
    space = locality(LocalViTSpace(blocks=4, reduction=(2, 4, 8)))
    samples = 12


class TestLocalViTMacs(_Counted):
    cost = macs.configured(**DIGITS)

    def counted(self, arch: Arch) -> int:
        return count_macs(LocalViT(LocalViTConfig(**DIGITS), arch), torch.zeros(1, 1, 16, 16))


class TestLocalViTParams(_Counted):
    cost = params.configured(**DIGITS)

    def counted(self, arch: Arch) -> int:
        return count_params(LocalViT(LocalViTConfig(**DIGITS), arch))


def test_every_kind_of_block_costs_what_is_counted() -> None:
    vit, image = LocalViTConfig(**DIGITS), torch.zeros(1, 1, 16, 16, device="meta")
    for arch in locality(LocalViTSpace(blocks=1, reduction=(2, 4, 8))):
        with torch.device("meta"):
            model = LocalViT(vit, arch)
        assert count_macs(model, image) == macs.configured(**DIGITS)(arch)
        assert count_params(model) == params.configured(**DIGITS)(arch)


def test_random_architectures_on_imagenet_cost_what_is_counted() -> None:
    for arch in LOCALVIT_SPACE.sample(0, 5):
        with torch.device("meta"):
            model = LocalViT(LocalViTConfig(), arch)
        assert count_macs(model, torch.zeros(1, 3, 224, 224, device="meta")) == macs(arch)
        assert count_params(model) == params(arch)
