"""Learning the names and the largest sizes of a space's tensors from networks that a builder makes."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice, product

import torch

from nasx.arch import Arch, Value, matches
from nasx.nn import probes
from nasx.nn.blueprint import Blueprint, TensorInfo, blueprint, computed_buffers
from nasx.nn.builders import check_repeatable, refuse_shifting_names
from nasx.nn.layout import Shape
from nasx.nn.naming import Naming
from nasx.nn.skeleton import Make, build_skeleton
from nasx.nn.watched import Reads
from nasx.space import Space, name_patterns

_EXAMPLES = 6  # changes of a choice that must leave other parts as they are, before it counts as one of its part alone


@dataclass(frozen=True, slots=True)
class Survey:
    """What the networks of a space hold."""

    blueprints: list[Blueprint]
    tied: dict[str, str]
    """The first name of every tensor that has another one beside."""
    stored: dict[str, tuple[TensorInfo, Shape]]
    """Description and largest shape of every tensor of the store."""
    needed: dict[Arch, dict[str, Shape]]
    """The shapes that each network needs of the store."""
    reads: Reads
    """What the builder read of the architectures."""
    whole: tuple[Blueprint, Blueprint]
    """The first and the last network, with the buffers that are computed."""
    is_known: bool = False
    """Whether an earlier supernet was made of it, which said what there is to say of the builder."""

    def is_of(self, make: Make) -> bool:
        """Return whether a builder still makes the first and the last network as they were."""
        return all(blueprint(build_skeleton(make, known.arch), known.arch) == known for known in self.whole)

    @property
    def names(self) -> list[str]:
        """The builder's own names, each once."""
        return list(dict.fromkeys(name for found in self.blueprints for name in found.tensors))

    def largest(self) -> Arch | None:
        """Return an architecture that needs all of the store at once, or None where there is none."""
        shapes = {key: shape for key, (_, shape) in self.stored.items()}
        return next((arch for arch, own in self.needed.items() if own == shapes), None)


def survey(make: Make, space: Space, naming: Naming) -> Survey:
    """Build as many networks of a space as it takes to see every name and every largest size.

    A small space is visited in all combinations of the choices outside repeated parts with those of each part. One with
    more than `probes.MOST` combinations is searched by changing one choice at a time, as long as sizes grow: a size
    that depends on several choices, or on several parts, is found where each of them alone leads towards it.

    A ValueError says where names shift between architectures, where one name is two kinds of tensor, trained or frozen
    included, or where the builder gives different networks for one architecture.
    """
    check_repeatable(make, space[0])
    kept, identity = _kept.get(), _identity(make)
    if kept is None or identity is None:
        return _surveyed(make, space, naming)
    asked = identity, space, naming.identity, torch.get_default_dtype()
    if asked in kept and kept[asked].is_of(make):
        return replace(kept[asked], is_known=True)
    kept[asked] = _surveyed(make, space, naming)
    return kept[asked]


@contextmanager
def kept_surveys(kept: MutableMapping[Hashable, Survey]) -> Iterator[None]:
    """Keep the surveys of supernets in a mapping, `kept`, for later supernets of the same space and builder.

    A later one builds only the first and the last of the networks that were visited, to see that the builder has not
    changed, and repeats no warning.
    """
    outer = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(outer)


_kept: ContextVar[MutableMapping[Hashable, Survey] | None] = ContextVar("kept_surveys", default=None)


def _identity(make: Make) -> Hashable:
    """Return a key that equal builders share, such as partials of one function and arguments; None without one."""
    found: Hashable = make
    if isinstance(make, partial):
        found = _identity(make.func), make.args, tuple(sorted(make.keywords.items()))
    try:
        hash(found)
    except TypeError:
        return None
    return found


def _surveyed(make: Make, space: Space, naming: Naming) -> Survey:
    archs = probes.exhaustive(space)
    visited = _VisitedNetworks(make, space, naming)
    if archs is None:
        visited.ascend()
    else:
        visited.visit(archs)
        visited.visit(list(visited.around(archs)))
        visited.climb()
    computed = computed_buffers(visited.networks.values())
    found = [network.without(computed) for network in visited.networks.values()]
    refuse_shifting_names(make, space, naming, found)
    tied = _tied_names(found)
    whole = list(visited.networks.values())
    return Survey(found, tied, *_sizes(found, naming, tied), visited.reads, (whole[0], whole[-1]))


