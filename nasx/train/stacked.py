"""Several networks of one architecture, computed and trained as one.

A small network does not fill a GPU: most of a step passes between its many short operations. Networks that differ in
their seeds alone have the same operations, so that one operation can do the work of all.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from nasx._modules import copied, description
from nasx.train.losses import Loss, loss_of_labels


class StackedNetworks(nn.Module):
    """Networks of one architecture as one module, whose parameters and buffers have a first dimension for them.

    It is called with inputs (K, B, ...), a batch for each of the K networks, and gives outputs (K, B, ...). Parameters
    have the networks' own names. Train it as any module.

    Each network learns as it would alone: BatchNorm's statistics, clipping by the norm and weight decay are its own.
    Dropout and stochastic depth draw for all at once, so their masks are not those of separate trainings. A step that
    is not finite for one of them is left out for all. Tied tensors stay tied, and a module used twice stays one.

    Raises ValueError for networks of different architectures, and, when they run, for those that assign a new tensor to
    a buffer instead of changing it in place. The computing is that of `torch.func.vmap`, which supports networks
    without control flow that depends on values.

    Examples:
        >>> stacked = StackedNetworks([make(arch) for seed in range(8)])
        >>> optimizer = adamw(stacked, lr=1e-3, weight_decay=0.05)
        >>> train(stacked, stacked_batches(*batches), optimizer, loss=stacked_loss(F.cross_entropy)).run()
        >>> networks = stacked.unstack()
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise ValueError("there are no networks to stack; give at least one")
        first = _signature(networks[0])
        for number, network in enumerate(networks):
            own = _signature(network)
            if differing := [name for name in (*first, *own) if first.get(name) != own.get(name)]:
                raise ValueError(
                    f"networks that are trained as one need the same architecture, but {differing[0]!r} is "
                    f"{own.get(differing[0])!r} in number {number} and {first.get(differing[0])!r} in the first"
                )
        self.count = len(networks)
        self.train(networks[0].training)
        tensors = dict(_tensors(networks[0]))
        others = [dict(_tensors(network)) for network in networks]
        stacked = {
            tensor: _like(tensor, torch.stack([other[name].detach() for other in others]).contiguous())
            for name, tensor in tensors.items()
        }
        self.stack = _with_tensors(networks[0], stacked)
        empty = {tensor: _like(tensor, torch.empty_like(tensor, device="meta")) for tensor in tensors.values()}
        self.__dict__["_skeleton"] = _with_tensors(networks[0], empty)  # no submodule: it holds no weights

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of all networks (K, B, ...) for a batch each."""
        skeleton: nn.Module = self.__dict__["_skeleton"]
        if skeleton.training != self.training:
            skeleton.train(self.training)
        tensors = dict(_tensors(self.stack))
        once = {id(tensor): tensor for tensor in tensors.values()}
        names = {name: id(tensor) for name, tensor in tensors.items()}
        call = vmap(partial(_call, skeleton, names), randomness="different")
        # fused attention runs network by network on a CPU, and its backward pass refuses what vmap hands it on CUDA
        with sdpa_kernel(SDPBackend.MATH):
            return call(once, args, kwargs)

    def no_weight_decay(self) -> set[str]:
        """Return the names that the networks' own method of this name spares, as timm's models have it."""
        return {f"stack.{name}" for name in getattr(self.stack, "no_weight_decay", set)()}

    def norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the 2-norm of each network's gradients, (K,)."""
        each = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
        return torch.linalg.vector_norm(torch.stack(each), dim=0)

    @torch.no_grad()
    def unstack(self) -> list[nn.Module]:
        """Return the networks as modules of their own, with copies of their tensors."""
        tensors = [tensor for _, tensor in _tensors(self.stack)]
        return [
            _with_tensors(self.stack, {tensor: _like(tensor, tensor[number].clone()) for tensor in tensors})
            for number in range(self.count)
        ]


def stacked_batches(*batches: Iterable[Any]) -> Iterator[Any]:
    """Yield one batch of each source as one, every tensor in it with a first dimension for the sources.

    It ends with the first source that does. All must give batches of the same shapes.
    """
    for parts in zip(*batches, strict=False):
        yield tree_map(lambda *tensors: torch.stack(tensors) if isinstance(tensors[0], Tensor) else tensors[0], *parts)


def stacked_loss(loss: Loss) -> Callable[[Any, Any], Tensor]:
    """Return a loss of stacked outputs and targets, (K, B, ...): the mean over the networks of theirs.

    Its gradient is that of their sum, so that each network's gradient is its own.
    """

    def mean(outputs: Any, targets: Any) -> Tensor:
        each = vmap(partial(loss_of_labels, loss))(outputs, targets)
        total = each.sum()
        return total + (each.mean() - total).detach()

    return mean


def _call(
    skeleton: nn.Module,
    names: dict[str, int],
    tensors: dict[int, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    # torch's own tying puts back what it has put into a module that is used twice
    own = {name: tensors[key] for name, key in names.items()}
    outputs = functional_call(skeleton, own, args, kwargs, tie_weights=False)
    for name, key in names.items():
        if own[name] is not tensors[key]:  # to which torch writes what the network assigned
            raise ValueError(
                f"the network assigns a new tensor to {name!r} when it runs, which networks that are computed as one "
                "would forget; change it in place, such as with copy_ or add_"
            )
    return outputs


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of every module, each module once; tied tensors have several names."""
    for path, module in network.named_modules():
        for leaf, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is not None:
                yield f"{path}.{leaf}" if path else leaf, tensor


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _with_tensors(network: nn.Module, tensors: dict[Tensor, Tensor]) -> nn.Module:
    """Return a copy of a network with others for its tensors, tied where they are tied."""
    return copied(network, {id(tensor): other for tensor, other in tensors.items()})


def _signature(network: nn.Module) -> dict[str, object]:
    """Return what networks of one architecture have in common: modules, their attributes, and ties of tensors."""
    first: dict[int, str] = {}  # of a tensor or module that has several names
    tensors, modules = dict(_tensors(network)), network.named_modules(remove_duplicate=False)
    ties = {f"the tie of {name}": first.setdefault(id(part), name) for name, part in chain(tensors.items(), modules)}
    types = {f"the type of {name}": tensor.dtype for name, tensor in tensors.items()}
    described = {name: value for name, value in description(network).items() if not name.endswith("training")}
    return {**described, **ties, **types}
