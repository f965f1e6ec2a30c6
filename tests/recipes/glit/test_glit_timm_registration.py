"""GLiT-Tiny through timm's own doors."""

from typing import Any

import pytest
import timm
import timm.data
import timm.optim
import torch
from torch import Tensor

import recipes.glit.timm  # noqa: F401
from recipes.glit.model import GLIT_TINY, build

TIMM: Any = timm  # whose own types are incomplete


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def create(**settings: Any) -> Any:
    torch.manual_seed(0)
    return TIMM.create_model("glit_tiny_patch16_224", img_size=64, **settings).eval()


def test_the_name_is_registered_without_weights() -> None:
    assert "glit_tiny_patch16_224" in timm.list_models("glit*")
    assert not timm.list_models("glit*", pretrained=True)
    with pytest.raises(ValueError, match="no weights"):
        TIMM.create_model("glit_tiny_patch16_224", pretrained=True)


@torch.no_grad()
def test_logits_are_the_built_network_s(images: Tensor) -> None:
    torch.manual_seed(1)
    own, model = build(GLIT_TINY, image_size=64, init_std=0.1).eval(), create()
    model.load_state_dict(own.state_dict())
    assert torch.equal(model(images), own(images))
    torch.manual_seed(0)
    fresh = build(GLIT_TINY, image_size=64).state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in create().state_dict().items())


def test_the_published_size() -> None:
    with torch.device("meta"):
        model = TIMM.create_model("glit_tiny_patch16_224", drop_path_rate=0.1)
    assert sum(p.numel() for p in model.parameters()) == 7_264_456
    assert (model.num_features, model.num_classes) == (192, 1000)
    assert [block.drop_path.rate for block in model.blocks][:: len(model.blocks) - 1] == [0, 0.1]
    data = TIMM.data.resolve_model_data_config(model)
    assert data["input_size"] == (3, 224, 224)
    assert data["mean"] == (0.485, 0.456, 0.406)
    with pytest.raises(ValueError, match=r"square"):
        TIMM.create_model("glit_tiny_patch16_224", img_size=(64, 32))


@torch.no_grad()
def test_features_head_and_logits_are_one_chain(images: Tensor) -> None:
    model = create(num_classes=7)
    features = model.forward_features(images)
    assert features.shape == (2, 17, 192)
    before = model.forward_head(features, pre_logits=True)
    assert torch.equal(before, features[:, 0])
    assert torch.equal(model.forward_head(features), model(images))
    assert torch.equal(model.get_classifier()(before), model(images))
    bare = create(num_classes=0)
    assert bare(images).shape == (2, 192)
    mean, every = create(global_pool="avg", num_classes=0), create(global_pool="", num_classes=0)
    torch.testing.assert_close(mean(images), every(images)[:, 1:].mean(1))


@torch.no_grad()
def test_the_head_is_replaced(images: Tensor) -> None:
    model = create()
    model.reset_classifier(5)
    assert (model.num_classes, model(images).shape) == (5, (2, 5))
    model.reset_classifier(0, "avg")
    torch.testing.assert_close(model(images), model.forward_features(images)[:, 1:].mean(1))
    with pytest.raises(ValueError, match="global_pool"):
        model.reset_classifier(5, "max")


@torch.no_grad()
def test_intermediate_features(images: Tensor) -> None:
    model = create()
    tokens, maps = model.forward_intermediates(images, indices=[0, 5, 11])
    assert torch.equal(tokens, model.forward_features(images))
    assert [m.shape for m in maps] == [(2, 192, 4, 4)] * 3
    ((last, class_token),) = model.forward_intermediates(
        images, indices=1, output_fmt="NLC", norm=True, intermediates_only=True, return_prefix_tokens=True
    )
    assert torch.equal(torch.cat([class_token, last], dim=1), tokens)
    assert torch.equal(model.norm(maps[2].flatten(2).mT), last)
    early = model.forward_intermediates(images, indices=[0, 5], stop_early=True, intermediates_only=True)
    assert all(map(torch.equal, early, maps))
    assert all(map(torch.equal, model.forward_intermediates(images, indices=[-12, -7], intermediates_only=True), maps))
    with pytest.raises(ValueError, match=r"-12..11, but got \[12\]"):
        model.forward_intermediates(images, indices=[12])
    backbone = create(features_only=True, out_indices=(0, 5))
    assert backbone.feature_info.channels() == [192, 192]
    assert backbone.feature_info.reduction() == [16, 16]
    assert all(map(torch.equal, backbone(images), maps))
    assert not any(name.startswith(("model.head", "model.blocks.6")) for name in backbone.state_dict())


def test_position_and_class_token_are_spared_by_weight_decay() -> None:
    model = create()
    optimizer = TIMM.optim.create_optimizer_v2(model, "adamw", weight_decay=0.05)
    spared, decayed = sorted(optimizer.param_groups, key=lambda group: group["weight_decay"])
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0, 0.05)
    for parameter in (model.pos_embed, model.cls_token, model.norm.weight, model.head.bias):
        assert any(parameter is p for p in spared["params"])
    assert any(model.head.weight is p for p in decayed["params"])
