"""BatchNorm statistics of fewer samples than a batch has, as processes that do not talk to each other compute them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode


class BatchNormGroups(TorchFunctionMode):
    """While entered, BatchNorm in training normalises each group of `group_size` samples by their own statistics.

    So a batch of 1,024 on one device trains as four processes with 256 each do that do not share statistics ("ghost
    batch normalisation", Hoffer et al. 2017). It holds for layers of any kind, in extracted networks and in supernets,
    whose first dimension is the samples' or samples times tokens. `samples` is the size of the batch; it is cut into
    as few groups of at most `group_size` as there can be, of about equal size. The running statistics move towards the
    mean of the groups' own.
    """

    def __init__(self, samples: int, group_size: int) -> None:
        super().__init__()
        if group_size < 2:
            raise ValueError(f"BatchNorm needs groups of at least 2 samples, but got {group_size}")
        self.samples, self.group_size = samples, group_size

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Replace `F.batch_norm`; everything else is unchanged."""
        if func is F.batch_norm:
            return grouped_batch_norm(self.samples, self.group_size, *args, **(kwargs or {}))
        if func is Tensor.backward:
            return backward_inside(self, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def backward_inside(mode: TorchFunctionMode, loss: Tensor, gradient: Tensor | None = None, **kwargs: Any) -> None:
    """Compute `loss.backward(gradient, ...)` in a mode, for gradient checkpoints run their forward pass again."""
    edge = get_gradient_edge(loss)  # of a tensor, torch would hand the call to the mode again
    with mode:
        torch.autograd.backward(edge, gradient, **kwargs)


def grouped_batch_norm(
    samples: int,
    group_size: int,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    over_ranks: bool = False,
) -> Tensor:
    """Compute `F.batch_norm` of (B, C, ...) group by group; see `BatchNormGroups`.

    With `over_ranks` the running statistics are those of the groups of all ranks of the default process group.
    """
    if not training or input.shape[0] % samples:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    rows, groups = input.shape[0] // samples, -(-samples // group_size)
    edges = [samples * number // groups * rows for number in range(1, groups)]
    outputs, found = [], []
    for part in torch.tensor_split(input, edges):
        mean, var = (None if kept is None else torch.zeros_like(kept) for kept in (running_mean, running_var))
        outputs.append(F.batch_norm(part, mean, var, weight, bias, True, 1.0, eps))  # 1: the group's own statistics
        found.append([value for value in (mean, var) if value is not None])
    with torch.no_grad():
        for kept, of_groups in zip((running_mean, running_var), zip(*found, strict=True), strict=False):
            assert kept is not None
            total = torch.stack(of_groups).sum(dim=0)
            if over_ranks:
                flat = torch.cat([total, total.new_full((1,), groups)])
                dist.all_reduce(flat)
                total, count = flat[:-1], flat[-1]
                kept.lerp_(total / count, momentum)
            else:
                kept.lerp_(total / groups, momentum)
    return torch.cat(outputs)
