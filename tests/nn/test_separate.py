"""Copies of tensors per value of some choices, and where those choices are looked up."""

import pytest
import torch
from torch import Tensor, nn

from nasx import Arch, Space, one_of, repeat
from nasx.nn import Supernet
from tests.families import BY_NAME

PART = Space(kind=one_of({"wide": Space(hidden=one_of(4, 8)), "none": None}), bias=one_of(False, True))
SPACE = Space(width=one_of(3, 6), block=repeat(PART, one_of(1, 2)))
X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, width: int, part: Arch) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        hidden = int(part["hidden"]) if part["kind"] == "wide" else width
        self.ffn = nn.Sequential(nn.Linear(width, hidden, bias=bool(part["bias"])), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(self.norm(x))


class Network(nn.Module):
    def __init__(self, arch: Arch) -> None:
        super().__init__()
        width = int(arch["width"])
        self.stem = nn.Linear(5, width)
        self.blocks = nn.ModuleList(Block(width, part) for part in arch.parts("block"))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def check(supernet: Supernet, space: Space, x: Tensor = X) -> None:
    supernet.double()
    for arch in space.sample(0, 20):
        torch.testing.assert_close(supernet(x.double(), arch), supernet.extract(arch)(x.double()), rtol=0, atol=1e-12)


def names(supernet: Supernet, start: str) -> dict[str, tuple[int, ...]]:
    return {
        name.removeprefix(start): tuple(tensor.shape)
        for name, tensor in supernet.state_dict().items()
        if name.startswith(start)
    }


def test_a_copy_is_named_by_its_choices_and_as_large_as_its_networks() -> None:
    supernet = Supernet(Network, SPACE, separate={"blocks.*.ffn": ("kind", "hidden")})
    assert names(supernet, "blocks.1.ffn.0.weight@") == {
        "kind=wide,hidden=4": (4, 6),
        "kind=wide,hidden=8": (8, 6),
        "kind=none,hidden=None": (6, 6),  # a choice that is absent is None
    }
    assert names(supernet, "blocks.0.ffn.0.bias@").keys() == names(supernet, "blocks.1.ffn.0.weight@").keys()
    assert names(supernet, "blocks.0.norm.") == {"weight": (6,), "bias": (6,)}
    check(supernet, SPACE)


def test_the_choices_of_a_part_hide_nothing_of_the_shared_ones() -> None:
    supernet = Supernet(Network, SPACE, separate={"blocks.*.norm": ("width", "bias"), "head.bias": "block.count"})
    assert names(supernet, "blocks.0.norm.weight@") == {
        f"width={width},bias={bias}": (width,) for width in (3, 6) for bias in (False, True)
    }
    assert names(supernet, "head.") == {"weight": (2, 6), "bias@block.count=1": (2,), "bias@block.count=2": (2,)}
    check(supernet, SPACE)


def test_the_most_exact_pattern_decides() -> None:
    separate = {"blocks.*": "kind", "blocks.*.ffn.2": "hidden", "blocks.0.norm": ()}
    supernet = Supernet(Network, SPACE, separate=separate)
    assert names(supernet, "blocks.0.norm.weight") == {"": (6,)}
    assert set(names(supernet, "blocks.1.norm.weight@")) == {"kind=wide", "kind=none"}
    assert set(names(supernet, "blocks.1.ffn.2.bias@")) == {"hidden=4", "hidden=8", "hidden=None"}
    check(supernet, SPACE)


def test_numbers_are_spelled_by_their_value() -> None:
    space = Space(ratio=one_of(1.0, 0.5, 2), flag=one_of(True, False), word=one_of("a"))
    supernet = Supernet(
        lambda arch: nn.Linear(2, int(4 * float(arch["ratio"]))), space, separate={"weight": ("ratio", "flag", "word")}
    )
    found = names(supernet, "weight@ratio=")
    assert set(found) == {f"{ratio},flag={flag},word=a" for ratio in ("1", "0.5", "2") for flag in (True, False)}
    first, same = space[0], Arch({"ratio": 1, "flag": True, "word": "a"})
    assert torch.equal(*(supernet.extract(arch).get_parameter("weight") for arch in (first, same)))


def test_training_a_copy_moves_no_other() -> None:
    supernet = Supernet(Network, SPACE, separate={"blocks.*.ffn": ("kind", "hidden")})
    arch = SPACE.canonical({"width": 6, "block.count": 1, "block.0.kind": "none", "block.0.bias": True})
    supernet(X, arch).sum().backward()
    used = {name for name, parameter in supernet.named_parameters() if parameter.grad is not None}
    assert {name for name in used if "ffn" in name} == {
        f"blocks.0.ffn.{layer}.{leaf}@kind=none,hidden=None" for layer in (0, 2) for leaf in ("weight", "bias")
    }


def test_a_module_list_of_another_name_is_given() -> None:
    class Elsewhere(nn.Module):
        def __init__(self, arch: Arch) -> None:
            super().__init__()
            self.encoder = nn.ModuleDict({"layer": nn.Sequential(*(Block(6, part) for part in arch.parts("block")))})

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder["layer"](x)

    separate = {"encoder.layer.*.ffn": ("kind", "hidden")}
    with pytest.raises(ValueError, match=r"'kind' .* no matching module belongs to a part that has it; .* parts="):
        Supernet(Elsewhere, SPACE, separate=separate)
    supernet = Supernet(Elsewhere, SPACE, separate=separate, parts={"block": "encoder.layer"})
    assert len(names(supernet, "encoder.layer.1.ffn.2.weight@")) == 3
    check(supernet, SPACE, torch.randn(3, 6))
    with pytest.raises(ValueError, match="'layer', which is no repeat of the space; its repeats are block"):
        Supernet(Elsewhere, SPACE, parts={"layer": "encoder.layer"})
    with pytest.raises(ValueError, match="'block' is the module list 'encoder', but the network has none there"):
        Supernet(Elsewhere, SPACE, parts={"block": "encoder"})


class Stages(nn.Module):
    """Parts that have parts of their own, and widths that the next stage reads."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        widths = [5, *(int(part["width"]) for part in arch.parts("stage"))]
        self.stages = nn.ModuleList(map(Stage, widths, arch.parts("stage")))

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x.sum(-1)


class Stage(nn.Module):
    def __init__(self, before: int, choices: Arch) -> None:
        super().__init__()
        width = int(choices["width"])
        self.down = nn.Linear(before, width)
        self.block = nn.ModuleList(
            nn.Sequential(nn.Linear(width, int(part["hidden"])), nn.Linear(int(part["hidden"]), width))
            for part in choices.parts("block")
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        for block in self.block:
            x = x + block(x)
        return x


STAGE = Space(width=one_of(2, 4, 6), block=repeat(Space(hidden=one_of(3, 7)), one_of(1, 2)))
STAGES = Space(stage=repeat(STAGE, 3))


def test_parts_may_have_parts() -> None:
    supernet = Supernet(Stages, STAGES, separate={"stages.*.block.*": ("hidden", "width")})
    assert set(names(supernet, "stages.2.block.1.1.weight@")) == {
        f"hidden={hidden},width={width}" for hidden in (3, 7) for width in (2, 4, 6)
    }
    check(supernet, STAGES)


def test_a_copy_fits_every_neighbour_of_its_part() -> None:
    """A stage of width 4 follows stages of every width."""
    supernet = Supernet(Stages, STAGES, separate={"stages.*.down": "width"})
    assert names(supernet, "stages.1.down.weight@width=") == {"2": (2, 6), "4": (4, 6), "6": (6, 6)}
    check(supernet, STAGES)


def test_a_copy_fits_every_neighbour_in_spaces_too_large_to_walk() -> None:
    names_of = [f"w{i}" for i in range(9)]
    space = Space(**{name: one_of(2, 3, 5) for name in names_of}, stage=repeat(Space(width=one_of(2, 4, 6)), 4))

    class Wide(nn.Module):
        def __init__(self, arch: Arch) -> None:
            super().__init__()
            widths = [2, *(int(part["width"]) for part in arch.parts("stage"))]
            self.stages = nn.ModuleList(map(nn.Linear, widths, widths[1:]))
            self.rest = nn.ModuleDict({name: nn.Linear(3, int(arch[name])) for name in names_of})

        def forward(self, x: Tensor) -> Tensor:
            for stage in self.stages:
                x = stage(x)
            return x.sum(-1)

    assert space.size > 1_000_000
    supernet = Supernet(Wide, space, separate={"stages.*": "width"})
    assert names(supernet, "stages.2.weight@width=") == {"2": (2, 6), "4": (4, 6), "6": (6, 6)}
    assert names(supernet, "rest.w5.") == {"weight": (5, 3), "bias": (5,)}
    check(supernet, space, torch.randn(3, 2))


def test_tied_tensors_are_tied_in_every_copy() -> None:
    family = BY_NAME["tied"]
    supernet = Supernet(family.make, family.space, separate={"embed": "hidden"})
    for hidden in (6, 12):
        first, second = (supernet.get_parameter(f"{name}.weight@hidden={hidden}") for name in ("embed", "head"))
        assert first is second
    for arch in family.space:
        network = supernet.extract(arch)
        assert network.get_parameter("head.weight") is network.get_parameter("embed.weight")
        torch.testing.assert_close(supernet(*family.args, arch), network(*family.args))


@pytest.mark.parametrize(
    ("space", "choices", "values"),
    [
        (Space(op=one_of(1, "1")), "op", "1 and '1'"),
        (Space(op=one_of(True, "True")), "op", "True and 'True'"),
        (Space(on=one_of({1: None, 2: Space(op=one_of("None", "a"))})), "op", "None and 'None'"),
        (
            Space(on=one_of({"a,op=b": Space(op=one_of("c")), "a": Space(op=one_of("b,op=c"))})),
            ("on", "op"),
            "'a,op=b', 'c' and 'a', 'b,op=c'",
        ),
    ],
)
def test_values_that_are_spelled_alike_are_refused(space: Space, choices: str | tuple[str, ...], values: str) -> None:
    with pytest.raises(ValueError, match=rf"copies by the values of .*, but {values} are both spelled .*; rename"):
        Supernet(lambda arch: nn.Linear(2, 2), space, separate={"weight": choices})


def test_statistics_are_copied_with_their_module() -> None:
    space = Space(kind=one_of("a", "b"))
    supernet = Supernet(lambda arch: nn.BatchNorm1d(5), space, separate={"*": "kind"})
    supernet(X, space[0])
    assert int(supernet.get_buffer("num_batches_tracked@kind=a")) == 1
    assert int(supernet.get_buffer("num_batches_tracked@kind=b")) == 0
    assert bool(supernet.get_buffer("running_mean@kind=a").any())
    assert not supernet.get_buffer("running_mean@kind=b").any()


def test_kinds_of_layers_share_a_name_where_each_has_its_copy() -> None:
    space = Space(kind=one_of("linear", "conv"))

    def make(arch: Arch) -> nn.Module:
        return nn.Sequential(nn.Linear(5, 5) if arch["kind"] == "linear" else nn.Conv1d(1, 1, 3, padding=1))

    with pytest.raises(ValueError, match=r"'0.weight' is a 2-dimensional parameter of Linear .* or a copy per choice"):
        Supernet(make, space)
    supernet = Supernet(make, space, separate={"0": "kind"})
    assert names(supernet, "0.weight@kind=") == {"linear": (5, 5), "conv": (1, 1, 3)}
    for arch in space:
        x = X[:, None]
        assert torch.equal(supernet(x, arch), supernet.extract(arch)(x))


def test_patterns_and_choices_that_are_none_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"'block.\*' of `separate` matches no parameter or module; names are stem.weight"
    ):
        Supernet(Network, SPACE, separate={"block.*": "kind"})
    with pytest.raises(
        ValueError, match="`separate` names the choice 'heads' for 'head', but the space has none of that"
    ):
        Supernet(Network, SPACE, separate={"head": "heads"})
    with pytest.raises(ValueError, match="'hidden' for 'stem', but no matching module belongs to a part that has it"):
        Supernet(Network, SPACE, separate={"stem": "hidden"})
