"""Architectures that between them show every size that a space's networks give their tensors."""

from collections.abc import Iterator, Mapping

from nasx.arch import Arch, Value, matches
from nasx.space import Choice, Repeat, Space, name_patterns

MOST = 2_000
"""Networks that are built at most to learn the shapes of a space."""


def without_parts(space: Space) -> Space:
    """Return the choices outside repeated parts: every repeat keeps its count and loses what it repeats."""

    def bare(node: Choice | Space | Repeat) -> Choice | Space | Repeat:
        if isinstance(node, Space):
            return without_parts(node)
        if isinstance(node, Repeat):
            return Repeat((Space(),) * len(node.parts), node.count)
        return Choice(tuple((value, without_parts(inner)) for value, inner in node.options))

    return Space(**{key: bare(node) for key, node in space.nodes.items()})


def parts_of(space: Space, shared: Mapping[str, Value], prefix: str = "") -> Iterator[tuple[str, int, Space]]:
    """Yield the name, the number and the space of every repeated part, given the choices outside such parts."""
    for key, node in space.nodes.items():
        name = prefix + key
        if isinstance(node, Space):
            yield from parts_of(node, shared, f"{name}.")
        elif isinstance(node, Choice):
            at = node.position(shared[name])
            assert at is not None, f"{name} cannot be {shared[name]!r}"
            yield from parts_of(node.options[at][1], shared, prefix)
        else:
            count = node.count if isinstance(node.count, int) else int(shared[f"{name}.count"])
            for index in range(count):
                yield name, index, node.parts[index]


def exhaustive(space: Space) -> list[Arch] | None:
    """Return architectures that show every option of every part under every combination of the other choices.

    All parts run through their options side by side, and stay at their last one. That covers a tensor each of whose
    dimensions depends on the shared choices and one part, which may be another part for each dimension (the widths of
    two neighbouring layers), and sums over the parts where options grow. None where they would be more than MOST.
    """
    outline = without_parts(space)
    if outline.size > MOST:
        return None
    found: list[Arch] = []
    for shared in outline:
        slots = list(parts_of(space, shared))
        turns = max((part.size for _, _, part in slots), default=1)
        if len(found) + turns > MOST:
            return None
        for turn in range(turns):
            entries = dict(shared)
            for name, index, part in slots:
                entries |= {f"{name}.{index}.{key}": value for key, value in part[min(turn, part.size - 1)].items()}
            found.append(space.canonical(entries))
    return found


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
