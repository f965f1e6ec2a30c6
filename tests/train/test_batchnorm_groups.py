"""BatchNorm statistics of groups of samples, held to networks that see one group at a time."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nasx import Arch
from nasx.nn import Subnet
from nasx.train import BatchNormGroups, nesterov_sgd, train, train_supernet
from recipes.glit.model import GLiTConfig
from recipes.glit.space import GLiTSpace, table2
from recipes.glit.supernet import supernet as make_supernet


def in_groups(norm: nn.Module, x: Tensor, sizes: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Return the outputs of copies that each see a group, and the mean of their running statistics."""
    copies = [copy.deepcopy(norm) for _ in sizes]
    outputs = torch.cat([one(part) for one, part in zip(copies, torch.split(x, sizes), strict=True)])
    buffers = zip(*([b for b in one.buffers() if b.is_floating_point()] for one in copies), strict=True)
    return outputs, [torch.stack(kinds).mean(dim=0) for kinds in buffers]


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(5), (12, 5)),
        (nn.BatchNorm1d(5), (12, 5, 3)),
        (nn.BatchNorm2d(5, affine=False, momentum=0.3), (12, 5, 4, 3)),
        (nn.BatchNorm1d(5, track_running_stats=False), (12, 5)),
    ],
)
@pytest.mark.parametrize(("group", "sizes"), [(4, [4, 4, 4]), (5, [4, 4, 4]), (7, [6, 6]), (12, [12]), (99, [12])])
def test_each_group_is_normalised_by_itself(
    norm: nn.Module, shape: tuple[int, ...], group: int, sizes: list[int]
) -> None:
    norm = copy.deepcopy(norm).double()
    x = 3 + 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    expected, statistics = in_groups(norm, x, sizes)
    (gradient,) = torch.autograd.grad(expected.pow(3).sum(), x)
    with BatchNormGroups(12, group):
        found = norm(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.pow(3).sum(), x)[0], gradient)
    for kept, mean in zip((b for b in norm.buffers() if b.is_floating_point()), statistics, strict=True):
        torch.testing.assert_close(kept, mean)


def test_rows_of_tokens_go_with_their_sample() -> None:
    norm, tokens = nn.BatchNorm1d(5), torch.randn(6, 4, 5)  # six samples of four tokens
    expected, _ = in_groups(norm, tokens.flatten(0, 1), [12, 12])
    with BatchNormGroups(6, 3):
        torch.testing.assert_close(norm(tokens.flatten(0, 1)), expected)


def test_evaluation_is_as_ever() -> None:
    norm, x = nn.BatchNorm1d(5).eval(), torch.randn(6, 5)
    with BatchNormGroups(6, 3):
        assert torch.equal(norm(x), norm(x))
        found = norm(x)
    assert torch.equal(found, norm(x))


class Checkpointed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)

    reentrant = False


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpoints_compute_the_same_statistics_again(reentrant: bool) -> None:
    plain = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    blocks = Checkpointed(*copy.deepcopy(plain))
    blocks.reentrant = reentrant
    scale, labels = torch.arange(1.0, 7.0)[:, None], torch.randint(3, (6,))
    x = (scale * torch.randn(6, 5)).requires_grad_()
    for network in (plain, blocks):
        train(network, [(x, labels)], torch.optim.SGD(network.parameters(), lr=0.1), batch_norm_group=3).run()
    for mine, other in zip(plain.parameters(), blocks.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("given", [{}, {"retain_graph": True}, {"gradient": torch.tensor(2.0)}])
def test_gradients_of_ones_own_are_computed_through_checkpoints(given: dict[str, Any]) -> None:
    plain, x = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)), torch.randn(6, 5, requires_grad=True)
    blocks = Checkpointed(*copy.deepcopy(plain))
    for network in (plain, blocks):
        with BatchNormGroups(6, 3):
            network(x).pow(3).mean().backward(**given)
    for mine, other in zip(plain.parameters(), blocks.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 samples, but got 1"):
        BatchNormGroups(6, 1)


SPACE = table2(GLiTSpace(blocks=2, kernel_size=(3, 5, 9), held_kernel_size=5))
VIT = GLiTConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=36, num_heads=3)


@pytest.mark.parametrize("sharing", ["separate", "entangled"])
def test_supernet_and_extracted_network_train_alike_in_groups(sharing: str) -> None:
    torch.manual_seed(0)
    supernet = make_supernet(SPACE, VIT, sharing=sharing).double()  # type: ignore[arg-type]
    arch = next(a for a in (SPACE.sample(seed) for seed in range(99)) if Arch(a)["block.0.global_heads"] == 0)
    network = supernet.extract(arch)
    whole = copy.deepcopy(network)
    batch = torch.randn(8, 1, 8, 8, dtype=torch.float64), torch.randint(10, (8,))
    optimizer = nesterov_sgd(supernet, lr=0.1, weight_decay=0)
    (step,) = train_supernet(supernet, [batch], lambda _: (arch,), optimizer, batch_norm_group=4)
    (alone,) = train(network, [batch], nesterov_sgd(network, lr=0.1, weight_decay=0), batch_norm_group=4)
    (other,) = train(whole, [batch], nesterov_sgd(whole, lr=0.1, weight_decay=0))
    assert step.loss == pytest.approx(alone.loss)
    assert step.loss != pytest.approx(other.loss, rel=1e-6)
    trained = supernet.extract(arch).state_dict()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(trained[name], value)
    inputs = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(Subnet(supernet.eval(), arch)(inputs), network.eval()(inputs))
