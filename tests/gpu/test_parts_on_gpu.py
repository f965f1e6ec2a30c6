"""Parts of the library on a GPU: latency, memory, processes, steps that wait for nothing, compiled blocks, samples."""

import logging
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks import compiled, gpu
from benchmarks.cases import digits_case
from benchmarks.gpu import busy_seconds, union, waits_of
from nasx import Arch, Space, one_of
from nasx.data import Augment, ImageArray, TrainBatches, eval_batches
from nasx.latency import latency_report, measure_latency
from nasx.measure import ViTBlocks
from nasx.pipeline import Problem, Refused, RunConfig, Task, run
from nasx.pipeline.finished_run import read_run
from nasx.pipeline.progress import silent
from nasx.pipeline.scoring import Scoring
from nasx.train import (
    StackedNetworks,
    UniformPaths,
    adamw,
    autocast,
    compiled_blocks,
    cosine_schedule,
    ema,
    evaluate,
    load_into_memory,
    over_dataset,
    recalibrate,
    seeded,
    stacked_loss,
    train,
    train_supernet,
    use_precision,
)
from nasx.train.compiled import missing_for_compilation
from recipes.glit.model import build_in
from tests.gpu.places import CUDA, EVERYWHERE, ROOT, context_on, on, relative, short_problem

CASE = digits_case()
SEARCH = {"population": 2, "generations": 1, "parents": 2, "top_k": 1}


@EVERYWHERE
def test_latencies_are_measured_where_they_are_asked_for(device: str) -> None:
    blocks = ViTBlocks(build_in, CASE.vit, batch_size=4)
    space = CASE.space.pin({"block.*.global_heads": lambda heads: heads in (0, 3)})
    table = measure_latency(space, blocks, device=device, rounds=5)
    archs = list(space.sample(0, 3))
    report = latency_report(table, blocks, archs, device=device, rounds=5)
    assert all(table(arch) > 0 for arch in archs)
    assert (np.array(report.measured) > 0).all()
    if device == "cuda":
        assert table.measured_on.device == torch.cuda.get_device_name()
        assert report.median_error < 1, "a sum of blocks is of the network's order"


@EVERYWHERE
def test_a_backend_exchanges_what_ranks_do(device: str) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "tests.gpu.nccl"]
    done = subprocess.run([sys.executable, *launcher, device], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "works" in done.stdout


@pytest.mark.parametrize("device", [CUDA])
def test_a_candidate_that_does_not_fit_is_scored_in_smaller_batches(
    device: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wide = [
        "model.embed_dim=1536",
        "model.sharing=entangled",
        "search.recalibration_batches=0",
        "search.eval_batch_size=256",
    ]
    wide += ["budget.heads_at_most=null", "budget.details_at_least=null", "budget.details_at_most=null"]
    problem = short_problem("glit", [*wide, "precision=float32", "space.blocks=1"])
    arch = problem.space.sample(0)
    torch.manual_seed(0)
    supernet = problem.supernet(problem.space).to(device)
    context = context_on(device, problem, tmp_path, "joint/search")
    expected = Scoring(context, problem.space, supernet).score(arch)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        # an activation of 256 images, 17 tokens and 4 x 1536 channels alone takes 107 MB
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 100 * 2**20) / total)
        with caplog.at_level(logging.WARNING):
            found = Scoring(context, problem.space, supernet).score(arch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("ran out of memory; scoring" in record.message for record in caplog.records)
    assert found.score == pytest.approx(expected.score, abs=0.01)
    assert found.loss == pytest.approx(expected.loss, rel=1e-3)


@EVERYWHERE
def test_a_step_never_waits_for_the_device(device: str) -> None:
    network = CASE.network(device=device)
    images, labels = CASE.images(16)
    optimizer = adamw(network, lr=1e-3, weight_decay=0.05)
    steps = train(
        network,
        seeded([(images, labels)] * 12, 0),  # which come from the CPU
        optimizer,
        clip_norm=1.0,
        schedule=cosine_schedule(optimizer, steps=12),
        average=ema(network, 0.9),
    )
    for _ in range(4):
        next(steps)
    assert waits_of(lambda: [next(steps) for _ in range(4)], device) == []


@EVERYWHERE
@pytest.mark.parametrize("name", ["glit", "autoformer"])
def test_a_supernets_step_never_waits_for_the_device(name: str, device: str) -> None:
    problem = short_problem(name)
    supernet = problem.supernet(problem.space).to(device)
    unpacked = problem.task.example(16)
    batch = (*unpacked.args, torch.zeros(16, dtype=torch.long))
    paths = UniformPaths(problem.space, seed=0)
    steps = train_supernet(supernet, seeded([batch] * 12, 0), paths, adamw(supernet, lr=1e-3, weight_decay=0.05))
    for _ in range(4):
        next(steps)
    assert waits_of(lambda: [next(steps) for _ in range(4)], device) == []


@EVERYWHERE
def test_recalibration_reads_nothing_from_the_device_before_its_end(device: str) -> None:
    network = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).to(device)
    pinned = [(torch.randn(8, 3), torch.zeros(8)) for _ in range(3)]
    assert waits_of(lambda: recalibrate(network, pinned), device) == []


