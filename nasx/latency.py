"""Latency as a cost: each distinct block is timed once on a device, and a table of whole microseconds adds them up.

Blocks run one after the other in a new random order each round, as they would in a network: a block finds the caches
as other blocks left them, and a change of the machine's speed affects all of them equally. Each gets the median of its
rounds.

Blocks run in torch, or in ONNX Runtime (`OnnxRuntime`) where networks are to be deployed with it.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nasx._arguments import check_space
from nasx._cases import shared_space
from nasx._nested import flattened
from nasx._onnx import check_installed
from nasx.arch import Arch, Value
from nasx.cost import AdditiveCost
from nasx.feasible import attainable
from nasx.nn.parts import repeat_names
from nasx.run import write_json
from nasx.space import Space
from nasx.train.device import device_name, pick_device
from nasx.train.modes import evaluating

logger = logging.getLogger(__name__)

Timed = tuple[nn.Module, *tuple[Tensor, ...]]
"""A module and the inputs of one forward pass."""

_FORMAT = 1
_NETWORKS = 10  # in memory at once


class Blocks(Protocol):
    """What builds the modules that are timed, with inputs of the batch size that matters; any device will do.

    `nasx.measure.NetworkBlocks` takes the networks of any builder apart, `nasx.measure.ViTBlocks` vision transformers.
    `fixed` is the network without its repeated parts, called as the network is. `shared` are the choices outside
    repeated parts without those in the `ignore` of `measure_latency`. Where an object has a mapping `sizes` too, such
    as {"embed_dim": 192, "batch_size": 1}, the table keeps it.
    """

    def fixed(self, shared: Mapping[str, Value]) -> Timed:
        """Return what stands around the repeated parts."""

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> Timed:
        """Return one repeated part, such as a block."""

    def network(self, arch: Arch) -> Timed:
        """Return a whole network, which `latency_report` compares with."""


@dataclass(frozen=True, slots=True)
class MeasuredOn:
    """Where a table was measured."""

    device: str
    """The name of the GPU or of the CPU."""
    threads: int
    """CPU threads of torch."""
    torch: str
    system: str
    runtime: str = "torch"
    """What ran the blocks, with its version and providers where it is not torch."""


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """Runs modules in ONNX Runtime, with as many threads as torch has, instead of in torch.

    `providers` are ONNX Runtime's execution providers, the preferred first; inputs lie in the memory of the host. Each
    module is exported with the shapes of its inputs, which takes seconds. Needs the extra `onnx`; an ImportError says
    so. A provider that the installed ONNX Runtime does not have is a ValueError.
    """

    providers: tuple[str, ...] = ("CPUExecutionProvider",)

    @property
    def name(self) -> str:
        """The runtime with its version and providers."""
        return f"onnxruntime {_onnxruntime().__version__}, {', '.join(self.providers)}"

    def call(self, module: nn.Module, *inputs: Tensor) -> Callable[[], object]:
        """Return what runs a module once on inputs."""
        runtime = _onnxruntime()
        if unknown := [name for name in self.providers if name not in runtime.get_available_providers()]:
            raise ValueError(
                f"this ONNX Runtime has no provider {unknown[0]!r}, only {', '.join(runtime.get_available_providers())}"
            )
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        program = torch.onnx.export(module, inputs, dynamo=True, verbose=False)
        assert program is not None
        session = runtime.InferenceSession(
            program.model_proto.SerializeToString(), options, providers=list(self.providers)
        )
        feeds = {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), inputs, strict=True)}
        return partial(session.run, None, feeds)


Clock = Callable[[], float]
"""Seconds from any start; only differences have a meaning."""

FixedKey = Arch
"""The shared choices that matter."""
PartKey = tuple[str, int, Arch, Arch]
"""A part's name, its index (0 where that does not matter), the shared choices that matter, and its own."""


