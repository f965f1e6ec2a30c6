"""What a CUDA device does: networks beside its matrix rate, the gaps of a step, and how fast images reach it.

Every function also runs on the CPU at a smaller size, which proves that it works and says nothing about a GPU.
"""

import os
import time
import warnings
from collections.abc import Iterator
from functools import partial

import timm
import torch
from torch import Tensor, nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import data as batches_of
from benchmarks.cases import Case, Row, Run, digits_case, forward_pass, tiny_case, training_step
from benchmarks.compiled import in_turns, repayment
from benchmarks.networks import plain
from benchmarks.pairs import alternate, finish
from benchmarks.rate import MatrixProduct, inference_flops, training_flops
from nasx.train import adamw, cosine_schedule, seeded, train, use_precision
from recipes.glit.cost import Macs
from recipes.glit.model import DEIT_TINY
from recipes.glit.supernet import supernet

BATCHES = (1024, 256)
WORKERS = (0, 4, 8, 16)


def networks(
    device: str = "cuda", batches: tuple[int, ...] = BATCHES, *, case: Case | None = None, seconds: float = 1.5
) -> list[Row]:
    """Return training steps and forward passes in bfloat16: images a second and the share of the matrix rate.

    `ratio` is the time over that of the plain network at the same batch. A network that does not fit into memory has a
    row that says so.
    """
    case = case or tiny_case()
    with use_precision("bfloat16"):
        product = MatrixProduct(device, torch.bfloat16)
        return [row for batch in batches for row in _at_batch(case, product, device, batch, seconds)]


def compiled(
    device: str = "cuda",
    batches: tuple[int, ...] = BATCHES,
    *,
    case: Case | None = None,
    seconds: float = 1.5,
    at_most: float = 120.0,
) -> Iterator[Row]:
    """Yield training steps in bfloat16 with compiled blocks, in turns with plain ones, each row once it is measured.

    `repaid after steps` is how many steps of a training it takes to earn the time of compiling. What would begin after
    `at_most` seconds is left out, and its row says so.
    """
    case, started = case or tiny_case(), time.perf_counter()
    with use_precision("bfloat16"):
        product = MatrixProduct(device, torch.bfloat16)
        for batch in batches:
            for name in ("GLiT", "DeiT, timm's", "plain GLiT"):
                if time.perf_counter() - started > at_most:
                    yield _left_out(name, batch, "training, compiled", "left out: no time")
                else:
                    yield _compiled(case, product, device, name, batch, seconds)


def _at_batch(case: Case, product: MatrixProduct, device: str, batch: int, seconds: float) -> list[Row]:
    images, labels = case.images(batch, device)
    trained: dict[str, Run] = {}
    for name, (network, _) in _networks(case, device).items():
        trained[name] = training_step(network, images, labels)
    for sharing in ("separate", "entangled"):
        whole = supernet(case.space, case.vit, sharing=sharing, init_std=case.init_std).to(device)
        trained[f"GLiT in a supernet, {sharing}"] = training_step(whole, images, labels, case.arch)
        if sharing == "separate":
            trained["GLiT, extracted"] = training_step(whole.extract(case.arch).train(), images, labels)
    scored = {name: forward_pass(network, images) for name, (network, _) in _networks(case, device).items()}
    macs = {name: count for name, (_, count) in _networks(case, "meta").items()}
    rows: list[Row] = []
    for what, functions in (("training", trained), ("inference", scored)):
        fitting, rest = _fitting(functions)
        rows += [_left_out(name, batch, what, "left out: no memory") for name in rest]
        if not fitting:
            continue
        timed = alternate({**fitting, "product": product}, seconds=seconds, device=device, wall=True)
        flops = training_flops if what == "training" else inference_flops
        for name in fitting:
            done = flops(macs.get(name, case.macs), batch)
            rows.append(
                {
                    "network": name,
                    "batch": batch,
                    "what": what,
                    "ratio": timed.ratio(name, to="plain GLiT") if "plain GLiT" in fitting else float("nan"),
                    "share of the matrix rate": done / product.flops / timed.ratio(name, to="product"),
                    "images/s": batch / timed.median(name),
                    "ms": 1e3 * timed.median(name),
                    "matrix product, TFLOP/s": product.flops / timed.median("product") / 1e12,
                }
            )
    return rows


def _networks(case: Case, device: str) -> dict[str, tuple[nn.Module, int]]:
    """Return networks by name with their multiply-adds for an image."""
    f = case.vit
    deit = timm.models.VisionTransformer(
        img_size=f.image_size,
        patch_size=f.patch_size,
        in_chans=f.in_channels,
        num_classes=f.num_classes,
        embed_dim=f.embed_dim,
        num_heads=f.num_heads,
        depth=sum(1 for _ in case.arch.parts("block")),
    )
    found = {"GLiT": (case.network(), case.macs), "plain GLiT": (plain(case), case.macs)}
    macs = Macs(f)(DEIT_TINY) if case.name == "GLiT-Tiny" else case.macs  # of other sizes, about as many
    return {name: (net.to(device), count) for name, (net, count) in {**found, "DeiT, timm's": (deit, macs)}.items()}


