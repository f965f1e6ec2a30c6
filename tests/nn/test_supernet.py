"""A supernet derived from a builder: every slice is the network that is extracted, for networks of all kinds."""

import copy
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from nasx import Arch, Space, one_of, repeat
from nasx.measure import counted
from nasx.nn import Subnet, Supernet
from tests.families import BY_NAME, FAMILIES, RECIPES, Family, words

every_family = pytest.mark.parametrize("family", [*FAMILIES, *RECIPES], ids=str)
shared_families = [f for f in FAMILIES if "separate" not in f.supernet]


@cache
def built(name: str) -> Supernet:
    torch.manual_seed(0)
    return BY_NAME[name].make_supernet()


def make(family: Family, dtype: torch.dtype = torch.float32) -> Supernet:
    """Return a supernet whose weights and statistics were all moved, so that nothing hides behind a 0 or a 1."""
    supernet = copy.deepcopy(built(family.name)).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*supernet.parameters(), *supernet.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=dtype), alpha=0.2)
    return supernet


def inputs(family: Family, dtype: torch.dtype) -> tuple[Any, Any]:
    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tree_map(cast, (family.args, family.kwargs))


def tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def seeded(run: Any, *args: Any, **kwargs: Any) -> list[Tensor]:
    torch.manual_seed(0)
    return tensors(run(*args, **kwargs))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["f32", "f64"])
@every_family
@torch.no_grad()
def test_a_slice_is_the_extracted_network(family: Family, dtype: torch.dtype, tolerance: float) -> None:
    """In evaluation and in training mode, where both also leave the same statistics behind."""
    supernet, (args, kwargs) = make(family, dtype), inputs(family, dtype)
    for arch in family.archs(12):
        network = supernet.extract(arch)
        for training in (False, True):
            slices = seeded(supernet.train(training), *args, arch=arch, **kwargs)
            own = seeded(network.train(training), *args, **kwargs)
            assert len(slices) == len(own) > 0
            for mine, theirs in zip(slices, own, strict=True):
                assert mine.dtype == theirs.dtype
                torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))
        after = supernet.extract(arch).state_dict()
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(after[name], tensor, rtol=0, atol=tolerance, msg=f"{name!r} differs afterwards")


@every_family
def test_architectures_are_different_networks(family: Family) -> None:
    supernet, (args, kwargs) = make(family, torch.float64).eval(), inputs(family, torch.float64)
    with torch.no_grad():
        outputs = [seeded(supernet, *args, arch=arch, **kwargs)[0] for arch in dict.fromkeys(family.archs(6))]
    different = [not torch.equal(first, second) for first in outputs for second in outputs if first is not second]
    assert sum(different) > len(different) / 2  # cells of one function are equal


@pytest.mark.parametrize("family", shared_families, ids=str)
def test_the_store_has_the_builders_names_and_the_largest_size_of_each_dimension(family: Family) -> None:
    largest: dict[str, tuple[int, ...]] = {}
    for arch in family.archs(150):
        for name, parameter in family.make(arch).named_parameters(remove_duplicate=False):
            shape = tuple(parameter.shape)
            largest[name] = tuple(map(max, zip(largest.get(name, shape), shape, strict=True)))
    found = {name: tuple(p.shape) for name, p in built(family.name).named_parameters(remove_duplicate=False)}
    assert found == largest


@pytest.mark.parametrize("family", shared_families, ids=str)
def test_weights_go_to_the_largest_network_and_back(family: Family) -> None:
    """Those of a network that has every maximum; networks that compute persistent tables keep them."""
    supernet = make(family)
    shapes = {name: p.shape for name, p in supernet.named_parameters(remove_duplicate=False)}
    whole = [
        arch
        for arch in [*family.archs(100), family.space[family.space.size - 1]]
        if {n: p.shape for n, p in supernet.extract(arch).named_parameters(remove_duplicate=False)} == shapes
    ]
    if not whole:
        assert family.name == "cells"  # an edge has one operation
        return
    network, trained = supernet.extract(whole[0]), family.make(whole[0])
    network.load_state_dict(supernet.state_dict(), strict=family.name != "relative")
    assert supernet.load_plain(trained.state_dict()) == ()
    for name, tensor in supernet.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name]), name
    supernet.load_state_dict(network.state_dict(), strict=family.name != "relative")
    for name, tensor in supernet.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name


