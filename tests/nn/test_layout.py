"""Slice rules: which elements of the largest tensor a network uses."""

import itertools
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nasx import Arch, Space, one_of, repeat
from nasx.arch import Value
from nasx.nn import Index, Rule, Stack, Supernet, centred, prefix, stacked, suffix
from nasx.nn.layout import SliceRule, _on, captured, names, put, take

few = settings(max_examples=40)


def places(rule: SliceRule, largest: int, wanted: int) -> list[int]:
    return take(torch.arange(largest), (rule.along(largest, wanted),)).tolist()


class OneWeight(nn.Module):
    """One tensor whose sizes are an architecture's."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(*(int(value) for value in arch.values())))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.square().sum()


def numbered(layout: Any, **sizes: tuple[int, ...]) -> tuple[Supernet, Space]:
    """Return the supernet of a tensor in which every element is its own number."""
    space = Space(**{name: one_of(*values) for name, values in sizes.items()})
    supernet = Supernet(OneWeight, space, layout=layout).double()
    with torch.no_grad():
        weight = supernet.get_parameter("weight")
        weight.copy_(torch.arange(weight.numel()).view_as(weight))
    return supernet, space


def weight(supernet: Supernet, **sizes: int) -> Tensor:
    return supernet.extract(Arch(sizes)).get_parameter("weight").detach()


def test_one_dimension_of_each_rule() -> None:
    assert places(prefix, 6, 2) == [0, 1]
    assert places(suffix, 6, 2) == [4, 5]
    assert places(centred, 7, 3) == [2, 3, 4]
    assert places(centred, 6, 2) == [2, 3]
    assert places(stacked(3), 9, 6) == [0, 1, 3, 4, 6, 7]
    assert places(stacked(2, suffix), 8, 2) == [3, 7]
    assert places(stacked(2, centred), 6, 2) == [1, 4]
    assert places(stacked(3, stacked(2)), 24, 12) == [0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21]
    assert places(stacked(2, stacked(2, suffix)), 12, 4) == [2, 5, 8, 11]


@few
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 4), st.data())
def test_stacks_of_stacks_are_what_reshaping_gives(counts: list[int], inner: int, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, inner))
    rule: SliceRule = prefix
    for count in reversed(counts):
        rule = stacked(count, rule)
    parts = torch.Size(counts).numel()
    whole = torch.arange(parts * inner).view(*counts, inner)
    assert places(rule, parts * inner, parts * wanted) == whole[..., :wanted].flatten().tolist()


def test_a_slice_keeps_the_prefix_of_every_dimension() -> None:
    supernet, space = numbered(None, a=(2, 4), b=(3, 5), c=(1, 2))
    whole = supernet.get_parameter("weight")
    for arch in space:
        a, b, c = (int(value) for value in arch.values())
        assert torch.equal(weight(supernet, a=a, b=b, c=c), whole[:a, :b, :c])


def test_kernels_are_centred_and_channels_are_prefixes() -> None:
    supernet, _ = numbered({"weight": centred}, out=(2, 4), into=(1, 3), height=(1, 3, 5), width=(3, 7))
    whole = supernet.get_parameter("weight")
    assert torch.equal(weight(supernet, out=2, into=1, height=3, width=3), whole[:2, :1, 1:4, 2:5])
    assert torch.equal(weight(supernet, out=4, into=3, height=1, width=7), whole[:, :, 2:3])


def test_rules_by_dimension_leave_the_others_prefixes() -> None:
    layout = {"weight": {0: stacked(2), 1: suffix}}  # the gate of a GLU that reads the last channels
    supernet, _ = numbered(layout, out=(4, 8), into=(3, 5), more=(2, 3))
    whole = supernet.get_parameter("weight")
    expected = whole[[0, 1, 4, 5]][:, 2:, :2]
    assert torch.equal(weight(supernet, out=4, into=3, more=2), expected)
    from_the_end, _ = numbered({"weight": {-1: suffix}}, out=(4, 8), into=(3, 5))
    assert torch.equal(weight(from_the_end, out=4, into=3), from_the_end.get_parameter("weight")[:4, 2:])


def test_a_stack_along_another_dimension() -> None:
    supernet, _ = numbered({"weight": stacked(3, dim=1)}, into=(2, 4), out=(6, 12))
    whole = supernet.get_parameter("weight")
    assert torch.equal(weight(supernet, into=2, out=6), whole[:2, [0, 1, 4, 5, 8, 9]])
    last, _ = numbered({"weight": stacked(3, dim=-1)}, into=(2, 4), out=(6, 12))
    assert torch.equal(weight(last, into=2, out=6), whole[:2, [0, 1, 4, 5, 8, 9]])


def test_heads_keep_their_rows_when_each_becomes_narrower() -> None:
    """Plain prefixes of a stack would hand the second head's rows to the first one."""
    supernet, _ = numbered({"weight": stacked(3, stacked(2))}, rows=(12, 24), dim=(1,))
    rows = weight(supernet, rows=12, dim=1).flatten().view(3, 2, 2)
    whole = torch.arange(24.0, dtype=torch.float64).view(3, 2, 4)
    assert torch.equal(rows, whole[..., :2])


