"""LocalViT's supernet against its extracted networks, and what it holds."""

import pytest
import torch
from torch import Tensor

from nasx import Space
from nasx.nn import Subnet, Supernet
from nasx.testing import SupernetContract
from nasx.train import recalibrate
from recipes.localvit.model import LocalViTConfig
from recipes.localvit.space import LocalViTSpace, locality, variant
from recipes.localvit.supernet import supernet as make_supernet

CHOICES = LocalViTSpace(blocks=3, reduction=(2, 4, 8))
VIT = LocalViTConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=8, num_heads=2)
SPACE = locality(CHOICES)


def images(seed: int, count: int = 4) -> Tensor:
    return torch.randn(count, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(space: Space = SPACE) -> Supernet:
    torch.manual_seed(0)
    return make_supernet(space, VIT, init_std=0.2).double()


class TestLocalViTSupernet(SupernetContract):
    space = SPACE
    samples = 5

    def make_supernet(self) -> Supernet:
        return make_supernet(SPACE, VIT, drop_path=0.3, init_std=0.2)

    def make_inputs(self) -> Tensor:
        return images(0)


@pytest.mark.parametrize("training", [False, True])
def test_every_candidate_of_a_block_is_its_extracted_network(training: bool) -> None:
    space = locality(LocalViTSpace(blocks=1, reduction=CHOICES.reduction))
    supernet = make(space)
    for arch in space:
        network = supernet.train(training).extract(arch)
        torch.testing.assert_close(network(images(1)), supernet(images(1), arch), rtol=0, atol=1e-12)


def test_recalibration_of_a_slice_is_that_of_the_extracted_network() -> None:
    supernet, batches = make(), [(images(seed), torch.zeros(4)) for seed in range(3)]
    for arch in (variant(3, blocks=3, mlp_ratio=2, reduction=4), variant(1, blocks=3, local=(1,)), SPACE.sample(4)):
        network = supernet.eval().extract(arch)
        before = network(images(9))
        of_slice, of_network = recalibrate(Subnet(supernet, arch), batches), recalibrate(network, batches)
        norms = 3 * sum(map(bool, arch.only("block.*.depthwise").values()))
        assert len(of_slice) == len(of_network) == 3 * norms  # mean, variance and count of each
        after = network(images(9))
        torch.testing.assert_close(supernet(images(9), arch), after, rtol=0, atol=1e-12)
        assert (after - before).abs().max() > 1e-3


def test_extracted_networks_have_every_kind_of_layer() -> None:
    supernet = make()
    names = {type(module).__name__ for arch in SPACE.sample(0, 10) for module in supernet.extract(arch).modules()}
    assert {"LocalFeedForward", "FeedForward", "SqueezeExcitation", "EfficientChannelAttention"} <= names


def copies(supernet: Supernet, name: str) -> set[str]:
    return {key.partition("@")[2] for key in supernet.state_dict() if key.partition("@")[0] == f"blocks.0.{name}"}


def test_a_space_gets_only_what_it_reaches() -> None:
    only_local = make(SPACE.pin({"block.*.depthwise": True, "block.*.activation": "relu6"}))
    assert not any(name.startswith(("blocks.0.mlp.", "blocks.0.norm2.")) for name in only_local.state_dict())
    assert copies(only_local, "local.expand.weight") == {"activation=relu6"}
    assert copies(only_local, "local.attention.fc.0.weight") == {"activation=relu6,gate=None"}
    gates = {f"activation=relu6,gate={gate}" for gate in ("sigmoid", "hardsigmoid")}
    assert copies(only_local, "local.attention.conv.weight") == gates
    only_plain = make(SPACE.pin({"block.*.depthwise": False}))
    assert not any("local" in name or "@" in name or "running" in name for name in only_plain.state_dict())
    assert only_plain.get_parameter("blocks.0.mlp.fc1.weight").shape == (48, 8)
    without = make(SPACE.pin({"block.*.depthwise": True, "block.*.channel_attention": "none"}))
    assert not any("attention" in name for name in without.state_dict())


def test_activations_have_weights_of_their_own_and_sizes_share_them() -> None:
    supernet = make()
    assert copies(supernet, "local.expand.weight") == {"activation=relu6", "activation=hardswish"}
    for name in ("relu6", "hardswish"):
        assert supernet.get_parameter(f"blocks.0.local.expand.weight@activation={name}").shape == (48, 8)
        kernel = supernet.get_parameter(f"blocks.0.local.depthwise.weight@activation={name}")
        small = supernet.extract(variant(1 if name == "relu6" else 2, blocks=3, mlp_ratio=2))
        assert torch.equal(small.get_parameter("blocks.0.local.depthwise.weight"), kernel[:16, :, 2:5, 2:5])
    assert copies(supernet, "attn.qkv.weight") == {""}
