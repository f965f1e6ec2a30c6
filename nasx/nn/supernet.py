"""The supernet of a space: a store of tensors, and a rule from an architecture to the slices that its network uses."""

import copy
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Set
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nasx._arguments import canonical_in
from nasx.arch import Arch, Value
from nasx.nn.advice import warn_of_groups, warn_of_projections, warn_of_queries, warn_of_stacks
from nasx.nn.blueprint import TensorInfo
from nasx.nn.bound import BoundNetwork, Placement, Slot, placed
from nasx.nn.builders import check_builder
from nasx.nn.filling import filling_order
from nasx.nn.layout import Layout, Shape, most_exact, rule_of
from nasx.nn.naming import Naming, Separate, plain_name
from nasx.nn.parts import Parts, module_lists
from nasx.nn.patterns import check_patterns
from nasx.nn.reuse import BlockCache
from nasx.nn.skeleton import Make, build_skeleton, call_builder, default_dtype, refuse_shared
from nasx.nn.store import Indices, Store
from nasx.nn.survey import Survey, survey
from nasx.nn.watched import warn_of_unread
from nasx.space import ArchSet, Space

logger = logging.getLogger(__name__)

_KEPT_MODULES = 20_000  # of networks, in each thread
_HELD = 4  # networks whose copies of weights stay, so that gradient checkpoints of a few passes can be recomputed
_DERIVED = ("_store", "_value_types", "_networks")  # made again where a supernet is copied or loaded


class SupernetLike(Protocol):
    """A module that runs any architecture of a space; `Supernet` is one, and others may be written by hand.

    The architecture is an argument and never module state, so one supernet serves threads, ranks and tests alike.
    `extract(arch)` is plain torch with copies of the weights; its outputs equal the supernet's for that architecture,
    in evaluation mode and, from the same random state, in training mode.
    """

    def __call__(self, x: Any, arch: Arch) -> Any:
        """Return the outputs for a batch under an architecture."""

    def extract(self, arch: Arch) -> nn.Module:
        """Return an architecture's network on its own."""


class _Node(nn.Module):
    """A place in the tree of the store's names."""


class _ValueTypes:
    """The types of a space's values: equal architectures may be written with others, such as 4.0 for 4."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._types: dict[str, type | None] = {}  # of each choice's values, None where they have several
        for name, choice in space.walk():
            for value in choice.values:
                if self._types.setdefault(name, type(value)) is not type(value):
                    self._types[name] = None

    def written(self, arch: Arch) -> Arch:
        """Return an architecture with the space's types of numbers, and one of another space as it is."""
        # those that a space hands out have them, which is seen much faster than an architecture is looked up
        if all(self._types.get(name) is type(value) for name, value in arch.items()):
            return arch
        return canonical_in(self._space, arch)


class _Networks(threading.local):
    """The networks that one thread runs; each has its own, so that several can run one supernet at once."""

    def __init__(self, lists: Mapping[str, str]) -> None:
        self.kept: OrderedDict[Arch, BoundNetwork] = OrderedDict()
        """The networks that ran, the most recent last."""
        self.blocks = BlockCache(lists)
        self._holding: list[BoundNetwork] = []
        """The networks that may hold copies of weights, the most recent last."""

    def get(self, arch: Arch) -> BoundNetwork | None:
        """Return the network of an architecture where it is kept."""
        found = self.kept.get(arch)
        if found is not None:
            self.kept.move_to_end(arch)
        return found

    def keep(self, arch: Arch, network: BoundNetwork) -> None:
        """Keep the network of an architecture, and drop the least recent ones where there are too many modules."""
        self.kept[arch] = network
        while len(self.kept) > 1 and sum(kept.module_count for kept in self.kept.values()) > _KEPT_MODULES:
            self.kept.popitem(last=False)

    def hold(self, network: BoundNetwork) -> None:
        """Note that a network is about to run, and let go of the copies that the least recent one holds."""
        if network in self._holding:
            self._holding.remove(network)
        self._holding.append(network)
        if len(self._holding) > _HELD:
            self._holding.pop(0).release()


