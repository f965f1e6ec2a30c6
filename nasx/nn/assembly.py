"""Networks of a supernet that are ready to run on slices of its store, put together from parts of earlier ones.

Building a small network costs about as much as a forward pass through it. Networks whose blocks are alike need only be
built once for each kind of block: a `Piece` is a member of a module list with repeated parts, or all the rest.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nasx.arch import Arch
from nasx.cost import split
from nasx.nn.layout import Index, put, take

Placement = tuple[torch.device, torch.dtype | None]
"""The device of the weights, and their precision where it is not the one that the builder gives them."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One place in a network: the dictionary and the name that hold a tensor, and its elements."""

    module: nn.Module
    holder: dict[str, Any]
    """Its parameters or its buffers."""
    leaf: str
    key: str
    source: dict[str, Any]
    """The dictionary in the store that holds the tensor, under the last segment of its key."""
    source_leaf: str
    indices: tuple[Index | None, ...] | None
    """One index per dimension, or None where the whole tensor is used."""

    copies: bool
    """Whether the elements are copied, so that changes must be written back."""

    @property
    def whole(self) -> Tensor:
        """The tensor in the store."""
        tensor: Tensor = self.source[self.source_leaf]
        return tensor

    @property
    def version(self) -> int:
        """The version of what the network holds."""
        tensor: Tensor = self.holder[self.leaf]
        return tensor._version


@dataclass(slots=True, eq=False)
class Piece:
    """A part of a network without weights of its own, which several networks may have in common."""

    module: nn.Module
    parameters: list[Slot] = field(default_factory=list)
    buffers: list[Slot] = field(default_factory=list)
    computed: list[tuple[dict[str, Any], str, Tensor]] = field(default_factory=list)
    """Buffers that belong to the network itself, as they were built."""
    recurrent: list[nn.RNNBase] = field(default_factory=list)
    modules: int = 0
    placed: Placement | None = None

    def place(self, where: Placement) -> None:
        """Move the network's own buffers to where the weights are."""
        if self.placed != where:
            device, dtype = where
            with torch.inference_mode(False):
                for holder, leaf, buffer in self.computed:
                    holder[leaf] = buffer.to(device, dtype if buffer.is_floating_point() else None)
            self.placed = where


