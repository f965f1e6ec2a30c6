"""What a supernet asks of the function that builds one network, and what it says where it cannot be had."""

import copy
import pickle
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasx import Arch, Space, one_of, repeat
from nasx.measure import count_macs, count_params, counted
from nasx.nn import Supernet, prefix

DEPTH = Space(depth=one_of(1, 2, 3))
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def linear() -> nn.Module:
    return nn.Linear(6, 6)


def with_stem_and_head(arch: Arch) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), *[nn.Linear(6, 6) for _ in range(int(arch["depth"]))], nn.Linear(6, 6))


def all_from_one_function(arch: Arch) -> nn.Module:
    return nn.Sequential(linear(), *[linear() for _ in range(int(arch["depth"]))], linear())


def list_that_grows(arch: Arch) -> nn.Module:
    layers = [nn.Linear(6, 6)]
    for _ in range(int(arch["depth"])):
        layers.append(nn.Linear(6, 6))  # noqa: PERF401
    layers.append(nn.Linear(6, 6))
    return nn.ModuleList(layers)


def blocks_and_head_of_other_kinds(arch: Arch) -> nn.Module:
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(int(arch["depth"]))]
    return nn.Sequential(nn.Conv1d(4, 4, 1), *blocks, nn.LayerNorm(6))


def from_a_plan(arch: Arch) -> nn.Module:
    plan: list[Callable[[], nn.Module]] = [linear, *[nn.ReLU] * int(arch["depth"]), lambda: nn.LayerNorm(6)]
    return nn.Sequential(*[layer() for layer in plan])


def inside(arch: Arch) -> nn.Module:
    return nn.ModuleDict({"body": with_stem_and_head(arch), "head": nn.Linear(6, 2)})


@pytest.mark.parametrize(
    ("make", "container", "kind"),
    [
        (with_stem_and_head, "the network", "Linear is '4'"),
        (all_from_one_function, "the network", "Linear is '4'"),
        (list_that_grows, "the network", "Linear is '4'"),
        (blocks_and_head_of_other_kinds, "the network", "LayerNorm is '4'"),
        (from_a_plan, "the network", "LayerNorm is '4'"),
        (inside, "body", r"Linear is 'body\.4'"),
    ],
)
def test_what_follows_a_variable_number_of_layers_has_no_name(
    make: Callable[[Arch], nn.Module], container: str, kind: str
) -> None:
    with pytest.raises(ValueError, match=rf"names in '{container}' shift: a {kind} .* differ in 'depth'.* of its own"):
        Supernet(make, DEPTH)


def test_names_that_an_optional_layer_moves_are_refused() -> None:
    space = Space(act=one_of(False, True))

    def make(arch: Arch) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 6), *([nn.ReLU()] if arch["act"] else []), nn.Linear(6, 6))

    with pytest.raises(
        ValueError, match=r"a Linear is '2' for some architectures and '1' for others that differ in 'act'"
    ):
        Supernet(make, space)
    supernet = Supernet(make, space, separate={"1": "act", "2": "act"})  # unless they are copies anyway
    for arch in space:
        assert torch.equal(supernet(X, arch), supernet.extract(arch)(X))


def test_names_that_move_with_the_count_of_a_repeat_are_refused() -> None:
    space = Space(block=repeat(Space(hidden=one_of(4, 8)), one_of(1, 2)))

    def make(arch: Arch) -> nn.Module:
        hidden = [int(part["hidden"]) for part in arch.parts("block")]
        return nn.Sequential(*[nn.Sequential(nn.Linear(6, h), nn.Linear(h, 6)) for h in hidden], nn.Linear(6, 2))

    with pytest.raises(ValueError, match=r"a Linear is '2' .* that differ in 'block.count'"):
        Supernet(make, space)


def ends_earlier(arch: Arch) -> nn.Module:
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(int(arch["depth"]))]
    return nn.Sequential(nn.Sequential(nn.Linear(6, 6), *blocks), nn.Linear(6, 2))


def alternates(arch: Arch) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(int(arch["depth"])):
        layers += [nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU()]
    return nn.Sequential(*layers)


def copies(arch: Arch) -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.TransformerEncoder(layer, int(arch["depth"])), nn.Flatten())


def nothing_with_weights_follows(arch: Arch) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), *[nn.Linear(6, 6) for _ in range(int(arch["depth"]))], nn.ReLU())


