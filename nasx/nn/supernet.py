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
from nasx.nn.layout import Index, Layout, Rule, Shape, SliceRule, is_whole, most_exact, names, rule_of, take
from nasx.nn.naming import Naming, Separate, plain_name
from nasx.nn.parts import Parts, module_lists
from nasx.nn.reuse import BlockCache
from nasx.nn.skeleton import Make, build_skeleton, call_builder, default_dtype, refuse_shared
from nasx.nn.survey import Survey, survey
from nasx.nn.watched import Reads
from nasx.space import ArchSet, Space

logger = logging.getLogger(__name__)

_KEPT_MODULES = 20_000  # of networks, in each thread
_KEPT_INDICES = 100_000  # of tensors in one shape each
_HELD = 4  # networks whose copies of weights stay, so that gradient checkpoints of a few passes can be recomputed


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


class _Lookup:
    """Where a supernet's tensors are, and which of their elements a network uses; all threads share it."""

    def __init__(self, supernet: nn.Module, space: Space) -> None:
        self.places: dict[str, tuple[dict[str, Any], str]] = {}
        """The dictionary and the name that hold each tensor: moving a supernet puts other tensors there."""
        for prefix, node in supernet.named_modules():
            dotted = f"{prefix}." if prefix else ""
            for source in (node._parameters, node._buffers):
                self.places |= {dotted + leaf: (source, leaf) for leaf in source}
        if not self.places:
            raise ValueError("the networks of this space have no weights, so there is nothing that they could share")
        floating = (place for place in self.places.values() if place[0][place[1]].is_floating_point())
        self._reference = next(floating, next(iter(self.places.values())))
        self._indices: dict[Any, tuple[Index | None, ...] | None] = {}
        self._types: dict[str, type | None] = {}  # of each choice's values, None where they have several
        for name, choice in space.walk():
            for value in choice.values:
                if self._types.setdefault(name, type(value)) is not type(value):
                    self._types[name] = None

    @property
    def reference(self) -> Tensor:
        """The tensor whose device and precision stand for all."""
        source, leaf = self._reference
        tensor: Tensor = source[leaf]
        return tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return the store: every tensor by its name."""
        return {key: source[leaf] for key, (source, leaf) in self.places.items()}

    def written_as_in(self, space: Space, arch: Arch) -> Arch:
        """Return an architecture with the space's types of numbers, and one of another space as it is."""
        # those that a space hands out have them, which is seen much faster than an architecture is looked up
        if all(self._types.get(name) is type(value) for name, value in arch.items()):
            return arch
        return canonical_in(space, arch)

    def indices(
        self, name: str, rule: Rule, largest: Shape, wanted: Shape, choices: Mapping[str, Value]
    ) -> tuple[Index | None, ...] | None:
        """Return the indices of a tensor's slice, None for the whole; architectures that agree in it share them."""
        seen = () if isinstance(rule, SliceRule) else tuple(choices.items())
        key = name, largest, wanted, seen
        if key in (kept := self._indices):
            return kept[key]
        if len(kept) >= _KEPT_INDICES:
            self._indices = {}  # a new one, since another thread may be reading
        found = self._indices[key] = _indices(name, rule, largest, wanted, choices)
        return found


