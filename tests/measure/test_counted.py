"""Costs counted from a builder: exact sums over a space's parts, or a refusal that names what disproves them."""

import copy
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasx import Arch, Budget, Space, one_of, repeat
from nasx.measure import (
    CachedCost,
    Call,
    CountedCost,
    count_activations,
    count_macs,
    count_params,
    count_peak_memory,
    counted,
)
from nasx.nn import Supernet
from nasx.testing import CostContract
from recipes.glit.cost import Macs, Params
from recipes.glit.model import GLiTConfig, build_in
from recipes.glit.space import TABLE2
from tests.families import BY_NAME, FAMILIES, Family

Kind = Literal["macs", "params", "activations"]
KINDS: tuple[Kind, ...] = ("macs", "params", "activations")

additive = [family for family in FAMILIES if family.additive]
# sharing says nothing of costs
recipes = ["official, conv1d", "paper, conv2d", "paper, window", "reduced"]
additive += [BY_NAME[name] for name in ("autoformer, thirds", "localvit", *(f"glit, {r}, separate" for r in recipes))]


def example(family: Family) -> Call:
    return Call(family.args, family.kwargs)


@cache
def table(name: str, kind: Kind) -> CountedCost:
    family = BY_NAME[name]
    return counted(kind, family.make, family.space, example(family), parts=family.parts)


def count(family: Family, kind: str, arch: Arch) -> int:
    network = family.make(arch)
    counter = {"macs": count_macs, "activations": count_activations}.get(kind)
    return count_params(network) if counter is None else counter(network, *family.args, **family.kwargs)


@pytest.mark.parametrize("family", additive, ids=str)
def test_sums_are_what_is_counted_in_each_network(family: Family) -> None:
    macs, params = table(family.name, "macs"), table(family.name, "params")
    for number, arch in enumerate(family.archs(50)):
        if number < 5 or not family.formulas:
            network = family.make(arch)
            assert params(arch) == sum(parameter.numel() for parameter in network.parameters())
            assert macs(arch) == count_macs(network, *family.args, **family.kwargs)
        else:
            assert params(arch) == family.formulas["params"](arch)
            assert macs(arch) == family.formulas["macs"](arch) * len(family.args[0])


@pytest.mark.parametrize("name", ["mobilenet", "bert", "lstm", "glit, stage one, separate"])
def test_sums_of_elements_written_are_what_is_counted_in_each_network(name: str) -> None:
    family, cost = BY_NAME[name], table(name, "activations")
    for arch in family.archs(16):
        assert cost(arch) == count(family, "activations", arch)


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_add_up_is_refused_with_a_network_that_disproves_it(kind: Kind) -> None:
    """A stage reads as many channels as the stage before it writes."""
    family = BY_NAME["resnet"]
    widths = family.space if kind != "activations" else Space(stage=repeat(Space(width=one_of(4, 8), depth=1), 2))
    make = family.make if kind != "activations" else Concatenated
    with pytest.raises(ValueError, match=r"do not add up .* those of \{.*\} are [\d,]+, but the sum is") as caught:
        counted(kind, make, widths, (torch.zeros(1, 3, 8, 8),), parts=family.parts)
    message = str(caught.value)
    arch = Arch(eval(message[message.index("{") : message.index("}") + 1]))
    found = int(message.partition("} are ")[2].partition(", but")[0].replace(",", ""))
    own = counted(kind, make, widths, (torch.zeros(1, 3, 8, 8),), additive=False)
    assert own(arch) == found


def test_one_network_of_a_small_space_disproves_a_sum() -> None:
    """Whichever network has the layer beside, it is found."""
    space = Space(block=repeat(Space(width=one_of(1, 2, 3)), 3))
    for odd in space:

        def make(arch: Arch, odd: Arch = odd) -> nn.Module:
            blocks = nn.ModuleList(nn.Linear(4, int(part["width"])) for part in arch.parts("block"))
            return nn.ModuleDict({"blocks": blocks} | ({"more": nn.Linear(2, 2)} if arch == odd else {}))

        with pytest.raises(ValueError, match="do not add up over the repeated parts"):
            counted("params", make, space, None)


