"""What a supernet asks of the function that builds its networks: one network for each architecture, stable names."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

from nasx._arguments import check_archs
from nasx._modules import description
from nasx.arch import Arch
from nasx.nn import probes
from nasx.nn.blueprint import Blueprint
from nasx.nn.naming import Naming
from nasx.nn.skeleton import Make, build_skeleton, call_builder
from nasx.space import Space

_Site = tuple[tuple[CodeType, int], ...]
"""Where in the builder's code a module was made: its call stack, as code objects and instructions."""

_Members = dict[tuple[_Site, type], list[tuple[str, nn.Module]]]
"""The members of a container by the place in the builder's code that made them, in order, with their names."""


def check_builder(make: object, space: object, call: str) -> None:
    """Refuse a space or a builder that is none with a TypeError that says how a function is called, `call`."""
    check_archs(space, call)
    if isinstance(make, nn.Module):
        raise TypeError(
            f"`make` must build the network of any architecture, but got one network, a {type(make).__name__}; pass "
            f"its class, or a function of an architecture: {call}"
        )
    if not callable(make):
        raise TypeError(f"`make` must be a function or class that builds a network, but got {make!r}; write {call}")


def check_repeatable(make: Make, arch: Arch) -> None:
    """Refuse a builder that makes two different networks of one architecture; ValueError names what differs."""
    made = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            made.append(build_skeleton(make, arch))
    first, second = map(description, made)
    for name in [*first, *second]:
        if first.get(name) != second.get(name):
            raise ValueError(
                "the builder must be a function of the architecture, but two networks of one architecture differ in "
                f"{name!r}: {first.get(name)!r} and {second.get(name)!r}"
            )
    drawn = dict(made[1].named_buffers())
    for name, buffer in made[0].named_buffers():
        if not buffer.is_meta and not torch.equal(buffer.nan_to_num(), drawn[name].nan_to_num()):
            raise ValueError(
                f"the buffer {name!r} holds other numbers each time the network is built, so the builder is no "
                "function of the architecture; make it a parameter with requires_grad=False, which architectures "
                "share, or draw it from a generator with a seed of its own"
            )


def refuse_shifting_names(make: Make, space: Space, naming: Naming, found: Sequence[Blueprint]) -> None:
    """Refuse containers in which what follows a variable number of layers has no number of its own.

    Where a container is longer for one architecture than for another, the modules that one line of the builder makes
    must stand at the same places in both; otherwise their weights would be others in every depth.
    """
    varying = _varying_containers(found)
    for arch in dict.fromkeys(varying.values()):
        for pattern, changed in probes.changes(space, arch):
            with _construction_sites() as site_of:
                networks = [build_skeleton(make, a) for a in (arch, changed)]
                for container in varying:
                    ours, theirs = (_members(network, container, site_of) for network in networks)
                    _refuse_shifted(naming, container, ours, theirs, pattern)


def _varying_containers(found: Sequence[Blueprint]) -> dict[str, Arch]:
    """Return the containers that are not of one length, each with an architecture that has it at its longest."""
    longest: dict[str, Blueprint] = {}
    varying: set[str] = set()
    for network in found:
        for container, length in network.containers.items():
            known = longest.setdefault(container, network)
            if known.containers[container] != length:
                varying.add(container)
            if known.containers[container] < length:
                longest[container] = network
    return {container: network.arch for container, network in longest.items() if container in varying}


def _members(network: nn.Module, container: str, site_of: Callable[[nn.Module], _Site]) -> _Members:
    found: _Members = {}
    try:
        members = list(network.get_submodule(container).named_children())
    except AttributeError:  # this architecture has no such container
        return found
    for name, module in members:
        found.setdefault((site_of(module), type(module)), []).append((f"{container}.{name}".lstrip("."), module))
    return found


def _refuse_shifted(naming: Naming, container: str, members: _Members, others: _Members, pattern: str) -> None:
    if sum(map(len, members.values())) == sum(map(len, others.values())):
        return
    for site, own in members.items():
        for (name, module), (other, other_module) in zip(own, others.get(site, ()), strict=False):
            if name != other and any(
                _is_shared(naming, *member, pattern) for member in ((name, module), (other, other_module))
            ):
                raise ValueError(
                    f"the names in {container or 'the network'!r} shift: a {type(module).__name__} is {name!r} for "
                    f"some architectures and {other!r} for others that differ in {pattern!r}, because it follows a "
                    "variable number of layers in one container; give it a name of its own outside of that"
                )


def _is_shared(naming: Naming, name: str, module: nn.Module, pattern: str) -> bool:
    """Return whether a module has weights without a copy for each value of a choice."""
    choice = pattern.split("*.")[-1]
    weights = (f"{name}.{leaf}" for leaf, _ in module.named_parameters(remove_duplicate=False))
    return any(choice not in naming.choices(weight) for weight in weights)


@contextmanager
def _construction_sites() -> Iterator[Callable[[nn.Module], _Site]]:
    """Record where modules are made; the function that it gives returns a module's site.

    While it is open, `nn.Module.__init__` is replaced for this process: open it briefly.
    """
    sites: dict[int, _Site] = {}
    kept: list[nn.Module] = []  # so that no two modules have one id
    original, thread = nn.Module.__init__, threading.get_ident()

    def record(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if threading.get_ident() != thread or id(self) in sites:
            return
        kept.append(self)
        frame: FrameType | None = sys._getframe(1)
        stack = []
        while frame is not None and frame.f_code is not call_builder.__code__:
            # constructors between this one and the builder's own call say nothing about the place
            if frame.f_locals.get("self") is not self:
                stack.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back
        sites[id(self)] = tuple(stack)

    nn.Module.__init__ = record  # type: ignore[method-assign]
    try:
        yield lambda module: sites.get(id(module), ())
    finally:
        nn.Module.__init__ = original  # type: ignore[method-assign]
