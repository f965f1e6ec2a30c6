"""What verification proves of sound networks, and what it says of broken ones."""

import copy
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasx import Arch, Space, one_of, repeat
from nasx.measure import Call, count_peak_memory, counted
from nasx.nn import FeedForward, Supernet, stacked
from nasx.train import WeightAverage
from nasx.verify import check_cost, check_onnx, check_reload, check_slice, first_difference, verify

SPACE = Space(block=repeat(Space(hidden=one_of(4, 8)), 2))
ARCH = SPACE[1]
WIDTH = 6


class Plain(nn.Module):
    """Two feed-forwards between a stem with BatchNorm and dropout and a head."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(3, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.3))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class SlicedLinear(nn.Linear):
    """Computes with the first rows, and as many columns as there are inputs."""

    def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
        bias = self.bias if rows is None else self.bias[:rows]
        return nn.functional.linear(x, self.weight[:rows, : x.shape[-1]], bias)


class SlicedFeedForward(FeedForward):
    """The first hidden neurons of a feed-forward."""

    def __init__(self, dim: int, hidden: int, *, dropout: float) -> None:
        super().__init__(dim, hidden, dropout=dropout)
        self.fc1, self.fc2 = SlicedLinear(dim, hidden), SlicedLinear(hidden, dim)

    def forward(self, x: Tensor, hidden: int = 0) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x, hidden)))))


class Net(Plain):
    """The supernet of them, with entangled weights; `fault` is done to the network that it extracts.

    A network is extracted as its user builds it, in whatever precision torch has by default.
    """

    def __init__(self, fault: Callable[[Plain], object] = lambda network: None) -> None:
        torch.manual_seed(0)
        super().__init__([SlicedFeedForward(WIDTH, 8, dropout=0.2) for _ in range(2)])
        self.fault = fault

    def forward(self, x: Tensor, arch: Arch | None = None) -> Tensor:
        assert arch is not None
        x = self.stem(x)
        for block, part in zip(self.blocks, arch.parts("block"), strict=True):
            x = x + block(x, hidden=int(part["hidden"]))
        return self.head(x)

    def extract(self, arch: Arch) -> Plain:
        network = build(arch)
        slices = {name: tuple(map(slice, tensor.shape)) for name, tensor in network.state_dict().items()}
        network.load_state_dict({name: tensor[slices[name]] for name, tensor in self.state_dict().items()})
        self.fault(network)
        return network.train(self.training)


def build(arch: Arch) -> Plain:
    return Plain([FeedForward(WIDTH, int(part["hidden"]), dropout=0.2) for part in arch.parts("block")])


def inputs() -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(1))


def true_params(arch: Arch) -> int:
    hidden = sum(int(part["hidden"]) for part in arch.parts("block"))
    return 3 * 6 + 6 + 2 * 6 + hidden * (2 * 6 + 1) + 2 * 6 + 6 * 2 + 2


def true_macs(arch: Arch) -> int:
    return 3 * 6 + 6 * 2 + sum(2 * 6 * int(part["hidden"]) for part in arch.parts("block"))


@pytest.mark.parametrize("arch", list(SPACE), ids=lambda arch: "-".join(map(str, arch.values())))
def test_a_sound_supernet_passes_every_check(arch: Arch) -> None:
    report = verify(Net(), arch, inputs(), macs=true_macs, params=true_params, build=build)
    assert report.passed, str(report)
    assert report.arch == arch
    assert [check.name for check in report.checks] == [
        "supernet slice = extracted network (evaluation mode)",
        "supernet slice = extracted network (training mode)",
        "reloaded export = extracted network",
        "MACs: formula = count",
        "parameters: formula = count",
    ]
    assert all(check.difference is not None and check.difference < 1e-12 for check in report.checks)


class Tabled(nn.Module):
    """A network with a table that the builder computes in torch's default precision."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, int(arch["width"])), nn.Linear(int(arch["width"]), 2)
        self.register_buffer("table", torch.linspace(0, 1, int(arch["width"])), persistent=False)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.first(x) * self.get_buffer("table").cos()))


