"""What a tensor is called in a supernet's store, and which choices of an architecture it can see."""

from collections.abc import Hashable, Mapping, Sequence

from nasx.arch import Arch, Value, split
from nasx.nn.layout import most_exact

Separate = Mapping[str, str | Sequence[str]]
"""Choices by pattern of module or parameter names: matching tensors exist once for each of their values."""


class Naming:
    """The names of stored tensors: the builder's own, or `<name>@<choice>=<value>,...` for tensors with copies.

    `separate` are a supernet's patterns, `lists` the module list of each repeat of the space.
    """

    def __init__(self, separate: Separate, lists: Mapping[str, str]) -> None:
        self.separate = {p: (c,) if isinstance(c, str) else tuple(c) for p, c in separate.items()}
        self.lists = dict(lists)
        self._known: dict[str, tuple[str, ...]] = {}
        self._spelled: dict[tuple[tuple[str, ...], str], tuple[Value | None, ...]] = {}

    @property
    def identity(self) -> Hashable:
        """What two namings have in common that give the same names."""
        return tuple(self.separate.items()), tuple(self.lists.items())

    def choices(self, name: str) -> tuple[str, ...]:
        """Return the choices that a tensor exists once for; of several patterns that match, the most exact counts."""
        if name not in self._known:
            pattern = most_exact(self.separate, name)
            self._known[name] = () if pattern is None else self.separate[pattern]
        return self._known[name]

    def copy(self, choices: tuple[str, ...], values: tuple[Value | None, ...]) -> str:
        """Return what follows a copy's name; a ValueError refuses values that are spelled as others are."""
        spelled = ",".join(f"{choice}={_spelled(value)}" for choice, value in zip(choices, values, strict=True))
        known = self._spelled.setdefault((choices, spelled), values)
        if known != values:
            raise ValueError(
                f"`separate` names copies by the values of {', '.join(map(repr, choices))}, but {_listed(known)} and "
                f"{_listed(values)} are both spelled {spelled!r} (a choice that is absent is None); rename one option"
            )
        return spelled

    def of(self, arch: Arch) -> "ArchNames":
        """Return the names that an architecture's tensors have in the store."""
        return ArchNames(self, arch)


class ArchNames:
    """The names that one architecture's tensors have in the store, and the values of choices that they can see."""

    def __init__(self, naming: Naming, arch: Arch) -> None:
        self._naming = naming
        self._choices = _PartChoices(arch, naming.lists, {})

    def values(self, name: str) -> Mapping[str, Value]:
        """Return the choices of the part that a tensor belongs to, and the shared ones."""
        return self._choices.seen_by(name)

    def stored(self, name: str) -> str:
        """Return the name of a tensor in the store; a choice that the architecture does not have is None."""
        choices = self._naming.choices(name)
        if not choices:
            return name
        values = self.values(name)
        return f"{name}@{self._naming.copy(choices, tuple(map(values.get, choices)))}"


class _PartChoices:
    """The choices of an architecture, or of a part of one, which may have parts of its own.

    `lists` are the module lists of its parts; None stands for their usual names: `block.2` of a stage is the module
    `block.2` or `blocks.2` inside it.
    """

    def __init__(self, arch: Arch, lists: Mapping[str, str] | None, outer: Mapping[str, Value]) -> None:
        own, parts = split(arch)
        self._own = {**outer, **own}
        self._parts: dict[str, Arch] = {}
        for (name, i), part in parts.items():
            paths = (name, f"{name}s") if lists is None else (lists[name],) if name in lists else ()
            self._parts |= {f"{path}.{i}.": part for path in paths}
        self._inside: dict[str, _PartChoices] = {}

    def seen_by(self, name: str) -> Mapping[str, Value]:
        for prefix, part in self._parts.items():
            if name.startswith(prefix):
                if prefix not in self._inside:
                    self._inside[prefix] = _PartChoices(part, None, self._own)
                return self._inside[prefix].seen_by(name.removeprefix(prefix))
        return self._own


def plain_name(key: str) -> str:
    """Return the builder's own name of a stored tensor."""
    return key.partition("@")[0]


def _listed(values: tuple[Value | None, ...]) -> str:
    return ", ".join(map(repr, values))


def _spelled(value: Value | None) -> str:
    # equal numbers are one choice, so 1 and 1.0 must be one name
    return str(value) if isinstance(value, bool | str | None) else f"{value:.17g}"