class Crossed(nn.Module):
    """No network has both the most inputs and the most outputs."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.first = nn.Linear(6, int(arch["width"]))
        self.second = nn.Linear(int(arch["width"]), int(arch["out"]))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)).sum(-1)


CROSSED = Space(width=one_of({2: Space(out=one_of(7, 8)), 3: Space(out=5), 9: Space(out=one_of(1, 4))}))


def test_no_network_needs_to_have_every_maximum() -> None:
    supernet = Supernet(Crossed, CROSSED).double()
    assert supernet.get_parameter("second.weight").shape == (8, 9)
    assert supernet.get_parameter("first.weight").shape == (9, 6)
    x = torch.randn(4, 6, dtype=torch.float64)
    for arch in CROSSED:
        torch.testing.assert_close(supernet(x, arch), supernet.extract(arch)(x), rtol=0, atol=1e-12)


def test_first_weights_are_the_builders_in_every_slice() -> None:
    def constant(arch: Arch) -> nn.Module:
        network = Crossed(arch)
        nn.init.constant_(network.second.weight, 3)
        nn.init.uniform_(network.first.weight, 5, 6)
        return network

    supernet = Supernet(constant, CROSSED)
    for arch in CROSSED:  # where no network has the largest tensor, its slices come from several
        network = supernet.extract(arch)
        assert bool((network.get_parameter("second.weight") == 3).all())
        assert bool((network.get_parameter("first.weight") >= 5).all())


def test_first_weights_are_a_function_of_the_seed_and_building_spends_no_more_than_its_networks() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return Supernet(Crossed, CROSSED).get_parameter("first.weight")

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
    supernet, x = Supernet(Crossed, CROSSED), torch.randn(2, 6)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    supernet(x, CROSSED[0])
    supernet.extract(CROSSED[1])
    assert torch.equal(torch.rand(3), expected)  # running and extracting draw nothing


@pytest.mark.parametrize("name", ["tied", "gpt2"])
def test_tied_parameters_stay_tied(name: str) -> None:
    family, supernet = BY_NAME[name], make(BY_NAME[name])
    assert len(list(supernet.parameters())) < len(supernet.state_dict())
    arch = family.space[0]
    network = supernet.extract(arch)
    outer = {id(p) for _, p in network.named_parameters(remove_duplicate=False)}
    assert len(outer) == len(list(network.parameters())) < len(network.state_dict())
    seeded(supernet, *family.args, arch=arch)[0].sum().backward()  # type: ignore[no-untyped-call]
    tied = "embed.weight" if name == "tied" else "transformer.wte.weight"
    head = "head.weight" if name == "tied" else "lm_head.weight"
    assert supernet.get_parameter(tied) is supernet.get_parameter(head)
    seeded(network, *family.args)[0].sum().backward()  # type: ignore[no-untyped-call]  # gradients of both uses arrive at one tensor
    expected = network.get_parameter(tied).grad
    found = supernet.get_parameter(tied).grad
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found[:, : expected.shape[1]], expected)
    assert not found[:, expected.shape[1] :].any()


class OneParameter(nn.Module):
    """An embedding and a head that are given one parameter, and a list that has another one three times."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        width = int(arch["width"])
        self.embed, self.head = nn.Embedding(30, width), nn.Linear(width, 30, bias=False)
        self.embed.weight = self.head.weight = nn.Parameter(torch.randn(30, width))
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(width))] * 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x) * self.scales[0] * self.scales[2])


def test_a_parameter_that_the_builder_registers_twice_is_one() -> None:
    space, x = Space(width=one_of(4, 8)), words(30)
    supernet = Supernet(OneParameter, space)
    assert [tuple(p.shape) for p in supernet.parameters()] == [(30, 8), (8,)]
    assert counted("params", OneParameter, space, None)(space[0]) == 30 * 4 + 4
    supernet(x, space[0]).sum().backward()
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.sub_(parameter.grad)  # type: ignore[arg-type]
    for arch in space:
        assert torch.equal(supernet(x, arch), supernet.extract(arch)(x))


