"""Vision transformers of any blocks: what stands around them, alone and in a supernet of made-up blocks."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from nasx import Arch, Space, one_of, repeat
from nasx.nn import Attention, DropPath, FeedForward, Supernet, ViT, ViTConfig, drop_path_rates
from nasx.testing import SupernetContract

VIT = ViTConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=12, num_heads=2)
SPACE = Space(block=repeat(Space(heads=one_of(2, 4), hidden=one_of(8, 24)), 3))


class Block(nn.Module):
    def __init__(self, part: Arch, drop_path: float) -> None:
        super().__init__()
        self.attn = Attention(12, int(part["heads"]))
        self.mlp = FeedForward(12, int(part["hidden"]))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(x))
        return x + self.drop_path(self.mlp(x))


class WithoutClassToken(ViTConfig):
    @property
    def has_class_token(self) -> bool:
        return False


MEANS = WithoutClassToken(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=12, num_heads=2)


def build(vit: ViTConfig, arch: Arch) -> ViT:
    rates = drop_path_rates(0.3, 3)
    network = ViT(vit, [Block(part, rate) for part, rate in zip(arch.parts("block"), rates, strict=True)])
    network.initialise(0.1)
    return network


class TestSupernet(SupernetContract):
    space, vit = SPACE, VIT

    def make_supernet(self) -> Supernet:
        separate = {"blocks.*.attn": "heads", "blocks.*.mlp": "hidden"}
        return Supernet(partial(build, self.vit), SPACE, separate=separate)

    def make_inputs(self) -> Tensor:
        return torch.randn(4, 1, 8, 8)


class TestSupernetOfMeans(TestSupernet):
    vit = MEANS


def test_a_frame_counts_its_tokens() -> None:
    assert (VIT.grid, VIT.patches, VIT.tokens) == (4, 16, 17)
    assert MEANS.tokens == 16
    network = build(VIT, SPACE.sample(0))
    assert network.embed(torch.zeros(2, 1, 8, 8)).shape == (2, 17, 12)
    means = build(MEANS, SPACE.sample(0))
    assert means.cls_token is None
    assert means.embed(torch.zeros(2, 1, 8, 8)).shape == (2, 16, 12)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"image_size": 9}, "9 and 2"), ({"image_size": 0}, "0 and 2"), ({"num_heads": 5}, "12 and 5")],
)
def test_sizes_that_do_not_divide_are_refused(sizes: dict[str, int], message: str) -> None:
    fitting = {"image_size": 8, "patch_size": 2, "embed_dim": 12, "num_heads": 2}
    with pytest.raises(ValueError, match=message):
        ViTConfig(**fitting | sizes)


def test_stochastic_depth_grows_to_its_rate() -> None:
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0]
