"""Vision transformers of any blocks: the supernet of a made-up block keeps the contract."""

import pytest
import torch
from torch import Tensor, nn

from nasx import Arch, Space, one_of, repeat
from nasx.nn import Attention, DropPath, FeedForward, Switch, ViT, ViTFrame, ViTSupernet, drop_path_rates
from nasx.testing import SupernetContract

FRAME = ViTFrame(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=12, num_heads=2)
SPACE = Space(block=repeat(Space(heads=one_of(2, 4), hidden=one_of(8, 24)), 3))


class Block(nn.Module):
    def __init__(self, attn: nn.Module, mlp: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.attn, self.mlp, self.drop_path = attn, mlp, DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(x))
        return x + self.drop_path(self.mlp(x))


class SuperBlock(nn.Module):
    def __init__(self, drop_path: float) -> None:
        super().__init__()
        self.attn = Switch({heads: Attention(12, heads) for heads in (2, 4)})
        self.mlp = Switch({hidden: FeedForward(12, hidden) for hidden in (8, 24)})
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, part: Arch) -> Tensor:
        x = x + self.drop_path(self.attn(x, part["heads"]))
        return x + self.drop_path(self.mlp(x, part["hidden"]))

    def extract(self, part: Arch) -> Block:
        return Block(self.attn.extract(part["heads"]), self.mlp.extract(part["hidden"]), self.drop_path.rate)


class WithoutClassToken(ViTFrame):
    @property
    def has_class_token(self) -> bool:
        return False


class Supernet(ViTSupernet[ViT]):
    plain = ViT


class TestSupernet(SupernetContract):
    space, frame = SPACE, FRAME

    def make_supernet(self) -> Supernet:
        supernet = Supernet(self.frame, (SuperBlock(rate) for rate in drop_path_rates(0.3, 3)))
        supernet.initialise(0.1)
        return supernet

    def make_inputs(self) -> Tensor:
        return torch.randn(4, 1, 8, 8)


class TestSupernetOfMeans(TestSupernet):
    frame = WithoutClassToken(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=12, num_heads=2)


def test_a_frame_counts_its_tokens() -> None:
    assert (FRAME.grid, FRAME.patches, FRAME.tokens) == (4, 16, 17)
    assert TestSupernetOfMeans.frame.tokens == 16
    network = TestSupernet().make_supernet().extract(SPACE.sample(0))
    assert network.embed(torch.zeros(2, 1, 8, 8)).shape == (2, 17, 12)
    means = TestSupernetOfMeans().make_supernet().extract(SPACE.sample(0))
    assert means.cls_token is None
    assert means.embed(torch.zeros(2, 1, 8, 8)).shape == (2, 16, 12)


def test_what_is_extracted_in_inference_mode_can_be_trained() -> None:
    supernet = TestSupernet().make_supernet()
    with torch.inference_mode():
        network = supernet.extract(SPACE.sample(0))
    network(torch.randn(2, 1, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("sizes", "told"),
    [({"image_size": 9}, "9 and 2"), ({"image_size": 0}, "0 and 2"), ({"num_heads": 5}, "12 and 5")],
)
def test_sizes_that_do_not_divide_are_refused(sizes: dict[str, int], told: str) -> None:
    fitting = {"image_size": 8, "patch_size": 2, "embed_dim": 12, "num_heads": 2}
    with pytest.raises(ValueError, match=told):
        ViTFrame(**fitting | sizes)


def test_stochastic_depth_grows_to_its_rate() -> None:
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0]
