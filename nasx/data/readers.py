"""Reading ahead in worker processes."""

import io
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from nasx._processes import end_with_parent

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2
_NOTHING = -1
_noted: Tensor | None = None  # in a worker process: where it writes which sample it is on, for the parent to see


class WorkerDied(RuntimeError):
    """A process that read ahead died twice at the same place; the message names the samples it was on."""


def read_ahead(
    read: Callable[[T], R], requests: Sequence[T], workers: int, *, name: Callable[[int], object] = str
) -> Iterator[R]:
    """Yield `read` of every request, in order; with workers, each of them reads up to two requests ahead.

    Where processes are not forked, `read` must be picklable, with cloudpickle if that is installed. A ValueError is
    raised here as it was raised there. When a worker dies, all are replaced once and go on with the request that is
    due; when one dies again before the requests of that moment are through, WorkerDied names the samples that `read`
    passed to `now_reading`, by `name`.
    """
    if not workers:
        yield from map(read, requests)
        return
    position, patience = 0, 0
    while position < len(requests):
        notes = torch.full((workers,), _NOTHING)
        notes.share_memory_()  # type: ignore[no-untyped-call]
        try:
            for result in _results(_Reads(read, requests[position:], notes), workers):
                if isinstance(result, ValueError):
                    raise result
                yield result
                position += 1
        except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
            if not _reports_a_death(error):
                raise
            if position < patience:
                on = ", ".join(str(name(sample)) for sample in sorted(set(notes.tolist()) - {_NOTHING}))
                raise WorkerDied(
                    f"processes that read images died twice at the same place, while reading {on or 'no image'}: "
                    f"{error}; use fewer workers if memory ran out, else replace the image that ends its reader"
                ) from error
            patience = position + _AHEAD * workers + 1


def now_reading(sample: int) -> None:
    """Note which sample is being read, so that it can be named should it end this worker process."""
    if _noted is not None:
        _noted.fill_(sample)


def _results(reads: "_Reads[T, R]", workers: int) -> Iterator[R | ValueError]:
    loader = DataLoader(
        reads,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_AHEAD,
        collate_fn=_unchanged,
        worker_init_fn=_end_with_parent,
        generator=torch.Generator(),  # unused, but without it one number is drawn from the global generator
    )
    with _deaths_raised_while_waiting():
        results = iter(loader)
    yield from results


@contextmanager
def _deaths_raised_while_waiting() -> Iterator[None]:
    """Undo torch's handler of SIGCHLD, which raises a worker's death wherever the main thread is, as in a backward.

    Waiting for a batch notices it all the same, within seconds.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if handler is not None:  # None: set by C code, and not to be set again
            signal.signal(signal.SIGCHLD, handler)


def _reports_a_death(error: Exception) -> bool:
    """Whether torch found a worker dead, or a result cannot be fetched from it; what workers raise is "Caught ..."."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    return not str(error).startswith("Caught")


def _unchanged(result: Any) -> Any:
    return result


def _end_with_parent(worker: int) -> None:
    # torch watches for another parent's number, which a process has never that a server was asked to fork
    end_with_parent()


@dataclass(frozen=True)
class _Reads(Dataset[R | ValueError], Generic[T, R]):
    read: Callable[[T], R]
    requests: Sequence[T]
    notes: Tensor

    def __getstate__(self) -> tuple[bytes, Tensor]:
        return _pickled((self.read, self.requests)), self.notes

    def __setstate__(self, state: tuple[bytes, Tensor]) -> None:
        read, requests = pickle.loads(state[0])
        vars(self).update(read=read, requests=requests, notes=state[1])

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, position: int) -> R | ValueError:
        global _noted
        worker = get_worker_info()
        assert worker is not None
        _noted = self.notes[worker.id]
        try:
            return self.read(self.requests[position])
        except ValueError as error:  # raised, it would reach the user wrapped in the worker's traceback
            return error
        finally:
            now_reading(_NOTHING)


def _pickled(value: Any) -> bytes:
    """Return what a process that starts can read: tensors as shared memory, and what a program defines itself whole."""
    content = io.BytesIO()
    plain = ForkingPickler(content)
    if find_spec("cloudpickle") is None:
        plain.dump(value)
        return content.getvalue()
    pickler = import_module("cloudpickle").Pickler(content)
    pickler.dispatch_table = pickler.dispatch_table.new_child(plain.dispatch_table)
    pickler.dump(value)
    return content.getvalue()
