"""How often each option of each choice stands among the best candidates so far, generation by generation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasx.arch import pattern_of
from nasx.report.labels import value_text
from nasx.report.model import SearchHistory


@dataclass(frozen=True, slots=True)
class Survival:
    """The shares of the options of like choices, such as the kernel sizes of all blocks.

    `shares` is (generations, choices, options): of the best candidates up to a generation, how many have an option.
    They add up to less than 1 where a candidate lacks the choice. `best_kept` candidates count as the best.
    """

    search: str
    pattern: str
    names: tuple[str, ...]
    options: tuple[str, ...]
    generations: tuple[int, ...]
    shares: NDArray[np.float64]
    best_kept: int

    @property
    def title(self) -> str:
        """What the choices are called together."""
        words = [word for word in self.pattern.split(".") if word != "*"]
        return words[-1] if words else self.pattern

    @property
    def row_labels(self) -> list[str]:
        """A short name for each choice: the numbers of its parts, counted from 1, or the name where it has none."""
        numbers = [[int(word) + 1 for word in name.split(".") if word.isdigit()] for name in self.names]
        return [".".join(map(str, own)) if own else name for own, name in zip(numbers, self.names, strict=True)]


def survival(search: SearchHistory) -> list[Survival]:
    """Return the shares of all choices that the candidates of a search differ in, one entry for each pattern of names.

    A generation's best are the `search.best_kept` candidates with the highest scores of all up to it, those that
    evolution breeds the next generation from; the earlier one counts of equals.
    """
    scored = search.scored
    generations = sorted({candidate.generation for candidate in search.candidates})
    seen: dict[str, dict[str, None]] = {}
    for candidate in scored:
        for name, value in candidate.arch.items():
            seen.setdefault(name, {}).setdefault(value_text(value))
    ordered = {name: [value_text(value) for value in search.options.get(name, ())] for name in seen}
    options = {
        name: list(dict.fromkeys([*(value for value in ordered[name] if value in values), *values]))
        for name, values in seen.items()
    }
    groups: dict[str, list[str]] = {}
    for name in seen:
        groups.setdefault(pattern_of(name), []).append(name)
    best = {generation: _best(search, generation) for generation in generations}
    found = []
    for pattern, members in groups.items():
        names = sorted(members, key=_numbers)  # a choice that depends on another may have been seen late
        if all(len(options[name]) < 2 for name in names):
            continue
        together = _merged([options[name] for name in names])
        shares = np.zeros((len(generations), len(names), len(together)))
        for row, name in enumerate(names):
            column = {value: at for at, value in enumerate(together)}
            for at, generation in enumerate(generations):
                for arch in best[generation]:
                    if name in arch:
                        shares[at, row, column[value_text(arch[name])]] += 1 / len(best[generation])
        found.append(
            Survival(search.name, pattern, tuple(names), tuple(together), tuple(generations), shares, search.best_kept)
        )
    return found


def _best(search: SearchHistory, generation: int) -> list[Mapping[str, Any]]:
    earlier = [candidate for candidate in search.scored if candidate.generation <= generation]
    ranked = sorted(earlier, key=lambda candidate: -(candidate.score or 0))
    return [candidate.arch for candidate in ranked[: search.best_kept]]


def _numbers(name: str) -> list[int]:
    return [int(segment) for segment in name.split(".") if segment.isdigit()]


def _merged(lists: list[list[str]]) -> list[str]:
    """Return all options of some choices; numbers in their order, else as they come."""
    every = list(dict.fromkeys(value for values in lists for value in values))
    try:
        return sorted(every, key=float)
    except ValueError:
        return every