def _fitting(functions: dict[str, Run]) -> tuple[dict[str, Run], list[str]]:
    """Return the functions that fit into memory, each run once, and the names of the others."""
    fitting, rest = {}, []
    for name, function in functions.items():
        try:
            function()
            fitting[name] = function
        except torch.OutOfMemoryError:
            rest.append(name)
            torch.cuda.empty_cache()
    return fitting, rest


def _left_out(name: str, batch: int, what: str, why: str) -> Row:
    return {"network": name, "batch": batch, "what": what, "note": why}


def _compiled(case: Case, product: MatrixProduct, device: str, name: str, batch: int, seconds: float) -> Row:
    macs = _networks(case, "meta")[name][1]
    try:
        timed, took = in_turns(
            lambda: _networks(case, device)[name][0],
            *case.images(batch, device),
            beside={"product": product},
            seconds=seconds,
            wall=True,
        )
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return _left_out(name, batch, "training, compiled", "left out: no memory")
    share = training_flops(macs, batch) / product.flops / timed.ratio("compiled", to="product")
    return {
        "network": name,
        "batch": batch,
        "what": "training, compiled",
        "ratio": timed.ratio("compiled", to="plain"),
        "share of the matrix rate": share,
        "images/s": batch / timed.median("compiled"),
        "ms": 1e3 * timed.median("compiled"),
        **repayment(timed, took),
    }


def host(
    device: str = "cuda", *, case: Case | None = None, batches: tuple[int, ...] = (256,), steps: int = 8
) -> list[Row]:
    """Return how long a step of `train` keeps the CPU and the device busy, and how much of it the device waits.

    `waits` counts the calls of a step in which the CPU waits for the device; there should be none.
    """
    rows: list[Row] = []
    cases = [(digits_case(), (64,)), (case or tiny_case(), batches)]
    for one, sizes in cases:
        for batch in sizes:
            images, labels = one.images(batch, device)
            network = one.network(device=device)
            optimizer = adamw(network, lr=1e-4, weight_decay=0.05)
            taken = train(
                network,
                seeded(_same(images, labels), 0),
                optimizer,
                clip_norm=1.0,
                schedule=cosine_schedule(optimizer, steps=10**6),
            )
            _take(taken, 5)
            finish(device)
            begun = time.perf_counter()
            _take(taken, steps)
            enqueued = time.perf_counter() - begun
            finish(device)
            whole = time.perf_counter() - begun
            waits = sum(1 for _ in waits_of(partial(_take, taken, steps), device))
            busy = busy_seconds(partial(_take, taken, steps), device)
            rows.append(
                {
                    "network": one.name,
                    "batch": batch,
                    "step, ms": 1e3 * whole / steps,
                    "CPU, ms": 1e3 * enqueued / steps,
                    "device busy, ms": 1e3 * busy / steps,
                    "share of a step that the device waits": max(0.0, 1 - busy / whole),
                    "waits a step": float(waits / steps),
                }
            )
    return rows


def _take(steps: Iterator[object], count: int) -> None:
    for _ in range(count):
        next(steps)


def _same(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield images, labels


def waits_of(work: Run, device: str) -> list[str]:
    """Return torch's warnings of calls in which the CPU waited for the device while some work ran."""
    if torch.device(device).type != "cuda":
        work()
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]


def busy_seconds(work: Run, device: str) -> float:
    """Return how long a device computed while some work ran: the union of its kernels' times."""
    on_cuda = torch.device(device).type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_cuda else [ProfilerActivity.CPU]
    with profile(activities=activities) as found:
        work()
        finish(device)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in found.events() or []
        if not on_cuda or event.device_type == DeviceType.CUDA
    )
    return union(spans) / 1e6  # of microseconds


def union(spans: list[tuple[float, float]]) -> float:
    """Return the length that intervals cover together, in the order of their starts."""
    covered, reached = 0.0, float("-inf")
    for start, end in spans:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def data(
    device: str = "cuda", workers: tuple[int, ...] = WORKERS, *, batch: int = 64, seconds: float = 2.0
) -> list[Row]:
    """Return images a second that reach the device: photographs at 224 pixels by worker processes, and 32-pixel images.

    Photographs are read from JPEG files, cropped and augmented as for ImageNet; the 32-pixel images lie on the device.
    """
    cores = os.cpu_count() or 1
    counts = tuple(count for count in workers if count <= cores)
    photographs = batches_of.folder(counts, steps=2, batch=batch, device=device)
    rows: list[Row] = [
        {"images": "photographs, 224 pixels", "workers": row["workers"], "images/s": row["photographs/s"]}
        for row in photographs
    ]
    small = batches_of.memory(seconds, device)
    return rows + [
        {"images": f"32 pixels, on the device, {row['images']}", "workers": 0, "images/s": row["images/s"]}
        for row in small
    ]