@EVERYWHERE
@pytest.mark.parametrize("kind", ["module", "function"])
def test_weights_of_classes_are_used_where_the_network_is(kind: str, device: str, tmp_path: Path) -> None:
    weight = torch.rand(3) + 0.5
    loss: Any = nn.CrossEntropyLoss(weight=weight) if kind == "module" else partial(F.cross_entropy, weight=weight)
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    space = Space(width=one_of(4, 8))

    def make(arch: Arch) -> nn.Module:
        width = int(arch["width"])
        return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))

    config = RunConfig(supernet={"epochs": 2}, search=SEARCH, retrain={"epochs": 2})
    task = Task(TensorDataset(x, x[:, :3].argmax(dim=1)), loss=loss, metric=over_dataset(likelihood))
    found = run(Problem(space, make, task, config=config), tmp_path, machine=on(device), progress=silent)
    assert 0 < found.summary["networks"]["searched"]["test_score"] < 1
    assert next(found.network.parameters()).device.type == "cpu"


@pytest.mark.parametrize("device", [CUDA])
def test_a_metric_that_works_on_a_cpu_alone_is_refused_before_training(device: str, tmp_path: Path) -> None:
    def spread(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.tensor(outputs.numpy().std(axis=1))

    problem = short_problem("glit")
    problem.task.metric = spread
    with pytest.raises(Refused, match="do not work on cuda"):
        run(problem, tmp_path, machine=on(device), progress=silent)


@pytest.mark.parametrize("device", [CUDA])
def test_waiting_for_the_device_is_noticed(device: str) -> None:
    assert waits_of(lambda: torch.ones(2, device=device).sum().item(), device)


@EVERYWHERE
def test_the_time_of_kernels_is_counted_once(device: str) -> None:
    x = torch.randn(256, 256, device=device)
    assert busy_seconds(lambda: x @ x, device) > 0
    assert union([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0), (5.5, 5.7)]) == 4.0


