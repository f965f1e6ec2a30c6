"""What a supernet learns of a space's networks serves the next one of the same space and builder."""

from collections.abc import Hashable
from functools import partial
from typing import Any

import pytest
from torch import nn

from nasx import Arch, Space, one_of, repeat
from nasx.nn import Supernet
from nasx.nn.survey import Survey, kept_surveys

SPACE = Space(layer=repeat(Space(width=one_of(2, 4, 6, 8)), one_of(1, 2, 3)))
BUILT: list[Arch] = []


class Layers(nn.Module):
    def __init__(self, arch: Arch, scale: int = 1) -> None:
        super().__init__()
        BUILT.append(arch)
        self.layer = nn.ModuleList(nn.Linear(4, scale * int(part["width"])) for part in arch.parts("layer"))


def built(make: Any, kept: dict[Hashable, Survey], **more: Any) -> tuple[int, tuple[int, ...]]:
    """Return how many networks a supernet of a builder needed, and the largest size that it found."""
    before = len(BUILT)
    with kept_surveys(kept):
        supernet = Supernet(make, SPACE, **more)
    sizes = [tensor.shape for name, tensor in supernet.named_parameters() if name.startswith("layer.2.weight")]
    return len(BUILT) - before, tuple(max(sizes))


def test_a_second_supernet_looks_at_few_networks() -> None:
    kept: dict[Hashable, Survey] = {}
    first, shape = built(partial(Layers, scale=1), kept)
    assert first > 10
    again = built(partial(Layers, scale=1), kept)
    assert again[0] < first / 2, "as a partial anew, too"
    assert again[1] == shape
    assert built(partial(Layers, scale=1), {}) == (first, shape)


def test_another_builder_or_sharing_is_looked_at_anew() -> None:
    kept: dict[Hashable, Survey] = {}
    first, shape = built(partial(Layers, scale=1), kept)
    assert built(partial(Layers, scale=3), kept) == (first, (24, 4))
    again, _ = built(partial(Layers, scale=1), kept, separate={"layer.*": "width"})
    assert again >= first
    assert built(partial(Layers, scale=1), kept)[1] == shape


def test_warnings_of_a_builder_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    space = Space(layer=repeat(Space(width=one_of(2, 4)), one_of(1, 2)), unread=one_of(1, 2))
    kept: dict[Hashable, Survey] = {}
    for _ in range(3):
        with kept_surveys(kept):
            Supernet(Layers, space)
    assert caplog.text.count("the builder reads nothing of 'unread'") == 1
    Supernet(Layers, space)
    assert caplog.text.count("the builder reads nothing of 'unread'") == 2, "of which nothing was kept"


def test_a_builder_that_changed_is_looked_at_anew() -> None:
    kept: dict[Hashable, Survey] = {}
    scale = [1]

    def make(arch: Arch) -> nn.Module:
        return Layers(arch, scale[0])

    assert built(make, kept)[1] == (8, 4)
    scale[0] = 2
    assert built(make, kept)[1] == (16, 4)