class Supernet(nn.Module):
    """All networks of a space in one module, derived from the function that builds one of them.

    `make(arch)` returns the network of an architecture as plain torch. The supernet holds each parameter name once, as
    large as the largest network needs it in each dimension. `supernet(x, arch)` runs the network's own `forward` on
    slices, and `extract(arch)` copies the same slices into `make(arch)`; further positional and keyword arguments and
    outputs of any structure pass through. Without a positional input, write `supernet(arch=arch, **inputs)`.

    - `separate` maps patterns of module or parameter names to choices. Matching tensors exist once for each value of
      those choices (single-path one-shot search), stored as `<name>@<choice>=<value>,...`. A choice is looked up in
      the repeated part that the module belongs to, then among the shared ones; one that is absent is None.
    - `layout` maps patterns to slice rules (`nasx.nn.layout`); without one a network uses prefixes.
    - `parts` maps a repeat of the space to its module list, such as `{"block": "encoder.layer"}`. A repeat `block` is
      found without it where the network has a module list `block` or `blocks`.
    - `weights` are those of a plain network; see `load_plain`.
    - `reuse=False` lets the builder make the network of every architecture that runs; see below.

    If each member of a repeat's module list depends only on its own choices and the shared ones, the supernet builds a
    member once for each combination of these choices and copies it into the networks that have it. It compares networks
    put together in this way with built ones, at first and now and then. Where a part, or an attribute of one, depends
    on choices of other parts, where tensors are tied, and where modules keep mutable objects (a list, a dict), it
    builds every network, which takes longer. The comparisons are samples: they can miss a builder in which a part
    depends on choices of other parts in few architectures, such as one in 50, and such networks are then wrong without
    notice. Pass `reuse=False` for such a builder, or make the part depend on its own choices and the shared ones alone.
    `extract` always builds, so its outputs show a difference.

    In patterns `*` stands for any characters, dots included; of several that match, the most exact one decides. The
    state dict has the builder's own names. An architecture of another space is run, too, where its tensors are slices
    of those that the space needs.

    BatchNorm's statistics, and buffers that start from one number everywhere and in every network, are stored and
    sliced as parameters are, and updated in place; all others are computed by the builder and belong to each network.
    A parameter is sliced even if it is frozen, so a computed table should be a buffer; it must be frozen in all
    architectures or in none. Of parametrizations, `weight_norm` works; `spectral_norm` and `orthogonal`, which compute
    tensors from weights when a network is built, are refused.

    Raises ValueError where names shift between architectures, where no rule gives a wanted shape, where the builder
    gives different networks for one architecture or one module to several networks (copy a pretrained backbone inside
    the builder), or where a pattern matches nothing; TypeError for what is no builder or no space, and where the
    builder returns no module. Source: weight entanglement as in AutoFormer, section 3.2; separate copies as in SPOS.
    """

    def __init__(
        self,
        make: Make,
        space: ArchSet,
        *,
        separate: Separate | None = None,
        layout: Layout | None = None,
        parts: Parts | None = None,
        weights: Mapping[str, Tensor] | None = None,
        reuse: bool = True,
    ) -> None:
        super().__init__()
        check_builder(make, space, "Supernet(make, space)")
        self.make = make
        self._default_dtype = torch.get_default_dtype()  # which tables that are computed depend on
        self.space = space.space
        self._layout, self._reuse = dict(layout or {}), reuse
        lists = module_lists(make, self.space, dict(parts or {}))
        self._naming = Naming(separate or {}, lists)
        found = survey(make, self.space, self._naming)
        check_patterns(self.space, self._naming, self._layout, found)
        self._tied = found.tied
        self._rules = {name: rule_of(self._layout, name) for name in found.names}
        if not found.is_known:
            warn_of_unread(found.reads, self.space)
            warn_of_stacks(found, self._layout)
            warn_of_groups(found, self._layout, self._naming)
            warn_of_queries(found, self._layout, self._naming)
            warn_of_projections(found)
        self.largest = found.largest()
        """The architecture whose network has every tensor at its largest size, or None where there is none."""
        for key, (info, shape) in found.stored.items():
            self._register(key, info, shape)
        self._derive()
        self._built_dtype = self._store.reference.dtype
        self._fill(found)
        if not found.is_known:
            self._warn_of_tables(found)
        if weights is not None:
            self.load_plain(weights)

    # Using it

    def forward(self, *args: Any, arch: Mapping[str, Value] | None = None, **kwargs: Any) -> Any:
        """Return the outputs of an architecture's network: `supernet(x, arch)` or `supernet(x, arch=arch)`.

        All other `args` and `kwargs` go to the network's own `forward`. A TypeError says that there is no architecture.
        """
        if arch is None:
            if len(args) < 2 or not isinstance(args[1], Mapping):
                raise TypeError("a supernet is called as supernet(x, arch, ...) or supernet(..., arch=arch)")
            arch, args = args[1], (args[0], *args[2:])
        bound = self._network_of(arch if isinstance(arch, Arch) else Arch(arch))
        if bound.network.training != self.training:
            bound.network.train(self.training)
        self._networks.hold(bound)
        bound.bind(self._placement())
        return bound.run(args, kwargs)

    def extract(self, arch: Arch) -> nn.Module:
        """Return an architecture's network as plain torch, with copies of its weights, in the supernet's mode."""
        arch = self._own(arch)
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
            with default_dtype(self._default_dtype):
                network = call_builder(self.make, arch)
            refuse_shared(network)
            network._apply(partial(placed, where=self._placement()))  # type: ignore[no-untyped-call]
            self._copy_tensors(network, arch)
            for module in network.modules():
                if isinstance(module, nn.RNNBase):
                    module.flatten_parameters()
        return network.train(self.training)

    def load_plain(self, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Take the weights of a plain network; every copy whose shape fits is filled.

        Returns the names in the store that are left as they were. Tensors that the store has no name for are passed
        over. A ValueError names a tensor that fits nowhere although the store has its name, or says that the store has
        none of the names, and a TypeError refuses what is no mapping; then nothing has changed.
        """
        if not isinstance(weights, Mapping):
            raise TypeError(
                f"`weights` must be a mapping from names to tensors, but got {type(weights).__name__}; write "
                "weights=network.state_dict()"
            )
        own = self._store.tensors()
        fitting = _fitting(weights, own)
        with torch.no_grad():
            for key, tensor in fitting.items():
                own[key].copy_(tensor)
        filled = {id(own[key]) for key in fitting}
        return tuple(key for key, tensor in own.items() if id(tensor) not in filled)

    def slices(self, arch: Arch) -> dict[str, Indices]:
        """Return the stored tensors that an architecture's network uses, by name, with its elements of each dimension.

        None stands for all elements of a dimension, or of a tensor.
        """
        arch = self._own(arch)
        return {slot.key: slot.indices for slot in self._slots(self._built(arch), arch)}

    # the value of a choice may hold a dot, which torch would take for the end of a module's name

    def get_parameter(self, target: str) -> nn.Parameter:
        """Return a parameter by its name in the state dict."""
        source, leaf = self._store.places.get(target, ({}, ""))
        found = source.get(leaf)
        return found if isinstance(found, nn.Parameter) else super().get_parameter(target)

    def get_buffer(self, target: str) -> Tensor:
        """Return a buffer by its name in the state dict."""
        source, leaf = self._store.places.get(target, ({}, ""))
        found = source.get(leaf)
        return super().get_buffer(target) if found is None or isinstance(found, nn.Parameter) else found

    def no_weight_decay(self) -> set[str]:
        """Return the names that its networks' own methods of this name spare, as timm's models have it."""
        return set(self._spared)

    def extra_repr(self) -> str:
        """Return what `repr` shows."""
        tensors = list(self.parameters())
        return f"{sum(t.numel() for t in tensors):,} weights in {len(tensors)} tensors, {self.space!r}"

    def __repr__(self) -> str:
        return f"Supernet({self.extra_repr()})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in _DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._derive()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Supernet":
        same = type(self).__new__(type(self))
        memo[id(self)] = same
        shared = {"make", "space"}  # values that nobody changes; a builder may not be copied
        state = self.__getstate__()
        same.__setstate__({k: v if k in shared else copy.deepcopy(v, memo) for k, v in state.items()})
        return same

    # Running

    def _derive(self) -> None:
        """Make what follows from the store and the space."""
        self._store, self._value_types = Store(self), _ValueTypes(self.space)
        self._networks = _Networks(self._naming.lists if self._reuse else {})

    def _placement(self) -> Placement:
        tensor = self._store.reference
        kept = tensor.dtype == self._built_dtype or not tensor.is_floating_point()
        return tensor.device, None if kept else tensor.dtype

    def _own(self, arch: Mapping[str, Value]) -> Arch:
        """Return an architecture as the builder gets it: with the space's types of numbers, where it is of that."""
        return self._value_types.written(arch if isinstance(arch, Arch) else Arch(arch))

    def _network_of(self, arch: Arch) -> BoundNetwork:
        """Return the network that runs an architecture: kept since it ran last, put together of blocks, or built."""
        networks = self._networks
        found = networks.get(arch)
        if found is not None:
            return found
        arch = self._own(arch)
        try:
            found = networks.blocks.put_together(arch, lambda: self._built(arch))
        except ValueError:
            networks.kept.clear()  # of which others may be wrong
            raise
        if found is not None:
            found.network.train(self.training)
        else:
            found = self._build_bound(arch)
            networks.blocks.learn(arch, found)
        networks.keep(arch, found)
        return found

    def _build_bound(self, arch: Arch) -> BoundNetwork:
        """Build the network of an architecture, with its places in the store."""
        network = self._built(arch)
        network.train(self.training)  # a constructor may have left modules in another mode
        return BoundNetwork.of(network, list(self._slots(network, arch)))

    def _built(self, arch: Arch) -> nn.Module:
        """Return the skeleton of an architecture's network."""
        with default_dtype(self._default_dtype):
            return build_skeleton(self.make, arch)

    def _slots(self, network: nn.Module, arch: Arch) -> Iterator[Slot]:
        """Yield the places of a network's tensors; a ValueError names one that the store cannot fill."""
        names, places = self._naming.of(arch), self._store.places
        for prefix, module in network.named_modules(remove_duplicate=False):
            dotted = f"{prefix}." if prefix else ""
            for holder in (module._parameters, module._buffers):
                for leaf, tensor in holder.items():
                    name = dotted + leaf
                    if tensor is None or (holder is module._buffers and name not in self._rules):
                        continue  # a buffer that is not stored was computed
                    first = self._tied.get(name, name)
                    key = names.stored(first)
                    if key not in places:
                        raise ValueError(
                            f"the supernet holds no {key!r}, which the network of {dict(arch)} needs; is the "
                            "architecture of its space, and the builder a function of the architecture alone?"
                        )
                    source, source_leaf = places[key]
                    largest, wanted = tuple(source[source_leaf].shape), tuple(tensor.shape)
                    indices = self._store.indices(first, self._rules[first], largest, wanted, names.values(first))
                    copies = indices is not None and any(not isinstance(index, slice | None) for index in indices)
                    yield Slot(module, holder, leaf, key, source, source_leaf, indices, copies)

    def _copy_tensors(self, network: nn.Module, arch: Arch) -> None:
        """Give the network of an architecture copies of its slices."""
        copies: dict[str, Tensor] = {}  # one for all places of a tied tensor
        for slot in self._slots(network, arch):
            if slot.key not in copies:
                copies[slot.key] = slot.read().detach().clone(memory_format=torch.contiguous_format)
            value = copies[slot.key]
            held = slot.holder[slot.leaf]
            if isinstance(held, nn.Parameter):
                held.data = value
                held.requires_grad_(slot.whole.requires_grad)
            else:
                slot.holder[slot.leaf] = value

    # Building the store

    def _register(self, key: str, info: TensorInfo, shape: Shape) -> None:
        """Make a tensor of the store, under all its names where it is tied."""
        tensor = torch.zeros(shape, dtype=info.dtype)
        if info.is_buffer:
            self._node(key)._buffers[key.rpartition(".")[2]] = tensor
            return
        parameter, first = nn.Parameter(tensor, requires_grad=info.trained), plain_name(key)
        others = [name for name, of in self._tied.items() if of == first]
        for name in (key, *(other + key.removeprefix(first) for other in others)):
            self._node(name)._parameters[name.rpartition(".")[2]] = parameter

    def _node(self, key: str) -> nn.Module:
        """Return the place that holds a tensor of the store, made where it is missing."""
        node: nn.Module = self
        for segment in key.split(".")[:-1]:
            if segment not in node._modules:
                node._modules[segment] = _Node()  # a name may hold a value, such as 0.5, that torch would refuse
            node = node._modules[segment]  # type: ignore[assignment]
        return node

    def _fill(self, found: Survey) -> None:
        """Give the store its first values: those that the builder gives some networks, which have every tensor."""
        self._spared: set[str] = set()
        with torch.no_grad():
            for arch, keys in filling_order(found):
                network, chosen = call_builder(self.make, arch), set(keys)
                self._spared |= set(getattr(network, "no_weight_decay", set)())
                for slot in self._slots(network, arch):
                    if slot.key in chosen:
                        slot.write(slot.holder[slot.leaf])

    def _warn_of_tables(self, found: Survey) -> None:
        """Say which frozen parameters are tables: the builder gives a network other values than its slices have."""
        frozen = {
            key
            for key, (info, _) in found.stored.items()
            if not (info.trained or info.is_buffer) and most_exact(self._layout, plain_name(key)) is None
        }
        if not frozen:
            return
        sizes = {
            arch: sum(math.prod(shape) for key, shape in own.items() if key in frozen)
            for arch, own in found.needed.items()
        }
        smallest = min(sizes, key=lambda arch: sizes[arch])
        archs = dict.fromkeys([smallest, self.space[0], self.space[self.space.size - 1]])
        if computed := list(dict.fromkeys(name for arch in archs for name in self._computed(arch, frozen))):
            logger.warning(
                "networks take slices of the largest one's frozen parameters (requires_grad=False), but the builder "
                "computes other values of %s for some of them; make such a table a buffer (register_buffer), which "
                "each network computes for itself, or add layout={%r: prefix} to keep the slices",
                ", ".join(map(repr, computed[:3])) + f" and {len(computed) - 3} more" * (len(computed) > 3),
                computed[0],
            )

    def _computed(self, arch: Arch, keys: Set[str]) -> list[str]:
        """Return the names of a network's tensors, of some keys, whose values are neither the store's nor random."""

        def built(seed: int) -> dict[str, tuple[Slot, Tensor]]:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.default_generator.manual_seed(seed)
                slots = self._slots(call_builder(self.make, arch), arch)
                return {slot.key: (slot, slot.holder[slot.leaf]) for slot in slots if slot.key in keys}

        differing = {
            key: own for key, (slot, own) in built(0).items() if not _equal(slot.read(), own.to(slot.whole.device))
        }
        again = built(1) if differing else {}
        return [plain_name(key) for key, own in differing.items() if _equal(own, again[key][1])]


def _fitting(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that fit a supernet's own tensors, by the names of the tensors that they fill."""
    copies: dict[str, list[str]] = {}
    for key in own:
        copies.setdefault(plain_name(key), []).append(key)
    if not any(name in copies for name in weights):
        raise ValueError(
            f"the weights have none of the supernet's names; theirs start with {', '.join(list(weights)[:3])}, the "
            f"supernet's with {', '.join(list(copies)[:3])}"
        )
    fitting = {
        key: tensor
        for name, tensor in weights.items()
        for key in copies.get(name, ())
        if own[key].shape == tensor.shape
    }
    for name, tensor in weights.items():
        if name in copies and not any(key in fitting for key in copies[name]):
            shapes = ", ".join(str(tuple(own[key].shape)) for key in copies[name][:3])
            raise ValueError(
                f"the weights do not fit: {name!r} has the shape {tuple(tensor.shape)}, but the supernet holds "
                f"it as {shapes}; give the weights of the architecture with the largest sizes"
            )
    return fitting


def _equal(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors are equal but for rounding."""
    if not first.is_complex():
        first, second = first.double(), second.double()
    return bool(torch.isclose(first, second, rtol=1e-4, atol=1e-6, equal_nan=True).all())


class Subnet(nn.Module):
    """A `supernet` held at the architecture `arch`: a plain module whose weights are slices of the supernet's.

    Of a `Supernet`, its submodules are the network's own, with modes of their own, so BatchNorm statistics can be
    recomputed in it; they change in the supernet. Another supernet is called unchanged. Train the supernet's
    parameters; these are slices of them.
    """

    def __init__(self, supernet: nn.Module, arch: Mapping[str, Value]) -> None:
        super().__init__()
        arch = arch if isinstance(arch, Arch) else Arch(arch)
        self.arch = supernet._own(arch) if isinstance(supernet, Supernet) else arch
        self._bound: BoundNetwork | None = None
        if isinstance(supernet, Supernet):
            self.__dict__["supernet"] = supernet  # not as a submodule: its weights are here as slices
            self._bound = supernet._build_bound(self.arch)
            self.network = self._bound.network
            with torch.inference_mode(False), torch.no_grad():
                self._bound.refresh(supernet._placement())
        else:
            self.supernet = supernet
        self.train(supernet.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of the architecture's network."""
        if self._bound is None:
            return self.supernet(*args, arch=self.arch, **kwargs)
        assert isinstance(self.supernet, Supernet)
        self._bound.refresh(self.supernet._placement())
        return self._bound.run(args, kwargs)

    def __reduce__(self) -> tuple[type["Subnet"], tuple[nn.Module, Arch]]:
        return type(self), (self.supernet, self.arch)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Subnet":
        return type(self)(copy.deepcopy(self.supernet, memo), self.arch)
