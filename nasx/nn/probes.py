"""Architectures that between them show every size that a space's networks give their tensors."""

from collections.abc import Iterator

from nasx._cases import cases_of, shared_space
from nasx.arch import Arch, matches
from nasx.space import Choice, Repeat, Space, name_patterns

MOST = 2_000
"""Networks that are built at most to learn the shapes of a space."""


def exhaustive(space: Space) -> list[Arch] | None:
    """Return architectures that show every option of every part under every combination of the other choices.

    All parts run through their options side by side. That covers a tensor each of whose dimensions depends on the
    shared choices and one part, which may be another part for each dimension: the widths of two neighbouring layers.
    None where they would be more than MOST.
    """
    if shared_space(space).size > MOST or any(part.size > MOST for part in repeated_parts(space)):
        return None
    found: list[Arch] = []
    for case in cases_of(space):
        turns = max((len(slot.options) for slot in case.slots), default=1)
        if len(found) + turns > MOST:
            return None
        found += [case.decode([turn % len(slot.options) for slot in case.slots]) for turn in range(turns)]
    return found


def repeated_parts(space: Space) -> Iterator[Space]:
    """Yield the spaces of all repeated parts."""
    for node in space.nodes.values():
        match node:
            case Space():
                yield from repeated_parts(node)
            case Choice():
                for _, inner in node.options:
                    yield from repeated_parts(inner)
            case Repeat():
                yield from node.parts


def starts(space: Space) -> list[Arch]:
    """Return a few architectures, far apart, from which `changes` reaches the others."""
    return [space[0], space[space.size - 1], *space.sample(0, 8)]


def changes(space: Space, arch: Arch) -> Iterator[tuple[str, Arch]]:
    """Yield the architectures that differ in one choice, in all parts alike, with the pattern of the choice's name."""
    genes = space.genes(arch)
    for pattern in dict.fromkeys(name_patterns((gene, Choice(((0, Space()),))) for gene in genes)):
        fitting = [gene for gene in genes if matches(pattern, gene)]
        free = space.mutations(arch, fitting)
        values = dict.fromkeys(
            value for name, choice in free.walk() if matches(pattern, name) for value in choice.values
        )
        for value in values:
            if any(arch[gene] != value for gene in fitting):
                try:
                    yield pattern, free.pin({pattern: value})[0]
                except ValueError:  # not every part offers this value
                    continue