class Assembly:
    """A network ready to run on slices of the store, in pieces: the rest, then members of module lists.

    `own_modules` are those that no other network has; `heads` those whose modes tell whether all have the same one.
    """

    def __init__(
        self, network: nn.Module, pieces: Sequence[Piece], own_modules: int, heads: Sequence[nn.Module]
    ) -> None:
        self.network, self.pieces, self.modules, self.heads = network, pieces, own_modules, heads
        self.parameters = [slot for piece in pieces for slot in piece.parameters]
        self.buffers = [slot for piece in pieces for slot in piece.buffers]
        self.computed = [own for piece in pieces for own in piece.computed]
        self.recurrent = [module for piece in pieces for module in piece.recurrent]
        self.agreed: dict[int, int] = {}
        """The version of each copied buffer when it last held the same numbers as the store."""

    @property
    def placed(self) -> Placement | None:
        """Where the network's own buffers are; None before they were placed."""
        places = {piece.placed for piece in self.pieces}
        return places.pop() if len(places) == 1 else None

    def place(self, where: Placement) -> None:
        """Move the network's own buffers to where the weights are."""
        for piece in self.pieces:
            piece.place(where)

    def set_mode(self, training: bool) -> None:
        """Bring all modules into one mode; pieces may have run in another one as parts of other networks."""
        if any(module.training != training for module in self.heads):
            self.network.train(training)

    def bind_parameters(self) -> None:
        """Put slices of the parameters into the network; gradients flow to the store."""
        bind(self.parameters)
        for module in self.recurrent:  # which keep a list of their weights beside the parameters
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]

    def release(self, held: "Sequence[Assembly]") -> None:
        """Let go of the parameters that are copies rather than views, other than those of networks that are held."""
        kept = {id(piece) for other in held for piece in other.pieces}
        for piece in self.pieces:
            if id(piece) in kept:
                continue
            for slot in piece.parameters:
                if slot.copies:
                    slot.holder[slot.leaf] = torch.empty_like(slot.holder[slot.leaf], device="meta")
            for module in piece.recurrent:
                module._flat_weights = []

    def bind_buffers(self) -> None:
        """Put slices of the shared buffers into the network."""
        with torch.inference_mode(False):
            bind(self.buffers)
        self.agreed = {place: slot.version for place, slot in enumerate(self.buffers) if slot.copies}

    def refresh_buffers(self) -> None:
        """Take copied buffers from the store again, other than those that were changed here."""
        for place, version in self.agreed.items():
            slot = self.buffers[place]
            if slot.version == version:
                with torch.inference_mode(False):
                    bind([slot])
                self.agreed[place] = slot.version

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the outputs of the network, and keep what it did to buffers."""
        versions = [holder[leaf]._version for holder, leaf, _ in self.computed]
        bound = [slot.holder[slot.leaf] for slot in self.buffers]
        outputs = self.network(*args, **kwargs)
        for place, (slot, before) in enumerate(zip(self.buffers, bound, strict=True)):
            now = slot.holder[slot.leaf]
            # BatchNorm changes its statistics without a new version
            changed = slot.copies and (slot.module.training or slot.version != self.agreed[place])
            if changed or now is not before:
                put(slot.whole, slot.indices or (None,) * now.ndim, now.detach())
            if slot.copies:
                self.agreed[place] = slot.version
            elif now is not before:
                bind([slot])
        for (holder, leaf, _), version in zip(self.computed, versions, strict=True):
            if holder[leaf]._version != version:
                raise ValueError(
                    f"the buffer {leaf!r} changes when the network runs, but its first values were computed, so "
                    "architectures cannot share it; start it from one number everywhere, or do not change it"
                )
        return outputs


def bind(slots: Sequence[Slot]) -> None:
    """Put slices of the store where they belong."""
    taken: dict[str, Tensor] = {}  # tied tensors are one slice, too
    for slot in slots:
        if slot.indices is None:
            slot.holder[slot.leaf] = slot.whole
        else:
            if slot.key not in taken:
                taken[slot.key] = take(slot.whole, slot.indices)
            slot.holder[slot.leaf] = taken[slot.key]


def assemble(network: nn.Module, slots: Sequence[Slot], lists: Sequence[str] = ()) -> Assembly:
    """Return a network that was built, in pieces: the rest, and the members of its module lists."""
    modules = list(network.modules())
    pieces = [Piece(network), *(Piece(member) for _, member in _members(network, lists))]
    owner = {id(module): pieces[0] for module in modules}
    for piece in pieces[1:]:
        owner |= {id(module): piece for module in piece.module.modules()}
    bound = {(id(slot.holder), slot.leaf) for slot in slots}
    for slot in slots:
        own = owner[id(slot.module)]
        (own.parameters if isinstance(slot.holder[slot.leaf], nn.Parameter) else own.buffers).append(slot)
    for module in modules:
        own = owner[id(module)]
        own.modules += 1
        own.computed += [
            (module._buffers, leaf, buffer)
            for leaf, buffer in module._buffers.items()
            if buffer is not None and (id(module._buffers), leaf) not in bound
        ]
        if isinstance(module, nn.RNNBase):
            own.recurrent.append(module)
    return Assembly(network, pieces, len(modules), [network])


def _members(network: nn.Module, lists: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    for path in lists:
        try:
            members = network.get_submodule(path)._modules
        except AttributeError:  # of a network without this list
            continue
        for leaf, member in members.items():
            if member is not None:
                yield f"{path}.{leaf}", member


class Assembler:
    """Puts networks together from pieces that were built for other architectures.

    A member of a module list is taken for the same where it has the same place, its part of the architecture the same
    choices, and the shared choices and the numbers of parts agree; the rest of a network where the latter do. That
    holds for builders that make each part of its own choices. The first networks that are put together, and a few
    later ones, are compared with those that the builder makes: where they differ, all networks are built again.
    """

    FIRST, LATER = 16, 64
    """How many networks are compared at first, and every how many later on."""

    def __init__(self, lists: Mapping[str, str], most_modules: int) -> None:
        self._lists, self._most = dict(lists), most_modules
        self.works = bool(lists) and not any(
            other.startswith(f"{path}.") for path in lists.values() for other in lists.values()
        )
        self._pieces: dict[Any, Piece] = {}
        self._modules = 0
        self._assembled = 0

    def learn(self, arch: Arch, built: Assembly) -> None:
        """Keep the pieces of a network that was built, unless others have them already."""
        if not self.works:
            return
        keys = self._keys(arch)
        owners = [id(module) for piece in built.pieces[1:] for module in piece.module.modules()]
        inside, numbered = set(owners), [f"{path}.{i}" for path, i in self._places(arch)]
        shared = len(owners) != len(inside) or len({id(m) for m in built.network.modules()}) != sum(
            1 for _ in built.network.named_modules(remove_duplicate=False)
        )
        members = [name for name, _ in _members(built.network, list(self._lists.values()))]
        if shared or members != numbered:
            self.works = False
            return
        if self._modules + built.modules > self._most:
            self._pieces, self._modules = {}, 0
        for key, piece in zip(keys, built.pieces, strict=True):
            if self._pieces.setdefault(key, piece) is piece:
                self._modules += piece.modules

    def put_together(self, arch: Arch, build: Callable[[], nn.Module]) -> Assembly | None:
        """Return the network of an architecture, or None where it must be built; `build` does it for comparison."""
        if not self.works:
            return None
        pieces = [self._pieces.get(key) for key in self._keys(arch)]
        if any(piece is None for piece in pieces):
            return None
        whole = self._joined(arch, [piece for piece in pieces if piece is not None])
        self._assembled += 1
        compared = self._assembled <= self.FIRST or self._assembled % self.LATER == 0
        if compared and not alike(whole, build()):
            self.works, self._pieces = False, {}
            if self._assembled <= self.FIRST:
                return None
            raise ValueError(
                f"the network of {dict(arch)} is not made of the parts that other networks have with the same "
                "choices, although others were: the builder makes a part depend on choices of other parts in "
                "some networks alone; let it depend on the part's own choices and the shared ones, or on the "
                "others' in every network"
            )
        return whole

    def _joined(self, arch: Arch, pieces: Sequence[Piece]) -> Assembly:
        rest, *members = pieces
        copies = {"": _copied(rest.module)}
        siblings: list[nn.Module] = []
        for path in self._lists.values():
            above, names = "", path.split(".")
            for name in names:
                here = f"{above}.{name}".lstrip(".")
                if here not in copies:
                    original = copies[above]._modules[name]
                    assert original is not None
                    copies[here] = copies[above]._modules[name] = _copied(original)
                above = here
        for (path, number), piece in zip(self._places(arch), members, strict=True):
            copies[path]._modules[str(number)] = piece.module
        for module in copies.values():
            siblings += [child for child in module._modules.values() if child is not None]
        return Assembly(copies[""], pieces, len(copies), [*copies.values(), *siblings])

    def _places(self, arch: Arch) -> list[tuple[str, int]]:
        """Return the module list and the number of each part, list by list."""
        _, parts = split(arch)
        return [
            (path, number)
            for name, path in self._lists.items()
            for number in sorted(i for other, i in parts if other == name)
        ]

    def _keys(self, arch: Arch) -> list[Any]:
        own, parts = split(arch)
        others = tuple((key, part) for key, part in parts.items() if key[0] not in self._lists)
        counts = tuple(sum(1 for name, _ in parts if name == listed) for listed in self._lists)
        shared = own, others, counts
        inside = sorted(
            ((list(self._lists).index(name), i, part) for (name, i), part in parts.items() if name in self._lists),
            key=lambda found: found[:2],
        )
        return [shared, *((shared, *found) for found in inside)]


def _copied(module: nn.Module) -> nn.Module:
    """Return a module with the same everything, whose children can be replaced."""
    same = module.__class__.__new__(module.__class__)
    same.__dict__.update(module.__dict__)
    same.__dict__["_modules"] = dict(module._modules)
    return same


_TORCHS_OWN = frozenset(vars(nn.Module()))


def alike(assembled: Assembly, built: nn.Module) -> bool:
    """Return whether two networks have the same modules, attributes and shapes; what cannot be compared differs."""
    first, second = (list(n.named_modules(remove_duplicate=False)) for n in (assembled.network, built))
    if [name for name, _ in first] != [name for name, _ in second]:
        return False
    own = {(id(holder), leaf): buffer for holder, leaf, buffer in assembled.computed}
    for (_, ours), (_, theirs) in zip(first, second, strict=True):
        if type(ours) is not type(theirs) or vars(ours).keys() != vars(theirs).keys():
            return False
        if not all(_same(vars(ours)[key], vars(theirs)[key]) for key in vars(ours).keys() - _TORCHS_OWN):
            return False
        for holders in ((ours._parameters, theirs._parameters), (ours._buffers, theirs._buffers)):
            if holders[0].keys() != holders[1].keys():
                return False
            for leaf, tensor in holders[1].items():
                kept = own.get((id(holders[0]), leaf), holders[0][leaf])
                if (tensor is None) != (kept is None) or (tensor is not None and tensor.shape != kept.shape):
                    return False
                if tensor is not None and (id(holders[0]), leaf) in own and not torch.equal(tensor, kept):
                    return False
    return True


def _same(first: Any, second: Any) -> bool:
    if first is second:
        return True
    if type(first) is not type(second) or isinstance(first, nn.Module):
        return False
    if isinstance(first, Tensor):
        return first.shape == second.shape and not first.is_meta and bool(torch.equal(first, second))
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, functools.partial):
        parts = [(partial.func, partial.args, partial.keywords) for partial in (first, second)]
        return _same(*parts)
    return bool(first == second)  # by identity where a class does not say otherwise
