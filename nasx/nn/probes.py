"""Architectures that between them show every size that a space's networks give their tensors."""

from collections.abc import Iterator, Sequence

from nasx._cases import cases_of, shared_space
from nasx.arch import Arch, matches, pattern_of, split_name
from nasx.space import Choice, Repeat, Space

MOST = 2_000
"""Networks that are built at most to learn the shapes of a space."""


def exhaustive(space: Space) -> list[Arch] | None:
    """Return architectures that show every option of every part under every combination of the other choices.

    All parts run through their options side by side, and stay at their last one. That covers a tensor each of whose
    dimensions depends on the shared choices and one part, which may be another part for each dimension (the widths of
    two neighbouring layers), and sums over the parts where options grow; sizes that depend on parts in other ways are
    found by climbing from these. None where they would be more than MOST.
    """
    if shared_space(space).size > MOST or any(part.size > MOST for part in repeated_parts(space)):
        return None
    found: list[Arch] = []
    for case in cases_of(space):
        turns = max((len(slot.options) for slot in case.slots), default=1)
        if len(found) + turns > MOST:
            return None
        found += [case.decode([min(turn, len(slot.options) - 1) for slot in case.slots]) for turn in range(turns)]
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
    """Yield architectures that change one choice, the same way in all parts, with the pattern of its name."""
    genes = space.genes(arch)
    for pattern in dict.fromkeys(map(pattern_of, genes)):
        for changed in values_of(space, arch, [gene for gene in genes if matches(pattern, gene)]):
            yield pattern, changed


def others_changed(space: Space, arch: Arch, patterns: Sequence[str]) -> Iterator[Arch]:
    """Yield the architectures that keep one part and change a choice of these patterns the same way in all others."""
    genes = space.genes(arch)
    for held in dict.fromkeys(part_of(name) for name in arch if part_of(name)):
        for pattern in patterns:
            yield from values_of(space, arch, [g for g in genes if matches(pattern, g) and part_of(g) != held])


def values_of(space: Space, arch: Arch, genes: Sequence[str]) -> Iterator[Arch]:
    """Yield the architectures in which some choices have another value, the same in all of them that offer it."""
    free = space.mutations(arch, genes)
    offered = {name: choice.values for name, choice in free.walk() if name in genes}
    for value in dict.fromkeys(value for values in offered.values() for value in values):
        entries = {name: value for name, values in offered.items() if value in values}
        if any(arch[name] != value for name in entries):
            yield free.pin(entries)[0]


def part_of(name: str) -> str:
    """Return the repeated part that a choice belongs to, such as `block.3`, or "" where it is in none."""
    found = split_name(name)
    return f"{found[0]}.{found[1]}" if found else ""
