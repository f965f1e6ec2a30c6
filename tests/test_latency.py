import importlib.util
import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasx import Arch, Budget, Space, one_of, repeat
from nasx.arch import Value
from nasx.latency import (
    Latency,
    LatencyReport,
    MeasuredOn,
    OnnxRuntime,
    Timed,
    latency_report,
    measure_latency,
    time_modules,
)
from nasx.measure import ViTBlocks
from nasx.testing import CostContract
from recipes.glit.model import GLiTConfig, build_in
from recipes.glit.space import GLIT, GLiTSpace, reduced

BLOCK = Space(kernel_size=one_of(3, 5), mlp_ratio=one_of(2, 4))
SPACE = Space(width=one_of(8, 16), block=repeat(BLOCK, one_of(1, 2, 3)))


class Clock:
    """Time that passes only in the modules of a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)


class Takes(nn.Module):
    """Takes some microseconds, a different number each time it runs."""

    def __init__(self, clock: Clock, *micros: float) -> None:
        super().__init__()
        self.clock, self.micros = clock, itertools.cycle(micros)

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not self.training
        self.clock.now += next(self.micros) * 1e-6
        return x


@dataclass
class ToyBlocks:
    """A network's time is the sum of its blocks' and something that no block has."""

    clock: Clock
    unseen: int = 0
    built: list[object] = field(default_factory=list)

    def fixed(self, shared: Mapping[str, Value]) -> Timed:
        self.built.append(("fixed", dict(shared)))
        return Takes(self.clock, 1000 + int(shared["width"])), torch.zeros(1)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> Timed:
        self.built.append((name, index, dict(shared), dict(choices)))
        return Takes(self.clock, self.micros(index, shared, choices)), torch.zeros(1)

    def network(self, arch: Arch) -> Timed:
        parts = [self.micros(i, arch, choices) for i, choices in enumerate(arch.parts("block"))]
        return Takes(self.clock, 1000 + int(arch["width"]) + sum(parts) + self.unseen), torch.zeros(1)

    @staticmethod
    def micros(index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return int(shared["width"]) * (int(choices["kernel_size"]) + 10 * int(choices["mlp_ratio"]))


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> ToyBlocks:
    return ToyBlocks(Clock(monkeypatch))


@pytest.fixture
def table(blocks: ToyBlocks) -> Latency:
    return measure_latency(SPACE, blocks, device="cpu", rounds=3, ignore=["block.count"])


def test_each_distinct_block_is_built_once(blocks: ToyBlocks) -> None:
    measure_latency(SPACE, blocks, device="cpu", rounds=1, ignore=["block.count"])
    assert len(blocks.built) == 2 + 2 * 4
    assert len({repr(built) for built in blocks.built}) == 2 + 2 * 4


def test_what_builds_no_blocks_is_refused_with_what_blocks_are(blocks: ToyBlocks, table: Latency) -> None:
    class Network(nn.Module):
        """A network's class, which `counted` would take."""

    message = r"`blocks` must be an object with the methods fixed, part and network.*got .*NetworkBlocks\(make, space"
    for other in (Network, ToyBlocks, Network(), lambda arch: Network()):  # a class has no methods to call
        with pytest.raises(TypeError, match=message):
            measure_latency(SPACE, other)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=message):
            latency_report(table, other, [SPACE[0]])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`space` must be a Space.*write measure_latency\(space, blocks\)"):
        measure_latency(blocks, SPACE)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`space` must be a whole Space.*write measure_latency|pass its `.space`"):
        measure_latency(SPACE.within(), blocks)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`table` must be a Latency.*write latency_report\(table, blocks, archs\)"):
        latency_report(blocks, table, [SPACE[0]])  # type: ignore[arg-type]


def test_counts_and_places_multiply_what_is_measured_only_where_they_matter(blocks: ToyBlocks) -> None:
    measure_latency(SPACE, blocks, device="cpu", rounds=1)
    assert len(blocks.built) == 2 * 3 + 2 * 3 * 4
    blocks.built.clear()
    measure_latency(SPACE, blocks, device="cpu", rounds=1, ignore=["block.count"], by_index=True)
    assert len(blocks.built) == 2 + 2 * 4 * 3