def named(arch: Arch) -> nn.Module:
    layers: dict[str, nn.Module] = {f"layer{i}": nn.Linear(6, 6) for i in range(int(arch["depth"]))}
    network = nn.Sequential()
    for name, layer in {**layers, "head": nn.Linear(6, 2)}.items():
        network.add_module(name, layer)
    return network


def other_structures(arch: Arch) -> nn.Module:
    if arch["depth"] == 3:
        return nn.Sequential(nn.LayerNorm(6), nn.Sequential(nn.Linear(6, 6)), nn.Sequential(nn.Linear(6, 6)))
    return nn.Sequential(*[nn.Linear(6, 6, bias=False) for _ in range(int(arch["depth"]))])


@pytest.mark.parametrize("make", [ends_earlier, alternates, copies, nothing_with_weights_follows, named])
def test_ordinary_depth_is_taken(make: Callable[[Arch], nn.Module]) -> None:
    supernet = Supernet(make, DEPTH).eval()
    for arch in DEPTH:
        torch.testing.assert_close(supernet(X, arch), supernet.extract(arch)(X))
    deep = {name for name, _ in make(DEPTH[2]).named_parameters()}
    assert {name for name, _ in supernet.named_parameters()} == deep


def test_a_name_of_two_kinds_is_refused_with_shapes_and_the_choice() -> None:
    kinds: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(6, 6),
        "embedding": lambda: nn.Embedding(6, 6),
        "conv": lambda: nn.Conv1d(6, 6, 1),
        "double": lambda: nn.Linear(6, 6).double(),
        "other": lambda: nn.LazyLinear(6),
    }

    def refuses(first: str, second: str, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            Supernet(lambda arch: nn.ModuleDict({"op": kinds[str(arch["op"])]()}), Space(op=one_of(first, second)))

    refuses(
        "linear",
        "embedding",
        r"'op.weight' is a 2-dimensional parameter of Linear .* parameter of Embedding .* \(op 'li",
    )
    refuses("linear", "conv", r"\(6, 6\) for one architecture and a 3-dimensional parameter of Conv1d .* \(6, 6, 1\)")
    refuses("linear", "double", r"of Linear \(torch.float32\) .* of Linear \(torch.float64\)")


def test_buffers_and_parameters_of_one_name_are_refused() -> None:
    def make(arch: Arch) -> nn.Module:
        network = nn.Linear(6, 6)
        if arch["learnt"]:
            network.scale = nn.Parameter(torch.ones(6))
        else:
            network.register_buffer("scale", torch.ones(6))
        return network

    with pytest.raises(
        ValueError, match=r"'scale' is a 1-dimensional (buffer|parameter) .* and a 1-dimensional (buf|par)"
    ):
        Supernet(make, Space(learnt=one_of(False, True)))


def test_tensors_that_are_tied_now_and_then_are_refused() -> None:
    def make(arch: Arch) -> nn.Module:
        network = nn.ModuleDict({"first": nn.Linear(6, 6), "second": nn.Linear(6, 6)})
        if arch["tied"]:
            network["second"].weight = network["first"].weight
        return network

    match = r"'second.weight' is one of its own for some architectures, but the same as 'first.weight' for others"
    with pytest.raises(ValueError, match=match):
        Supernet(make, Space(tied=one_of(False, True)))


def partly_frozen(arch: Arch) -> nn.Module:
    network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    network[0].requires_grad_(not arch["frozen"])
    return network


@pytest.mark.parametrize("options", [(True, False), (False, True)])
def test_parameters_frozen_now_and_then_are_refused_unless_they_are_copies(options: tuple[bool, bool]) -> None:
    space = Space(frozen=one_of(*options))
    match = r"'0.weight' is trained for one .*, but frozen .* \(frozen False and True\).* separate={'0.weight'"
    with pytest.raises(ValueError, match=match):
        Supernet(partly_frozen, space)
    supernet = Supernet(partly_frozen, space, separate={"0": "frozen"})
    for arch in space:
        supernet.zero_grad()
        supernet(X, arch).sum().backward()
        assert (supernet.get_parameter("0.weight@frozen=False").grad is None) == arch["frozen"]
        for name, parameter in partly_frozen(arch).named_parameters():
            assert supernet.extract(arch).get_parameter(name).requires_grad == parameter.requires_grad


PRETRAINED = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
FROZEN: dict[str, Callable[[int], Tensor]] = {
    "table": lambda width: torch.outer(torch.arange(10.0), torch.arange(width) / width).sin(),
    "scale": lambda width: torch.tensor(width**-0.5),
    "rows of a table": lambda width: torch.outer(torch.arange(width * 1.0), torch.arange(10.0)).sin(),
    "pretrained": lambda width: PRETRAINED[:, :width],
    "random": lambda width: torch.randn(10, width),
    "a constant": lambda width: torch.full((width,), -torch.inf),
}


@pytest.mark.parametrize(("kind", "is_table"), [(kind, kind in {"table", "scale"}) for kind in FROZEN])
def test_frozen_tables_of_which_a_slice_is_another_are_warned_of(
    kind: str, is_table: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Positions(nn.Linear):
        def __init__(self, arch: Arch, frozen: bool = True) -> None:
            super().__init__(int(arch["width"]), 6)
            self.table = nn.Parameter(FROZEN[kind](int(arch["width"])), requires_grad=not frozen)

    space, silent = Space(width=one_of(4, 8)), partial(Positions, frozen=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        supernet, state = Supernet(Positions, space), torch.get_rng_state()
        assert ("computes other values of 'table' for some of them; make" in caplog.text) == is_table
        caplog.clear()
        torch.manual_seed(0)
        trained = Supernet(silent, space)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(trained.get_parameter("weight"), supernet.get_parameter("weight"))
    Supernet(Positions, space, layout={"table": prefix})  # as the warning proposes
    assert not caplog.text


def test_builders_that_are_no_function_of_the_architecture_are_refused() -> None:
    counter, generator = count(4), np.random.default_rng(0)

    class Noise(nn.Module):
        def __init__(self, generator: torch.Generator | None = None) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.register_buffer("features", torch.randn(6, 6, generator=generator))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) @ self.get_buffer("features")

    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.scale = generator.random()

    def refuses(make: Callable[[], nn.Module], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            Supernet(lambda arch: make(), DEPTH)

    refuses(
        lambda: nn.Linear(6, next(counter)), r"two networks of one architecture differ in 'out_features': \d and \d"
    )
    refuses(
        lambda: nn.Linear(6, int(torch.randint(1, 1000, ()))), "two networks of one architecture differ in 'out_fea"
    )
    refuses(Kinds, "two networks of one architecture differ in 'scale'")
    refuses(lambda: nn.GELU() if generator.random() < 0.5 else nn.ReLU(), "differ in ''|no weights")
    refuses(lambda: nn.Linear(6, 6).requires_grad_(next(counter) % 2 == 0), "differ in 'weight.requires_grad'")
    refuses(Noise, "the buffer 'features' holds other numbers each time the network is built.*requires_grad=False")
    supernet = Supernet(lambda arch: Noise(torch.Generator().manual_seed(0)), DEPTH)
    torch.testing.assert_close(supernet(X, DEPTH[0]), supernet.extract(DEPTH[0])(X))


def test_a_builder_that_forgets_the_architecture_later_is_refused_at_first_use() -> None:
    width = [4]
    supernet = Supernet(lambda arch: nn.Linear(6, width[0]), DEPTH)
    width[0] = 9
    with pytest.raises(
        ValueError, match=r"'weight' is wanted in the shape \(9, 6\), but .* a function of the architecture alone"
    ):
        supernet(X, DEPTH[0])


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must return a torch.nn.Module, but gave NoneType for \{'depth': 1\}"):
        Supernet(lambda arch: None, DEPTH)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="the networks of this space have no weights"):
        Supernet(lambda arch: nn.ReLU(), DEPTH)


def test_a_builder_and_a_space_that_changed_places_are_refused_with_the_order() -> None:
    order = r"write Supernet\(make, space\)"
    with pytest.raises(TypeError, match=rf"`space` must be a Space or a part of one, but got .*Linear.*; {order}"):
        Supernet(DEPTH, nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=rf"`make` must be a function or class .* but got Space\(.*; {order}"):
        Supernet(DEPTH, DEPTH)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got one network, a Linear; pass its class.*: Supernet\(make, space\)"):
        Supernet(nn.Linear(6, 6), DEPTH)


def test_an_error_of_the_builder_says_for_which_network() -> None:
    def make(arch: Arch) -> nn.Module:
        if arch["depth"] == 2:
            raise RuntimeError("not two")
        return nn.Linear(6, 6)

    with pytest.raises(RuntimeError, match="not two") as caught:
        Supernet(make, DEPTH)
    assert caught.value.__notes__ == ["while building the network of {'depth': 2}"]


def test_buffers_that_are_computed_from_weights_are_refused() -> None:
    class Norms(nn.Linear):
        def __init__(self, arch: Arch) -> None:
            super().__init__(6, 6)
            self.register_buffer("norms", self.weight.norm(dim=1))

    with pytest.raises(ValueError, match=r"the buffer 'norms' is computed from weights"):
        Supernet(Norms, DEPTH)


class Packed(nn.Module):
    """Keeps its weight as torch's quantised layers do: in the state dict alone."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.packed = torch.randn(2, features)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.packed.T

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}packed_weight"] = self.packed


def test_state_that_is_neither_parameter_nor_buffer_is_refused() -> None:
    def make(arch: Arch) -> nn.Module:
        return nn.ModuleDict({"layer": nn.Linear(6, int(arch["depth"])), "last": Packed(int(arch["depth"]))})

    with pytest.raises(ValueError, match=r"'last', a Packed, holds 'packed_weight', .* quantise the extracted network"):
        Supernet(make, DEPTH)


@pytest.mark.parametrize("features", [4, 6, 8])
@pytest.mark.parametrize(
    ("parametrization", "name"),
    [
        (nn.utils.parametrizations.spectral_norm, "spectral_norm"),
        (nn.utils.spectral_norm, "spectral_norm"),
        (nn.utils.parametrizations.orthogonal, "orthogonal"),
        (partial(nn.utils.parametrizations.orthogonal, orthogonal_map="cayley"), "orthogonal"),
    ],
)
def test_parametrizations_that_need_weights_are_refused_by_name(
    parametrization: Callable[[nn.Module], nn.Module], name: str, features: int
) -> None:
    def make(arch: Arch) -> nn.Module:
        return nn.Sequential(parametrization(nn.Linear(6, features)))

    with pytest.raises(ValueError, match=rf"the parametrization '{name}', .*; use .*weight_norm, or none"):
        Supernet(make, DEPTH)
    assert make(DEPTH[0])(X).shape == (len(X), features)  # outside of supernets nothing changes
    whole = counted("macs", make, DEPTH, X, additive=False)(DEPTH[0])
    assert whole >= 6 * features * len(X)


def test_weight_norm_works() -> None:
    space = Space(width=one_of(4, 8))
    supernet = Supernet(lambda arch: nn.utils.parametrizations.weight_norm(nn.Linear(6, int(arch["width"]))), space)
    for arch in space:
        assert torch.equal(supernet(X, arch), supernet.extract(arch)(X))


@pytest.mark.parametrize("dummy", [False, True], ids=["as made", "after a dummy batch"])
def test_lazy_modules_are_refused_with_what_takes_their_place(dummy: bool) -> None:
    def make(arch: Arch) -> nn.Module:
        network = nn.Sequential(nn.LazyLinear(int(arch["depth"])), nn.ReLU(), nn.LazyLinear(2))
        if dummy:
            network(X)
        return network

    for use in (Supernet, partial(counted, "macs", example=X), partial(counted, "params", example=None)):
        with pytest.raises(ValueError, match=r"makes a LazyLinear, .* 'weight' .*; use Linear and give it its sizes"):
            use(make, DEPTH)
    with pytest.raises(ValueError, match=r"makes a LazyBatchNorm1d, .*'running_mean'.*; use BatchNorm1d and give"):
        Supernet(lambda arch: nn.Sequential(nn.Linear(6, int(arch["depth"])), nn.LazyBatchNorm1d(affine=False)), DEPTH)
    assert nn.LazyLinear(3)(X).shape == (4, 3)  # torch's own are as before


class Own(nn.Module):
    """Layers that plain torch offers in odd ways."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        width = int(arch["width"])
        self.many = nn.ParameterList([torch.randn(6, width), torch.randn(width, 6)])
        self.named = nn.ParameterDict({"scale": torch.randn(6)})
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, width))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(width, 2, 8, dropout=0.1, batch_first=True)
        self.recurrent = nn.GRU(width, width, 2, bidirectional=True, dropout=0.1, batch_first=True)
        self.projected = nn.LSTM(2 * width, width, proj_size=2, batch_first=True)
        self.twice = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.again = self.twice
        self.embedding = nn.Embedding(5, 2, padding_idx=0)
        self.bag = nn.EmbeddingBag(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.many[0] @ self.many[1] * self.named["scale"]
        x = self.normed(x)[:, None].expand(-1, 3, -1)
        x = self.encoder(self.attention(x, x, x)[0])
        x = self.projected(self.recurrent(x)[0])[0][:, -1]
        places = torch.arange(len(x))
        return self.again(self.twice(x)) + self.embedding(places) + self.bag(places[:, None])


@pytest.mark.parametrize("training", [False, True])
def test_all_kinds_of_layers(training: bool) -> None:
    space = Space(width=one_of(4, 8))
    supernet = Supernet(Own, space).double().train(training)
    for arch in space:
        network = supernet.extract(arch)
        for run in (supernet, network):
            run.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        expected = network(X.double())
        torch.manual_seed(0)
        found = supernet(X.double(), arch)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        expected.square().sum().backward()
        found.square().sum().backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        assert gradients.keys() == {name for name, p in supernet.named_parameters() if p.grad is not None}
        with torch.no_grad():
            own, after = network.eval()(X.double()), supernet.eval()(X.double(), arch)
        torch.testing.assert_close(after, own, rtol=1e-12, atol=1e-12)  # statistics too
        supernet.train(training)


def test_building_is_undone_in_the_process() -> None:
    """Nothing that is patched or drawn while networks are looked at outlives it."""
    initial, state = nn.Module.__init__, torch.random.get_rng_state()
    supernet = Supernet(ends_earlier, DEPTH)
    torch.random.set_rng_state(state)
    with torch.random.fork_rng(devices=[]):
        supernet(X, DEPTH[0])
    assert nn.Module.__init__ is initial
    assert torch.equal(torch.random.get_rng_state(), state)
    layer = nn.Linear(3, 3)
    assert not layer.weight.is_meta
    assert bool(nn.init.ones_(layer.weight).eq(1).all())


def test_weights_and_statistics_that_the_builder_loads_are_the_first_ones() -> None:
    pretrained = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)).state_dict()
    pretrained["1.running_mean"].normal_()
    pretrained["1.running_var"].uniform_()

    def make(arch: Arch) -> nn.Module:
        width = int(arch["width"])
        network = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width))
        network.load_state_dict({name: t[:width] if t.ndim else t for name, t in pretrained.items()})
        return network

    space = Space(width=one_of(4, 8))
    supernet = Supernet(make, space).eval()
    for name, tensor in supernet.state_dict().items():
        assert torch.equal(tensor, pretrained[name])
    for arch in space:
        torch.testing.assert_close(supernet(X, arch), make(arch).eval()(X))
    supernet.train()(X, space[0])
    assert not torch.equal(supernet.get_buffer("1.running_mean")[:4], pretrained["1.running_mean"][:4])
    assert torch.equal(supernet.get_buffer("1.running_mean")[4:], pretrained["1.running_mean"][4:])