def test_a_buffer_of_two_modules_is_one_in_extracted_networks() -> None:
    class Both(nn.Module):
        def __init__(self, arch: Arch) -> None:
            super().__init__()
            self.first, self.second = nn.BatchNorm1d(int(arch["width"])), nn.BatchNorm1d(int(arch["width"]))
            self.second.running_mean = self.first.running_mean

    space = Space(width=one_of(4, 8))
    for network in map(Supernet(Both, space).extract, space):
        assert network.get_buffer("first.running_mean") is network.get_buffer("second.running_mean")
        assert network.get_buffer("first.running_var") is not network.get_buffer("second.running_var")


def test_frozen_parameters_stay_frozen_and_can_be_thawed() -> None:
    family, supernet = BY_NAME["frozen"], make(BY_NAME["frozen"])
    arch, (x,) = family.space[0], family.args
    assert not supernet.get_parameter("first.weight").requires_grad
    network = supernet.extract(arch)
    assert [p.requires_grad for p in network.parameters()] == [False, False, True, True]
    supernet(x, arch).sum().backward()
    assert supernet.get_parameter("first.weight").grad is None
    supernet.get_parameter("first.weight").requires_grad_(True)
    supernet.get_parameter("last.weight").requires_grad_(False)
    assert [p.requires_grad for p in supernet.extract(arch).parameters()] == [True, False, False, True]
    supernet.zero_grad(set_to_none=True)
    supernet(x, arch).sum().backward()
    assert supernet.get_parameter("first.weight").grad is not None
    assert supernet.get_parameter("last.weight").grad is None


@pytest.mark.parametrize("name", ["resnet", "bert", "lstm", "mobilenet", "glit, paper, conv1d, entangled"])
def test_gradients_are_those_of_the_extracted_network_and_reach_nothing_else(name: str) -> None:
    family = BY_NAME[name]
    supernet, (args, kwargs) = make(family, torch.float64).train(), inputs(family, torch.float64)
    for arch in family.archs(4):
        network = supernet.extract(arch)
        numbered = number_elements(supernet).extract(arch)
        supernet.zero_grad(set_to_none=True)
        for run in (partial(supernet, arch=arch), network):
            seeded(run, *args, **kwargs)[0].square().sum().backward()  # type: ignore[no-untyped-call]
        expected = torch.zeros(1 + sum(p.numel() for p in supernet.parameters()), dtype=torch.float64)
        for places, parameter in zip(numbered.parameters(), network.parameters(), strict=True):
            assert parameter.grad is not None
            expected[places.long().flatten()] = parameter.grad.flatten()
        found = torch.cat([torch.zeros_like(p) if p.grad is None else p.grad for p in map(flat, supernet.parameters())])
        torch.testing.assert_close(found, expected[1:], rtol=1e-9, atol=1e-9)
        used = {id(p) for key, p in supernet.named_parameters() if p.grad is not None}
        assert used, "nothing has a gradient"


def flat(parameter: nn.Parameter) -> Tensor:
    shown = parameter.detach().flatten()
    shown.grad = None if parameter.grad is None else parameter.grad.flatten()
    return shown


def number_elements(supernet: Supernet) -> Supernet:
    """Return a copy in which every element of a parameter is its own number, from 1 on."""
    numbered, start = copy.deepcopy(supernet), 1
    with torch.no_grad():
        for parameter in numbered.parameters():
            parameter.copy_(torch.arange(start, start + parameter.numel()).view_as(parameter))
            start += parameter.numel()
    return numbered


def test_weights_that_a_network_lacks_get_no_gradient() -> None:
    space = Space(depth=one_of(1, 2, 3))

    def chain(arch: Arch) -> nn.Module:
        return nn.Sequential(*[nn.Linear(4, 4) for _ in range(int(arch["depth"]))])

    supernet = Supernet(chain, space)
    supernet(torch.randn(2, 4), Arch({"depth": 2})).sum().backward()
    assert {name for name, p in supernet.named_parameters() if p.grad is not None} == {
        f"{layer}.{kind}" for layer in (0, 1) for kind in ("weight", "bias")
    }