def test_own_rules_are_given_the_name_both_shapes_and_the_choices_of_the_part() -> None:
    seen: list[tuple[Any, ...]] = []

    def rule(name: str, largest: tuple[int, ...], wanted: tuple[int, ...], choices: Mapping[str, Value]) -> list[Index]:
        seen.append((name, largest, wanted, dict(choices)))
        return [torch.arange(largest[0] - 1, largest[0] - 1 - wanted[0], -1), slice(0, wanted[1])]

    part = Space(hidden=one_of(2, 3))

    class Parts(nn.Module):
        def __init__(self, arch: Arch) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Linear(int(arch["width"]), int(p["hidden"]), bias=False) for p in arch.parts("block")
            )

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([block(x[:, : block.in_features]) for block in self.blocks], dim=1)

    space = Space(width=one_of(2, 4), block=repeat(part, 2))
    supernet = Supernet(Parts, space, layout={"blocks.*": rule})
    arch, x = space.canonical({"width": 2, "block.0.hidden": 2, "block.1.hidden": 3}), torch.randn(4, 4)
    seen.clear()
    network = supernet.extract(arch)
    assert seen == [
        ("blocks.0.weight", (3, 4), (2, 2), {"width": 2, "hidden": 2}),
        ("blocks.1.weight", (3, 4), (3, 2), {"width": 2, "hidden": 3}),
    ]
    assert torch.equal(network.get_parameter("blocks.0.weight"), supernet.get_parameter("blocks.0.weight")[[2, 1], :2])
    torch.testing.assert_close(supernet(x, arch), network(x))