def pretrained() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, affine=False), nn.LSTM(6, 6))


def read_again(module: nn.Module) -> nn.Module:
    again: nn.Module = pickle.loads(pickle.dumps(module))
    return again


@pytest.mark.parametrize("copied", [copy.deepcopy, read_again])
def test_a_pretrained_module_is_copied_in_the_builder(copied: Callable[[nn.Module], nn.Module]) -> None:
    backbone = pretrained().eval()
    weights = copy.deepcopy(backbone.state_dict())

    class Tuned(nn.Module):
        def __init__(self, arch: Arch) -> None:
            super().__init__()
            self.backbone, self.head = copied(backbone), nn.Linear(6, int(arch["depth"]))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.backbone(x)[0])

    supernet = Supernet(Tuned, DEPTH).eval()
    for name, tensor in supernet.backbone.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(tensor, weights[name])
    for arch in DEPTH:
        network = supernet.extract(arch)
        assert torch.equal(supernet(X, arch), network(X))
        with torch.no_grad():
            network.get_parameter("backbone.0.weight").zero_()
    assert torch.equal(supernet.get_parameter("backbone.0.weight"), weights["0.weight"])
    assert counted("params", Tuned, DEPTH, None)(DEPTH[1]) == count_params(Tuned(DEPTH[1]))
    assert counted("macs", Tuned, DEPTH, X)(DEPTH[1]) == count_macs(Tuned(DEPTH[1]), X)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_module_from_outside_is_refused_and_stays_as_it_is(part: int) -> None:
    backbone = pretrained()
    tensors = {name: (tensor, tensor.clone()) for name, tensor in backbone.state_dict(keep_vars=True).items()}

    def make(arch: Arch) -> nn.Module:
        width = int(arch["depth"])
        return nn.Sequential(nn.Linear(6, width), nn.Linear(width, 6), backbone[part])

    cost = counted("macs", make, DEPTH, X, additive=False)
    for use in (
        lambda: [cost(arch) for arch in DEPTH],
        lambda: counted("params", make, DEPTH, None),
        lambda: Supernet(make, DEPTH),
    ):
        with pytest.raises(ValueError, match=r"the builder gives the .* '2.*' to several .* copy.deepcopy\(backbone\)"):
            use()
    for name, tensor in backbone.state_dict(keep_vars=True).items():
        assert tensor is tensors[name][0]
        assert torch.equal(tensor, tensors[name][1])


