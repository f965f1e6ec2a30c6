"""What a builder reads of architectures, and what a supernet says of choices that it does not read."""

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from torch import nn

from nasx import Arch, Space, one_of, repeat
from nasx.nn import Supernet
from nasx.nn.watched import Reads

SPACE = Space(
    width=one_of(4, 8), fixed=3, layer=repeat(Space(k=one_of(4, 8), act=one_of("relu", "gelu")), one_of(1, 2))
)
ARCH = SPACE[0]
ALL = ["width", "layer.count", "layer.*.k", "layer.*.act"]


@pytest.mark.parametrize(
    ("read", "rest"),
    [
        (lambda arch: None, ALL),
        (lambda arch: arch["width"], ALL[1:]),
        (lambda arch: arch.get("width"), ALL[1:]),
        (lambda arch: "width" in arch, ALL[1:]),
        (lambda arch: arch.parts("layer"), ["width", *ALL[2:]]),
        (lambda arch: [part["k"] for part in arch.parts("layer")], ["width", "layer.*.act"]),
        (lambda arch: [dict(part) for part in arch.parts("layer")], ["width"]),
        (lambda arch: arch.at("layer.0")["act"], ["width", "layer.count", "layer.*.k"]),
        (lambda arch: arch["layer.0.k"], ["width", "layer.count", "layer.*.act"]),
        (lambda arch: arch.parts("layers"), ALL),
        *(
            (read, [])
            for read in (dict, hash, repr, len, lambda arch: arch.to_json(), pickle.dumps, lambda arch: arch == ARCH)
        ),
        (lambda arch: arch.only("width")["width"], []),
    ],
)
def test_what_is_read_is_noted(read: Callable[[Arch], object], rest: list[str]) -> None:
    reads = Reads()
    for arch in (ARCH, SPACE[SPACE.size - 1]):
        read(reads.watch(arch))
    assert reads.unread(SPACE) == rest


def test_a_watched_architecture_is_the_same() -> None:
    watched = Reads().watch(ARCH)
    assert watched == ARCH
    assert hash(watched) == hash(ARCH)
    assert watched.parts("layer") == ARCH.parts("layer")
    assert watched.to_json() == ARCH.to_json()
    assert type(pickle.loads(pickle.dumps(watched))) is Arch
    with pytest.raises(KeyError, match="no entry 'height'"):
        watched["height"]


ACTIVATIONS: Any = {"relu": nn.ReLU, "gelu": nn.GELU}


class Network(nn.Module):
    def __init__(self, arch: Any, parts: str, *, keeps: bool = False) -> None:
        super().__init__()
        width = arch["width"]
        self.stem = nn.Linear(2, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, part["k"]), ACTIVATIONS[part["act"]](), nn.Linear(part["k"], width))
            for part in arch.parts(parts)
        )
        if keeps:
            self.arch = arch  # which the forward pass may read


def test_a_supernet_names_choices_that_make_no_difference(caplog: pytest.LogCaptureFixture) -> None:
    Supernet(partial(Network, parts="layers"), SPACE)
    assert "reads nothing of 'layer.count', 'layer.*.k', 'layer.*.act'" in caplog.text
    assert "asks for the parts 'layers', which no architecture has" in caplog.text


@pytest.mark.parametrize("make", [partial(Network, parts="layer"), partial(Network, parts="layers", keeps=True)])
def test_a_supernet_says_nothing_where_all_is_read(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    Supernet(make, SPACE)
    assert not caplog.text


def test_a_choice_that_some_networks_do_not_have_is_read_where_it_is(caplog: pytest.LogCaptureFixture) -> None:
    space = Space(op=one_of({"none": None, "linear": Space(hidden=one_of(2, 4))}))

    def make(arch: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, arch["hidden"]) if arch["op"] == "linear" else nn.Identity())

    Supernet(make, space)
    assert not caplog.text
