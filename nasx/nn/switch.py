"""Separate weights: one module per candidate (SPOS)."""

import copy
from collections.abc import Iterator, Mapping
from urllib.parse import quote

import torch
from torch import Tensor, nn

from nasx.arch import Value, check_value

Key = Value | tuple[Value, ...]


class Switch(nn.Module):
    """One module per candidate, of which each call runs one.

    Keys are choice values or tuples of them; numbers that are equal are one key, so 4 finds what 4.0 was given.
    A candidate's name in the state dict is `on_` and its key: `on_4`, `on_0_5`, `on_1,2,31`, `on_relu`. Names and
    their order depend neither on the order of construction nor on hashing, and different keys have different names.
    An unknown key is a KeyError that lists the choices.
    """

    def __init__(self, candidates: Mapping[Key, nn.Module]) -> None:
        super().__init__()
        if not candidates:
            raise ValueError("a Switch needs at least one candidate, but got an empty mapping")
        self._names = {key: _state_name(key) for key in candidates}
        for name, key in sorted((name, key) for key, name in self._names.items()):
            self.add_module(name, candidates[key])

    def __getitem__(self, key: Key) -> nn.Module:
        if key not in self._names:
            raise KeyError(f"no candidate {key!r}; the choices are {', '.join(map(repr, self._names))}")
        return self.get_submodule(self._names[key])

    def __contains__(self, key: object) -> bool:
        return key in self._names

    def __iter__(self) -> Iterator[Key]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def forward(self, x: Tensor, key: Key) -> Tensor:
        """Run one candidate."""
        return self[key](x)

    def extract(self, key: Key) -> nn.Module:
        """Return a copy of one candidate."""
        with torch.inference_mode(False):  # else the copy could never be trained
            return copy.deepcopy(self[key])


def _state_name(key: Key) -> str:
    if not isinstance(key, tuple):
        return "on_" + _spelled(key)
    return "on_" + ",".join(map(_spelled, key)) + ("," if len(key) < 2 else "")  # as Python spells a tuple of one


def _spelled(value: Value) -> str:
    value = check_value(value)
    if not isinstance(value, str):
        # Equal numbers are one key, so True, 1 and 1.0 must be one name; a state dict's names hold no dot of their own.
        return str(int(value) if value == int(value) else value).replace(".", "_")
    text = quote(value, safe="").replace(".", "%2E")
    if text.startswith("-") or text[:1].isdigit():
        return f"%{ord(text[0]):X}{text[1:]}"  # no word is spelled as a number
    return text