def test_further_arguments_pass_through_and_any_structure_comes_back() -> None:
    class Odd(nn.Module):
        def __init__(self, arch: Arch) -> None:
            super().__init__()
            self.layer = nn.Linear(int(arch["width"]), 3, bias=False)

        def forward(self, x: Tensor, words: list[str], *, scale: float = 1.0) -> tuple[Any, ...]:
            width = self.layer.in_features
            return {"out": [self.layer(x[:, :width]) * scale]}, words, None, scale

    space, x = Space(width=one_of(2, 4)), torch.randn(5, 4)
    supernet = Supernet(Odd, space)
    for arch in space:
        expected = supernet.extract(arch)(x, ["a"], scale=2.0)
        for found in (
            supernet(x, arch, ["a"], scale=2.0),
            supernet(x, ["a"], arch=arch, scale=2.0),
            supernet(x=x, words=["a"], scale=2.0, arch=arch),
            supernet(x, dict(arch), ["a"], scale=2.0),
        ):
            assert torch.equal(found[0]["out"][0], expected[0]["out"][0])
            assert found[1:] == (["a"], None, 2.0)
    for args in ((x,), (x, ["a"]), ()):
        with pytest.raises(TypeError, match=r"supernet\(x, arch"):
            supernet(*args)


def test_outputs_of_transformers_are_its_own() -> None:
    supernet = make(BY_NAME["bert"]).eval()
    arch = BY_NAME["bert"].space[3]
    outputs = supernet(arch=arch, input_ids=words(30), labels=torch.tensor([0, 1, 2]), output_hidden_states=True)
    assert outputs.logits.shape == (3, 3)
    assert outputs.loss.ndim == 0
    assert len(outputs.hidden_states) == 1 + int(arch["layer.count"])


def test_an_architecture_may_be_written_with_equal_values_of_other_types() -> None:
    def build(arch: Arch) -> nn.Module:
        layer = nn.Linear(3, arch["w"])  # type: ignore[arg-type]  # refuses 4.0
        return nn.Sequential(layer, {"True": nn.ReLU, "False": nn.Tanh}[str(arch["r"])]())

    space = Space(w=one_of(4, 8), r=one_of(True, False))
    supernet, x = Supernet(build, space, separate={"0": "r"}), torch.randn(2, 3)
    for arch, other in (({"r": 1, "w": 4.0}, space[0]), ({"w": 8.0, "r": 0.0}, space[3])):
        assert arch in space
        expected = supernet.extract(other)(x)
        for networks in (copy.deepcopy(supernet), supernet):  # which has run nothing, and which has run the other
            assert torch.equal(supernet(x, other), expected)
            assert torch.equal(networks(x, arch), expected)
            assert torch.equal(networks(x, arch=Arch(arch)), expected)
            assert torch.equal(networks.extract(Arch(arch))(x), expected)
            assert torch.equal(Subnet(networks, arch)(x), expected)
        assert dict(Subnet(supernet, arch).arch) == dict(other)


def test_an_architecture_of_another_space_runs_where_it_is_a_slice() -> None:
    space = Space(width=one_of(2, 8))
    supernet = Supernet(lambda arch: nn.Linear(3, int(arch["width"])), space)
    x = torch.randn(2, 3)
    assert torch.equal(supernet(x, Arch({"width": 5})), supernet.extract(Arch({"width": 5}))(x))
    for use in (partial(supernet, x), supernet.extract):
        with pytest.raises(ValueError, match=r"'weight' is wanted in the shape \(9, 3\), but the supernet holds it as"):
            use(Arch({"width": 9}))