def test_a_module_from_outside_that_few_networks_have_is_refused_where_it_is_used() -> None:
    backbone = nn.Linear(6, 6)
    weight, values = backbone.weight, backbone.weight.detach().clone()
    space = Space(kind=one_of("new", "pretrained"))

    def make(arch: Arch) -> nn.Module:
        return nn.ModuleList([backbone if arch["kind"] == "pretrained" else nn.Linear(6, 6)])

    supernet = Supernet(make, space)
    for use in (supernet.extract, partial(supernet, X)):
        with pytest.raises(ValueError, match="the builder gives the Linear '0' to several networks"):
            use(space[1])
    assert backbone.weight is weight
    assert torch.equal(weight, values)


def test_a_parameter_from_outside_is_refused() -> None:
    shared = nn.Parameter(torch.ones(6))

    def make(arch: Arch) -> nn.Module:
        network = nn.Linear(6, 6)
        network.scale = shared
        return network

    with pytest.raises(ValueError, match="gives the parameter 'scale' of a Linear to several networks"):
        Supernet(make, DEPTH)
    assert bool(shared.eq(1).all())


@pytest.mark.parametrize("used", [False, True])
def test_a_builder_that_keeps_its_networks_is_refused(used: bool) -> None:
    make = lru_cache(lambda arch: nn.Linear(6, int(arch["depth"])))
    if used:
        make(DEPTH[0])
    with pytest.raises(ValueError, match=r"the builder gives .* to several networks, .* cache no networks"):
        Supernet(make, DEPTH)