class Concatenated(nn.Module):
    """A network whose head writes something for each pair of widths."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.widths = [int(part["width"]) for part in arch.parts("stage")]
        self.stages = nn.ModuleList(nn.Conv2d(3, width, 1) for width in self.widths)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (stage(x).mean((2, 3)) for stage in self.stages)
        pairs = a[:, :, None] * b[:, None, :]
        return self.head(pairs[..., None].expand(-1, -1, -1, 8))


def test_sums_that_cannot_be_are_counted_one_by_one() -> None:
    family = BY_NAME["resnet"]
    built, make = built_by(family.make)
    cost = counted("macs", make, family.space, family.args, additive=False)
    assert isinstance(cost, CachedCost)
    assert not built
    for arch in family.archs(50):
        assert cost(arch) == count(family, "macs", arch) == cost(arch)
    assert len(built) == family.space.size  # once each
    most = float(np.median([cost(arch) for arch in family.space]))
    inside = family.space.within(Budget(cost, at_most=most))
    assert all(cost(arch) <= most for arch in inside.sample(0, 10))


def test_an_equal_architecture_of_other_types_is_counted_as_the_space_writes_it() -> None:
    def make(arch: Arch) -> nn.Module:
        return nn.Linear(3, {"4": 4, "8": 8}.get(str(arch["w"]), 1))

    cost = counted("macs", make, Space(w=one_of(4, 8)), torch.zeros(1, 3), additive=False)
    assert [cost(Arch({"w": w})) for w in (4.0, 4, 8)] == [12, 12, 24]


def test_tables_that_would_take_too_many_passes_are_refused_before_they_are_made() -> None:
    cells = BY_NAME["cells"]
    with pytest.raises(ValueError, match=r"would take 15,625 passes or more, but at most 2,000 .* additive=False"):
        counted("macs", cells.make, cells.space, cells.args)
    cost = counted("macs", cells.make, cells.space, cells.args, additive=False)
    for arch in cells.archs(10):
        assert cost(arch) == count(cells, "macs", arch)
    block = repeat(Space(hidden=one_of(*range(1, 10))), 10)
    huge = Space(stage=repeat(Space(block=block), 2))
    with pytest.raises(ValueError, match=r"would take 3,486,784,401 passes or more"):
        counted("params", lambda arch: nn.ModuleDict({"stage": nn.ModuleList()}), huge, None)


class Stages(nn.Module):
    """A network of stages with a depth each, whose first blocks change the width, as once-for-all networks have."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        read = 4
        for number, width in enumerate((4, 6, 8, 10, 12)):
            blocks = nn.ModuleList()
            for index, part in enumerate(arch.parts(f"stage{number}")):
                blocks.append(self.block(arch, f"stage{number}", index, read, width, int(part["expansion"])))
                read = width
            self.add_module(f"stage{number}", blocks)
        self.head = self.make_head(arch)

    def block(self, arch: Arch, stage: str, index: int, read: int, width: int, expansion: int) -> nn.Module:
        return nn.Sequential(nn.Linear(read, expansion * width), nn.ReLU(), nn.Linear(expansion * width, width))

    def make_head(self, arch: Arch) -> nn.Module:
        return nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        for stage in list(self.children())[:-1]:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = block(x)
        return self.head(x)


DEPTHS = Space(**{f"stage{i}": repeat(Space(expansion=one_of(*range(1, 10))), one_of(2, 3, 4)) for i in range(5)})


def built_by(make: Callable[[Arch], nn.Module]) -> tuple[list[Arch], Callable[[Arch], nn.Module]]:
    """Return a builder and the architectures that it has built so far."""
    built: list[Arch] = []

    def noting(arch: Arch) -> nn.Module:
        built.append(arch)
        return make(arch)

    return built, noting


@pytest.mark.parametrize("kind", ["params", "macs"])
def test_stages_with_a_depth_each_are_counted_in_a_pass_for_each_combination_of_depths(
    kind: Literal["params", "macs"], tmp_path: Path
) -> None:
    built, make = built_by(Stages)
    example = torch.zeros(1, 4)
    cost = counted(kind, make, DEPTHS, example)
    assert len(built) < 3**5 + 60  # every option in each of them would take 2,187 passes
    assert cost.by_index
    for arch in DEPTHS.sample(1, 100):
        network = Stages(arch)
        assert cost(arch) == (count_params(network) if kind == "params" else count_macs(network, example))
    cost.save(tmp_path / "cost.json")
    assert CountedCost.load(tmp_path / "cost.json") == cost


