"""Networks of a supernet that are put together from copies of the blocks that earlier ones have.

Building a small network costs about as much as a forward pass through it, copying the modules of one that was built a
fraction of that: so blocks that architectures have in common are built once, and each network has copies of its own.
"""

import dataclasses
import enum
import functools
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasx.arch import Arch, split
from nasx.nn.bound import BoundNetwork, OwnBuffer, Slot

_KEPT_MODULES = 20_000  # of blocks


@dataclass(slots=True)
class _Piece:
    """A part of a network that never runs: a member of a module list with repeated parts, or all the rest."""

    module: nn.Module
    slots: Sequence[Slot]
    computed: Sequence[OwnBuffer]
    module_count: int
    compared: bool = False
    """Whether it was part of a network that was compared with a built one."""


class BlockCache:
    """Pieces of networks that were built, of which copies make the networks of other architectures.

    `lists` are the module lists of the repeated parts. Two networks have a member of a list in common where its place
    and its own choices are the same, and so are the shared choices and the numbers of parts; they have the rest in
    common where the latter are the same. That holds for builders that make each part of its own choices and the shared
    ones. Networks that tie tensors, have hooks, or keep lists and other objects that can be changed are built each
    time.

    The first networks that are put together, those with a piece that no comparison has met, and a few later ones are
    compared with what the builder makes. Where an early one differs, every network is built from then on; a late one
    is an error. A builder that makes a part depend on choices of several others in few networks can escape all
    comparisons.
    """

    FIRST, LATER = 32, 64
    """How many networks are compared at first, and every how many later on."""

    def __init__(self, lists: Mapping[str, str]) -> None:
        self._lists = dict(lists)
        self.works = bool(lists) and not any(
            other.startswith(f"{path}.") for path in lists.values() for other in lists.values()
        )
        """Whether networks can be put together, as far as is known."""
        self._pieces: dict[Any, _Piece] = {}
        self._module_count = self._joined_count = 0

    def learn(self, arch: Arch, built: BoundNetwork) -> None:
        """Keep the pieces of a network that was built and has not run, unless there are others already."""
        if not self.works:
            return
        members = dict(_members(built.network, self._lists.values()))
        expected = [f"{path}.{number}" for path, number in self._places(arch)]
        if list(members) != expected or not _can_be_copied(built.network):
            self._stop()
            return
        if self._module_count + built.module_count > _KEPT_MODULES:
            self._pieces, self._module_count = {}, 0
        keys = self._keys(arch)
        wanted = [key not in self._pieces for key in keys]
        if not any(wanted):
            return
        slots = [*built.parameters, *built.buffers]
        for key, module, new in zip(keys, [built.network, *members.values()], wanted, strict=True):
            if new:
                without = members.values() if module is built.network else ()
                self._pieces[key] = piece = _copied(module, slots, built.computed, without=without)
                self._module_count += piece.module_count

    def put_together(self, arch: Arch, build: Callable[[], nn.Module]) -> BoundNetwork | None:
        """Return the network of an architecture, or None where it must be built; `build` does it for comparison."""
        if not self.works:
            return None
        pieces = [self._pieces.get(key) for key in self._keys(arch)]
        known = [piece for piece in pieces if piece is not None]
        if len(known) < len(pieces):
            return None
        whole = self._joined(arch, known)
        self._joined_count += 1
        early = self._joined_count <= self.FIRST
        due = early or self._joined_count % self.LATER == 0 or not all(piece.compared for piece in known)
        if due:
            if not _alike(whole, build()):
                self._stop()
                if early:
                    return None
                raise ValueError(
                    f"the network of {dict(arch)} is not made of the parts that other networks have with the same "
                    "choices, although others were: the builder makes a part depend on choices of other parts in "
                    "some networks alone; let it depend on the part's own choices and the shared ones, or on the "
                    "others' in every network"
                )
            for piece in known:
                piece.compared = True
        return whole

    def _stop(self) -> None:
        """Let every network be built from now on."""
        self.works, self._pieces = False, {}

    def _joined(self, arch: Arch, pieces: Sequence[_Piece]) -> BoundNetwork:
        copies = [_copied(piece.module, piece.slots, piece.computed) for piece in pieces]
        network = copies[0].module
        for (path, number), piece in zip(self._places(arch), copies[1:], strict=True):
            network.get_submodule(path)._modules[str(number)] = piece.module
        slots = [slot for piece in copies for slot in piece.slots]
        return BoundNetwork(network, slots, [own for piece in copies for own in piece.computed])

    def _places(self, arch: Arch) -> list[tuple[str, int]]:
        """Return the module list and the number of each member, list by list."""
        _, parts = split(arch)
        return [
            (path, number)
            for name, path in self._lists.items()
            for number in sorted(i for other, i in parts if other == name)
        ]

    def _keys(self, arch: Arch) -> list[Any]:
        """Return the keys of a network's pieces, what each is made of: first of the rest, then of each member."""
        own, parts = split(arch)
        others = tuple((key, part) for key, part in parts.items() if key[0] not in self._lists)
        counts = tuple(sum(1 for name, _ in parts if name == listed) for listed in self._lists)
        shared = own, others, counts
        names = {path: name for name, path in self._lists.items()}
        members = [(shared, path, i, parts[names[path], i]) for path, i in self._places(arch)]
        return [shared, *members]


