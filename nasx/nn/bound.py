"""Networks bound to a supernet's store: where their tensors come from, and what running them does to the store."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasx._devices import to_device
from nasx.nn.layout import Index, put, take

Placement = tuple[torch.device, torch.dtype | None]
"""The device of the weights, and their precision where it is not the one that the builder gives them."""


def placed(tensor: Tensor, where: Placement) -> Tensor:
    """Return a tensor on a device and in a precision: complex tensors in its complex type, integers as they are."""
    device, dtype = where
    if tensor.is_complex() and dtype is not None:
        return to_device(tensor, device, dtype.to_complex())
    return to_device(tensor, device, dtype if tensor.is_floating_point() else None)


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor's place in a network, its place in the store, and which of the elements there the network uses."""

    module: nn.Module
    holder: dict[str, Any]
    """The module's parameters or its buffers."""
    leaf: str
    """The tensor's name there."""
    key: str
    """The tensor's name in the store."""
    source: dict[str, Any]
    """The dictionary in the store that holds the tensor."""
    source_leaf: str
    """The tensor's name there, the last segment of `key`."""
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
        """Torch's count of the changes in place to the tensor that the network holds."""
        tensor: Tensor = self.holder[self.leaf]
        return tensor._version

    def read(self) -> Tensor:
        """Return the elements of the tensor in the store that the network uses."""
        return self.whole if self.indices is None else take(self.whole, self.indices)

    def write(self, value: Tensor) -> None:
        """Change these elements in the store."""
        put(self.whole, self.indices or (None,) * value.ndim, value.detach())

    def moved_to(self, module: nn.Module) -> "Slot":
        """Return the same place in a copy of its module."""
        holder = module._parameters if self.holder is self.module._parameters else module._buffers
        return Slot(module, holder, self.leaf, self.key, self.source, self.source_leaf, self.indices, self.copies)


OwnBuffer = tuple[nn.Module, str, Tensor]
"""A buffer that belongs to one network alone: the module and the name that hold it, and the tensor that was built."""


class BoundNetwork:
    """A network without weights of its own, which runs on slices of the store.

    `slots` are the places of its shared tensors, `computed` its own buffers.
    """

    def __init__(self, network: nn.Module, slots: Sequence[Slot], computed: Sequence[OwnBuffer]) -> None:
        modules = list(network.modules())
        self.network, self.computed, self.module_count = network, computed, len(modules)
        self.parameters = [slot for slot in slots if isinstance(slot.holder[slot.leaf], nn.Parameter)]
        self.buffers = [slot for slot in slots if not isinstance(slot.holder[slot.leaf], nn.Parameter)]
        self._recurrent = [module for module in modules if isinstance(module, nn.RNNBase)]
        self._placed: Placement | None = None
        self._agreed: dict[int, int] = {}
        """The version of each copied buffer when it last held the same numbers as the store."""
        self._released: list[tuple[dict[str, Any], str, Tensor]] | None = None
        """What stands for copied parameters while the network does not run."""

    @classmethod
    def of(cls, network: nn.Module, slots: Sequence[Slot]) -> "BoundNetwork":
        """Return a network that was built, bound at some places; all its other buffers are its own."""
        shared = {(id(slot.holder), slot.leaf) for slot in slots}
        computed = [
            (module, leaf, buffer)
            for module in network.modules()
            for leaf, buffer in module._buffers.items()
            if buffer is not None and (id(module._buffers), leaf) not in shared
        ]
        return cls(network, slots, computed)

    def bind(self, where: Placement) -> None:
        """Put slices of the store into the network, its own buffers beside them; gradients flow to the store."""
        self._place(where)
        self._bind_parameters()
        self._bind_buffers()

    def refresh(self, where: Placement) -> None:
        """Bind a network again, but keep what was changed in its copies of buffers."""
        if self._placed != where:
            self._place(where)
            self._bind_buffers()
        self._refresh_buffers()
        self._bind_parameters()

    def release(self) -> None:
        """Let go of the parameters that are copies rather than views."""
        if self._released is None:
            copied = [(slot.holder, slot.leaf) for slot in self.parameters if slot.copies]
            self._released = [(holder, leaf, torch.empty_like(holder[leaf], device="meta")) for holder, leaf in copied]
        for holder, leaf, nothing in self._released:
            holder[leaf] = nothing
        for module in self._recurrent:
            module._flat_weights = []

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the outputs of the network, and keep what it did to buffers."""
        states = [_state(module, leaf) for module, leaf, _ in self.computed]
        bound = [slot.holder[slot.leaf] for slot in self.buffers]
        outputs = self.network(*args, **kwargs)
        self._store_buffers(bound)
        for (module, leaf, _), before in zip(self.computed, states, strict=True):
            if _state(module, leaf)[0] != before[0]:
                raise ValueError(_changed(module, leaf, empty=before[1] == 0))
        return outputs

    def _place(self, where: Placement) -> None:
        """Move the network's own buffers to where the weights are."""
        if self._placed != where:
            with torch.inference_mode(False):
                for module, leaf, buffer in self.computed:
                    module._buffers[leaf] = placed(buffer, where)
            self._placed = where

    def _bind_parameters(self) -> None:
        """Put slices of the parameters into the network."""
        _bind(self.parameters)
        for module in self._recurrent:  # which keep a list of their weights beside the parameters
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]

    def _bind_buffers(self) -> None:
        """Put slices of the shared buffers into the network; those that are copies agree with the store again."""
        with torch.inference_mode(False):
            _bind(self.buffers)
        self._agreed = {place: slot.version for place, slot in enumerate(self.buffers) if slot.copies}

    def _refresh_buffers(self) -> None:
        """Take copied buffers from the store again, other than those that were changed here."""
        for place, version in self._agreed.items():
            slot = self.buffers[place]
            if slot.version == version:
                with torch.inference_mode(False):
                    _bind([slot])
                self._agreed[place] = slot.version

    def _store_buffers(self, bound: Sequence[Tensor]) -> None:
        """Write shared buffers that changed back to the store; `bound` are those that the network had before it ran."""
        for place, (slot, before) in enumerate(zip(self.buffers, bound, strict=True)):
            now = slot.holder[slot.leaf]
            # BatchNorm changes its statistics without a new version
            changed = slot.copies and (slot.module.training or slot.version != self._agreed[place])
            if changed or now is not before:
                slot.write(now)
            if slot.copies:
                self._agreed[place] = slot.version
            elif now is not before:
                _bind([slot])


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


def _bind(slots: Sequence[Slot]) -> None:
    """Put slices of the store where they belong."""
    taken: dict[str, Tensor] = {}  # tied tensors are one slice, too
    for slot in slots:
        if slot.indices is None:
            slot.holder[slot.leaf] = slot.whole
        else:
            if slot.key not in taken:
                taken[slot.key] = take(slot.whole, slot.indices)
            slot.holder[slot.leaf] = taken[slot.key]
