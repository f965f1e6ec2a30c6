"""Networks of a supernet that are ready to run on slices of its store, put together from parts of earlier ones.

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
from nasx.nn.layout import Index, put, take

Placement = tuple[torch.device, torch.dtype | None]
"""The device of the weights, and their precision where it is not the one that the builder gives them."""


def placed(tensor: Tensor, where: Placement) -> Tensor:
    """Return a tensor on a device and in a precision: complex numbers in theirs of it, whole ones as they are."""
    device, dtype = where
    if tensor.is_complex() and dtype is not None:
        return tensor.to(device, dtype.to_complex())
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


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

    def moved_to(self, module: nn.Module) -> "Slot":
        """Return the same place in a copy of its module."""
        holder = module._parameters if self.holder is self.module._parameters else module._buffers
        return Slot(module, holder, self.leaf, self.key, self.source, self.source_leaf, self.indices, self.copies)


Own = tuple[nn.Module, str, Tensor]
"""A buffer that belongs to a network itself: the module and the name that hold it, and what was built."""


class Assembly:
    """A network without weights of its own, ready to run on slices of the store."""

    def __init__(self, network: nn.Module, slots: Sequence[Slot], computed: Sequence[Own]) -> None:
        modules = list(network.modules())
        self.network, self.computed, self.modules = network, computed, len(modules)
        self.parameters = [slot for slot in slots if isinstance(slot.holder[slot.leaf], nn.Parameter)]
        self.buffers = [slot for slot in slots if not isinstance(slot.holder[slot.leaf], nn.Parameter)]
        self.recurrent = [module for module in modules if isinstance(module, nn.RNNBase)]
        self.placed: Placement | None = None
        self.agreed: dict[int, int] = {}
        """The version of each copied buffer when it last held the same numbers as the store."""
        self._released: list[tuple[dict[str, Any], str, Tensor]] | None = None
        """What stands for copied parameters while the network does not run."""

    def place(self, where: Placement) -> None:
        """Move the network's own buffers to where the weights are."""
        if self.placed != where:
            with torch.inference_mode(False):
                for module, leaf, buffer in self.computed:
                    module._buffers[leaf] = placed(buffer, where)
            self.placed = where

    def bind_parameters(self) -> None:
        """Put slices of the parameters into the network; gradients flow to the store."""
        bind(self.parameters)
        for module in self.recurrent:  # which keep a list of their weights beside the parameters
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]

    def release(self) -> None:
        """Let go of the parameters that are copies rather than views."""
        if self._released is None:
            copied = [(slot.holder, slot.leaf) for slot in self.parameters if slot.copies]
            self._released = [(holder, leaf, torch.empty_like(holder[leaf], device="meta")) for holder, leaf in copied]
        for holder, leaf, nothing in self._released:
            holder[leaf] = nothing
        for module in self.recurrent:
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
        states = [_state(module, leaf) for module, leaf, _ in self.computed]
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
        for (module, leaf, _), before in zip(self.computed, states, strict=True):
            if _state(module, leaf)[0] != before[0]:
                raise ValueError(_changed(module, leaf, empty=before[1] == 0))
        return outputs


def _state(module: nn.Module, leaf: str) -> tuple[int, int]:
    """Return the version of a buffer and how many numbers it holds."""
    buffer = module._buffers[leaf]
    assert buffer is not None
    return buffer._version, buffer.numel()


def _changed(module: nn.Module, leaf: str, *, empty: bool) -> str:
    if empty:
        return (
            f"the buffer {leaf!r} of a {type(module).__name__} is empty when the network is built and gets its size "
            "when it runs, so architectures cannot share it; build it in the size that it gets, or add such modules, "
            "as those for quantisation, to the extracted network"
        )
    return (
        f"the buffer {leaf!r} changes when the network runs, but its first values were computed, so architectures "
        "cannot share it; start it from one number everywhere, or do not change it"
    )


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


def assemble(network: nn.Module, slots: Sequence[Slot]) -> Assembly:
    """Return a network that was built, ready to run."""
    bound = {(id(slot.holder), slot.leaf) for slot in slots}
    computed = [
        (module, leaf, buffer)
        for module in network.modules()
        for leaf, buffer in module._buffers.items()
        if buffer is not None and (id(module._buffers), leaf) not in bound
    ]
    return Assembly(network, slots, computed)