class _VisitedNetworks:
    """The networks that were looked at, and where the largest sizes are."""

    def __init__(self, make: Make, space: Space, naming: Naming) -> None:
        self.make, self.space, self.naming = make, space, naming
        self.networks: dict[Arch, Blueprint] = {}
        self.reads = Reads()
        self._best: dict[tuple[str, int], tuple[int, Arch]] = {}
        """The largest size of each dimension of each tensor, with the architecture that has it."""
        self._examples = dict.fromkeys((name for name in name_patterns(space.walk()) if "*" in name), 0)
        """How often each choice in parts was changed alone, to see whether other parts follow."""
        self._reach: set[str] = set()
        """Those of these patterns of which other parts do follow."""

    def visit(self, archs: Iterable[Arch]) -> None:
        """Build networks that have not been looked at, as long as there are not too many."""
        for arch in archs:
            if arch in self.networks or len(self.networks) >= probes.MOST:
                continue
            self.networks[arch] = self._blueprint(arch)
            self._note_sizes(self.networks[arch])

    def _note_sizes(self, found: Blueprint) -> None:
        """Remember an architecture for each dimension that is larger in it than in all before."""
        names = self.naming.of(found.arch)
        for name, info in found.tensors.items():
            key = names.stored(name)
            for dim, size in enumerate(info.shape or (1,)):
                if size > self._best.get((key, dim), (-1, found.arch))[0]:
                    self._best[key, dim] = size, found.arch

    def ascend(self) -> None:
        """Climb from a few architectures that are far apart, and from each copy of a tensor."""
        self.visit([*probes.starts(self.space), *_separated(self.space, self.naming)])
        self.climb()

    def climb(self) -> None:
        """Change one choice at a time as long as any dimension of any tensor grows."""
        expanded: set[Arch] = set()
        while len(self.networks) < probes.MOST and (
            waiting := next((arch for _, arch in self._best.values() if arch not in expanded), None)
        ):
            expanded.add(waiting)
            self.visit(changed for _, changed in probes.changes(self.space, waiting))
            self.visit(self.around([waiting]))

    def around(self, archs: Sequence[Arch]) -> Iterator[Arch]:
        """Yield architectures in which one part stays and the others change in what reaches beyond their own part.

        A copy of a tensor belongs to the choices of one part, but its sizes may follow from another part's: the width
        of the layer before.
        """
        if self.naming.separate:
            reaching = self._reaching(archs)
            for arch in archs if reaching else ():
                yield from probes.others_changed(self.space, arch, reaching)

    def _reaching(self, archs: Sequence[Arch]) -> list[str]:
        """Return the patterns of choices in parts on which a tensor outside of the part depends, as far as is known.

        Each call looks at two more examples of a pattern, until `_EXAMPLES` have shown that it belongs to its part.
        """
        genes_of = cache(self.space.genes)
        for pattern, examples in self._examples.items():
            with_it = ((arch, gene) for arch in archs for gene in genes_of(arch) if matches(pattern, gene))
            for arch, gene in islice(with_it, min(2, _EXAMPLES - examples)):
                if pattern not in self._reach:
                    self._examples[pattern] += 1
                    if self._reaches(arch, gene):
                        self._reach.add(pattern)
        return [pattern for pattern in self._examples if pattern in self._reach]

    def _reaches(self, arch: Arch, gene: str) -> bool:
        """Return whether another value of a choice in a part changes any shape outside of that part."""
        name, _, number = probes.part_of(gene).rpartition(".")
        own = f"{self.naming.lists[name]}.{number}." if name in self.naming.lists else None

        def outside(arch: Arch) -> dict[str, Shape]:
            found = self.networks.get(arch) or self._blueprint(arch)
            shapes = {name: info.shape for name, info in found.tensors.items()}
            return {name: shape for name, shape in shapes.items() if own is None or not name.startswith(own)}

        return any(outside(changed) != outside(arch) for changed in probes.values_of(self.space, arch, [gene]))

    def _blueprint(self, arch: Arch) -> Blueprint:
        """Build a network and note what the builder reads."""
        network = build_skeleton(self.make, self.reads.watch(arch))
        self.reads.note_kept(network)
        return blueprint(network, arch)


