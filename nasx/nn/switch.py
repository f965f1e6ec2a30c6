"""Separate weights: one module per candidate (SPOS)."""

import copy
from collections.abc import Hashable, Iterator, Mapping

from torch import Tensor, nn

from nasx.arch import Value

Key = Value | tuple[Value, ...]


class Switch(nn.Module):
    """One module per candidate, of which each call runs one.

    Keys are choice values or tuples of them; 4 and 4.0 are one key. Names in the state dict spell the key
    (`0.5` as `0_5`, tuples joined by `__`) and depend neither on the order of construction nor on hashing.
    """

    def __init__(self, candidates: Mapping[Key, nn.Module]) -> None:
        super().__init__()
        if not candidates:
            raise ValueError("a Switch needs at least one candidate")
        self._names: dict[Key, str] = {}
        for key in candidates:
            name = "__".join(_spelled(value) for value in (key if isinstance(key, tuple) else (key,)))
            if name in self._names.values():
                raise ValueError(f"two candidates are both spelled {name!r}; one of them is {key!r}")
            self._names[key] = name
        self.candidates = nn.ModuleDict({self._names[key]: module for key, module in candidates.items()})

    def __getitem__(self, key: Key) -> nn.Module:
        if key not in self._names:
            raise KeyError(f"no candidate {key!r}; there are {', '.join(map(repr, self._names))}")
        return self.candidates[self._names[key]]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._names

    def __iter__(self) -> Iterator[Key]:
        return iter(self._names)

    def forward(self, x: Tensor, key: Key) -> Tensor:
        """Run one candidate."""
        return self[key](x)

    def extract(self, key: Key) -> nn.Module:
        """Return a copy of one candidate."""
        return copy.deepcopy(self[key])


def _spelled(value: Value) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    return "".join(c if c.isalnum() or c == "-" else "_" for c in text)
