"""Learning the names and the largest sizes of a space's tensors from networks that a builder makes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from torch import nn

from nasx.arch import Arch, Value, matches
from nasx.nn import probes
from nasx.nn.layout import Shape
from nasx.nn.naming import Naming
from nasx.nn.skeleton import (
    Blueprint,
    Make,
    TensorInfo,
    blueprint,
    build_skeleton,
    construction_sites,
    plain_attributes,
)
from nasx.space import Space, name_patterns


@dataclass(frozen=True, slots=True)
class Survey:
    """What the networks of a space hold."""

    blueprints: list[Blueprint]
    naming: Naming
    tied: dict[str, str]
    """The first name of every tensor that has another one beside."""
    stored: dict[str, tuple[TensorInfo, Shape]]
    """Description and largest shape of every tensor of the store."""

    @property
    def names(self) -> list[str]:
        """The builder's own names, each once."""
        return list(dict.fromkeys(name for found in self.blueprints for name in found.tensors))

    def shapes(self, found: Blueprint) -> dict[str, Shape]:
        """Return the shapes that one network needs of the store."""
        names = self.naming.of(found.arch)
        return {names.stored(n): info.shape for n, info in found.tensors.items() if n not in self.tied}

    def largest(self) -> Arch | None:
        """Return an architecture that needs all of the store at once, or None where there is none."""
        shapes = {key: shape for key, (_, shape) in self.stored.items()}
        return next((found.arch for found in self.blueprints if self.shapes(found) == shapes), None)


def survey(make: Make, space: Space, naming: Naming) -> Survey:
    """Build as many networks of a space as it takes to see every name and every largest size.

    A ValueError says where names shift between architectures, where one name is two kinds of tensor, or where the
    builder gives different networks for one architecture.
    """
    _refuse_unrepeatable(make, space[0])
    archs = probes.exhaustive(space)
    found = _ascend(make, space, naming) if archs is None else [_blueprint(make, arch) for arch in archs]
    _refuse_shifting_names(make, space, naming, found)
    tied = _tied_names(found)
    return Survey(found, naming, tied, _sizes(found, naming, tied))


def _blueprint(make: Make, arch: Arch) -> Blueprint:
    return blueprint(build_skeleton(make, arch), arch)


def _ascend(make: Make, space: Space, naming: Naming) -> list[Blueprint]:
    """Return blueprints found by changing one choice at a time as long as any dimension of any tensor grows.

    For spaces too large to see every combination. A size that depends on several choices at once is found where each
    of them alone leads towards it.
    """
    seen: dict[Arch, Blueprint] = {}
    best: dict[tuple[str, int], tuple[int, Arch]] = {}

    def visit(arch: Arch) -> None:
        if arch in seen or len(seen) >= probes.MOST:
            return
        seen[arch] = _blueprint(make, arch)
        names = naming.of(arch)
        for name, info in seen[arch].tensors.items():
            key = names.stored(name)
            for dim, size in enumerate(info.shape or (1,)):
                if size > best.get((key, dim), (-1, arch))[0]:
                    best[key, dim] = size, arch

    for arch in [*probes.starts(space), *_separated(space, naming)]:
        visit(arch)
    expanded: set[Arch] = set()
    while len(seen) < probes.MOST and (
        waiting := next((arch for _, arch in best.values() if arch not in expanded), None)
    ):
        expanded.add(waiting)
        for _, changed in probes.changes(space, waiting):
            visit(changed)
    return list(seen.values())


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


def _sizes(found: Sequence[Blueprint], naming: Naming, tied: Mapping[str, str]) -> dict[str, tuple[TensorInfo, Shape]]:
    stored: dict[str, tuple[TensorInfo, Shape]] = {}
    origins: dict[str, Arch] = {}
    for network in found:
        names = naming.of(network.arch)
        for name, info in network.tensors.items():
            if name in tied:
                continue
            key = names.stored(name)
            if key not in stored:
                stored[key], origins[key] = (info, info.shape), network.arch
                continue
            known, shape = stored[key]
            if known.kind != info.kind or known.dtype != info.dtype:
                raise ValueError(_two_kinds(name, known, origins[key], info, network.arch))
            stored[key] = known, tuple(max(pair) for pair in zip(shape, info.shape, strict=True))
    return stored


