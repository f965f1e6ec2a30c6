"""How reports and commands show a problem and its networks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nasx.arch import Arch, split
from nasx.report import BlockDrawing


def repeated_parts(arch: Arch) -> Sequence[BlockDrawing]:
    """Return a box for each repeated part with its choices, or one for an architecture without repeated parts."""
    shared, parts = split(arch)
    if not parts:
        return (BlockDrawing("network", 0.3, tuple(f"{name} {value}" for name, value in shared.items())),)
    return tuple(
        BlockDrawing(f"{name} {index}", 0.3, tuple(f"{key} {value}" for key, value in choices.items()))
        for (name, index), choices in parts.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Presentation:
    """What a problem is called, and what is shown of its networks.

    - `title` begins the title of reports.
    - `draw(arch)` returns the picture of a network, a box for each repeated part by default; `legend` explains shades.
    - `describe(arch)` returns what stands beside parameters and MACs, as JSON values.
    """

    title: str = "Architecture"
    draw: Callable[[Arch], Sequence[BlockDrawing]] = repeated_parts
    legend: str = ""
    describe: Callable[[Arch], Mapping[str, Any]] = lambda arch: {}