def test_a_derived_supernet_passes_and_its_modules_are_named_where_it_does_not() -> None:
    class Wrong(Supernet):
        def extract(self, arch: Arch) -> nn.Module:
            network = super().extract(arch)
            nudge("second.bias", 1e-3)(network)
            return network

    space = Space(width=one_of(4, 8))
    for arch in space:
        report = verify(Supernet(Tabled, space), arch, inputs(), build=Tabled)
        assert report.passed, str(report)
        assert all(check.difference is not None and check.difference < 1e-12 for check in report.checks)
    check = check_slice(Wrong(Tabled, space), space[0], inputs())
    assert check.passed is False
    assert "the first module that differs is 'second', after 'first' agrees" in check.detail


@pytest.mark.parametrize("training", [False, True])
def test_an_extracted_network_of_lower_precision_is_compared_as_exactly_as_it_can_be(training: bool) -> None:
    def lowered(network: Plain) -> None:
        network.float()

    supernet = Net(lowered)
    assert check_slice(supernet, ARCH, inputs(), training=training).passed

    def wrong(network: Plain) -> None:
        network.float()
        nudge("head.bias", 1e-4)(network)

    check = check_slice(Net(wrong), ARCH, inputs(), training=training)
    assert check.passed is False
    assert "the first module that differs is 'head'" in check.detail
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("arch", list(SPACE), ids=lambda arch: "-".join(map(str, arch.values())))
def test_a_derived_supernet_passes_every_check(arch: Arch) -> None:
    supernet = Supernet(build, SPACE)
    report = verify(supernet, arch, inputs(), macs=true_macs, params=true_params, build=build)
    assert report.passed, str(report)
    assert all(tensor.dtype != torch.float64 for tensor in supernet.state_dict().values())


class Single(nn.Module):
    """A layer that computes in float32, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.float())


def test_a_network_that_does_not_compute_in_float64_is_compared_in_float32() -> None:
    class Whole(nn.Module):
        def __init__(self, by: float = 0.0) -> None:
            super().__init__()
            self.layer, self.by = Single(), by

        def forward(self, x: Tensor, arch: Arch) -> Tensor:
            return self.layer(x)

        def extract(self, arch: Arch) -> nn.Module:
            network = copy.deepcopy(self.layer)
            with torch.no_grad():
                network.weight.add_(self.by)
            return network

    report = verify(Whole(), ARCH, inputs(), macs=lambda arch: 9, build=lambda arch: Single())
    assert report.passed, str(report)
    assert not verify(Whole(0.01), ARCH, inputs()).passed


class Casting(nn.Module):
    """A layer in half precision between others, behind casts that name it."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        width = int(arch["width"])
        self.stem, self.head = nn.Linear(6, width), nn.Linear(width, 2)
        self.middle = nn.Linear(width, width).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x).bfloat16()).float())


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Scripted(nn.Module):
    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.layer, self.act = nn.Linear(6, int(arch["width"])), torch.jit.script(swish)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.layer(x))


class Normalised(nn.Module):
    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.layer = nn.utils.weight_norm(nn.Linear(6, int(arch["width"])))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated", "ignore:.*torch.jit")
@pytest.mark.parametrize("make", [Casting, Scripted, Normalised])
def test_networks_that_torch_does_not_copy_or_convert_are_verified(make: Callable[[Arch], nn.Module]) -> None:
    space, x = Space(width=one_of(4, 8)), torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    supernet = Supernet(make, space)
    params = counted("params", make, space, None)
    for arch in space:
        report = verify(supernet, arch, x, build=make, params=params, macs=counted("macs", make, space, x[:1]))
        assert report.passed, str(report)
        network = supernet.extract(arch).eval()
        assert count_peak_memory(network, x) > params(arch)
        averaged = WeightAverage(network, 0.5)
        averaged.update(network)
        assert torch.equal(averaged(x), network(x))
    supernet.extract = lambda arch: make(arch).eval()  # type: ignore[method-assign]  # of other weights
    assert not verify(supernet, arch, x).passed


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs the extra `onnx`")
def test_onnx_of_a_network_of_several_precisions_is_skipped() -> None:
    check = check_onnx(Casting(Arch({"width": 4})), torch.randn(3, 6))
    assert check.passed is None
    assert "does not compute in float32" in check.detail