def test_the_table_adds_up_what_was_measured(table: Latency) -> None:
    for arch in SPACE:
        width = int(arch["width"])
        parts = [width * (int(p["kernel_size"]) + 10 * int(p["mlp_ratio"])) for p in arch.parts("block")]
        assert table(arch) == 1000 + width + sum(parts)


def test_a_budget_holds_exactly_the_networks_that_are_fast_enough(table: Latency) -> None:
    inside = SPACE.within(Budget(table, at_most=1700))
    fast = [arch for arch in SPACE if table(arch) <= 1700]
    assert 0 < len(fast) < SPACE.size
    assert inside.size == len(fast)
    assert set(inside.sample(0, 2000)) == set(fast)
    with pytest.raises(ValueError, match=r"attainable are .* µs"):
        SPACE.within(Budget(table, at_most=900))


class TestLatencyContract(CostContract):
    space = SPACE
    cost = Latency(
        MeasuredOn("a device", 1, "2", "a system"),
        {Arch({"width": w}): 7 * w for w in (8, 16)},
        {
            ("block", 0, Arch({"width": w}), choices): w * (int(choices["kernel_size"]) + int(choices["mlp_ratio"]))
            for w in (8, 16)
            for choices in BLOCK
        },
        ignored=("block.count",),
    )


def test_times_are_medians_of_the_rounds_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    noisy = Takes(clock, 9000, 100, 100, 100, 70_000, 100)
    steady = Takes(clock, 40)
    found = time_modules([(noisy, torch.zeros(1)), (steady, torch.zeros(1))], device="cpu", rounds=11)
    assert found == pytest.approx([100, 40])


def test_another_clock_can_tell_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert time_modules(
        [(Takes(clock, 10), torch.zeros(1))], device="cpu", rounds=3, clock=lambda: 2 * clock.now
    ) == pytest.approx([20])


def test_timing_leaves_modes_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Takes(Clock(monkeypatch), 1).train(), Takes(Clock(monkeypatch), 1).eval()
    time_modules([(first, torch.zeros(1)), (second, torch.zeros(1))], device="cpu", rounds=1)
    assert first.training
    assert not second.training


def test_rounds_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds=0"):
        time_modules([(nn.Identity(), torch.zeros(1))], device="cpu", rounds=0)


def test_the_report_finds_what_no_block_has(blocks: ToyBlocks, table: Latency) -> None:
    archs = SPACE.sample(0, 23)
    exact = latency_report(table, blocks, archs, device="cpu", rounds=2)
    assert exact.predicted == tuple(map(table, archs))
    assert exact.median_error == pytest.approx(0, abs=1e-6)
    slow = latency_report(table, replace(blocks, unseen=500), archs, device="cpu", rounds=2)
    assert slow.measured == pytest.approx([table(arch) + 500 for arch in archs])


def test_errors_are_relative_to_what_was_measured() -> None:
    report = LatencyReport(predicted=(110, 90, 150), measured=(100.0, 100.0, 100.0))
    assert report.relative_errors == pytest.approx((0.1, -0.1, 0.5))
    assert report.median_error == pytest.approx(0.1)
    assert report.bias == pytest.approx(0.1)


def test_a_table_survives_its_file(table: Latency, tmp_path: Path) -> None:
    table.save(tmp_path / "latency.json")
    assert Latency.load(tmp_path / "latency.json") == table
    document = json.loads((tmp_path / "latency.json").read_text())
    assert document["measured_on"]["torch"] == torch.__version__
    assert document["measured_on"]["device"]


def test_a_table_of_another_device_is_refused_unless_that_is_meant(table: Latency, tmp_path: Path) -> None:
    other = replace(table, measured_on=replace(table.measured_on, device="Abacus 2000"))
    other.save(tmp_path / "latency.json")
    with pytest.raises(ValueError, match="measured on 'Abacus 2000', but this machine has"):
        Latency.load(tmp_path / "latency.json")
    assert Latency.load(tmp_path / "latency.json", measured_elsewhere=True) == other


