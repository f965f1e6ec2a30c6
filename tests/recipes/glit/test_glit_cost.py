"""Formulas against what torch counts in the extracted networks, and against the paper's figures."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from nasx import Arch
from nasx.measure import count_macs, count_params
from recipes.glit.cost import Macs, Params, macs, paper_macs, params
from recipes.glit.model import (
    BASE_VIT,
    DEIT_BASE,
    DEIT_SMALL,
    DEIT_TINY,
    GLIT_TINY,
    SMALL_VIT,
    TINY_VIT,
    GLiTConfig,
    build,
    build_in,
)
from recipes.glit.space import BASE, SMALL, TINY, GLiTSpace, table2
from recipes.glit.supernet import supernet as make_supernet


def test_published_networks() -> None:
    assert (params(GLIT_TINY), macs(GLIT_TINY)) == (7_264_456, 1_472_873_280)
    assert round(paper_macs(GLIT_TINY) / 1e6, 1) == 1332.5
    assert (params(DEIT_TINY), macs(DEIT_TINY)) == (5_717_416, 1_253_683_200)
    assert paper_macs(DEIT_TINY) == macs(DEIT_TINY)


@pytest.mark.parametrize("arch", [GLIT_TINY, DEIT_TINY], ids=["glit-tiny", "deit-tiny"])
def test_published_networks_as_built(arch: object) -> None:
    model = build(arch)  # type: ignore[arg-type]
    assert count_params(model) == params(arch)  # type: ignore[arg-type]
    assert count_macs(model, torch.zeros(1, 3, 224, 224)) == macs(arch)  # type: ignore[arg-type]


def test_every_kind_of_block_costs_what_is_counted() -> None:
    choices = GLiTSpace(blocks=1, kernel_size=(3, 5, 9), held_kernel_size=5)
    vit = GLiTConfig(image_size=16, patch_size=4, num_classes=7, embed_dim=48)
    settings = {"image_size": 16, "patch_size": 4, "num_classes": 7, "embed_dim": 48}
    image = torch.zeros(1, 3, 16, 16)
    space = table2(choices)
    assert space.size == 198
    for arch in space:
        model = build_in(vit, arch)
        assert count_macs(model, image) == macs.configured(**settings)(arch)
        assert count_params(model) == params.configured(**settings)(arch)


@pytest.mark.parametrize(("choices", "width"), [(SMALL, 384), (BASE, 768)], ids=["small", "base"])
def test_larger_sizes(choices: GLiTSpace, width: int) -> None:
    settings = {"embed_dim": width, "num_heads": choices.num_heads, "image_size": 64}
    for seed in range(3):
        arch = table2(choices).sample(seed)
        model = build(arch, embed_dim=width, num_heads=choices.num_heads, image_size=64)
        assert count_macs(model, torch.zeros(1, 3, 64, 64)) == macs.configured(**settings)(arch)
        assert count_params(model) == params.configured(**settings)(arch)


@pytest.mark.parametrize(
    ("arch", "vit", "parameters", "giga_macs"),
    [(DEIT_SMALL, SMALL_VIT, 22_050_664, 4.6), (DEIT_BASE, BASE_VIT, 86_567_656, 17.6)],
    ids=["small", "base"],
)
def test_deit_of_the_larger_sizes(arch: Arch, vit: GLiTConfig, parameters: int, giga_macs: float) -> None:
    name = f"deit_{'small' if vit is SMALL_VIT else 'base'}_patch16_224"
    with torch.device("meta"):
        built, theirs = build_in(vit, arch), timm.create_model(name, pretrained=False)
        image = torch.zeros(1, 3, 224, 224)
    assert Params(vit)(arch) == count_params(built) == count_params(theirs) == parameters
    assert Macs(vit)(arch) == count_macs(built, image)
    assert Macs(vit)(arch) / 1e9 == pytest.approx(giga_macs, abs=0.1)  # table 3


def test_sizes_differ_in_width_and_heads_alone() -> None:
    assert (
        replace(SMALL_VIT, embed_dim=192, num_heads=3) == replace(BASE_VIT, embed_dim=192, num_heads=3) == GLiTConfig()
    )
    for vit, choices in ((TINY_VIT, TINY), (SMALL_VIT, SMALL), (BASE_VIT, BASE)):
        assert vit.embed_dim == 64 * vit.num_heads == 64 * choices.num_heads
        assert choices.global_heads == tuple(vit.num_heads * third // 3 for third in range(4))


@pytest.mark.parametrize("sharing", ["separate", "entangled"])
def test_extracted_networks_cost_what_the_formula_says(sharing: str) -> None:
    choices = GLiTSpace(blocks=4, kernel_size=(3, 5, 9), held_kernel_size=5)
    vit = GLiTConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=48)
    settings = {"image_size": 8, "patch_size": 2, "in_channels": 1, "num_classes": 10, "embed_dim": 48}
    supernet = make_supernet(table2(choices), vit, sharing=sharing)  # type: ignore[arg-type]
    for arch in table2(choices).sample(np.random.default_rng(0), 20):
        network = supernet.extract(arch)
        assert count_macs(network, torch.zeros(1, 1, 8, 8)) == macs.configured(**settings)(arch)
        assert count_params(network) == params.configured(**settings)(arch)