def test_an_error_of_the_network_itself_is_not_hidden() -> None:
    class Broken(Net):
        def forward(self, x: Tensor, arch: Arch | None = None) -> Tensor:
            raise RuntimeError("the network is wrong")

    with pytest.raises(RuntimeError, match="the network is wrong"):
        check_slice(Broken(), ARCH, inputs())


def test_an_extract_that_returns_no_module_is_refused() -> None:
    class Weights(Net):
        def extract(self, arch: Arch) -> Any:
            return self.state_dict()

    with pytest.raises(TypeError, match="`extract` must return a torch module, but got OrderedDict"):
        verify(Weights(), ARCH, inputs())


def test_nothing_that_is_handed_in_changes() -> None:
    supernet = Net().train()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    random = torch.random.get_rng_state()
    verify(supernet, ARCH, inputs(), params=true_params)
    after = supernet.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(module.training for module in supernet.modules())
    assert after["head.weight"].dtype == torch.float32
    assert not supernet.head._forward_hooks
    assert torch.equal(torch.random.get_rng_state(), random)


def nudge(name: str, by: float = 1e-6) -> Callable[[nn.Module], object]:
    def fault(network: nn.Module) -> None:
        with torch.no_grad():
            network.get_parameter(name).add_(by)

    return fault


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("stem.0.weight", "stem.0"),
        ("blocks.0.fc1.bias", "blocks.0.fc1"),
        ("blocks.1.fc2.weight", "blocks.1.fc2"),
        ("head.bias", "head"),
    ],
)
def test_the_first_module_that_differs_is_named(name: str, module: str) -> None:
    check = check_slice(Net(nudge(name)), ARCH, inputs())
    assert check.passed is False
    assert check.difference is not None
    assert 1e-9 < check.difference < 1e-3
    assert f"the first module that differs is '{module}'" in check.detail
    assert check_slice(Net(nudge(name)), ARCH, inputs(), tolerance=1e-2).passed


def test_what_has_no_name_in_both_is_found_at_the_next_module_that_has() -> None:
    class Chain(nn.Module):
        def __init__(self, op: nn.Module) -> None:
            super().__init__()
            self.stem, self.op, self.head = nn.Linear(3, 3), op, nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.op(self.stem(x)))

    class Separate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(3, 3), nn.Linear(3, 3)
            self.ops = nn.ModuleDict({"1": nn.Linear(3, 3), "2": nn.Linear(3, 3)})

        def forward(self, x: Tensor, arch: Arch) -> Tensor:
            return self.head(self.ops[str(arch["op"])](self.stem(x)))

        def extract(self, arch: Arch) -> nn.Module:
            network = Chain(copy.deepcopy(self.ops["2"]))  # always candidate 2
            network.stem, network.head = copy.deepcopy(self.stem), copy.deepcopy(self.head)
            return network.train(self.training)

    torch.manual_seed(0)
    supernet = Separate()
    assert check_slice(supernet, Arch({"op": 2}), inputs()).passed
    broken = first_difference(supernet, Arch({"op": 1}), inputs())
    assert broken == "the first module that differs is 'head', after 'stem' agrees"
    agreeing = first_difference(supernet, Arch({"op": 2}), inputs())
    assert agreeing == "none of the 2 modules that have one name in both differs, so the difference arises outside"


def set_dropout(network: Plain) -> None:
    network.stem[2] = nn.Dropout(0.31)