def _members(network: nn.Module, lists: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
    for path in lists:
        try:
            members = network.get_submodule(path)._modules
        except AttributeError:  # of a network without this list
            continue
        for leaf, member in members.items():
            if member is not None:
                yield f"{path}.{leaf}", member


_TORCHS_OWN = frozenset(vars(nn.Module()))
_CHANGING = tuple(key for key, value in vars(nn.Module()).items() if isinstance(value, dict | set))
_HOOKS = tuple(name for name in _TORCHS_OWN if name.endswith(("_hooks", "_hooks_with_kwargs")))
_RECURRENT = frozenset({"_flat_weights", "_flat_weight_refs"})
"""Second places of the weights of torch's recurrent layers, which are filled before they run."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, enum.Enum, range)
_TORCHS_PLAIN = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
_LISTS = frozenset({"_reversed_padding_repeated_twice", "_all_weights"})
"""Lists that torch's own layers have and never change."""


def _can_be_copied(network: nn.Module) -> bool:
    """Return whether modules and tensors have one place each, and all else is values that nobody can change.

    What can be changed may be known to several modules, or to the program outside: a copy would part it.
    """
    for named in (network.named_modules, network.named_parameters, network.named_buffers):
        places = [id(found) for _, found in named(remove_duplicate=False)]
        if len(places) != len(set(places)):
            return False
    for module in network.modules():
        if any(vars(kind).get("__slots__") for kind in type(module).__mro__):
            return False
        if any(vars(module)[name] for name in _HOOKS):
            return False
        if not all(_is_value(value) for key, value in _values(module).items() if key not in _LISTS):
            return False
    return True


def _values(module: nn.Module) -> dict[str, Any]:
    """Return what a module holds beside what every module has."""
    skipped = _TORCHS_OWN | _RECURRENT if isinstance(module, nn.RNNBase) else _TORCHS_OWN
    return {key: value for key, value in vars(module).items() if key not in skipped}


def _is_value(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(map(_is_value, value))
    if isinstance(value, functools.partial):
        return all(map(_is_value, (value.func, *value.args, *value.keywords.values())))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        frozen: bool = type(value).__dataclass_params__.frozen  # type: ignore[attr-defined]
        return frozen and all(_is_value(getattr(value, own.name)) for own in dataclasses.fields(value))
    return isinstance(value, (*_PLAIN, *_TORCHS_PLAIN, *_FUNCTIONS, Arch))


def _copied(
    module: nn.Module, slots: Sequence[Slot], computed: Sequence[OwnBuffer], *, without: Iterable[nn.Module] = ()
) -> _Piece:
    """Return a copy of a module, other than of some inside, that shares nothing with it that can be changed.

    Of `slots` and `computed` it has those that are in it.
    """
    left = {id(other) for other in without}
    copies: dict[int, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        same: nn.Module = object.__new__(module.__class__)
        attributes = vars(same)
        attributes.update(vars(module))
        for key in _CHANGING:
            attributes[key] = attributes[key].copy()
        for name, child in module._modules.items():
            if child is not None:
                if id(child) in left:
                    del same._modules[name]
                else:
                    same._modules[name] = copied(child)
        copies[id(module)] = same
        return same

    copy = copied(module)
    moved = [slot.moved_to(copies[id(slot.module)]) for slot in slots if id(slot.module) in copies]
    own = [(copies[id(holder)], leaf, buffer) for holder, leaf, buffer in computed if id(holder) in copies]
    return _Piece(copy, moved, own, len(copies))


def _alike(joined: BoundNetwork, built: nn.Module) -> bool:
    """Return whether a network that was put together is the one that was built, before either runs.

    Modules, what they hold, computed buffers, and shape and type of all other tensors must be the same. Networks that
    cannot be copied, such as those with hooks, are not alike.
    """
    first, second = (list(n.named_modules(remove_duplicate=False)) for n in (joined.network, built))
    if [name for name, _ in first] != [name for name, _ in second] or not _can_be_copied(built):
        return False
    computed = {(id(module), leaf): buffer for module, leaf, buffer in joined.computed}
    for (_, ours), (_, theirs) in zip(first, second, strict=True):
        if type(ours) is not type(theirs) or not _same(_values(ours), _values(theirs)):
            return False
        for holders in ((ours._parameters, theirs._parameters), (ours._buffers, theirs._buffers)):
            if holders[0].keys() != holders[1].keys():
                return False
            for leaf, tensor in holders[1].items():
                buffer = computed.get((id(ours), leaf))
                if not (_same_shape(holders[0][leaf], tensor) if buffer is None else _same_tensor(buffer, tensor)):
                    return False
    return True


def _same(first: Any, second: Any) -> bool:
    """Return whether two values that modules hold are the same."""
    if first is second:
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, functools.partial):
        return all(map(_same, *((of.func, of.args, of.keywords) for of in (first, second))))
    return bool(first == second)


def _same_shape(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.shape == second.shape and first.dtype == second.dtype


def _same_tensor(first: Tensor, second: Tensor | None) -> bool:
    return second is not None and _same_shape(first, second) and torch.equal(first, second)