@pytest.mark.parametrize(
    "place",
    [
        lambda network: network.to("cpu"),
        lambda network: network.cpu(),
        lambda network: network.to(torch.device("cpu"), torch.float64),
        lambda network: network.to(torch.zeros((), dtype=torch.float64)),
        lambda network: network.double(),
        lambda network: network.to(memory_format=torch.channels_last),
    ],
)
def test_a_builder_may_place_its_network(place: Callable[[nn.Module], nn.Module]) -> None:
    def make(arch: Arch) -> nn.Module:
        width = int(arch["width"])
        return place(nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width)))

    space = Space(width=one_of(4, 8))
    plain = make(space[0])
    supernet = Supernet(make, space)
    assert {n: t.dtype for n, t in supernet.state_dict().items()} == {n: t.dtype for n, t in plain.state_dict().items()}
    x = torch.randn(2, 3, 4, 4).to(supernet.get_parameter("0.weight"))
    for arch in space:
        torch.testing.assert_close(supernet(x, arch), supernet.extract(arch)(x))


def test_initialisation_costs_nothing_where_only_shapes_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[Any] = []
    uniform = Tensor.uniform_

    def counting(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        filled.append(self)
        return uniform(self, *args, **kwargs)

    supernet = Supernet(ends_earlier, DEPTH)
    monkeypatch.setattr(Tensor, "uniform_", counting)
    supernet(X, DEPTH[1])
    assert not filled
    supernet.extract(DEPTH[1])