@dataclass(frozen=True)
class Latency(AdditiveCost):
    """Measured latency of a batch, in whole microseconds; `measure_latency` makes one.

    A block that was not measured is a ValueError.
    """

    measured_on: MeasuredOn
    fixed_times: Mapping[FixedKey, int]
    part_times: Mapping[PartKey, int]
    ignored: tuple[str, ...] = ()
    by_index: bool = False
    sizes: Mapping[str, Any] = field(default_factory=dict)
    """What the measured networks have in common, and the batch size, as JSON values; empty where it is not known."""

    unit = "µs"

    def fixed(self, shared: Mapping[str, Value]) -> int:
        """Return the microseconds of what stands around the repeated parts."""
        return _found(self.fixed_times, self.fixed_key(shared), shared)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        """Return the microseconds of one part."""
        return _found(self.part_times, self.part_key(name, index, shared, choices), {**shared, **choices})

    def fixed_key(self, shared: Mapping[str, Value]) -> FixedKey:
        """Return what `fixed_times` holds the time under."""
        return Arch({key: value for key, value in shared.items() if key not in self.ignored})

    def part_key(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> PartKey:
        """Return what `part_times` holds the time under."""
        return name, index if self.by_index else 0, self.fixed_key(shared), Arch(choices)

    def check_sizes(self, sizes: Mapping[str, Any]) -> None:
        """Refuse, as ValueError, networks of other `sizes` than were measured; the batch size is not compared."""
        ours, theirs = dict(flattened(self.sizes)), dict(flattened(json.loads(json.dumps(dict(sizes)))))
        different = [name for name in theirs if name not in ours or ours[name] != theirs[name]]
        if different:
            measured, asked = (
                ", ".join(f"{name}={found.get(name, 'unknown')}" for name in different) for found in (ours, theirs)
            )
            raise ValueError(f"the latencies were measured on networks with {measured}, but these have {asked}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON, with the device's name and versions."""
        parts = [
            {"name": name, "index": index, "shared": dict(shared), "choices": dict(choices), "microseconds": took}
            for (name, index, shared, choices), took in self.part_times.items()
        ]
        document = {
            "latency": _FORMAT,
            "measured_on": asdict(self.measured_on),
            "ignored": list(self.ignored),
            "by_index": self.by_index,
            "sizes": dict(self.sizes),
            "fixed": [{"shared": dict(shared), "microseconds": took} for shared, took in self.fixed_times.items()],
            "parts": parts,
        }
        write_json(path, document)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, measured_elsewhere: bool = False) -> "Latency":
        """Read what `save` wrote.

        A table of another device is a ValueError, and one of a CPU with another number of threads than torch has now,
        unless it may have been `measured_elsewhere`, as it is where networks are to run on another machine than the
        search. Other versions of torch or of ONNX Runtime are warned of. A file that holds no such table is a
        ValueError, too.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            if document["latency"] != _FORMAT:
                raise ValueError(f"its format is {document['latency']!r}, this version reads {_FORMAT}")
            table = cls(
                MeasuredOn(**document["measured_on"]),
                {Arch(row["shared"]): _whole(row["microseconds"]) for row in document["fixed"]},
                {
                    (row["name"], row["index"], Arch(row["shared"]), Arch(row["choices"])): _whole(row["microseconds"])
                    for row in document["parts"]
                },
                tuple(document["ignored"]),
                document["by_index"],
                dict(document.get("sizes", {})),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no table of latencies ({error!r}); write one with Latency.save") from None
        if not measured_elsewhere:
            _check_place(table.measured_on, path)
        return table


def _check_place(where: MeasuredOn, path: str | os.PathLike[str]) -> None:
    """Refuse what was measured on another device or with other threads, and warn of other versions."""
    cpu = device_name(torch.device("cpu"))
    own = {cpu}
    if torch.cuda.is_available():
        own |= {device_name(torch.device("cuda", i)) for i in range(torch.cuda.device_count())}
    if where.device not in own:
        raise ValueError(
            f"the latencies in {path} were measured on {where.device!r}, but this machine has "
            f"{', '.join(map(repr, sorted(own)))}; measure here, or say measured_elsewhere=True"
        )
    if where.device == cpu and where.threads != (threads := torch.get_num_threads()):
        raise ValueError(
            f"the latencies in {path} were measured on {where.threads} threads, but torch has {threads} now; call "
            f"torch.set_num_threads({where.threads}), measure again, or say measured_elsewhere=True"
        )
    versions = [(f"torch {where.torch}", f"torch {torch.__version__}")]
    if where.runtime != "torch":
        versions.append((where.runtime.partition(",")[0], _onnxruntime_version()))
    for measured, here in versions:
        if measured != here:
            logger.warning(
                "the latencies in %s were measured with %s, but here is %s; measure again, or say "
                "measured_elsewhere=True",
                path,
                measured,
                here,
            )


def _onnxruntime_version() -> str:
    try:
        return f"onnxruntime {_onnxruntime().__version__}"
    except ImportError:
        return "no onnxruntime"


def measure_latency(
    space: Space,
    blocks: Blocks,
    *,
    device: str = "auto",
    rounds: int = 30,
    ignore: Sequence[str] = (),
    by_index: bool = False,
    seed: int = 0,
    clock: Clock | None = None,
    runtime: OnnxRuntime | None = None,
    on_ready: Callable[[int, int], object] = lambda done, total: None,
) -> Latency:
    """Time each distinct block that a space can need, in evaluation mode, and return the cost that adds them up.

    A part is built once for each assignment of the shared choices and its own, whatever its index unless `by_index`.
    `ignore` names shared choices on which no block depends, such as `block.count`: they then multiply nothing. All
    blocks are in memory at once. Times are medians over the `rounds`, each in an order drawn with `seed`, and hold for
    the number of threads that torch has meanwhile. `clock`, `runtime` and `on_ready` are as for `time_modules`. A
    TypeError says that `space` is no whole space, or that `blocks` lacks these methods, as a builder of networks does.
    """
    check_space(space, "measure_latency(space, blocks)")
    shared = [name for name, _ in shared_space(space).walk()]
    fixed_counts = {f"{name}.count" for name in repeat_names(space)}
    if unknown := [name for name in ignore if name not in shared and name not in fixed_counts]:
        raise ValueError(
            f"`ignore` names choices outside of repeated parts, but got {unknown[0]!r}; this space has "
            f"{', '.join(shared) or 'none'}"
        )
    _check_blocks(blocks, "measure_latency(space, blocks)", "fixed", "part")
    where = _pick_device(device, runtime)
    fixed: dict[FixedKey, int] = {}
    parts: dict[PartKey, int] = {}
    table = Latency(_measured_on(where, runtime), fixed, parts, tuple(ignore), by_index, _sizes(blocks))
    attainable(space, _BlocksInUse(table, fixed, parts))
    modules = [*(blocks.fixed(shared) for shared in fixed), *(blocks.part(*key) for key in parts)]
    found = time_modules(
        modules, device=device, rounds=rounds, seed=seed, clock=clock, runtime=runtime, on_ready=on_ready
    )
    times = [round(took) for took in found]
    fixed.update(zip(fixed, times[: len(fixed)], strict=True))
    parts.update(zip(parts, times[len(fixed) :], strict=True))
    return table


@dataclass(frozen=True)
class _BlocksInUse(AdditiveCost):
    """Records the blocks whose cost is asked for: all that a budget can need."""

    table: Latency
    fixed_times: dict[FixedKey, int]
    part_times: dict[PartKey, int]

    def fixed(self, shared: Mapping[str, Value]) -> int:
        return self.fixed_times.setdefault(self.table.fixed_key(shared), 0)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return self.part_times.setdefault(self.table.part_key(name, index, shared, choices), 0)


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """Predicted and measured latencies of whole networks, in microseconds."""

    predicted: tuple[int, ...]
    measured: tuple[float, ...]

    @property
    def relative_errors(self) -> tuple[float, ...]:
        """Predicted over measured minus 1, network by network: above 0 where the table promises too much time."""
        return tuple(p / m - 1 for p, m in zip(self.predicted, self.measured, strict=True))

    @property
    def median_error(self) -> float:
        """Median of the relative errors' sizes."""
        return median(map(abs, self.relative_errors))

    @property
    def bias(self) -> float:
        """Median relative error with its sign: what is common to all networks, and changes no ranking."""
        return median(self.relative_errors)


def latency_report(
    table: Latency,
    blocks: Blocks,
    archs: Sequence[Arch],
    *,
    device: str = "auto",
    rounds: int = 10,
    seed: int = 0,
    clock: Clock | None = None,
    runtime: OnnxRuntime | None = None,
) -> LatencyReport:
    """Compare a table's predictions with the measured latency of whole networks, ten of them by turns.

    A table that was measured in another runtime is a ValueError, and so is no network.
    """
    if not isinstance(table, Latency):
        raise TypeError(f"`table` must be a Latency, but got {table!r}; write latency_report(table, blocks, archs)")
    _check_blocks(blocks, "latency_report(table, blocks, archs)", "network")
    if (here := _runtime_name(runtime)) != table.measured_on.runtime:
        raise ValueError(
            f"the table was measured in {table.measured_on.runtime!r}, but networks are to run in {here!r}; give the "
            "same runtime"
        )
    if not archs:
        raise ValueError(
            "`archs` must hold the networks to measure, but it is empty; draw some with space.sample(0, n)"
        )
    predicted = tuple(table(arch) for arch in archs)
    measured: list[float] = []
    for first in range(0, len(archs), _NETWORKS):
        networks = [blocks.network(arch) for arch in archs[first : first + _NETWORKS]]
        measured += time_modules(networks, device=device, rounds=rounds, seed=seed, clock=clock, runtime=runtime)
    return LatencyReport(predicted, tuple(measured))


def time_modules(
    modules: Sequence[Timed],
    *,
    device: str = "auto",
    rounds: int = 30,
    warm_up: int = 3,
    seed: int = 0,
    clock: Clock | None = None,
    runtime: OnnxRuntime | None = None,
    on_ready: Callable[[int, int], object] = lambda done, total: None,
) -> list[float]:
    """Return the median microseconds of a forward pass of each module, in evaluation mode without gradients.

    Modules and inputs are moved to the device; modes are restored. After `warm_up` rounds that do not count, each round
    runs all of them once, in an order of its own. On CUDA, events mark what the device spends, with its waiting
    for launches as in a network. Elsewhere `clock` gives the time, `time.perf_counter` by default; on a CPU that is
    busy with other work, `time.thread_time` gives what one thread would take on an idle one.

    With a `runtime` modules run in ONNX Runtime, on the CPU; `on_ready(done, total)` follows each that is ready to run.
    """
    if rounds < 1 or warm_up < 0:
        raise ValueError(f"`rounds >= 1` and `warm_up >= 0` must hold, but got (rounds={rounds}, warm_up={warm_up})")
    where, rng = _pick_device(device, runtime), np.random.default_rng(seed)
    times: list[list[float]] = [[] for _ in modules]
    with evaluating(nn.ModuleList(module for module, *_ in modules)):
        calls: list[Callable[[], object]] = []
        for module, *inputs in modules:
            module, tensors = module.to(where), [x.to(where) for x in inputs]
            calls.append(partial(module, *tensors) if runtime is None else runtime.call(module, *tensors))
            on_ready(len(calls), len(modules))
        with torch.inference_mode():
            for done in range(warm_up + rounds):
                order = rng.permutation(len(calls)).tolist()
                took = _chained([calls[i] for i in order], where, clock or time.perf_counter)
                for at, microseconds in zip(order, took, strict=True):
                    if done >= warm_up:
                        times[at].append(microseconds)
    return [median(found) for found in times]


def _chained(calls: Sequence[Callable[[], object]], device: torch.device, clock: Clock) -> Iterator[float]:
    """Yield the microseconds of each call in a row, the last one run before the first so that none starts cold."""
    calls = [*calls[-1:], *calls]
    if device.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in calls]  # type: ignore[no-untyped-call]
        for call, event in zip(calls, events, strict=True):
            call()
            event.record(torch.cuda.current_stream(device))
        torch.cuda.synchronize(device)
        yield from (1000 * first.elapsed_time(last) for first, last in pairwise(events))
        return
    marks = []
    for call in calls:
        call()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        marks.append(clock())
    yield from (1e6 * (last - first) for first, last in pairwise(marks))