def set_momentum(network: Plain) -> None:
    norm = network.stem[1]
    assert isinstance(norm, nn.BatchNorm1d)
    norm.momentum = 0.2


def test_training_mode_sees_what_evaluation_does_not() -> None:
    for fault, word in ((set_dropout, "'stem.2', after 'stem.1' agrees"), (set_momentum, "'stem.1.running_mean'")):
        assert check_slice(Net(fault), ARCH, inputs()).passed
        training = check_slice(Net(fault), ARCH, inputs(), training=True)
        assert training.passed is False
        assert word in training.detail


def test_values_that_are_not_finite_never_pass() -> None:
    def spoil(network: Plain) -> None:
        nn.init.constant_(network.head.weight, float("nan"))

    check = check_slice(Net(spoil), ARCH, inputs())
    assert (check.passed, check.difference) == (False, None)
    assert "not finite" in check.detail


class Masked(nn.Module):
    """Masks one logit."""

    def forward(self, x: Tensor) -> Tensor:
        return x.index_fill(1, torch.tensor(0), -math.inf)


def test_logits_that_are_masked_alike_pass() -> None:
    def mask(network: Plain) -> None:
        network.head = nn.Sequential(network.head, Masked())  # type: ignore[assignment]

    assert not check_slice(Net(mask), ARCH, inputs()).passed, "one of them masks"
    supernet = Supernet(
        lambda arch: nn.Sequential(nn.Linear(3, int(arch["width"])), Masked()), Space(width=one_of(2, 4))
    )
    assert verify(supernet, supernet.space[0], torch.randn(2, 3)).passed


class Fourier(nn.Module):
    """Has a complex weight, and reads its parts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, width, dtype=torch.complex64))
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.view_as_real(torch.fft.fft(x) @ self.weight))


def test_complex_weights_stay_complex() -> None:
    supernet = Supernet(lambda arch: Fourier(int(arch["width"])), Space(width=one_of(2, 4)))
    arch = supernet.space[0]
    assert verify(supernet, arch, torch.randn(2, 4), build=lambda arch: Fourier(int(arch["width"]))).passed


def test_a_network_that_does_not_take_the_weights_fails_to_reload() -> None:
    network = Net().extract(ARCH)
    assert check_reload(network, build(ARCH), inputs()).passed
    other = check_reload(network, build(SPACE[2]), inputs())
    assert other.passed is False
    assert "blocks.0.fc1.weight" in other.detail

    wrong = build(ARCH)
    wrong.blocks[0].act = nn.ReLU()
    check = check_reload(network, wrong, inputs())
    assert check.passed is False
    assert check.difference is not None
    assert check.difference > 1e-3


def test_a_wrong_formula_fails_with_both_numbers() -> None:
    check = check_cost("MACs", 1_234, 1_244)
    assert (check.passed, check.difference) == (False, 10.0)
    assert str(check) == (
        "MACs: formula = count: FAILED, largest difference 10; the formula says 1,234, counted are 1,244"
    )
    report = verify(Net(), ARCH, inputs(), macs=lambda arch: true_macs(arch) + 1)
    assert not report.passed
    assert [check.passed for check in report.checks] == [True, True, False]


def test_onnx_at_two_batch_sizes() -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    check = check_onnx(Net().extract(ARCH), inputs())
    assert check.passed
    assert check.difference is not None
    assert check.difference < 1e-5
    with pytest.raises(ValueError, match="batch of at least 2, but got 1"):
        check_onnx(Net().extract(ARCH), inputs()[:1])


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(4, 3)


class ByBatch(nn.Module):
    """Computes what an export from a batch of four does not know of a batch of one."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 if x.shape[0] > 2 else 1)


def test_onnx_of_a_network_that_knows_its_batch_fails() -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    fixed = check_onnx(FixedBatch(), inputs())
    assert fixed.passed is False
    assert "no export with a dynamic batch" in fixed.detail
    changing = check_onnx(ByBatch(), inputs())
    assert changing.passed is False
    assert "batch of 1" in changing.detail


