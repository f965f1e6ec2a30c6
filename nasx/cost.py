"""Costs that add up over the repeated parts of an architecture, and budgets on them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from nasx.arch import Arch, Value


class Cost(Protocol):
    """Anything that gives an architecture an integer cost; a cost without parts can only filter draws."""

    def __call__(self, arch: Arch) -> int:
        """Return the architecture's cost."""


class AdditiveCost(ABC):
    """A cost that is a fixed share plus one share per repeated part.

    The two methods say all there is to know: neither may look at anything but its arguments. This structure is
    what makes it possible to count the architectures inside a budget and to draw from them uniformly.
    """

    unit: str = ""
    """What the integer counts, for messages: "MACs", "parameters", "µs"."""

    @abstractmethod
    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the cost outside the repeated parts, given every choice that is not in one (counts included)."""

    @abstractmethod
    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the cost of the part `name.index`, whose choices come with the prefix stripped."""

    def __call__(self, arch: Arch) -> int:
        """Return the architecture's cost: `fixed` plus the sum of its parts."""
        shared, parts = split(arch)
        return self.fixed(shared) + sum(self.part(name, i, shared, choices) for (name, i), choices in parts.items())


def split(arch: Mapping[str, Value]) -> tuple[Arch, dict[tuple[str, int], Arch]]:
    """Return an architecture's shared entries, and the entries of each repeated part by (name, index).

    The first segment that is a number marks a part: `block.3.mlp_ratio` belongs to ("block", 3) as `mlp_ratio`.
    """
    shared: dict[str, Value] = {}
    parts: dict[tuple[str, int], dict[str, Value]] = {}
    for full, value in arch.items():
        segments = full.split(".")
        at = next((i for i, s in enumerate(segments) if s.isdigit()), None)
        if at is None:
            shared[full] = value
        else:
            key = ".".join(segments[:at]), int(segments[at])
            parts.setdefault(key, {})[".".join(segments[at + 1 :])] = value
    return Arch.joined(shared), {key: Arch.joined(choices) for key, choices in parts.items()}


@dataclass(frozen=True)
class Budget:
    """Bounds on a cost, both inclusive; None leaves a side open. `arch in budget` asks the cost."""

    cost: Cost
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        for name in ("at_least", "at_most"):
            bound = getattr(self, name)
            if bound is not None and not (math.isfinite(bound) and bound >= 0):
                raise ValueError(f"a budget's {name} must be a finite number of 0 or more, but got {bound!r}")
        if self.at_least is not None and self.at_most is not None and self.lower > self.upper:
            rule = "`at_least <= at_most` must hold" if self.at_least > self.at_most else "no whole number lies between"
            raise ValueError(f"{rule}, but got (at_least={self.at_least}, at_most={self.at_most}); change one of them")

    @property
    def lower(self) -> float:
        """The smallest integer inside, or minus infinity."""
        return -math.inf if self.at_least is None else math.ceil(self.at_least)

    @property
    def upper(self) -> float:
        """The largest integer inside, or infinity."""
        return math.inf if self.at_most is None else math.floor(self.at_most)

    @property
    def unit(self) -> str:
        """What the cost counts."""
        return str(getattr(self.cost, "unit", ""))

    def __contains__(self, arch: Arch) -> bool:
        return self.lower <= self.cost(arch) <= self.upper

    def __str__(self) -> str:
        bounds = " and ".join(
            f"{word} {bound:.6g}"
            for word, bound in (("at least", self.at_least), ("at most", self.at_most))
            if bound is not None
        )
        return f"{bounds or 'any number of'} {self.unit}".rstrip()