def test_what_only_one_combination_of_depths_has_is_counted() -> None:
    class Deepest(Stages):
        def make_head(self, arch: Arch) -> nn.Module:
            return nn.Linear(12, 1000 if all(len(arch.parts(f"stage{i}")) == 4 for i in range(5)) else 10)

    cost = counted("params", Deepest, DEPTHS, None)
    deepest = DEPTHS.pin({f"stage{i}.count": 4 for i in range(5)})
    for space in (deepest, DEPTHS):
        for arch in space.sample(2, 10):
            assert cost(arch) == count_params(Deepest(arch))


class Biased(Stages):
    """A network in which one kind of block in one stage costs more where another stage is deep."""

    def block(self, arch: Arch, stage: str, index: int, read: int, width: int, expansion: int) -> nn.Module:
        deep = stage == "stage1" and expansion == 7 and len(arch.parts("stage0")) == 4
        return nn.Linear(read, width, bias=deep)


def test_parts_that_depend_on_the_depth_of_another_stage_are_refused_or_right() -> None:
    built, make = built_by(Biased)
    with pytest.raises(
        ValueError, match=r"parameters do not add up .* are [\d,]+, but the sum is [\d,]+; a table .* 2,187 passes"
    ):
        counted("params", make, DEPTHS, None)
    assert len(built) < 3**5  # the first network that disproves the sum ends it
    few = DEPTHS.pin({f"stage{i}.count": 2 for i in range(2, 5)})
    cost = counted("params", Biased, few, None)
    for arch in [*few.sample(3, 200), *few.pin({"stage0.count": 4, "stage1.*.expansion": 7}).sample(4, 10)]:
        assert cost(arch) == count_params(Biased(arch))


def test_too_many_combinations_of_depths_are_refused_before_any_pass() -> None:
    space = Space(width=one_of(*range(1, 10)), **DEPTHS.nodes)
    built, make = built_by(Stages)
    with pytest.raises(ValueError, match=r"2,187 passes or more, .* their counts included, takes one: offer fewer"):
        counted("macs", make, space, torch.zeros(1, 4))
    assert len(built) == 1  # to find the module lists


def test_glit_is_counted_as_its_formulas_say_in_a_few_passes() -> None:
    vit = GLiTConfig(image_size=32, patch_size=8, num_classes=10, embed_dim=48)
    built, make = built_by(partial(build_in, vit))
    macs = counted("macs", make, TABLE2, torch.zeros(1, 3, 32, 32))
    assert len(built) < 40  # 198 candidates, twelve in a network, and some networks to compare with
    params = counted("params", make, TABLE2, None)
    for arch in TABLE2.sample(1, 200):
        assert macs(arch) == Macs(vit)(arch)
        assert params(arch) == Params(vit)(arch)
    assert (macs.unit, params.unit) == ("MACs", "parameters")


class TestContract(CostContract):
    space = BY_NAME["mobilenet"].space
    cost = table("mobilenet", "macs")

    def counted(self, arch: Arch) -> int:
        return count(BY_NAME["mobilenet"], "macs", arch)


def test_budgets_on_a_counted_cost_are_exact() -> None:
    family, cost = BY_NAME["mobilenet"], table("mobilenet", "params")
    costs = sorted(cost(arch) for arch in family.space)
    low, high = costs[len(costs) // 4], costs[len(costs) // 2]
    inside = family.space.within(Budget(cost, at_least=low, at_most=high))
    assert inside.size == sum(low <= value <= high for value in costs)
    assert all(low <= count(family, "params", arch) <= high for arch in inside.sample(0, 5))


def test_parts_that_differ_by_place_are_counted_place_by_place() -> None:
    class Pyramid(nn.Module):
        """Every block halves the length, so equal blocks cost less and less."""

        def __init__(self, arch: Arch) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Conv1d(4, int(p["hidden"]), 3, 2, 1), nn.Conv1d(int(p["hidden"]), 4, 1))
                for p in arch.parts("block")
            )

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    space, x = Space(block=repeat(Space(hidden=one_of(2, 3, 5)), one_of(1, 2, 3))), torch.zeros(2, 4, 32)
    cost = counted("macs", Pyramid, space, x)
    assert cost.by_index
    for arch in space:
        assert cost(arch) == count_macs(Pyramid(arch), x)
    assert not counted("params", Pyramid, space, None).by_index