def test_other_threads_are_refused_and_other_versions_warned_of(
    table: Latency, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, here = tmp_path / "latency.json", table.measured_on
    replace(table, measured_on=replace(here, threads=here.threads + 63)).save(path)
    with pytest.raises(ValueError, match=rf"measured on {here.threads + 63} threads, but torch has {here.threads} now"):
        Latency.load(path)
    replace(table, measured_on=replace(here, torch="1.0", runtime="onnxruntime 0.1, CPUExecutionProvider")).save(path)
    Latency.load(path, measured_elsewhere=True)
    assert not caplog.records
    Latency.load(path)
    warned = [record.getMessage() for record in caplog.records]
    assert f"were measured with torch 1.0, but here is torch {torch.__version__}" in warned[0]
    assert "were measured with onnxruntime 0.1, but here is" in warned[1]


def test_unknown_choices_and_empty_reports_are_refused(blocks: ToyBlocks, table: Latency) -> None:
    with pytest.raises(ValueError, match=r"`ignore` names .* but got 'blok.count'; this space has width, block.count"):
        measure_latency(SPACE, blocks, device="cpu", ignore=["blok.count"])
    with pytest.raises(ValueError, match="`archs` must hold the networks to measure"):
        latency_report(table, blocks, [], device="cpu")


@pytest.mark.parametrize("damage", ['"latency": 1', '"microseconds": ', '"torch"', '"shared"'])
def test_a_damaged_table_is_refused(damage: str, table: Latency, tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    table.save(path)
    text = path.read_text()
    path.write_text(text.replace(damage, damage.replace("1", "2") if "1" in damage else f'"x{damage[1:]}'))
    assert path.read_text() != text
    with pytest.raises(ValueError, match="holds no table of latencies"):
        Latency.load(path)


def test_a_table_keeps_the_sizes_of_its_networks_and_fits_no_others(tmp_path: Path) -> None:
    vit = GLiTConfig(image_size=16, patch_size=4, num_classes=10, embed_dim=36)
    space = reduced(GLiTSpace(blocks=1, global_heads=(3,), kernel_size=(3,), held_kernel_size=3))
    table = measure_latency(space, ViTBlocks(build_in, vit, batch_size=2), device="cpu", rounds=1)
    table.save(tmp_path / "table.json")
    read = Latency.load(tmp_path / "table.json")
    assert read == table
    assert (read.sizes["embed_dim"], read.sizes["batch_size"]) == (36, 2)
    read.check_sizes(asdict(vit))
    other = replace(vit, embed_dim=72, variant=replace(vit.variant, locality="conv2d"))
    with pytest.raises(
        ValueError, match=r"on networks with embed_dim=36, variant\.locality=conv1d, but .* embed_dim=72, .*=conv2d"
    ):
        read.check_sizes(asdict(other))
    with pytest.raises(ValueError, match="on networks with image_size=unknown"):
        replace(read, sizes={}).check_sizes(asdict(vit))


def test_a_block_that_was_not_measured_is_named(table: Latency) -> None:
    arch = Arch({"width": 8, "block.count": 1, "block.0.kernel_size": 7, "block.0.mlp_ratio": 2})
    with pytest.raises(ValueError, match="'kernel_size': 7"):
        table(arch)


def test_glits_blocks_make_a_table_of_its_whole_space() -> None:
    choices = GLiTSpace(blocks=3, kernel_size=(3, 5, 9), held_kernel_size=5)
    blocks = ViTBlocks(build_in, GLiTConfig(image_size=16, patch_size=4, num_classes=10, embed_dim=36), batch_size=2)
    space = reduced(choices)
    table = measure_latency(space, blocks, device="cpu", rounds=1)
    assert len(table.part_times) == 36 == GLIT.parts("block")[0].size
    archs = space.sample(0, 3)
    assert all(table(arch) > 0 for arch in archs)
    report = latency_report(table, blocks, archs, device="cpu", rounds=1)
    assert len(report.measured) == 3
    for module, *inputs in (blocks.network(archs[0]), blocks.fixed(Arch())):
        assert module(*inputs).shape == (2, 10)


# ONNX Runtime


class Layers(nn.Module):
    """As many layers as given, all of which take the same time."""

    def __init__(self, count: int, width: int = 96) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class RealBlocks:
    """Networks of layers that really compute."""

    def fixed(self, shared: Mapping[str, Value]) -> Timed:
        return Layers(1), torch.randn(64, 96)

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> Timed:
        return Layers(int(choices["layers"])), torch.randn(64, 96)

    def network(self, arch: Arch) -> Timed:
        return Layers(1 + sum(int(part["layers"]) for part in arch.parts("block"))), torch.randn(64, 96)


REAL = Space(block=repeat(Space(layers=one_of(1, 12)), 2))


@pytest.fixture
def onnxruntime() -> Any:
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


def test_a_runtime_computes_what_torch_does(onnxruntime: Any) -> None:
    torch.manual_seed(0)
    module, x = Layers(3).eval(), torch.randn(64, 96)
    run: Any = OnnxRuntime().call(module, x)
    (found,) = run()
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), module(x), rtol=1e-4, atol=1e-5)


