"""Training and scoring with several processes, one per device, as torchrun starts them."""

import os
import signal
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from nasx.run.signals import Interrupted
from nasx.train.batchnorm_groups import BatchNormGroups
from nasx.train.whole_batch import Rows, WholeBatch

Item = TypeVar("Item")
Key = TypeVar("Key")
Value = TypeVar("Value")

_PATIENCE = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that work on a run, and which of them this one is; by default it is alone and sends no message.

    All ranks must make the same calls. `gather`, `from_first` and `wait` are patient, because shares of work take
    unequal times; all else, a training's steps too, ends with an error where a rank does not come within the timeout.
    """

    rank: int = 0
    """This process's number, from 0."""
    size: int = 1
    """Number of processes."""
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    """What this process computes on."""
    _patient: Any = field(default=None, repr=False, compare=False)
    _prompt: Any = field(default=None, repr=False, compare=False)
    """For small messages between the CPUs, which wait for nothing that a device still computes."""

    @property
    def part(self) -> tuple[int, int]:
        """Which part of every batch is this process's, as `nasx.data.TrainBatches` takes it."""
        return self.rank, self.size

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def shared_out(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's share of independent items: every `size`-th, from its rank on."""
        return items[self.rank :: self.size]

    def gather(self, results: Mapping[Key, Value]) -> dict[Key, Value]:
        """Return the results of all ranks, in the order of the ranks; each key is one rank's."""
        if self.size == 1:
            return dict(results)
        of_ranks: list[Any] = [None] * self.size
        dist.all_gather_object(of_ranks, dict(results), group=self._patient)
        gathered = {key: value for found in of_ranks for key, value in found.items()}
        assert len(gathered) == sum(map(len, of_ranks)), "two ranks gave a result of the same key"
        return gathered

    def from_first(self, value: Value) -> Value:
        """Return the first rank's value on every rank."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0, group=self._patient)
        return values[0]

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank: how all ranks stop at one step when one of them is asked to."""
        if self.size == 1:
            return flag
        flags = torch.tensor(flag, dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._prompt)
        return bool(flags)

    def wait(self) -> None:
        """Wait until every rank is here; call it after the first rank has written what others read or wait for."""
        if self.size > 1:
            dist.barrier(self._patient)


ALONE = Group()
"""A process on its own."""


@contextmanager
def process_group(device: torch.device, *, timeout_seconds: float = 25.0) -> Iterator[Group]:
    """Join the processes that torchrun started (RANK and WORLD_SIZE are set) for as long as the context lasts.

    `device` is what this process computes on: CUDA devices talk by NCCL, the CPU by gloo. Without torchrun, or where it
    started one process, the group is that process alone. A rank that does not come to a step within `timeout_seconds`,
    stuck or gone, is an error on all others; the default leaves torchrun, which gives a stuck rank 30 seconds more, to
    end all within a minute. The error that ends a rank names it, in its traceback and in torchrun's summary. No rank
    leaves the context before all have come to its end, or have been Interrupted, so that torchrun, which ends all when
    one leaves early, cuts no rank off that is still writing.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group(device=device)
        return
    rank = int(os.environ["RANK"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        timeout = timedelta(seconds=timeout_seconds)
        store, *_ = next(rendezvous("env://", timeout=timeout))
        # a group that torchrun restarts may meet the store of the one before, with addresses where nobody is any more
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)  # type: ignore[attr-defined]
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
        group = Group(rank, size, device, patient, dist.new_group(backend="gloo", timeout=timeout))
        try:
            yield group
        except Interrupted:
            group.wait()
            # torchrun ends the others with SIGTERM once the first has left: let each leave with its own status
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise
        group.wait()
    except Interrupted:
        dist.destroy_process_group()
        raise
    except Exception as error:
        # the group is not destroyed in order here, which could wait for a rank that hangs
        error.add_note(f"on rank {rank} of {size}")
        get_error_handler().record_exception(error)
        raise
    dist.destroy_process_group()


def rows_of(group: Group, count: int, amounts: Sequence[float] = ()) -> tuple[Rows, list[float]]:
    """Return which rows of the whole batch this process's are: those of the ranks lie one after the other.

    `amounts` are what other means than that over the rows divide by, such as a number of labels; returned with the rows
    is, for each, this process's share of it over its share of the rows.
    """
    if group.size == 1:
        return Rows(0, count, count), [1.0] * len(amounts)
    own = torch.tensor([count, *amounts], dtype=torch.float64)
    gathered = [torch.empty_like(own) for _ in range(group.size)]
    dist.all_gather(gathered, own, group=group._prompt)
    of_ranks = torch.stack(gathered)
    counts = [int(rows) for rows in of_ranks[:, 0].tolist()]
    rows = Rows(sum(counts[: group.rank]), count, sum(counts))
    totals = of_ranks[:, 1:].sum(dim=0).tolist()
    return rows, [
        amount * rows.whole / (total * count) if total and count else 1.0
        for amount, total in zip(amounts, totals, strict=True)
    ]


def whole_batch(group: Group, rows: Rows, batch_norm_group: int | None = None) -> AbstractContextManager[object]:
    """Return the context in which networks compute as if this process had the whole batch; see `WholeBatch`."""
    if group.size > 1:
        return WholeBatch(rows, batch_norm_group)
    return nullcontext() if batch_norm_group is None else BatchNormGroups(rows.whole, batch_norm_group)


def data_parallel(group: Group, model: nn.Module) -> nn.Module:
    """Return DistributedDataParallel around a model whose steps use all parameters, or the model alone.

    Every rank must hold the same weights. Buffers are not sent, for `WholeBatch` keeps them the same.
    """
    if group.size == 1:
        return model
    # of dimensions of one element, such as a grey image's channel, whose strides mean nothing
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    devices = [group.device] if group.device.type == "cuda" else None
    known = signature(DistributedDataParallel).parameters  # newer torch warns of the name that older ones have alone
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    buffers: dict[str, Any] = {name: False}
    return DistributedDataParallel(model, device_ids=devices, init_sync=False, **buffers)


def average_over(group: Group, tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their averages over the ranks, in one message; every rank must give the same ones."""
    tensors = list(tensors)
    if group.size == 1:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= group.size
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])


def check_same_start(group: Group, model: nn.Module, step: int) -> None:
    """Raise ValueError where the ranks would start at different steps or from different weights."""
    if group.size == 1:
        return
    digest = 0
    for tensor in model.state_dict().values():
        digest = zlib.crc32(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy(), digest)
    starts = group.gather({group.rank: (step, digest)})
    for rank, (other_step, other_digest) in starts.items():
        if (other_step, other_digest) != starts[0]:
            what = f"step {other_step}" if other_step != starts[0][0] else "other weights"
            raise ValueError(
                f"rank {rank} starts from {what}, rank 0 from step {starts[0][0]}; "
                "all ranks must use the same seed and read the same checkpoints"
            )