def test_repeats_are_found_or_given() -> None:
    family = BY_NAME["bert"]
    with pytest.raises(ValueError, match=r"the repeat 'layer' is no module list .* parts=\{'layer': 'encoder.layer'\}"):
        counted("params", family.make, family.space, None)
    with pytest.raises(ValueError, match=r"`parts` says that 'layer' is the module list 'bert.layer', but"):
        counted("params", family.make, family.space, None, parts={"layer": "bert.layer"})


@pytest.mark.parametrize("order", [("none", "deep"), ("deep", "none")])
def test_a_repeat_may_be_in_some_networks_alone(order: tuple[str, str]) -> None:
    class Sometimes(nn.Module):
        def __init__(self, arch: Arch) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            if arch["op"] == "deep":
                self.more = nn.ModuleList(nn.Linear(4, 4, bias=bool(p["bias"])) for p in arch.parts("block"))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.children() if "more" not in self._modules else (self.layer, *self.more):
                x = layer(x)
            return x

    deep = Space(block=repeat(Space(bias=one_of(False, True)), one_of(1, 2)))
    space = Space(op=one_of({op: deep if op == "deep" else None for op in order}))
    cost = counted("params", Sometimes, space, None, parts={"block": "more"})
    assert [cost(arch) for arch in space] == [count_params(Sometimes(arch)) for arch in space]
    supernet = Supernet(Sometimes, space, parts={"block": "more"}, separate={"more": "bias"})
    x = torch.ones(2, 4)
    for arch in space:
        assert torch.equal(supernet(x, arch), supernet.extract(arch)(x))
    with pytest.raises(ValueError, match="the repeat 'block' is no module list of the network"):
        counted("params", Sometimes, space, None)
    with pytest.raises(ValueError, match=r"says that 'block' is the module list 'less', but the network has none"):
        counted("params", Sometimes, space, None, parts={"block": "less"})


def test_a_builder_and_a_space_that_changed_places_are_refused_with_the_order() -> None:
    space = Space(width=one_of(2, 4))
    with pytest.raises(TypeError, match=r"`space` must be a Space.*Linear.*write counted\('params', make, space, exam"):
        counted("params", space, nn.Linear, None)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="`make` must build the network of any architecture, but got one network"):
        counted("peak_memory", nn.Linear(2, 2), space, torch.zeros(1, 2))


def test_examples_of_any_kind() -> None:
    class Two(nn.Module):
        def __init__(self, arch: Arch) -> None:
            super().__init__()
            self.layer = nn.Linear(4, int(arch["width"]))

        def forward(self, x: Any, *, again: int = 1) -> Tensor:
            x = x["x"] if isinstance(x, dict) else x
            return torch.stack([self.layer(x) for _ in range(again)])

    space, x = Space(width=one_of(2, 3)), torch.zeros(5, 4)
    macs = partial(counted, "macs", Two, space)
    for given, times in ((x, 1), ((x,), 1), ({"x": x}, 1), (Call((x,), {"again": 3}), 3), (Call(kwargs={"x": x}), 1)):
        assert macs(given)(space[1]) == times * 5 * 4 * 3
    kinds: tuple[Literal["macs", "activations", "peak_memory"], ...] = ("macs", "activations", "peak_memory")
    for kind in kinds:
        with pytest.raises(ValueError, match="need an example of the network's inputs, but got None"):
            counted(kind, Two, space, None)
    with pytest.raises(
        ValueError, match="a counted cost is one of macs, params, activations, peak_memory, but got 'flops'"
    ):
        counted("flops", Two, space, x)  # type: ignore[call-overload]


def test_networks_that_look_at_values_are_counted_on_the_cpu() -> None:
    class Looks(nn.Module):
        def __init__(self, arch: Arch) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4, bias=bool(p["bias"])) for p in arch.parts("block"))
            self.more = nn.Linear(4, int(arch["width"]))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x) if float(x.sum()) >= -1e9 else x
            return self.more(x)

    space = Space(width=one_of(2, 3), block=repeat(Space(bias=one_of(False, True)), one_of(1, 2)))
    x = torch.ones(5, 4)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    cost = counted("macs", Looks, space, x)
    assert torch.equal(torch.random.get_rng_state(), state)
    for arch in space:
        assert cost(arch) == count_macs(Looks(arch), x)


