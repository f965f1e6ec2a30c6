"""What a training step consists of: the shares of its operators' time. One thread, float32."""

from collections.abc import Mapping

from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import Row, Run, bench_case, digits_case, tiny_case, training_step
from benchmarks.networks import pairs
from nasx.train import use_threads

KINDS: Mapping[str, tuple[str, ...]] = {
    "matrix products": ("::mm", "::addmm", "::bmm", "::baddbmm"),
    "attention": ("::_scaled_dot_product",),
    "convolutions": ("conv",),
}
"""Parts of the names of the operators that have multiply-adds."""


def steps(count: int = 20) -> list[Row]:
    """Return a row for each network, with the share of each kind of operator in the time of some training steps.

    `the rest` are norms, activations, copies, the optimizer, and what it costs to start operators. `at most` is how
    many times as fast a step would be if the rest took no time at all.
    """
    cases = [digits_case(), bench_case(), tiny_case(8)]
    networks = {case.name: (case.network(), case) for case in cases}
    networks["DeiT-Tiny, timm's"] = pairs()["DeiT-Tiny"][1], cases[-1]
    rows: list[Row] = []
    with use_threads(1):
        for name, (network, case) in networks.items():
            found = shares_of(training_step(network, *case.images()), count if case.vit.tokens < 100 else count // 4)
            arithmetic = sum(found.values())
            more = {"the rest": 1 - arithmetic, "at most": 1 / arithmetic}
            rows.append({"network": name, "batch": case.batch, **found, **more})
    return rows


def shares_of(step: Run, count: int) -> dict[str, float]:
    """Return the share of each of `KINDS` in the time of some steps."""
    for _ in range(3):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(max(1, count)):
            step()
    times = {event.key: float(event.self_cpu_time_total) for event in found.key_averages()}
    whole = sum(times.values())
    return {
        kind: sum(time for name, time in times.items() if is_of(name, parts)) / whole for kind, parts in KINDS.items()
    }


def is_of(name: str, parts: tuple[str, ...]) -> bool:
    """Return whether the name of an operator has one of some parts."""
    return name.startswith("aten::") and any(part in name for part in parts)
