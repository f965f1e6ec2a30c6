"""Building enough networks of a space to know every tensor and the largest size of each of its dimensions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice

from nasx.arch import Arch, matches
from nasx.nn import probes
from nasx.nn.layout import Shape
from nasx.nn.skeleton import Blueprint, Make, blueprint, build_skeleton
from nasx.nn.stored_names import PartChoices, stored_name
from nasx.space import Space, name_patterns

Copies = Callable[[str], Sequence[str]]
"""The choices that the tensor of a name exists once for each value of."""


def survey(make: Make, space: Space, lists: Mapping[str, str], copies: Copies) -> list[Blueprint]:
    """Return blueprints that between them show every tensor of the store and its largest size in each dimension.

    A small space is seen in all combinations that matter. In one of more than `probes.MOST` such combinations, a size
    that depends on several choices at once is found where each of them alone leads towards it.
    """
    found = _Survey(make, space, lists, copies)
    archs = probes.exhaustive(space)
    if archs is None:
        found.ascend()
    else:
        for arch in archs:
            found.visit(arch)
        for changed in list(found.around(archs)):
            found.visit(changed)
    return list(found.seen.values())


class _Survey:
    def __init__(self, make: Make, space: Space, lists: Mapping[str, str], copies: Copies) -> None:
        self.make, self.space, self.lists, self.copies = make, space, lists, copies
        self.seen: dict[Arch, Blueprint] = {}
        self.best: dict[tuple[str, int], tuple[int, Arch]] = {}
        """The largest size seen of each dimension of each stored tensor, and an architecture that shows it."""
        self.most = probes.MOST

    def visit(self, arch: Arch) -> None:
        """Build the network of an architecture, unless that has been done or enough have been built."""
        if arch in self.seen or len(self.seen) >= self.most:
            return
        self.seen[arch] = blueprint(build_skeleton(self.make, arch), arch)
        choices = PartChoices(arch, self.lists)
        for name, info in self.seen[arch].tensors.items():
            key = stored_name(name, self.copies(name), choices(name))
            for dim, size in enumerate(info.shape or (1,)):
                if size > self.best.get((key, dim), (-1, arch))[0]:
                    self.best[key, dim] = size, arch

    def ascend(self) -> None:
        """Change one choice at a time as long as any dimension of any tensor grows."""
        for arch in probes.starts(self.space):
            self.visit(arch)
        expanded: set[Arch] = set()
        while waiting := [arch for _, arch in self.best.values() if arch not in expanded]:
            arch = waiting[0]
            expanded.add(arch)
            for _, changed in probes.changes(self.space, arch):
                self.visit(changed)
            for changed in self.around([arch]):
                self.visit(changed)
            if len(self.seen) >= self.most:
                return

    def around(self, archs: Sequence[Arch]) -> Iterator[Arch]:
        """Yield architectures in which one part stays and the others change in what reaches beyond their own part.

        A copy of a tensor belongs to the choices of one part, but its sizes may follow from another part's: the width
        of the layer before.
        """
        if not any(self.copies(name) for found in self.seen.values() for name in found.tensors):
            return
        reaching = list(self._reaching(archs))
        for arch in archs if reaching else ():
            yield from probes.others_changed(self.space, arch, reaching)

    def _reaching(self, archs: Sequence[Arch]) -> Iterator[str]:
        """Yield the patterns of choices in parts on which a tensor outside of the part depends."""
        genes_of = cache(self.space.genes)
        for pattern in (name for name in name_patterns(self.space.walk()) if "*" in name):
            with_it = ((arch, gene) for arch in archs for gene in genes_of(arch) if matches(pattern, gene))
            if any(self._reaches(arch, gene) for arch, gene in islice(with_it, 2)):
                yield pattern

    def _reaches(self, arch: Arch, gene: str) -> bool:
        part = probes.part_of(gene)
        name, _, number = part.rpartition(".")
        own = f"{self.lists[name]}.{number}." if name in self.lists else None

        def outside(arch: Arch) -> dict[str, Shape]:
            found = self.seen.get(arch) or blueprint(build_skeleton(self.make, arch), arch)
            shapes = {name: info.shape for name, info in found.tensors.items()}
            return {name: shape for name, shape in shapes.items() if own is None or not name.startswith(own)}

        return any(outside(changed) != outside(arch) for changed in probes.values_of(self.space, arch, [gene]))
