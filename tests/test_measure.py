import pytest
import torch
from timm.layers.config import set_fused_attn
from timm.models import create_model
from torch import nn

from nasx.measure import count_macs, count_params


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_timms_tiny_vit_has_its_known_size(name: str, fused: bool) -> None:
    set_fused_attn(fused)
    try:
        model = create_model(name)
    finally:
        set_fused_attn(True)
    assert count_params(model) == 5_717_416
    assert count_macs(model, torch.zeros(1, 3, 224, 224)) == 1_253_683_200


def test_products_and_convolutions_by_hand() -> None:
    assert count_macs(nn.Linear(7, 5), torch.zeros(1, 7)) == 7 * 5
    assert count_macs(nn.Conv1d(6, 6, 17, padding="same", groups=6), torch.zeros(1, 6, 11)) == 17 * 6 * 11
    assert count_macs(nn.Conv2d(3, 8, 4, stride=4), torch.zeros(1, 3, 16, 16)) == 3 * 8 * 16 * 16
    assert count_macs(nn.Sequential(nn.LayerNorm(4), nn.GELU()), torch.zeros(1, 4)) == 0


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_mode_and_statistics(training: bool) -> None:
    norm = nn.BatchNorm1d(3)
    model = nn.Sequential(nn.Linear(3, 3), norm).train(training)
    count_macs(model, torch.ones(1, 3))
    assert model.training is training
    assert norm.num_batches_tracked == 0
    assert all(p.grad is None for p in model.parameters())


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(3, 4)
    assert count_params(nn.Sequential(layer, layer)) == 16


def test_torchs_own_encoder_layer_is_counted_despite_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=32, batch_first=True)
    tokens = 5
    by_hand = tokens * (4 * 16 * 16 + 2 * 16 * 32) + 2 * tokens * tokens * 16
    assert count_macs(layer, torch.zeros(1, tokens, 16)) == by_hand