class _Networks(threading.local):
    """The networks that a thread runs: each thread has its own, since a network holds one slice at a time."""

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

    Where the builder makes each member of a repeat's module list of its own choices and the shared ones, members are
    built once for each of their choices and copied into the networks that have them. Networks that are put together
    so are compared with built ones at first and now and then; where a part, or an attribute of one, depends on other
    parts' choices, and where tensors are tied or modules keep objects that can be changed (a list, a dict), every
    network is built, which takes longer. Comparisons are samples: a builder that makes a part depend on choices of
    other parts in few architectures, such as one in 50, can escape them, and such networks are then wrong without
    notice. Pass `reuse=False` for a builder of that kind, or make the part depend on its own choices and the shared
    ones alone; `extract` always builds, so its outputs show a difference.

    An architecture of another space is run, too, where its tensors are slices of those that the space needs.
    In patterns `*` stands for any characters, dots included; of several that match, the most exact one decides. The
    state dict has the builder's own names. BatchNorm's statistics, and buffers that start from one number everywhere
    and in every network, are stored and sliced as parameters are, and updated in place; all others are computed by the
    builder and belong to each network. A parameter is sliced even if it is frozen, so a computed table should be a
    buffer; it must be frozen in all architectures or in none. Of parametrizations, `weight_norm` works; `spectral_norm`
    and `orthogonal`, which compute tensors from weights when a network is built, are refused.

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
        self._check_patterns(found)
        self._tied = found.tied
        self._rules = {name: rule_of(self._layout, name) for name in found.names}
        self._warn_of_unread(found.reads)
        warn_of_stacks(found, self._layout)
        warn_of_groups(found, self._layout, self._naming)
        warn_of_queries(found, self._layout, self._naming)
        warn_of_projections(found)
        self.largest = found.largest()
        """The architecture whose network has every tensor at its largest size, or None where there is none."""
        for key, (info, shape) in found.stored.items():
            self._register(key, info, shape)
        self._start()
        self._built_dtype = self._lookup.reference.dtype
        self._fill(found)
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
        bound.place(self._placement())
        bound.bind_parameters()
        bound.bind_buffers()
        return bound.run(args, kwargs)

    def extract(self, arch: Arch) -> nn.Module:
        """Return an architecture's network as plain torch, with copies of its weights, in the supernet's mode."""
        arch = self._own(arch)
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
            with default_dtype(self._default_dtype):
                network = call_builder(self.make, arch)
            refuse_shared(network)
            network._apply(partial(placed, where=self._placement()))  # type: ignore[no-untyped-call]
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
        copies: dict[str, list[str]] = {}
        own = self._lookup.tensors()
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
        with torch.no_grad():
            for key, tensor in fitting.items():
                own[key].copy_(tensor)
        filled = {id(own[key]) for key in fitting}
        return tuple(key for key, tensor in own.items() if id(tensor) not in filled)

    def slices(self, arch: Arch) -> dict[str, tuple[Index | None, ...] | None]:
        """Return the stored tensors that an architecture's network uses, by name, with its elements of each dimension.

        None stands for all elements of a dimension, or of a tensor.
        """
        arch = self._own(arch)
        return {slot.key: slot.indices for slot in self._slots(self._built(arch), arch)}

    # the value of a choice may hold a dot, which torch would take for the end of a module's name

    def get_parameter(self, target: str) -> nn.Parameter:
        """Return a parameter by its name in the state dict."""
        source, leaf = self._lookup.places.get(target, ({}, ""))
        found = source.get(leaf)
        return found if isinstance(found, nn.Parameter) else super().get_parameter(target)

    def get_buffer(self, target: str) -> Tensor:
        """Return a buffer by its name in the state dict."""
        source, leaf = self._lookup.places.get(target, ({}, ""))
        found = source.get(leaf)
        return super().get_buffer(target) if found is None or isinstance(found, nn.Parameter) else found

    def no_weight_decay(self) -> set[str]:
        """Return the names that the network's own method of this name spares, as timm's models have it."""
        network = self._network_of(self.space[0]).network
        return set(getattr(network, "no_weight_decay", set)())

    def extra_repr(self) -> str:
        """Return what `repr` shows."""
        tensors = list(self.parameters())
        return f"{sum(t.numel() for t in tensors):,} weights in {len(tensors)} tensors, {self.space!r}"

    def __repr__(self) -> str:
        return f"Supernet({self.extra_repr()})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lookup", "_networks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._start()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Supernet":
        same = type(self).__new__(type(self))
        memo[id(self)] = same
        shared = {"make", "space"}  # values that nobody changes; a builder may not be copied
        state = self.__getstate__()
        same.__setstate__({k: v if k in shared else copy.deepcopy(v, memo) for k, v in state.items()})
        return same

    # Running

    def _start(self) -> None:
        """Set up what follows from the store, and is made again where a supernet is copied or loaded."""
        self._lookup = _Lookup(self, self.space)
        self._networks = _Networks(self._naming.lists if self._reuse else {})

    def _placement(self) -> Placement:
        tensor = self._lookup.reference
        kept = tensor.dtype == self._built_dtype or not tensor.is_floating_point()
        return tensor.device, None if kept else tensor.dtype

    def _own(self, arch: Mapping[str, Value]) -> Arch:
        """Return an architecture as the builder takes it: of the space's own, those with its types of numbers."""
        return self._lookup.written_as_in(self.space, arch if isinstance(arch, Arch) else Arch(arch))

    def _network_of(self, arch: Arch) -> BoundNetwork:
        """Return the network that runs an architecture: one that is kept, put together of known blocks, or built."""
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
        network = self._built(arch)
        network.train(self.training)  # a constructor may have left modules in another mode
        return BoundNetwork.of(network, list(self._slots(network, arch)))

    def _built(self, arch: Arch) -> nn.Module:
        with default_dtype(self._default_dtype):
            return build_skeleton(self.make, arch)

    def _slots(self, network: nn.Module, arch: Arch) -> Iterator[Slot]:
        """Yield the places of a network's tensors; a ValueError names one that the store cannot fill."""
        names, places = self._naming.of(arch), self._lookup.places
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
                    indices = self._lookup.indices(first, self._rules[first], largest, wanted, names.values(first))
                    copies = indices is not None and any(not isinstance(index, slice | None) for index in indices)
                    yield Slot(module, holder, leaf, key, source, source_leaf, indices, copies)

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
        """Draw first values: those of networks that have a tensor at its largest size, or of several that share it."""
        waiting = {key: shape for key, (_, shape) in found.stored.items()}
        order: list[tuple[Arch, list[str]]] = []
        while waiting:
            # the network that has the most tensors at their largest size is built next
            whole = {
                arch: [k for k, shape in own.items() if waiting.get(k) == shape] for arch, own in found.needed.items()
            }
            arch = max(whole, key=lambda arch: len(whole[arch]))
            if not whole[arch]:
                break
            order.append((arch, whole[arch]))
            for key in whole[arch]:
                del waiting[key]
        with torch.no_grad():
            for arch, keys in [*_pieces(waiting, found.needed), *order]:
                network, chosen = call_builder(self.make, arch), set(keys)
                for slot in self._slots(network, arch):
                    if slot.key in chosen:
                        slot.write(slot.holder[slot.leaf])

    def _warn_of_tables(self, found: Survey) -> None:
        """Say which frozen parameters are tables that the builder computes for each network, other than slices are."""
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
        """Return the names of a network's tensors, of some keys, that are no slices of the store's and not random."""

        def built(seed: int) -> dict[str, tuple[Slot, Tensor]]:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.default_generator.manual_seed(seed)
                slots = self._slots(call_builder(self.make, arch), arch)
                return {slot.key: (slot, slot.holder[slot.leaf]) for slot in slots if slot.key in keys}

        differing = {key: own for key, (slot, own) in built(0).items() if not _equal(slot.read(), own)}
        again = built(1) if differing else {}
        return [plain_name(key) for key, own in differing.items() if _equal(own, again[key][1])]

    def _warn_of_unread(self, reads: Reads) -> None:
        """Say which choices the builder does not read, such as those of a repeat that it calls by another name."""
        unread = reads.unread(self.space)
        if unread:
            names = [name for name in reads.missing if not any(n.startswith(f"{name}.") for n in reads.active)]
            asked = f"; it asks for the parts {', '.join(map(repr, names))}, which no architecture has" if names else ""
            logger.warning(
                "the builder reads nothing of %s, so architectures that differ only there are the same network%s; read "
                "these choices in the builder, or leave them out of the space",
                ", ".join(map(repr, unread)),
                asked,
            )

    def _check_patterns(self, found: Survey) -> None:
        known = found.names
        for what, patterns in (("separate", self._naming.separate), ("layout", self._layout)):
            for pattern in patterns:
                if not any(names(pattern, name) for name in known):
                    raise ValueError(
                        f"the pattern {pattern!r} of `{what}` matches no parameter or module; "
                        f"names are {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
                    )
        genes = {gene for gene, _ in self.space.walk()}
        for pattern, choices in self._naming.separate.items():
            for choice in choices:
                if not any(gene == choice or gene.endswith(f".{choice}") for gene in genes):
                    raise ValueError(
                        f"`separate` names the choice {choice!r} for {pattern!r}, but the space has none of that name"
                    )
                held = [key for key in found.stored if f"{choice}=" in key and names(pattern, plain_name(key))]
                if held and all(f"{choice}=None" in key for key in held):
                    raise ValueError(
                        f"`separate` names the choice {choice!r} for {pattern!r}, but no matching module belongs to a "
                        f"part that has it; say which module list a repeat is: parts={{'block': 'encoder.layer'}}"
                    )


