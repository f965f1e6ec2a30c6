"""Comparing functions that run in turns in one process, so that what disturbs one disturbs its neighbour too."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of each function in each round; ratios are of neighbours."""

    seconds: Mapping[str, np.ndarray[tuple[int], np.dtype[np.float64]]]

    @property
    def rounds(self) -> int:
        """How often each function was timed."""
        return len(next(iter(self.seconds.values())))

    def median(self, name: str) -> float:
        """Return the median seconds of a function."""
        return float(np.median(self.seconds[name]))

    def ratio(self, name: str, to: str) -> float:
        """Return the median over the rounds of the time of one function over that of another."""
        return float(np.median(self.seconds[name] / self.seconds[to]))

    def spread(self, name: str, to: str) -> tuple[float, float]:
        """Return the quartiles of the same ratios."""
        low, high = np.quantile(self.seconds[name] / self.seconds[to], (0.25, 0.75))
        return float(low), float(high)


def alternate(
    functions: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 3.0,
    device: torch.device | str = "cpu",
    warm_up: int = 2,
    wall: bool = False,
    at_least: int = 5,
) -> Timings:
    """Run functions in turns for about `seconds`, every other round in reverse order, and return their times.

    There are `at_least` so many rounds, however slow the functions are, after `warm_up` calls of each.

    On the CPU with one thread the clock is that of the process, which leaves out what other processes take of a busy
    machine and is the same on an idle one; otherwise, and with `wall` for what waits for disks or other processes, it
    is the wall clock, read when the device has finished.
    """
    device = torch.device(device)
    alone = device.type == "cpu" and torch.get_num_threads() == 1 and not wall
    clock = time.process_time if alone else time.perf_counter
    for function in functions.values():
        for _ in range(warm_up):
            function()
    found: dict[str, list[float]] = {name: [] for name in functions}
    order, started = list(functions), time.perf_counter()
    while len(found[order[0]]) < at_least or time.perf_counter() - started < seconds:
        for name in order:
            finish(device)
            begun = clock()
            functions[name]()
            finish(device)
            found[name].append(clock() - begun)
        order.reverse()
    return Timings({name: np.array(times) for name, times in found.items()})


def finish(device: torch.device | str) -> None:
    """Wait until a device has computed all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
