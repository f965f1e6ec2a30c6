import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from nasx import Arch, Space, one_of
from nasx.nn import Subnet, Supernet
from nasx.train import Unpacked, recalibrate

LAYERS = [(nn.BatchNorm1d, (3,)), (nn.BatchNorm1d, (3, 7)), (nn.BatchNorm2d, (3, 4, 5)), (nn.BatchNorm3d, (3, 2, 3, 2))]


def batches(shape: tuple[int, ...], count: int = 4) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(1)
    return [(3 + 2 * torch.randn(8, *shape, generator=rng), torch.zeros(8, dtype=torch.long)) for _ in range(count)]


def norms(statistics: dict[str, Tensor]) -> set[str]:
    return {name.rpartition(".")[0] for name in statistics}


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=["1d", "1d-sequence", "2d", "3d"])
def test_statistics_are_the_mean_over_batches_of_any_dimension(
    layer: type[nn.BatchNorm1d], shape: tuple[int, ...]
) -> None:
    norm = layer(3, momentum=0.3)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.fill_(99.0)
    norm.running_var.fill_(float("nan"))
    images = batches(shape)
    model = nn.Sequential(norm)  # a model without Linear: its parameters are the norm's
    assert sorted(recalibrate(model, images)) == ["0.num_batches_tracked", "0.running_mean", "0.running_var"]
    axes = (0, *range(2, 1 + len(shape)))
    mean = torch.stack([x.mean(dim=axes) for x, _ in images]).mean(dim=0)
    variance = torch.stack([x.var(dim=axes, correction=1) for x, _ in images]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert norm.momentum == 0.3


def test_dropout_stays_off_and_modes_and_weights_come_back() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.train()
    model[3].eval()
    weights = copy.deepcopy(dict(model.named_parameters()))
    images = batches((3,))
    assert norms(recalibrate(model, images)) == {"1", "3"}
    torch.testing.assert_close(model[1].running_mean, torch.stack([x.mean(dim=0) for x, _ in images]).mean(dim=0))
    assert [m.training for m in model] == [True, True, True, False]
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


class Network(nn.Module):
    def __init__(self, arch: Arch) -> None:
        super().__init__()
        width = int(arch["width"])
        self.stem = nn.BatchNorm1d(3)
        self.block = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.stem(x))


def of_block(supernet: nn.Module, width: int) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in supernet.state_dict().items() if n.endswith(f"@width={width}")}


@pytest.mark.parametrize("separate", [True, False])
def test_other_candidates_keep_their_statistics(separate: bool) -> None:
    space = Space(width=one_of(2, 4))
    supernet = Supernet(Network, space, separate={"block": "width"} if separate else None)
    images = batches((3,))
    wide = Subnet(supernet, Arch({"width": 4}))
    wide_statistics = recalibrate(wide, images)
    kept, untouched = of_block(supernet, 4), of_block(supernet, 2)
    statistics = recalibrate(Subnet(supernet, Arch({"width": 2})), batches((3,), 2))
    assert len(norms(statistics)) == 2
    if separate:
        assert float(untouched["block.1.num_batches_tracked@width=2"]) == 0
        assert all(torch.equal(value, kept[name]) for name, value in of_block(supernet, 4).items())
        changed = of_block(supernet, 2)["block.1.running_mean@width=2"]
        assert not torch.equal(changed, untouched["block.1.running_mean@width=2"])
    else:
        assert torch.equal(supernet.get_buffer("block.1.running_mean")[:2], statistics["network.block.1.running_mean"])
        last = wide_statistics["network.block.1.running_mean"][2:]
        assert torch.equal(supernet.get_buffer("block.1.running_mean")[2:], last)
    supernet.get_buffer("stem.running_mean").zero_()
    wide.load_state_dict(wide_statistics, strict=False)  # copies, which nothing has changed since
    assert bool(supernet.get_buffer("stem.running_mean").any())
    assert all(torch.equal(wide.state_dict()[name], value) for name, value in wide_statistics.items())
    assert torch.equal(supernet.extract(Arch({"width": 4})).eval()(images[0][0]), wide.eval()(images[0][0]))


def test_an_error_in_a_pass_leaves_modes_and_momenta_as_they_were() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=0.2), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="2D or 3D"):
        recalibrate(model, [(torch.zeros(2, 3, 4, 5), torch.zeros(2))])
    assert model[0].momentum == 0.2
    assert model.training
    assert model[0].training


@pytest.mark.parametrize("separate", [False, True])
def test_an_error_between_batches_leaves_all_statistics_as_they_were(separate: bool) -> None:
    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield from batches((3,), 2)
        raise OSError("the disk is gone")

    supernet = Supernet(Network, Space(width=one_of(2, 4)), separate={"block": "width"} if separate else None)
    subnet = Subnet(supernet, Arch({"width": 4}))
    recalibrate(subnet, batches((3,)))
    before = copy.deepcopy(supernet.state_dict())
    with pytest.raises(OSError, match="the disk is gone"):
        recalibrate(subnet, broken())
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())


def test_batches_of_any_structure_are_taken_apart() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    images = batches((3,))
    expected = recalibrate(model, images)
    found = recalibrate(model, [{"input": x, "labels": y} for x, y in images])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    found = recalibrate(model, [x for x, _ in images], unpack=lambda x: Unpacked((x,), {}, None))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_supernet_has_no_layers_to_recalibrate() -> None:
    space = Space(width=one_of(2, 4))
    supernet = Supernet(lambda arch: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, int(arch["width"]))), space)
    with pytest.raises(ValueError, match=r"no BatchNorm layers.*recalibrate Subnet\(supernet, arch\)"):
        recalibrate(supernet, [{"input": x, "arch": space[0], "labels": y} for x, y in batches((3,))])
    assert recalibrate(Subnet(supernet, space[0]), batches((3,)))


class Twice(nn.Module):
    """Normalises twice by one layer, and once by a layer's `forward` itself."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.plain, self.idle = (nn.BatchNorm1d(3, momentum=0.3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.plain.forward(self.shared(2 * x) + self.shared(x))


def test_averages_are_torchs_cumulative_ones_however_a_layer_is_called() -> None:
    model, plain = Twice(), Twice()
    for norm in (plain.shared, plain.plain):
        norm.momentum = None  # torch's own cumulative average
    with torch.no_grad():
        for x, _ in batches((3,)):
            plain.train()(x)
    found = recalibrate(model, batches((3,)))
    assert norms(found) == {"shared", "plain"}
    for name in found:
        assert torch.equal(found[name], plain.get_buffer(name)), name
    assert [norm.momentum for norm in (model.shared, model.plain, model.idle)] == [0.3] * 3
    assert not model.shared._forward_pre_hooks