def _separated(space: Space, naming: Naming) -> list[Arch]:
    """Return architectures that between them have every combination of values that a tensor exists once for."""
    choices = list(space.walk())
    patterns = name_patterns(choices)
    found: list[Arch] = []
    for wanted in dict.fromkeys(naming.separate.values()):
        named = [next((p for p in patterns if p == choice or p.endswith(f".{choice}")), None) for choice in wanted]
        offered: list[list[tuple[str, Value]]] = [
            [(pattern, value) for name, c in choices if matches(pattern, name) for value in c.values]
            for pattern in named
            if pattern
        ]
        for pins in product(*[list(dict.fromkeys(values)) for values in offered]):
            try:
                found.append(space.pin(dict(pins))[0])
            except ValueError:  # no architecture has these together
                continue
            if len(found) > probes.MOST:
                return found
    return found


def _sizes(
    found: Sequence[Blueprint], naming: Naming, tied: Mapping[str, str]
) -> tuple[dict[str, tuple[TensorInfo, Shape]], dict[Arch, dict[str, Shape]]]:
    """Return what the store holds (`Survey.stored`), and what each network needs of it (`Survey.needed`)."""
    stored: dict[str, tuple[TensorInfo, Shape]] = {}
    needed: dict[Arch, dict[str, Shape]] = {}
    origins: dict[str, Arch] = {}
    for network in found:
        names, own = naming.of(network.arch), needed.setdefault(network.arch, {})
        for name, info in network.tensors.items():
            if name in tied:
                continue
            key = names.stored(name)
            own[key] = info.shape
            if key not in stored:
                stored[key], origins[key] = (info, info.shape), network.arch
                continue
            known, shape = stored[key]
            if known.kind != info.kind or known.dtype != info.dtype:
                raise ValueError(_two_kinds(name, known, origins[key], info, network.arch))
            if known.trained != info.trained:
                archs = (origins[key], network.arch) if known.trained else (network.arch, origins[key])
                raise ValueError(_trained_and_frozen(name, *archs))
            stored[key] = known, tuple(max(pair) for pair in zip(shape, info.shape, strict=True))
    return stored, needed


def _two_kinds(name: str, known: TensorInfo, first: Arch, info: TensorInfo, second: Arch) -> str:
    return (
        f"the name {name!r} is a {known.kind} ({known.dtype}) of shape {known.shape} for one architecture and a "
        f"{info.kind} ({info.dtype}) of shape {info.shape} for another ({_differences(first, second)}), so they cannot "
        "share it; give each kind of layer a name of its own, or a copy per choice with `separate`"
    )


def _trained_and_frozen(name: str, trained: Arch, frozen: Arch) -> str:
    return (
        f"the parameter {name!r} is trained for one architecture, but frozen (requires_grad=False) for another "
        f"({_differences(trained, frozen)}), so they cannot share it; freeze it for all or for none, or give it a copy "
        f"per choice with separate={{{name!r}: CHOICE}}"
    )


def _differences(first: Arch, second: Arch) -> str:
    differing = [key for key in sorted({*first, *second}) if first.get(key) != second.get(key)][:3]
    return ", ".join(f"{key} {first.get(key)!r} and {second.get(key)!r}" for key in differing)


def _tied_names(found: Sequence[Blueprint]) -> dict[str, str]:
    tied: dict[str, str] = {}
    for network in found:
        for name, info in network.tensors.items():
            if tied.setdefault(name, info.tied_to) != info.tied_to:
                known = "one of its own" if tied[name] == name else f"the same as {tied[name]!r}"
                other = "one of its own" if info.tied_to == name else f"the same as {info.tied_to!r}"
                raise ValueError(
                    f"the parameter {name!r} is {known} for some architectures, but {other} for others, such as "
                    f"{dict(network.arch)}; tie it for all or for none"
                )
    return {name: first for name, first in tied.items() if name != first}
