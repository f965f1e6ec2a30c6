"""The supernet against its extracted networks, and what it holds."""

import pytest
import torch
from torch import Tensor, nn

from nasx.nn import Subnet, Switch
from nasx.testing import SupernetContract
from nasx.train import recalibrate
from recipes.localvit.model import Frame
from recipes.localvit.space import Axes, locality, variant
from recipes.localvit.supernet import LocalViTSupernet

AXES = Axes(blocks=3, reduction=(2, 4, 8))
FRAME = Frame(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=8, num_heads=2)
SPACE = locality(AXES)


def images(seed: int, count: int = 4) -> Tensor:
    return torch.randn(count, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(**settings: float) -> LocalViTSupernet:
    torch.manual_seed(0)
    return LocalViTSupernet(SPACE, FRAME, init_std=0.2, **settings).double()


class TestLocalViTSupernet(SupernetContract):
    space = SPACE
    samples = 5

    def make_supernet(self) -> LocalViTSupernet:
        return LocalViTSupernet(SPACE, FRAME, drop_path=0.3, init_std=0.2)

    def make_inputs(self) -> Tensor:
        return images(0)


@pytest.mark.parametrize("training", [False, True])
def test_every_candidate_of_a_block_is_its_extracted_network(training: bool) -> None:
    space = locality(Axes(blocks=1, reduction=AXES.reduction))
    torch.manual_seed(0)
    supernet = LocalViTSupernet(space, FRAME, init_std=0.2).double()
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


def test_extracted_network_is_plain_torch() -> None:
    names = {type(module).__name__ for arch in SPACE.sample(0, 10) for module in make().extract(arch).modules()}
    assert not any("Elastic" in name or "Switch" in name or "Super" in name for name in names)
    assert {"LocalFeedForward", "FeedForward", "SqueezeExcitation", "EfficientChannelAttention"} <= names


def test_a_space_gets_only_what_it_reaches() -> None:
    only_local = LocalViTSupernet(SPACE.pin({"block.*.depthwise": True, "block.*.activation": "relu6"}), FRAME)
    names = list(only_local.state_dict())
    assert not any(name.startswith(("blocks.0.mlp.", "blocks.0.norm2.")) for name in names)
    switches = [module for module in only_local.blocks[0].modules() if isinstance(module, Switch)]
    assert [set(switch) for switch in switches] == [{"relu6"}, {"se", "sigmoid", "hardsigmoid"}]
    only_plain = LocalViTSupernet(SPACE.pin({"block.*.depthwise": False}), FRAME)
    assert not any(isinstance(module, Switch | nn.BatchNorm2d) for module in only_plain.modules())
    assert only_plain.get_parameter("blocks.0.mlp.fc1.weight").shape == (48, 8)


def test_activations_have_weights_of_their_own_and_sizes_share_them() -> None:
    supernet = make()
    names = {name for name, _ in supernet.named_parameters() if "blocks.0" in name and name.endswith("expand.weight")}
    assert names == {f"blocks.0.local.on_{name}.ffn.expand.weight" for name in ("relu6", "hardswish")}
    assert all(supernet.get_parameter(name).shape == (48, 8) for name in names)