class TestLoadingPlainWeights:
    space = Space(width=one_of(2, 4), kind=one_of("a", "b"))

    @staticmethod
    def make(arch: Arch) -> nn.Module:
        return nn.Sequential(nn.Linear(3, int(arch["width"])), nn.Linear(int(arch["width"]), 2))

    def test_they_are_those_of_the_largest_network(self) -> None:
        largest = self.make(Arch({"width": 4}))
        supernet = Supernet(self.make, self.space, weights=largest.state_dict())
        x = torch.randn(5, 3)
        assert torch.equal(supernet(x, self.space[3]), largest(x))
        small = supernet.extract(self.space[0])
        assert torch.equal(small.get_parameter("0.weight"), largest.get_parameter("0.weight")[:2])

    def test_every_fitting_copy_is_filled_and_the_rest_is_listed(self) -> None:
        supernet = Supernet(self.make, self.space, separate={"1": ("width", "kind")})
        largest = self.make(Arch({"width": 4})).state_dict()
        left = supernet.load_plain({**largest, "unknown": torch.zeros(3)})
        assert left == ("1.weight@width=2,kind=a", "1.weight@width=2,kind=b")
        for kind in "ab":
            assert torch.equal(supernet.get_parameter(f"1.weight@width=4,kind={kind}"), largest["1.weight"])
            assert torch.equal(supernet.get_parameter(f"1.bias@width=2,kind={kind}"), largest["1.bias"])
        assert set(supernet.load_plain({"0.bias": largest["0.bias"]})) == set(supernet.state_dict()) - {"0.bias"}

    def test_weights_that_fit_nowhere_are_refused_and_nothing_is_taken(self) -> None:
        supernet = Supernet(self.make, self.space)
        before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
        wrong = self.make(Arch({"width": 4})).state_dict() | {"1.weight": torch.zeros(2, 3)}
        with pytest.raises(
            ValueError, match=r"'1.weight' has the shape \(2, 3\), but the supernet holds it as \(2, 4\)"
        ):
            supernet.load_plain(wrong)
        assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
        prefixed = {f"module.{name}": tensor for name, tensor in before.items()}
        with pytest.raises(ValueError, match=r"none of the supernet's names; theirs start with module.0.weight"):
            Supernet(self.make, self.space, weights=prefixed)

    def test_a_tied_tensor_is_one_under_any_of_its_names(self) -> None:
        family = BY_NAME["tied"]
        supernet, weights = make(family), family.make(family.space[3]).state_dict()
        del weights["embed.weight"]  # files of tied weights hold one of the two
        assert supernet.load_plain(weights) == ()
        assert torch.equal(supernet.get_parameter("embed.weight"), weights["head.weight"])


def test_budgeted_spaces_are_taken_whole() -> None:
    from nasx import Budget
    from tests.strategies import ToyCost

    space = Space(width=one_of(2, 4, 8))
    inside = space.within(Budget(ToyCost(), at_most=30))
    supernet = Supernet(lambda arch: nn.Linear(3, int(arch["width"])), inside)
    assert supernet.space == space
    assert supernet.get_parameter("weight").shape == (8, 3)


def test_it_says_how_large_it_is() -> None:
    supernet = Supernet(Crossed, CROSSED)
    assert f"{9 * 6 + 9 + 8 * 9 + 8} weights in 4 tensors" in repr(supernet)
    assert repr(CROSSED) in repr(supernet)


def test_weight_decay_is_spared_where_the_network_says_so() -> None:
    assert make(BY_NAME["timm vit"]).no_weight_decay() >= {"pos_embed", "cls_token"}
    assert make(BY_NAME["dict"]).no_weight_decay() == set()


class Biased(nn.Module):
    """Has a table in each block, and spares them."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in arch.parts("block"))
        self.tables = nn.ParameterList(torch.zeros(3, int(part["kernel_size"])) for part in arch.parts("block"))

    def no_weight_decay(self) -> set[str]:
        return {f"tables.{i}" for i in range(len(self.tables))}

    def forward(self, x: Tensor) -> Tensor:
        for block, table in zip(self.blocks, self.tables, strict=True):
            x = block(x) + table.sum()
        return x


def test_weight_decay_is_spared_in_all_that_any_depth_has() -> None:
    space = Space(block=repeat(Space(kernel_size=one_of(1, 3)), one_of(1, 2, 3)))
    supernet = Supernet(Biased, space)
    for same in (supernet, copy.deepcopy(supernet)):
        assert same.no_weight_decay() == {"tables.0", "tables.1", "tables.2"}


def test_weights_are_a_state_dict() -> None:
    with pytest.raises(TypeError, match=r"`weights` must be a mapping .* got Linear; write weights=network.state_dict"):
        Supernet(lambda arch: nn.Linear(2, 2), Space(a=1), weights=nn.Linear(2, 2))  # type: ignore[arg-type]
