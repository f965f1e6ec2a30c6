"""Networks of any builder taken apart into their repeated parts and what stands around these."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from nasx.arch import Arch, Value
from nasx.measure.count import Call
from nasx.nn.builders import check_builder
from nasx.nn.parts import Parts, every_module_list
from nasx.nn.skeleton import Make, call_builder
from nasx.space import ArchSet
from nasx.train.modes import evaluating

_Timed = tuple[nn.Module, *tuple[Tensor, ...]]  # a module and the inputs of one forward pass


class NetworkBlocks:
    """What the networks of a builder `make` consist of, for `nasx.latency.measure_latency`: cut out of whole networks.

    A part is a module of a network, called with what it gets when the network is called with `example`: a tensor, a
    tuple of positional arguments, or a `Call`, with the batch size that matters. What stands around the parts is a
    network whose parts return at once what they returned before; it has what the network does between its parts, so
    leave out `ignore=["block.count"]`. A repeat `block` of the space is the module list `block` or `blocks`, or what
    `parts` says, as for `counted`. A ValueError names a repeat that is no module list, and a part that is not called.

    Examples:
        >>> blocks = NetworkBlocks(Network, space, torch.randn(1, 3, 32, 32))
        >>> latency = measure_latency(space, blocks)
    """

    def __init__(self, make: Make, space: ArchSet, example: Any, *, parts: Parts | None = None) -> None:
        check_builder(make, space, "NetworkBlocks(make, space, example)")
        self.make, self.space, self.call = make, space.space, Call.of(example)
        self._lists = every_module_list(make, self.space, dict(parts or {}), "taken out")

    @property
    def sizes(self) -> dict[str, Any]:
        """The shapes of what networks are called with, which a table of latencies keeps."""
        return {"inputs": [list(tensor.shape) for tensor in self.call.tensors]}

    def fixed(self, shared: Mapping[str, Value]) -> _Timed:
        """Return a network in which every part returns at once what it returned, and its inputs."""
        arch = self.space.pin(shared)[0]
        network = self._built(arch)
        names = [f"{path}.{index}" for name, path in self._lists.items() for index in range(len(arch.parts(name)))]
        for name, (_, outputs) in self._recorded(network, names).items():
            parent, _, leaf = name.rpartition(".")
            network.get_submodule(parent)._modules[leaf] = _Replayed(network.get_submodule(name), outputs)
        return _timed(network, [self.call])

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> _Timed:
        """Return one repeated part of a network, and what it is called with there."""
        arch, at = self._with_part(name, index, shared, choices)
        network, path = self._built(arch), f"{self._lists[name]}.{at}"
        calls, _ = self._recorded(network, [path])[path]
        return _timed(network.get_submodule(path), calls)

    def network(self, arch: Arch) -> _Timed:
        """Return a whole network and its inputs."""
        return _timed(self._built(arch), [self.call])

    def _built(self, arch: Arch) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            return call_builder(self.make, arch).cpu()

    def _with_part(
        self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]
    ) -> tuple[Arch, int]:
        """Return an architecture that has a part, and the index of that part, the given one where it can be."""
        for at in chain([index], (other for other in range(len(self.space.parts(name))) if other != index)):
            wanted: dict[str, Any] = {**shared, **{f"{name}.{at}.{key}": value for key, value in choices.items()}}
            if any(choice == f"{name}.count" for choice, _ in self.space.walk()):
                wanted.setdefault(f"{name}.count", lambda count, at=at: count > at)
            try:
                arch = self.space.pin(wanted)[0]
            except ValueError:  # another index has other choices
                continue
            if len(arch.parts(name)) > at:
                return arch, at
        raise ValueError(f"no architecture of the space has {dict(choices)} in {name!r} beside {dict(shared)}")

    def _recorded(self, network: nn.Module, names: Sequence[str]) -> dict[str, tuple[list[Call], list[Any]]]:
        """Return what some modules are called with in a forward pass, and what they return."""
        found: dict[str, tuple[list[Call], list[Any]]] = {name: ([], []) for name in names}

        def note(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                found[name][0].append(Call(args, kwargs))
                found[name][1].append(output)

            return hook

        handles = [network.get_submodule(name).register_forward_hook(note(name), with_kwargs=True) for name in names]
        try:
            with torch.no_grad(), evaluating(network):
                self.call.to("cpu")(network)
        finally:
            for handle in handles:
                handle.remove()
        if unused := [name for name, (calls, _) in found.items() if not calls]:
            raise ValueError(f"the network calls no {unused[0]!r}, so that it has no time of its own")
        return found


def _timed(module: nn.Module, calls: Sequence[Call]) -> _Timed:
    leaves, spec = tree_flatten([(call.args, dict(call.kwargs)) for call in calls])
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return _Called(module, leaves, spec), *tensors


class _Called(nn.Module):
    """Calls a module once or several times, with the tensors of nested arguments as its own arguments."""

    def __init__(self, module: nn.Module, leaves: Sequence[Any], spec: TreeSpec) -> None:
        super().__init__()
        self.module = module
        self._others, self._spec = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves], spec

    def forward(self, *tensors: Tensor) -> Any:
        given: Iterator[Tensor] = iter(tensors)
        leaves = [next(given) if other is None else other[0] for other in self._others]
        return [self.module(*args, **kwargs) for args, kwargs in tree_unflatten(leaves, self._spec)]


class _Replayed(nn.Module):
    """Returns what a module returned, call by call, and has its attributes."""

    def __init__(self, module: nn.Module, outputs: Sequence[Any]) -> None:
        super().__init__()
        self.module = module
        leaves, self._spec = tree_flatten(list(outputs))
        self._others = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self.register_buffer(f"output{number}", leaf, persistent=False)
        self._turn = cycle(range(len(outputs)))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        leaves = [getattr(self, f"output{n}") if other is None else other[0] for n, other in enumerate(self._others)]
        return tree_unflatten(leaves, self._spec)[next(self._turn)]
