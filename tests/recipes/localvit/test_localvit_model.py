"""What the local half of a block sees and what passes it by."""

import pytest
import torch
from torch import Tensor, nn

from nasx import Arch
from nasx.nn import Attention
from recipes.localvit.model import Block, LocalViT, LocalViTConfig
from recipes.localvit.space import variant

SIDE, WIDTH = 6, 12


def network(arch: Arch, **settings: float) -> LocalViT:
    torch.manual_seed(0)
    vit = LocalViTConfig(num_classes=5, image_size=24, patch_size=4, embed_dim=WIDTH, num_heads=2)
    return LocalViT(vit, arch, init_std=0.3, **settings).double().eval()


def feed_forward(arch: Arch) -> Block:
    """The first block of a network, whose attention is silent: what is left is the second half."""
    block = network(arch).blocks[0]
    assert isinstance(block, Block)
    assert isinstance(block.attn, Attention)
    nn.init.zeros_(block.attn.proj.weight)
    nn.init.zeros_(block.attn.proj.bias)
    return block


def tokens(seed: int = 0, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 1 + SIDE**2, WIDTH, dtype=torch.float64, generator=generator)


VARIANTS = [variant(act, blocks=1, reduction=8, kernel_size=k) for act in range(1, 6) for k in (3, 5)]


@pytest.mark.parametrize("arch", VARIANTS)
@torch.no_grad()
def test_class_token_and_patches_do_not_meet_in_the_local_half(arch: Arch) -> None:
    block, x = feed_forward(arch), tokens()
    out = block(x)
    assert torch.equal(out[:, 0], x[:, 0])
    assert (out[:, 1:] - x[:, 1:]).abs().amin(dim=(0, 1)).max() > 0  # the patches do change
    shuffled = torch.cat([x[:, :1], x[:, 1:][:, torch.randperm(SIDE**2)]], dim=1)
    assert torch.equal(block(shuffled)[:, 0], out[:, 0])
    other = torch.cat([tokens(1)[:, :1], x[:, 1:]], dim=1)
    torch.testing.assert_close(block(other)[:, 1:], out[:, 1:], rtol=0, atol=0)


@pytest.mark.parametrize("kernel_size", [3, 5])
@torch.no_grad()
def test_a_patch_is_seen_in_its_neighbourhood_on_the_grid_and_nowhere_else(kernel_size: int) -> None:
    block, x = feed_forward(variant(2, blocks=1, kernel_size=kernel_size)), tokens()
    row, column = 1, 4
    changed = x.clone()
    changed[:, 1 + row * SIDE + column] += 1
    moved = (block(changed) - block(x))[:, 1:].abs().amax(dim=(0, 2)).view(SIDE, SIDE) > 0
    reach = kernel_size // 2
    near = torch.tensor([[max(abs(r - row), abs(c - column)) <= reach for c in range(SIDE)] for r in range(SIDE)])
    assert torch.equal(moved, near)


@pytest.mark.parametrize("act", [3, 4, 5])
@torch.no_grad()
def test_channel_attention_sees_all_patches(act: int) -> None:
    block, x = feed_forward(variant(act, blocks=1, reduction=8)), tokens()
    changed = x.clone()
    changed[:, 1] += 1
    assert (block(changed) - block(x))[:, 1:].abs().amax(dim=(0, 2)).min() > 0


@torch.no_grad()
def test_plain_feed_forward_is_token_by_token_and_includes_the_class_token() -> None:
    block, x = feed_forward(variant(1, blocks=1, local=())), tokens()
    out, order = block(x), torch.randperm(1 + SIDE**2)
    torch.testing.assert_close(block(x[:, order]), out[:, order], rtol=0, atol=1e-12)
    assert (out[:, 0] - x[:, 0]).abs().max() > 0


def test_stochastic_depth_spares_the_local_half() -> None:
    model = network(variant(2, blocks=2), drop_path=0.999999)
    last = model.blocks[1]
    assert isinstance(last, Block)
    x = tokens()
    for norm in last.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    assert last.local is not None
    last.drop_path.train()
    with torch.no_grad():
        torch.testing.assert_close(last(x)[:, 1:], x[:, 1:] + last.local(x[:, 1:]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "gelu"}, "an activation must be one of relu6, hardswish, but got 'gelu'"),
        ({"kernel_size": 4}, "odd, so that the image keeps its size, but got 4"),
        ({"channel_attention": "cbam"}, "none, se, eca, but got 'cbam'"),
        ({"channel_attention": "se", "reduction": 1000}, "from 1 to the hidden width 48, but got 1000"),
        ({"channel_attention": "eca", "gate": "tanh"}, "a gate must be one of sigmoid, hardsigmoid, but got 'tanh'"),
        ({"mlp_ratio": 0.01}, "mlp_ratio must leave a hidden width of at least 1 of 12"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, object], message: str) -> None:
    entries = dict(variant(1, blocks=1)) | {f"block.0.{name}": value for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        network(Arch(entries))  # type: ignore[arg-type]


def test_no_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="has no blocks"):
        LocalViT(LocalViTConfig(), Arch({"width": 3}))