def _pieces(
    waiting: Mapping[str, Shape], needed: Mapping[Arch, Mapping[str, Shape]]
) -> Iterator[tuple[Arch, list[str]]]:
    """Yield networks that fill tensors which no network has at the largest size, the smallest slices first."""
    steps: dict[tuple[int, Arch], list[str]] = {}
    for key in waiting:
        shapes: dict[Shape, Arch] = {}
        for arch, own in needed.items():
            if key in own:
                shapes.setdefault(own[key], arch)
        outer = [shape for shape in shapes if not any(_is_inside(shape, other) for other in shapes)]
        for place, shape in enumerate(sorted(outer, key=math.prod)):
            steps.setdefault((place, shapes[shape]), []).append(key)
    for (_, arch), keys in sorted(steps.items(), key=lambda step: step[0][0]):
        yield arch, keys


def _equal(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors are equal but for rounding."""
    if not first.is_complex():
        first, second = first.double(), second.double()
    return bool(torch.isclose(first, second, rtol=1e-4, atol=1e-6, equal_nan=True).all())


def _is_inside(shape: Shape, other: Shape) -> bool:
    return shape != other and all(size <= limit for size, limit in zip(shape, other, strict=True))


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
                self._bind(self._bound, supernet._placement())
        else:
            self.supernet = supernet
        self.train(supernet.training)

    @staticmethod
    def _bind(bound: BoundNetwork, where: Placement) -> None:
        if bound.placed != where:
            bound.place(where)
            bound.bind_buffers()
        bound.refresh_buffers()
        bound.bind_parameters()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of the architecture's network."""
        if self._bound is None:
            return self.supernet(*args, arch=self.arch, **kwargs)
        assert isinstance(self.supernet, Supernet)
        self._bind(self._bound, self.supernet._placement())
        return self._bound.run(args, kwargs)

    def __reduce__(self) -> tuple[type["Subnet"], tuple[nn.Module, Arch]]:
        return type(self), (self.supernet, self.arch)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Subnet":
        return type(self)(copy.deepcopy(self.supernet, memo), self.arch)


def _indices(
    name: str, rule: Rule, largest: Shape, wanted: Shape, choices: Mapping[str, Value]
) -> tuple[Index | None, ...] | None:
    if len(largest) != len(wanted) or any(w > s for w, s in zip(wanted, largest, strict=True)):
        raise ValueError(
            f"{name!r} is wanted in the shape {wanted}, but the supernet holds it as {largest}; no network that was "
            "built to size the supernet was as large. Is the builder a function of the architecture alone?"
        )
    try:
        indices = tuple(rule(name, largest, wanted, choices))
    except ValueError as error:
        raise ValueError(f"the layout of {name!r} gives no {wanted} of {largest}: {error}") from error
    if len(indices) != len(largest):
        raise ValueError(
            f"the layout of {name!r} gives {len(indices)} indices, but a tensor of the shape {largest} needs "
            f"{len(largest)}, one per dimension"
        )
    shape = tuple(take(torch.empty(largest, device="meta"), indices).shape)
    if shape != wanted:
        raise ValueError(f"the layout of {name!r} gives the shape {shape} of {largest}, but {wanted} is wanted")
    needed = tuple(None if is_whole(index, size) else index for index, size in zip(indices, largest, strict=True))
    return needed if any(index is not None for index in needed) else None