@pytest.mark.parametrize("device", [CUDA])
def test_compiled_blocks_train_as_plain_ones(device: str) -> None:
    if missing := missing_for_compilation(torch.device(device)):
        pytest.skip(missing)
    losses = []
    for compiling in (False, True):
        network = CASE.network(device=device)
        images, labels = CASE.images(16, device)
        optimizer = adamw(network, lr=1e-3, weight_decay=0.05)
        with use_precision("float32"):
            taken = partial(train, network, seeded([(images, labels)] * 4, 0), optimizer, batch_norm_group=8)
            if compiling:
                with compiled_blocks(network):
                    losses.append([step.loss for step in taken().run()])
            else:
                losses.append([step.loss for step in taken().run()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def photos(count: int = 64) -> ImageArray:
    rng = np.random.default_rng(0)
    return ImageArray(rng.integers(0, 256, (count, 3, 16, 16), dtype=np.uint8), np.arange(count) % 10)


@EVERYWHERE
def test_images_are_augmented_and_held_as_on_a_cpu(device: str) -> None:
    augment = Augment(pad_crop=2, flip=True, erase=0.25)
    found: dict[str, Any] = {}
    for place in ("cpu", device):
        training = TrainBatches(
            photos(), batch_size=16, seed=0, mean=(0.5,) * 3, std=(0.25,) * 3, augment=augment, device=place
        )
        (images, labels), *_ = training.steps(0, 1)
        held = load_into_memory(eval_batches(photos(), 16, (0.5,) * 3, (0.25,) * 3), torch.device(place))
        assert held is not None
        ((whole, *_),) = [batch.args for batch in held.batches(64)]
        assert whole.device.type == place
        found[place] = images.cpu(), labels.cpu(), whole.cpu()
    for ours, theirs in zip(found[device], found["cpu"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@EVERYWHERE
def test_stacked_networks_learn_as_apart(device: str) -> None:
    networks = [CASE.network(device=device) for _ in range(2)]
    stacked = StackedNetworks(networks).to(device)
    images, labels = CASE.images(8, device)
    with use_precision("float32"), autocast(torch.device(device)):
        loss = stacked_loss(F.cross_entropy)(stacked(torch.stack([images] * 2)), torch.stack([labels] * 2))
        alone = F.cross_entropy(networks[0](images), labels)
    assert relative(loss[None], alone[None]) < 1e-3
    loss.backward()  # type: ignore[no-untyped-call]
    alone.backward()  # type: ignore[no-untyped-call]
    for name, parameter in networks[0].named_parameters():
        gradient = stacked.stack.get_parameter(name).grad
        assert parameter.grad is not None
        assert gradient is not None
        assert torch.allclose(gradient[0], parameter.grad, rtol=1e-2, atol=1e-5)


@EVERYWHERE
def test_evaluation_moves_what_comes_from_the_cpu(device: str) -> None:
    network = CASE.network(device=device)
    found = evaluate(network, [CASE.images(8), CASE.images(4)])
    assert found.samples == 12


class Likelihood:
    """The mean probability of the right class, added up where the outputs are."""

    def reset(self) -> None:
        self.sum, self.count = torch.zeros(()), 0

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        right = outputs.softmax(1).gather(1, targets[:, None])
        self.sum, self.count = self.sum.to(right) + right.sum(), self.count + len(right)

    def compute(self) -> torch.Tensor:
        return self.sum / self.count


def likelihood(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    assert outputs.device.type == targets.device.type == "cpu"
    return float(outputs.softmax(1).gather(1, targets[:, None]).mean())


@EVERYWHERE
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_metric_of_a_whole_data_set_is_that_of_a_cpu(device: str, precision: Any) -> None:
    found = {}
    for place in (device, "cpu"):
        with use_precision(precision if place == device else "float32"):
            network, batches = CASE.network(device=place), [CASE.images(8), CASE.images(4)]
            found[place] = [
                evaluate(network, batches, metric=metric).score for metric in (Likelihood(), over_dataset(likelihood))
            ]
    assert found[device] == pytest.approx(found["cpu"], rel=1e-3 if precision == "float32" else 0.1)
    assert found[device][0] == pytest.approx(found[device][1], rel=1e-5)


@EVERYWHERE
def test_a_run_in_bfloat16_learns_what_one_in_float32_does(device: str, tmp_path: Path) -> None:
    curves = {}
    for precision in ("float32", "bfloat16"):
        problem = short_problem("glit", [f"precision={precision}", "retrain.epochs=2"])
        run(problem, tmp_path / precision, machine=on(device), progress=silent)
        trained = read_run(tmp_path / precision).results["baselines"]["networks"]
        curves[precision] = np.array([[loss for _, loss in network["losses"]] for network in trained])
    assert (curves["float32"][:, -1] < curves["float32"][:, 0] - 0.3).all(), "they learn"
    assert np.abs(curves["bfloat16"] - curves["float32"]).max() < 0.15


@pytest.mark.parametrize("device", ["cpu"])
def test_the_benchmarks_of_a_gpu_work(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = gpu.networks(device, (4,), case=CASE, seconds=0)
    assert {row["network"] for row in rows} >= {"GLiT", "plain GLiT", "DeiT, timm's", "GLiT, extracted"}
    assert all(row["images/s"] > 0 and row["share of the matrix rate"] > 0 for row in rows)
    assert {row["waits a step"] for row in gpu.host(device, case=CASE, batches=(4,), steps=1)} == {0.0}
    assert all("note" in row for row in gpu.compiled(device, (4,), case=CASE, at_most=-1))
    monkeypatch.setattr(compiled, "compiled_blocks", partial(compiled_blocks, backend="eager"))
    row = next(gpu.compiled(device, (4,), case=CASE, seconds=0))
    assert row["ratio"] > 0
    (row,) = compiled.steps(0, cases=[digits_case()])
    assert row["ratio"] > 0
    assert row["compiling took, s"] > 0


@pytest.mark.parametrize("device", ["cpu"])
def test_a_network_without_room_has_a_row_that_says_so(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        def step() -> None:
            raise torch.OutOfMemoryError("full")

        return step

    monkeypatch.setattr(gpu, "training_step", full)
    rows = gpu.networks(device, (4,), case=CASE, seconds=0)
    assert {row.get("note") for row in rows} == {"left out: no memory", None}
    monkeypatch.setattr(compiled, "training_step", full)
    rows = list(gpu.compiled(device, (4,), case=CASE, seconds=0))
    assert {row["note"] for row in rows} == {"left out: no memory"}