@dataclass(slots=True)
class _Piece:
    """A part of a network that never runs: a member of a module list with repeated parts, or all the rest."""

    module: nn.Module
    slots: Sequence[Slot]
    computed: Sequence[Own]
    modules: int
    compared: bool = False
    """Whether it was part of a network that was compared with a built one."""


class Assembler:
    """Puts networks together from copies of pieces that were built for other architectures.

    A member of a module list is taken for the same where it has the same place, its part of the architecture the same
    choices, and the shared choices and the numbers of parts agree; the rest of a network where the latter do. That
    holds for builders that make each part of its own choices and the shared ones. Networks that tie tensors, have
    hooks, or keep lists and other objects that can be changed are built each time.

    The first networks that are put together, those with a piece that no comparison has met, and a few later ones are
    compared with what the builder makes. Where an early one differs, all networks are built again; a late one is an
    error. A builder that makes a part depend on choices of several others in few networks can escape all comparisons.
    """

    FIRST, LATER = 32, 64
    """How many networks are compared at first, and every how many later on."""

    def __init__(self, lists: Mapping[str, str], most_modules: int) -> None:
        self._lists, self._most = dict(lists), most_modules
        self.works = bool(lists) and not any(
            other.startswith(f"{path}.") for path in lists.values() for other in lists.values()
        )
        self._pieces: dict[Any, _Piece] = {}
        self._modules = self._assembled = 0

    def learn(self, arch: Arch, built: Assembly) -> None:
        """Keep the pieces of a network that was built and has not run, unless there are others already."""
        if not self.works:
            return
        members = dict(_members(built.network, self._lists.values()))
        expected = [f"{path}.{number}" for path, number in self._places(arch)]
        if list(members) != expected or not _can_be_copied(built.network):
            self._stop()
            return
        if self._modules + built.modules > self._most:
            self._pieces, self._modules = {}, 0
        keys = self._keys(arch)
        wanted = [key not in self._pieces for key in keys]
        if not any(wanted):
            return
        slots = [*built.parameters, *built.buffers]
        for key, module, new in zip(keys, [built.network, *members.values()], wanted, strict=True):
            if new:
                without = members.values() if module is built.network else ()
                self._pieces[key] = piece = _copied(module, slots, built.computed, without=without)
                self._modules += piece.modules

    def put_together(self, arch: Arch, build: Callable[[], nn.Module]) -> Assembly | None:
        """Return the network of an architecture, or None where it must be built; `build` does it for comparison."""
        if not self.works:
            return None
        pieces = [self._pieces.get(key) for key in self._keys(arch)]
        known = [piece for piece in pieces if piece is not None]
        if len(known) < len(pieces):
            return None
        whole = self._joined(arch, known)
        self._assembled += 1
        early = self._assembled <= self.FIRST
        if early or self._assembled % self.LATER == 0 or not all(piece.compared for piece in known):
            if not alike(whole, build()):
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
        self.works, self._pieces = False, {}

    def _joined(self, arch: Arch, pieces: Sequence[_Piece]) -> Assembly:
        copies = [_copied(piece.module, piece.slots, piece.computed) for piece in pieces]
        network = copies[0].module
        for (path, number), piece in zip(self._places(arch), copies[1:], strict=True):
            network.get_submodule(path)._modules[str(number)] = piece.module
        slots = [slot for piece in copies for slot in piece.slots]
        return Assembly(network, slots, [own for piece in copies for own in piece.computed])

    def _places(self, arch: Arch) -> list[tuple[str, int]]:
        """Return the module list and the number of each part, list by list."""
        _, parts = split(arch)
        return [
            (path, number)
            for name, path in self._lists.items()
            for number in sorted(i for other, i in parts if other == name)
        ]

    def _keys(self, arch: Arch) -> list[Any]:
        """Return what decides the rest of a network, then each member."""
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
    module: nn.Module, slots: Sequence[Slot], computed: Sequence[Own], *, without: Iterable[nn.Module] = ()
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


def alike(assembled: Assembly, built: nn.Module) -> bool:
    """Return whether a network that was put together is the one that was built, before either runs.

    Modules, what they hold, computed buffers, and shape and type of all other tensors must be the same. Networks that
    cannot be copied, such as those with hooks, are not alike.
    """
    first, second = (list(n.named_modules(remove_duplicate=False)) for n in (assembled.network, built))
    if [name for name, _ in first] != [name for name, _ in second] or not _can_be_copied(built):
        return False
    computed = {(id(module), leaf): buffer for module, leaf, buffer in assembled.computed}
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