def test_a_table_is_measured_in_onnx_runtime_and_says_so(onnxruntime: Any, tmp_path: Path) -> None:
    ready: list[tuple[int, int]] = []
    table = measure_latency(
        REAL,
        RealBlocks(),
        device="cpu",
        rounds=15,
        clock=time.thread_time,  # other processes take the machine meanwhile
        runtime=OnnxRuntime(),
        on_ready=lambda done, total: ready.append((done, total)),
    )
    assert table.measured_on.runtime == f"onnxruntime {onnxruntime.__version__}, CPUExecutionProvider"
    assert ready == [(1, 3), (2, 3), (3, 3)]
    few, many = (table.part("block", 0, {}, {"layers": count}) for count in (1, 12))
    assert many > 3 * few > 0
    table.save(tmp_path / "table.json")
    assert Latency.load(tmp_path / "table.json") == table
    with pytest.raises(ValueError, match=r"measured in 'onnxruntime .*', but networks are to run in 'torch'"):
        latency_report(table, RealBlocks(), REAL.sample(0, 2), device="cpu", rounds=1)
    report = latency_report(
        table, RealBlocks(), REAL.sample(0, 2), device="cpu", rounds=2, clock=time.thread_time, runtime=OnnxRuntime()
    )
    assert all(measured > 0 for measured in report.measured)


def test_tables_of_before_were_measured_in_torch(tmp_path: Path, table: Latency) -> None:
    table.save(tmp_path / "table.json")
    document = json.loads((tmp_path / "table.json").read_text())
    assert document["measured_on"].pop("runtime") == "torch"
    (tmp_path / "table.json").write_text(json.dumps(document))
    assert Latency.load(tmp_path / "table.json") == table


def test_what_onnx_runtime_cannot_do_is_refused(onnxruntime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Timed] = [(Layers(1), torch.randn(2, 96))]
    with pytest.raises(ValueError, match=r"no provider 'NoSuchProvider', only .*CPUExecutionProvider"):
        time_modules(timed, device="cpu", runtime=OnnxRuntime(("NoSuchProvider",)))
    with pytest.raises(ValueError, match="memory of the host, but got device='cuda'"):
        time_modules(timed, device="cuda", runtime=OnnxRuntime())
    found: Any = importlib.util.find_spec
    monkeypatch.setattr("nasx._onnx.find_spec", lambda name: None if name == "onnxruntime" else found(name))
    with pytest.raises(ImportError, match=r"ONNX Runtime needs onnxruntime: pip install 'nasx\[onnx\]'"):
        time_modules(timed, device="cpu", runtime=OnnxRuntime())