class Routed(nn.Module):
    """Sends each sample to one of two experts, which its weights choose."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.route = nn.Linear(4, 2)
        self.experts = nn.ModuleList(nn.Linear(4, int(arch["width"]) * (1 + i)) for i in range(2))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.route(x).argmax(dim=1).numpy()
        rows = [self.experts[int(expert)](row) for row, expert in zip(x, chosen, strict=True)]
        return torch.stack([row.sum() for row in rows])


@pytest.mark.parametrize("additive", [True, False])
def test_counts_that_depend_on_weights_are_the_same_each_time(additive: bool) -> None:
    space = Space(width=one_of(2, 3, 4))
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    found = set()
    for seed in range(4):
        torch.manual_seed(seed)
        cost = counted("macs", Routed, space, x, additive=additive)
        found.add(tuple(cost(arch) for arch in space))
    assert len(found) == 1


def test_peak_memory_filters() -> None:
    class Bottle(nn.Module):
        def __init__(self, arch: Arch) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(8, int(p["hidden"])), nn.ReLU(), nn.Linear(int(p["hidden"]), 8))
                for p in arch.parts("block")
            )

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    space, x = Space(block=repeat(Space(hidden=one_of(4, 40)), 2)), torch.zeros(100, 8)
    memory = counted("peak_memory", Bottle, space, x)
    assert isinstance(memory, CachedCost)
    assert memory.unit == "bytes"
    for arch in space:
        assert memory(arch) == count_peak_memory(Bottle(arch), x)
    # beside the weights: what a block reads and two tensors inside it, and the example, which stays
    live = [memory(arch) - 4 * count_params(Bottle(arch)) for arch in space]
    first, second = 8 + 40 + 40, 8 + 8 + 40 + 40
    assert live == [4 * 100 * elements for elements in (8 + 8 + 4 + 8, second, first, second)]
    inside = space.within(Budget(memory, at_most=memory(space[0])))
    assert set(inside.sample(0, 5)) == {space[0]}


@pytest.mark.parametrize("name", ["mobilenet", "bert", "autoformer, thirds"])
def test_tables_are_saved_and_read(name: str, tmp_path: Path) -> None:
    cost, path = table(name, "macs"), tmp_path / "macs.json"
    cost.save(path)
    again = CountedCost.load(path)
    assert again == cost
    assert (again.unit, again.by_index) == ("MACs", cost.by_index)
    for arch in BY_NAME[name].archs(10):
        assert again(arch) == cost(arch)
    assert copy.deepcopy(cost) == cost


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    table("lstm", "macs").save(path)
    document = json.loads(path.read_text())
    for wrong, match in (
        ({"counted": 7}, "holds no counted cost of format 1"),
        ([], "holds no counted cost of format 1"),
        ({**document, "fixed": [{"shared": {}}]}, "holds no counted cost: KeyError"),
        ({**document, "parts": 3}, "holds no counted cost: TypeError"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=match):
            CountedCost.load(path)


def test_architectures_of_another_space_are_refused() -> None:
    cost, arch = table("mobilenet", "macs"), BY_NAME["mobilenet"].space[0]
    with pytest.raises(ValueError, match=r"no network of the counted space has \{'width': 9, .* count its own space"):
        cost(Arch({**arch, "width": 9}))
    with pytest.raises(ValueError, match="no network of the counted space has"):
        cost(Arch({**arch, "block.0.kernel_size": 9}))


def test_pinned_spaces_are_counted_without_what_they_lack() -> None:
    family = BY_NAME["mobilenet"]
    space = family.space.pin({"width": 8, "block.count": 2, "block.0.expansion": 3, "block.1.kernel_size": 5})
    cost = counted("macs", family.make, space, family.args)
    for arch in space:
        assert cost(arch) == table("mobilenet", "macs")(arch)
    assert {arch["width"] for arch in cost.fixed_counts} == {8}


class Named(nn.Module):
    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.layer = nn.Linear(4, int(arch["width"]))

    def forward(self, *, features: Tensor) -> Tensor:
        out: Tensor = self.layer(features)
        return out


def test_keyword_arguments_that_are_given_as_a_mapping_are_named() -> None:
    space, example = Space(width=one_of(2, 3)), {"features": torch.zeros(1, 4)}
    with pytest.raises(TypeError) as caught:
        counted("macs", Named, space, example)
    assert any("write Call((), example)" in note for note in caught.value.__notes__)
    assert counted("macs", Named, space, Call((), example))(space[0]) == 8