def test_without_onnx_the_check_is_skipped_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = importlib.util.find_spec
    monkeypatch.setattr("nasx._onnx.find_spec", lambda name: None if name == "onnxruntime" else found(name))
    report = verify(Net(), ARCH, inputs(), onnx=True)
    assert report.passed
    assert report.checks[-1].passed is None
    assert str(report.checks[-1]) == (
        "ONNX export = extracted network: skipped; onnxruntime not installed; pip install 'nasx[onnx]'"
    )


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match="torch modules, but got function"):
        check_slice(lambda x, arch: x, ARCH, inputs())  # type: ignore[arg-type]


class Structured(nn.Module):
    """Several inputs, one of them by name, and a dict of an LSTM's outputs and what it was told."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(5, 3), nn.LSTM(3, int(arch["width"]), batch_first=True)

    def forward(self, ids: Tensor, scale: Tensor, *, shift: Tensor, kind: str = "a") -> dict[str, Any]:
        outputs, (hidden, cell) = self.lstm(self.embed(ids) * scale[:, None] + shift)
        return {"outputs": outputs, "states": [hidden, cell], "kind": kind}


def structured() -> tuple[Supernet, Space, Call]:
    space = Space(width=one_of(2, 4))
    inputs = Call((torch.tensor([[0, 1], [2, 3]]), torch.randn(2, 3)), {"shift": torch.randn(3), "kind": "b"})
    return Supernet(Structured, space, layout={"lstm": stacked(4)}), space, inputs


def test_inputs_and_outputs_may_be_nested() -> None:
    supernet, space, inputs = structured()

    def macs(arch: Arch) -> int:
        return 2 * 4 * int(arch["width"]) * (3 + int(arch["width"]))  # of one sample of two tokens

    for arch in space:
        report = verify(supernet, arch, inputs, macs=macs, build=Structured)
        assert report.passed, str(report)
    named = Call((), {"ids": inputs.args[0], "scale": inputs.args[1], **inputs.kwargs})
    assert check_slice(supernet, space[0], named).passed
    pair = Supernet(lambda arch: nn.LSTM(3, int(arch["width"])), space, layout={"*": stacked(4)})
    assert check_slice(pair, space[1], torch.randn(2, 2, 3)).passed


def test_the_nested_output_that_differs_is_named() -> None:
    class Wrong(Structured):
        def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            outputs = super().forward(*args, **kwargs)
            return outputs | {"states": [outputs["states"][0], outputs["states"][1] + 1]}

    _, space, inputs = structured()
    check = check_reload(Structured(space[0]), Wrong(space[0]), inputs)
    assert check.passed is False
    assert "outputs['states'][1] differ" in check.detail

    class Other(Structured):
        def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return super().forward(*args, **kwargs) | {"kind": "c"}

    assert "values 'b' and 'c'" in check_reload(Structured(space[0]), Other(space[0]), inputs).detail


def test_what_cannot_be_compared_is_refused_by_name() -> None:
    supernet, space, inputs = structured()
    with pytest.raises(TypeError, match=r"`inputs` must be tensors, .* but got a numpy.ndarray; convert it to tensors"):
        verify(Net(), ARCH, np.zeros((2, 3)))
    with pytest.raises(TypeError, match="ONNX is checked for networks of one tensor, but `inputs` is a Call"):
        verify(supernet, space[0], inputs, onnx=True)

    class Object(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return torch.distributions.Normal(super().forward(x), 1)

    with pytest.raises(TypeError, match=r"`outputs` must be tensors, .* but got a torch.distributions.*Normal"):
        check_reload(Object(3, 2), Object(3, 2), inputs.args[1])


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs the extra `onnx`")
def test_onnx_of_several_outputs_is_refused() -> None:
    with pytest.raises(TypeError, match="return one tensor, but this one returns a tuple"):
        check_onnx(nn.LSTM(3, 2), torch.zeros(2, 2, 3))