def _check_blocks(blocks: object, call: str, *needed: str) -> None:
    missing = [name for name in needed if isinstance(blocks, type) or not callable(getattr(blocks, name, None))]
    if missing:
        raise TypeError(
            "`blocks` must be an object with the methods fixed, part and network, as nasx.latency.Blocks says, but "
            f"got {blocks!r}; take nasx.measure.NetworkBlocks(make, space, example), or write them: {call}"
        )


def _sizes(blocks: Blocks) -> dict[str, Any]:
    sizes = getattr(blocks, "sizes", None)
    found: dict[str, Any] = json.loads(json.dumps(dict(sizes))) if isinstance(sizes, Mapping) else {}
    return found


def _found(times: Mapping[Any, int], key: object, choices: Mapping[str, Value]) -> int:
    if key not in times:
        raise ValueError(f"the table holds no latency for {dict(choices)}; measure the space that this comes from")
    return times[key]


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"a latency must be whole microseconds, but got {value!r}")
    return value


def _measured_on(device: torch.device, runtime: OnnxRuntime | None) -> MeasuredOn:
    system = platform.platform()
    return MeasuredOn(device_name(device), torch.get_num_threads(), torch.__version__, system, _runtime_name(runtime))


def _runtime_name(runtime: OnnxRuntime | None) -> str:
    return "torch" if runtime is None else runtime.name


def _pick_device(device: str, runtime: OnnxRuntime | None) -> torch.device:
    if runtime is None:
        return pick_device(device)
    if device not in ("auto", "cpu"):
        raise ValueError(f"ONNX Runtime's inputs lie in the memory of the host, but got device={device!r}; give 'cpu'")
    return torch.device("cpu")


def _onnxruntime() -> Any:
    check_installed("ONNX Runtime")
    return import_module("onnxruntime")
