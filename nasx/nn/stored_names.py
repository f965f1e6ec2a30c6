"""What a supernet calls its tensors: the builder's own names, and a name for each copy of a tensor that has several."""

from collections.abc import Mapping, Sequence

from nasx.arch import Arch, Value
from nasx.cost import split


def stored_name(name: str, choices: Sequence[str], values: Mapping[str, Value]) -> str:
    """Return what a tensor is called in the store, given the choices that it exists once for."""
    return f"{name}@{','.join(f'{choice}={_spelled(values.get(choice))}' for choice in choices)}" if choices else name


def _spelled(value: Value | None) -> str:
    # equal numbers are one choice, so 1 and 1.0 must be one name
    return str(value) if isinstance(value, bool | str | None) else f"{value:.17g}"


def plain_name(key: str) -> str:
    """Return the builder's own name of a stored tensor."""
    return key.partition("@")[0]


class PartChoices:
    """The choices that a tensor's name can see: those of its part of an architecture, and the shared ones.

    A part may have repeated parts of its own: `block.2` of a stage is the module `block.2` or `blocks.2` inside it.
    """

    def __init__(
        self, arch: Arch, lists: Mapping[str, str] | None = None, outer: Mapping[str, Value] | None = None
    ) -> None:
        shared, parts = split(arch)
        self._shared = {**(outer or {}), **shared}
        self._of_module: dict[str, Arch] = {}
        for (name, i), part in parts.items():
            paths = (name, f"{name}s") if lists is None else (lists[name],) if name in lists else ()
            self._of_module |= {f"{path}.{i}.": part for path in paths}
        self._inside: dict[str, PartChoices] = {}

    def __call__(self, name: str) -> Mapping[str, Value]:
        """Return the choices that the tensor of a name can see."""
        for prefix, part in self._of_module.items():
            if name.startswith(prefix):
                if prefix not in self._inside:
                    self._inside[prefix] = PartChoices(part, outer=self._shared)
                return self._inside[prefix](name.removeprefix(prefix))
        return self._shared