def _two_kinds(name: str, known: TensorInfo, first: Arch, info: TensorInfo, second: Arch) -> str:
    differing = [key for key in sorted({*first, *second}) if first.get(key) != second.get(key)][:3]
    told = ", ".join(f"{key} {first.get(key)!r} and {second.get(key)!r}" for key in differing)
    return (
        f"the name {name!r} is a {known.kind} ({known.dtype}) of shape {known.shape} for one architecture and a "
        f"{info.kind} ({info.dtype}) of shape {info.shape} for another ({told}), so they cannot share it; give each "
        "kind of layer a name of its own, or a copy per choice with `separate`"
    )


def _tied_names(found: Sequence[Blueprint]) -> dict[str, str]:
    tied: dict[str, str] = {}
    for network in found:
        for name, info in network.tensors.items():
            if tied.setdefault(name, info.tied_to) != info.tied_to:
                raise ValueError(
                    f"{name!r} is the same parameter as {tied[name]!r} for some architectures, but as "
                    f"{info.tied_to!r} for others, such as {dict(network.arch)}"
                )
    return {name: first for name, first in tied.items() if name != first}


def _refuse_unrepeatable(make: Make, arch: Arch) -> None:
    first, second = (plain_attributes(build_skeleton(make, arch)) for _ in range(2))
    for name in [*first, *second]:
        if first.get(name) != second.get(name):
            raise ValueError(
                "the builder must be a function of the architecture, but two networks of one architecture differ in "
                f"{name!r}: {first.get(name)!r} and {second.get(name)!r}"
            )


def _refuse_shifting_names(make: Make, space: Space, naming: Naming, found: Sequence[Blueprint]) -> None:
    """Refuse containers in which a number means one module for some architectures and another one for others."""
    lengths: dict[str, dict[int, Arch]] = {}
    for network in found:
        for container, length in network.containers.items():
            lengths.setdefault(container, {}).setdefault(length, network.arch)
    for container, archs in lengths.items():
        if len(archs) > 1:
            _compare_sites(make, space, naming, container, archs[max(archs)])


def _compare_sites(make: Make, space: Space, naming: Naming, container: str, arch: Arch) -> None:
    """Compare where the members of a container were made, for architectures that differ in one choice.

    Members that share no stored tensor may be anything.
    """
    for pattern, changed in probes.changes(space, arch):
        with construction_sites() as site_of:
            networks = [(a, build_skeleton(make, a)) for a in (arch, changed)]
            pair = [
                [(site_of(module), _stored_names(name, module, naming, a)) for name, module in members]
                for a, network in networks
                for members in [_members(network, container)]
            ]
        if len(pair[0]) == len(pair[1]):
            continue
        for number, ((site, keys), (other_site, other_keys)) in enumerate(zip(*pair, strict=False)):
            if site != other_site and keys & other_keys:
                raise ValueError(
                    f"the names in {container or 'the network'!r} shift: with another {pattern!r}, module {number} is "
                    "made by another line of the builder, because something follows a variable number of layers in "
                    "one container; give what follows a name of its own"
                )


def _stored_names(name: str, module: nn.Module, naming: Naming, arch: Arch) -> set[str]:
    names = naming.of(arch)
    return {names.stored(f"{name}.{leaf}") for leaf, _ in module.named_parameters(remove_duplicate=False)}


def _members(network: nn.Module, container: str) -> list[tuple[str, nn.Module]]:
    try:
        members = network.get_submodule(container).named_children()
    except AttributeError:  # this architecture has no such container
        return []
    return [(f"{container}.{name}".lstrip("."), module) for name, module in members]