def test_own_rules_of_one_dimension_and_stacks_of_positions() -> None:
    def odd(name: str, largest: tuple[int, ...], wanted: tuple[int, ...], choices: Mapping[str, Value]) -> list[Index]:
        return [Stack(2, torch.arange(largest[0] // 2)[largest[0] // wanted[0] - 1 :: largest[0] // wanted[0]])]

    supernet, _ = numbered({"weight": {0: odd}}, rows=(4, 8), dim=(2, 3))
    found = weight(supernet, rows=4, dim=2)
    assert torch.equal(found, supernet.get_parameter("weight")[[1, 3, 5, 7], :2])


def test_the_most_exact_pattern_that_matches_a_name_or_its_module_decides() -> None:
    def make(arch: Arch) -> nn.Module:
        return nn.ModuleDict({name: nn.Linear(2, int(arch["out"])) for name in ("a", "b", "qkv")})

    space = Space(out=one_of(3, 6))
    supernet = Supernet(make, space, layout={"*": suffix, "qkv": stacked(3), "*.bias": prefix, "a.bias": suffix})
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.copy_(torch.arange(6.0).view(6, *[1] * (parameter.ndim - 1)).expand_as(parameter))
    network = supernet.extract(space[0])
    rows = {
        name: parameter.detach().flatten(1)[:, 0].tolist()
        for name, parameter in network.named_parameters()
        if parameter.ndim > 1
    }
    rows |= {name: parameter.tolist() for name, parameter in network.named_parameters() if parameter.ndim == 1}
    assert rows == {
        "a.weight": [3, 4, 5],
        "a.bias": [3, 4, 5],
        "b.weight": [3, 4, 5],
        "b.bias": [0, 1, 2],
        "qkv.weight": [0, 2, 4],
        "qkv.bias": [0, 1, 2],
    }


indices: st.SearchStrategy[Any] = st.sampled_from(
    [None, slice(0, 2), slice(2, 6), torch.tensor([5, 0, 3]), Stack(2, slice(0, 2)), Stack(3, torch.tensor([1]))]
)


@few
@given(st.tuples(indices, indices))
def test_what_is_put_is_what_is_taken_and_nothing_else_changes(chosen: tuple[Any, Any]) -> None:
    tensor = torch.zeros(6, 6)
    values = 1 + torch.arange(take(tensor, chosen).numel()).float().view(take(tensor, chosen).shape)
    put(tensor, chosen, values)
    assert torch.equal(take(tensor, chosen), values)
    assert int((tensor != 0).sum()) == values.numel()


@few
@given(st.tuples(indices, indices))
def test_gradients_of_a_slice_arrive_where_it_was_taken(chosen: tuple[Any, Any]) -> None:
    tensor = torch.zeros(6, 6, requires_grad=True)
    weights = 1 + torch.arange(take(tensor, chosen).numel()).float().view(take(tensor, chosen).shape)
    (take(tensor, chosen) * weights).sum().backward()  # type: ignore[no-untyped-call]
    expected = torch.zeros(6, 6)
    put(expected, chosen, weights)
    assert tensor.grad is not None
    assert torch.equal(tensor.grad, expected)


def test_slices_are_views_where_no_rule_needs_a_copy() -> None:
    tensor = torch.zeros(6, 6)
    assert take(tensor, (slice(0, 2), slice(2, 5))).data_ptr() == tensor[0, 2:].data_ptr()
    assert take(tensor, (None, None)).data_ptr() == tensor.data_ptr()


def fails(layout: Any, match: str, **sizes: tuple[int, ...]) -> None:
    def use() -> None:
        supernet, space = numbered(layout, **sizes)
        for arch in space:
            supernet(torch.ones(1), arch)

    with pytest.raises(ValueError, match=match):
        use()


def test_rules_that_cannot_give_a_wanted_shape_are_refused() -> None:
    def whole(
        name: str, largest: tuple[int, ...], wanted: tuple[int, ...], choices: Mapping[str, Value]
    ) -> list[Index]:
        return [slice(0, size) for size in largest]

    def first(
        name: str, largest: tuple[int, ...], wanted: tuple[int, ...], choices: Mapping[str, Value]
    ) -> list[Index]:
        return [slice(0, wanted[0])]

    sizes = {"a": (2, 4), "b": (5, 6)}
    fails(
        {"weight": {1: centred}},
        r"'weight' gives no \(2, 5\) of \(4, 6\): 5 elements have no place in the centre of 6",
        **sizes,
    )
    fails(
        {"weight": stacked(4)},
        r"'weight' gives no \(2, 5\) of \(4, 6\): 2 of 4 elements are no stack of 4 equal parts",
        **sizes,
    )
    fails(
        {"weight": centred},
        r"`centred` slices kernel dimensions, .* 'weight' has the shape \(4, 6\); name a dimension",
        **sizes,
    )
    fails({"weight": {2: suffix}}, r"the layout names dimension 2, but 'weight' has the shape \(4, 6\)", **sizes)
    fails({"weight": whole}, r"'weight' gives the shape \(4, 6\) of \(4, 6\), but \(2, 5\) is wanted", **sizes)
    fails({"weight": first}, r"'weight' gives 1 indices, but a tensor of the shape \(4, 6\) needs 2", **sizes)
    fails(
        {"weigth": suffix}, "the pattern 'weigth' of `layout` matches no parameter or module; names are weight", **sizes
    )
    with pytest.raises(ValueError, match="a stack has at least one part, but got 0"):
        stacked(0)
    with pytest.raises(TypeError, match="inside a stack stands a rule of one dimension, such as `suffix`, but got"):
        stacked(2, whole)  # type: ignore[arg-type]
    for wrong in ("suffix", {0: "suffix"}):
        with pytest.raises(TypeError, match=r"the layout of 'weight' is a rule or \{dim: rule\}, but got"):
            numbered({"weight": wrong}, **sizes)


def test_the_rules_are_public_values() -> None:
    rules: list[Rule] = [prefix, suffix, centred, stacked(2)]
    assert len({repr(rule) for rule in rules}) == 4
    assert stacked(2) == stacked(2, prefix) != stacked(3)


class Packed(nn.Module):
    """Joint queries, keys and values, and a recurrent layer, whose widths are an architecture's."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        width = int(arch["width"])
        self.qkv = nn.Linear(4, 3 * width)
        self.attn = nn.MultiheadAttention(width, 1)
        self.gates = nn.LSTM(4, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.qkv(x)


def advised(build: Callable[[Arch], nn.Module], space: Space, caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """Return the layout that the warnings of a supernet propose, which then warns no more."""
    caplog.clear()
    Supernet(build, space)
    layout: dict[str, Any] = {}
    for record in caplog.records:
        proposed = re.search(r"add layout=(\{.*?\}) \(nasx", record.getMessage())
        assert proposed is not None
        layout |= eval(proposed[1], {"stacked": stacked, "prefix": prefix})
    caplog.clear()
    supernet = Supernet(build, space, layout=layout)
    for arch in space:
        supernet.extract(arch)
    assert not caplog.records
    return layout


def test_stacked_parts_without_a_layout_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    space = Space(width=one_of(2, 4))
    layout = advised(Packed, space, caplog)
    assert layout == {"qkv": stacked(3), "attn.in_proj_*": stacked(3), "gates": stacked(4)}
    Supernet(Packed, space)
    warned = [record.getMessage() for record in caplog.records]
    assert [text.split()[0] for text in warned] == ["'qkv'", "'attn'", "'gates'"]
    caplog.clear()
    Supernet(Packed, space, layout={"qkv": stacked(3), "attn.in_proj_*": prefix, "gates": stacked(4)})
    Supernet(Packed, Space(width=one_of(4)))
    Supernet(Packed, space, separate={"*": "width"})  # each width has tensors of its own
    assert not caplog.records


@pytest.mark.parametrize(
    ("layer", "layout"),
    [
        (lambda w: nn.LSTM(3, w), {"*": stacked(4)}),
        (lambda w: nn.ModuleDict({"cell": nn.LSTMCell(3, w)}), {"cell": stacked(4)}),
        (lambda w: nn.ModuleDict({"cell": nn.GRUCell(3, w)}), {"cell": stacked(3)}),
        (lambda w: nn.ModuleDict({"cell": nn.RNNCell(3, w)}), {}),
        (lambda w: nn.ModuleDict({"rnn": nn.RNN(3, w, 2)}), {}),
        (lambda w: nn.ModuleList([nn.LSTM(3, 2 * w, proj_size=w)]), {"0": stacked(4), "0.weight_hr_l*": prefix}),
        (
            lambda w: nn.ModuleDict({"rnn": nn.RNN(3, w, 2, bidirectional=True)}),
            {"rnn.weight_ih_l1*": stacked(2, dim=1)},
        ),
        (
            lambda w: nn.LSTM(3, w, 2, bidirectional=True),
            {"*": stacked(4), "weight_ih_l1*": {0: stacked(4), 1: stacked(2)}},
        ),
        (lambda w: nn.ModuleDict({"c_attn": nn.Linear(4, 3 * w)}), {"c_attn": stacked(3)}),
        (lambda w: nn.ModuleDict({"to_qkv": nn.Linear(4, 3 * w, bias=False)}), {"to_qkv": stacked(3)}),
        (lambda w: nn.ModuleDict({"to_kv": nn.Conv1d(4, 2 * w, 1)}), {"to_kv": stacked(2)}),
        (lambda w: nn.ModuleDict({"kvs": nn.Linear(4, 2 * w)}), {}),
        (lambda w: nn.ModuleDict({"qkv": nn.Linear(4, w + 1)}), {}),  # no three equal parts
        (lambda w: nn.ModuleDict({"c_attn": Transposed(w, 3 * w)}), {}),  # whose rows are inputs
        (lambda w: nn.ModuleList([nn.ModuleDict({"qkv": nn.Linear(4, 3 * w)}) for _ in "ab"]), {"*.qkv": stacked(3)}),
    ],
)
def test_the_proposed_layout_can_be_written(
    layer: Callable[[int], nn.Module], layout: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    space = Space(width=one_of(3, 6))
    assert advised(lambda arch: layer(int(arch["width"])), space, caplog) == layout


@pytest.mark.parametrize("width", [8, 24])
def test_a_linear_in_proj_may_have_any_number_of_parts(width: int, caplog: pytest.LogCaptureFixture) -> None:
    """Mamba's has two."""
    space = Space(width=one_of(width, 2 * width))

    def build(arch: Arch) -> nn.Module:
        return nn.ModuleDict({"in_proj": nn.Linear(6, 2 * int(arch["width"]))})

    Supernet(build, space)
    assert "'in_proj' seems to be a layer of stacked parts" in caplog.text
    assert "add layout={'in_proj': stacked(PARTS)}" in caplog.text
    caplog.clear()
    Supernet(build, space, layout={"in_proj": stacked(2)})
    assert not caplog.records


class Transposed(nn.Module):
    """A linear layer whose weight is (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))


def test_an_lstm_of_two_directions_reads_its_own_halves_with_the_proposed_layout(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of the largest network, the units that the small one does not have are silenced: what is left is the same."""
    space = Space(width=one_of(2, 4))

    def build(arch: Arch) -> nn.Module:
        return nn.LSTM(3, int(arch["width"]), 2, bidirectional=True)

    supernet = Supernet(build, space, layout=advised(build, space, caplog))
    small, large = (supernet.extract(arch) for arch in space)
    with torch.no_grad():
        for name, weight in large.named_parameters():
            weight.view(4, 4, *weight.shape[1:])[:, 2:] = 0  # a gated unit without weights stays at 0
            if name.startswith("weight_hh"):
                weight[:, 2:] = 0
    x = torch.randn(5, 1, 3)
    assert torch.allclose(small(x)[0], large(x)[0].unflatten(2, (2, 4))[..., :2].flatten(2), atol=1e-6)
    Supernet(build, space)
    assert "stacked(2, dim=1) for the layers that read its outputs" in caplog.text


def test_directions_that_vary_are_separated(caplog: pytest.LogCaptureFixture) -> None:
    space = Space(width=one_of(2, 4), both=one_of(False, True))
    Supernet(lambda a: nn.ModuleList([nn.GRU(3, int(a["width"]), 2, bidirectional=bool(a["both"]))]), space)
    assert "add separate={'0': CHOICES}" in caplog.text
    assert "stacked(" not in caplog.text


class Grouped(nn.Module):
    """Two convolutions, the second of them in groups; `transposed` makes it one of the other direction."""

    def __init__(self, width: int, groups: int, *, transposed: bool = False) -> None:
        super().__init__()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.stem = nn.Conv2d(3, width, 1)
        self.blocks = nn.ModuleList([kind(width, width, 3, groups=groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](self.stem(x))


@pytest.mark.parametrize("transposed", [False, True])
def test_groups_that_give_a_row_other_inputs_are_warned_of(transposed: bool, caplog: pytest.LogCaptureFixture) -> None:
    def build(arch: Arch) -> nn.Module:
        return Grouped(int(arch["width"]), int(arch["groups"]), transposed=transposed)

    def warned(space: Space, **sharing: Any) -> str:
        caplog.clear()
        Supernet(build, space, **sharing)
        return caplog.text

    chosen = Space(width=8, groups=one_of(1, 2, 4))
    assert "'blocks.0' seems to be a convolution of 1 or 2 or 4 groups" in warned(chosen)
    assert "separate={'blocks.0': CHOICE}" in caplog.text
    assert not warned(chosen, separate={"blocks.*": "groups"})
    assert not warned(chosen, layout={"blocks.*": prefix})
    wider = Space(width=one_of(8, 16), groups=4)  # whose groups grow
    assert "4 groups" in warned(wider)
    assert "layout={'blocks.0': stacked(4)}" in caplog.text
    assert "stacked(4, dim=1) for the layers that read its outputs" in caplog.text
    assert not warned(wider, layout={"blocks.*": stacked(4), "stem": stacked(4)})
    assert "1 or 8 groups" in warned(Space(width=8, groups=one_of(1, 8)))
    # a row has the same inputs in every network
    assert not warned(Space(width=one_of(8, 16), groups=1))
    assert not warned(Space(width=one_of({8: Space(groups=8), 16: Space(groups=16)})))  # depthwise
    assert not warned(Space(width=one_of({8: Space(groups=2), 16: Space(groups=4)})))  # groups of four channels


def test_rows_of_a_grouped_convolution_meet_the_same_inputs_where_the_layout_is_stacked() -> None:
    """What the warning proposes: a network's groups are prefixes of the largest network's."""
    space = Space(width=one_of(8, 16))
    supernet = Supernet(lambda arch: Grouped(int(arch["width"]), 4), space, layout={"*": stacked(4)})
    whole = supernet.get_parameter("blocks.0.weight")
    small = supernet.extract(Arch({"width": 8})).get_parameter("blocks.0.weight")
    for group in range(4):
        assert torch.equal(small[2 * group : 2 * group + 2], whole[4 * group : 4 * group + 2, :2])


def test_the_advice_about_groups_is_for_that_layer_alone(caplog: pytest.LogCaptureFixture) -> None:
    def build(arch: Arch) -> nn.Module:
        w = int(arch["width"])
        grouped = nn.Conv1d(w, w, 3, groups=2)
        return nn.Sequential(nn.Conv1d(3, w, 3), nn.ReLU(), grouped, nn.Sequential(nn.Conv1d(w, 5, 1)))

    space = Space(width=one_of(8, 16))
    assert advised(build, space, caplog) == {"2": stacked(2)}
    # with what the warning says of the layers around it, the small network is a part of the large one
    layout = {"0": stacked(2), "2": stacked(2), "3": stacked(2, dim=1)}
    small, large = map(Supernet(build, space, layout=layout).extract, space)
    x = torch.randn(2, 3, 9)
    with torch.no_grad():
        for layer in (large[0], large[2]):  # type: ignore[index]
            layer.weight.unflatten(0, (2, 8))[:, 4:] = 0
            layer.bias.unflatten(0, (2, 8))[:, 4:] = 0
    assert torch.allclose(small(x), large(x), atol=1e-6)


class GroupedQueries(nn.Module):
    """Attention of several heads to each key and value, written as `transformers` does."""

    head_dim = 4

    def __init__(self, heads: int, keys: int) -> None:
        super().__init__()
        self.num_key_value_groups = heads // keys
        self.q_proj, self.o_proj = nn.Linear(6, heads * self.head_dim), nn.Linear(heads * self.head_dim, 6)
        self.k_proj, self.v_proj = nn.Linear(6, keys * self.head_dim), nn.Linear(6, keys * self.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        heads = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


def test_heads_that_would_attend_to_other_keys_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    def build(arch: Arch) -> nn.Module:
        layers = [nn.ModuleDict({"attn": GroupedQueries(int(arch["heads"]), int(arch["keys"]))}) for _ in range(2)]
        return nn.ModuleDict({"layers": nn.ModuleList(layers)})

    def warned(space: Space, **sharing: Any) -> str:
        caplog.clear()
        Supernet(build, space, **sharing)
        return caplog.text

    more_heads = Space(heads=one_of(2, 4), keys=2)
    assert advised(build, more_heads, caplog) == {"layers.*.attn.q_proj": stacked(2)}
    assert "stacked(2, dim=1) for the layer that reads the heads' outputs" in warned(more_heads)
    assert "separate={'layers.*.attn.q_proj': CHOICE}" in warned(Space(heads=8, keys=one_of(2, 4)))
    # a head has the same keys in every network
    assert not warned(Space(heads=one_of(2, 4), keys=1))
    assert not warned(Space(heads=one_of({4: Space(keys=2), 8: Space(keys=4)})))
    assert not warned(Space(heads=one_of(2, 4), keys=2), separate={"*.attn": "heads"})


def test_stacked_queries_attend_to_the_same_keys_in_every_network() -> None:
    """With what the warning proposes, the small network is a part of the large one."""
    layout = {"q_proj": stacked(2), "o_proj": stacked(2, dim=1)}
    space = Space(heads=one_of(2, 4))
    supernet = Supernet(lambda arch: GroupedQueries(int(arch["heads"]), 2), space, layout=layout)
    small, large = map(supernet.extract, space)
    with torch.no_grad():
        large.get_parameter("o_proj.weight").view(6, 2, 2, 4)[:, :, 1] = 0
    x = torch.randn(3, 5, 6)
    assert torch.allclose(small(x), large(x), atol=1e-6)


def test_attention_whose_weights_are_joint_now_and_then_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    def build(arch: Arch) -> nn.Module:
        width, keys = int(arch["width"]), int(arch["keys"])
        return nn.ModuleList([nn.MultiheadAttention(width, 2, kdim=keys, vdim=keys) for _ in range(2)])

    def warned(space: Space, **sharing: Any) -> bool:
        caplog.clear()
        Supernet(build, space, **sharing)
        return "'*' has one `in_proj_weight` in networks whose queries, keys and values have one" in caplog.text

    chosen = Space(width=8, keys=one_of(8, 16))
    assert warned(chosen)
    assert not warned(chosen, separate={"*": "keys"})
    assert not warned(Space(width=one_of(8, 16), keys=6))
    assert not warned(Space(width=one_of({8: Space(keys=8), 16: Space(keys=16)})))


def test_layers_of_all_blocks_have_one_pattern(caplog: pytest.LogCaptureFixture) -> None:
    def build(arch: Arch) -> nn.Module:
        w = int(arch["width"])
        return nn.ModuleDict({"blocks": nn.ModuleList([nn.Conv1d(w, w, 3, groups=2) for _ in range(3)])})

    assert advised(build, Space(width=one_of(8, 16)), caplog) == {"blocks.*": stacked(2)}


@pytest.mark.parametrize(("rule", "mend"), [("qkv", r"rules are prefix, suffix"), (stacked, r"write stacked\(3\)")])
def test_what_is_no_rule_is_refused_with_the_mend(rule: Any, mend: str) -> None:
    with pytest.raises(TypeError, match=mend):
        Supernet(Packed, Space(width=one_of(2, 4)), layout={"qkv": rule})


def test_an_index_is_copied_to_another_device_once() -> None:
    index, tensor = torch.tensor([2, 0]), torch.zeros(3, device="meta")
    assert _on(torch.device("cpu"), index) is index
    assert _on(tensor.device, index) is _on(tensor.device, index)
    assert take(tensor, (index,)).shape == (2,)


@given(pattern=st.text("a.*?1", max_size=8), name=st.text("a.1", min_size=1, max_size=8))
def test_patterns_match_a_name_or_a_module_as_shells_match_them(pattern: str, name: str) -> None:
    segments = name.split(".")
    modules = [".".join(segments[: end + 1]) for end in range(len(segments))]
    assert names(pattern, name) == any(fnmatchcase(module, pattern) for module in modules)
    if (caught := captured(pattern, name)) is not None:
        filled = "".join(itertools.chain.from_iterable(itertools.zip_longest(pattern.split("*"), caught, fillvalue="")))
        assert any(fnmatchcase(module, filled) for module in modules)


def test_two_stars_are_caught_wherever_they_stand() -> None:
    assert captured("*.block.*.fc1", "stage.block.0.block.fc1.weight") == ("stage", "0.block")
    assert captured("*.[ab].fc?", "x.b.fc1.weight") == ("x",)
    assert captured("blocks.*.fc1", "blocks.3.fc2.weight") is None
