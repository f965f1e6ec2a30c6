"""Where the presets of the papers' scale hold the sources' values, which differ from what one would write today."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from nasx.train import adamw
from recipes.autoformer.config import AUTOFORMER_BASE, AUTOFORMER_SMALL, AUTOFORMER_TINY
from recipes.autoformer.layers import TABLES
from recipes.autoformer.model import build as build_autoformer
from recipes.autoformer.space import uniform
from recipes.glit.config import BASE, SMALL, TINY
from recipes.glit.model import Block, build
from recipes.glit.space import same_heads
from recipes.localvit.config import LOCALVIT_TINY

GLIT, AUTOFORMER = (TINY, SMALL, BASE), (AUTOFORMER_TINY, AUTOFORMER_SMALL, AUTOFORMER_BASE)


def value(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(
    ("configs", "path", "expected"),
    [
        (GLIT, "retrain.refit", True),  # the released training has all 1.28 million images
        (GLIT, "retrain.mix_group", 256),  # a draw for each of four processes
        (GLIT, "retrain.batch_norm_group", 256),  # statistics of each process's own images
        (GLIT, "supernet.batch_norm_group", 256),
        (GLIT, "retrain.schedule", "epoch"),  # timm's
        (GLIT, "supernet.decay", "matrices"),  # SPOS's code
        (GLIT, "supernet.augment.resized_crop", (0.08, 1.0)),
        (GLIT, "supernet.augment.auto_augment", None),
        (GLIT, "search.racing_error", 0),
        (AUTOFORMER, "supernet.repeats", 3),
        (AUTOFORMER, "supernet.warmup_lr", 1e-6),
        (AUTOFORMER, "supernet.final_lr", 1e-5),
        (AUTOFORMER, "supernet.schedule", "epoch"),
        (AUTOFORMER, "retrain.schedule", "epoch"),
        (AUTOFORMER, "finetune.lr", 1e-5),
        (AUTOFORMER, "finetune.final_lr", 0.0),  # a cosine, where both ends were equal
        ((LOCALVIT_TINY,), "supernet.augment.resized_crop", (0.08, 1.0)),
        ((LOCALVIT_TINY,), "supernet.augment.flip", True),
        ((LOCALVIT_TINY,), "search.racing_error", 0),
        ((*GLIT, *AUTOFORMER, LOCALVIT_TINY), "data.mean", (0.485, 0.456, 0.406)),
        ((*GLIT, *AUTOFORMER, LOCALVIT_TINY), "data.std", (0.229, 0.224, 0.225)),
        ((*GLIT, *AUTOFORMER, LOCALVIT_TINY), "data.image_size", 224),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_presets_hold_what_the_source_has(configs: tuple[Any, ...], path: str, expected: Any) -> None:
    assert {config.preset: value(config, path) for config in configs} == {config.preset: expected for config in configs}


def test_recalibration_keeps_a_supernets_crops_and_flips_alone() -> None:
    for config in (*GLIT, *AUTOFORMER, LOCALVIT_TINY):
        assert config.search.recalibration_augment is None, "which means those of the supernet"
        kept = config.supernet.augment.crops_and_flips()
        assert (kept.resized_crop, kept.flip) == ((0.08, 1.0), True)
        assert (kept.auto_augment, kept.erase, kept.rotate, kept.zoom) == (None, 0, 0, 0)


@torch.no_grad()
def test_pointwise_convolutions_are_drawn_as_torch_draws_convolutions() -> None:
    torch.manual_seed(0)
    network = build(same_heads(1), num_classes=10)
    blocks = [module for name, module in network.named_modules() if name.endswith(".local")]
    assert len(blocks) == 12
    for local in blocks:
        for layer in (local.expand, local.project):
            assert isinstance(layer, nn.Linear)
            bound = 1 / math.sqrt(layer.in_features)
            for drawn in (layer.weight, layer.bias):
                assert float(drawn.abs().max()) <= bound
                assert float(drawn.std()) == pytest.approx(bound / math.sqrt(3), rel=0.15)
    assert 0.042 <= float(blocks[0].expand.weight.std()) <= 0.052
    block = network.blocks[0]
    assert isinstance(block, Block)
    assert float(block.mlp.fc1.weight.std()) == pytest.approx(0.02, rel=0.1)


def test_relative_tables_of_autoformer_are_decayed_and_positions_are_not() -> None:
    network = build_autoformer(uniform(16, 1, 2, 2), num_classes=3, image_size=8, patch_size=4, head_dim=8)
    decay = {
        id(parameter): group["weight_decay"]
        for group in adamw(network, lr=1e-3, weight_decay=0.05).param_groups
        for parameter in group["params"]
    }
    of = {name: decay[id(parameter)] for name, parameter in network.named_parameters()}
    tables = {name: rate for name, rate in of.items() if name.endswith(TABLES)}
    assert len(tables) == 4
    assert set(tables.values()) == {0.05}
    assert of["embed.pos_embed"] == of["embed.cls_token"] == of["head.bias"] == 0
