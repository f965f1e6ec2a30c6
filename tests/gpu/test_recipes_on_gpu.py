"""Every recipe on a GPU: it trains, scores, resumes and is exported, and gives what a CPU gives within tolerances."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from nasx import Arch
from nasx.pipeline.runner import run
from nasx.run import Interrupted
from nasx.train import (
    Precision,
    UniformPaths,
    adamw,
    autocast,
    evaluate,
    recalibrate,
    seeded,
    train,
    train_supernet,
    use_precision,
)
from recipes.glit.__main__ import main
from tests.gpu.places import CUDA, EVERYWHERE, RECIPES, ROOT, on, relative, short_problem

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Of outputs, losses and gradients, relative to the CPU's in float32."""


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute float32 convolutions in float32, which cuDNN does in TF32 by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def batches(problem: Any, count: int) -> list[Any]:
    training = problem.config.supernet
    return list(problem.task.train_batches(training, seed=0).steps(0, count))


ON_A_CPU = [("glit", "bfloat16"), ("autoformer", "float32"), ("localvit", "bfloat16")]
ON_A_GPU = [(name, precision) for name in RECIPES for precision in TOLERANCE]


@pytest.mark.parametrize(
    ("device", "recipe", "precision"),
    [
        *(("cpu", *of) for of in ON_A_CPU),
        *(pytest.param("cuda", *of, marks=pytest.mark.gpu) for of in ON_A_GPU),
    ],
)
def test_a_recipe_trains_scores_and_resumes(device: str, recipe: str, precision: str, tmp_path: Path) -> None:
    problem = short_problem(recipe, [f"precision={precision}"])
    seen: list[str] = []

    def stopping(description: str, done: float, total: float, note: str = "") -> None:
        stage = description.partition(" ")[0]
        if stage not in seen and 0 < done < total and len(seen) < 2:  # in the middle of the first two stages
            seen.append(stage)
            raise Interrupted("stopped by the test")

    interruptions = 0
    while interruptions < 3:
        try:
            found = run(problem, tmp_path, machine=on(device), progress=stopping)
            break
        except Interrupted:
            interruptions += 1
    assert interruptions == len(seen) == 2
    assert all(0 <= network["test_accuracy"] <= 1 for network in found.summary["networks"].values())
    assert not any(parameter.isnan().any() for parameter in found.network.parameters())
    again = evaluate(found.network, problem.task.eval_batches("test", 256)).score  # on the CPU, in float32
    own = next(iter(found.summary["networks"].values()))["test_accuracy"]
    assert again == pytest.approx(own, abs=0.01 if precision == "float32" else 0.05)


def network_of(recipe: str) -> tuple[Any, nn.Module]:
    problem = short_problem(recipe)
    torch.manual_seed(0)
    return problem, problem.make(problem.space.sample(0)).train()


@pytest.mark.parametrize("precision", list(TOLERANCE))
@pytest.mark.parametrize("recipe", list(RECIPES))
@EVERYWHERE
def test_outputs_and_gradients_are_those_of_a_cpu(device: str, recipe: str, precision: Precision) -> None:
    problem, network = network_of(recipe)
    (images, labels), *_ = batches(problem, 1)
    found = []
    for place, used in (("cpu", "float32"), (device, precision)):
        network.to(place).zero_grad()
        with use_precision(used), autocast(torch.device(place)):  # type: ignore[arg-type]
            outputs = network(images.to(place)).float()
            loss = F.cross_entropy(outputs, labels.to(place))
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = torch.cat([p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None])
        found.append((outputs, loss[None], gradients))
    for ours, theirs, slack in zip(found[1], found[0], (1, 1, 3), strict=True):  # gradients pass through it twice
        assert relative(ours, theirs) < slack * TOLERANCE[precision]


@pytest.mark.parametrize("recipe", list(RECIPES))
@EVERYWHERE
def test_supernets_learn_as_on_a_cpu(device: str, recipe: str) -> None:
    problem = short_problem(recipe)
    paths, data = UniformPaths(problem.space, 0), batches(problem, 5)
    losses, scores = [], []
    for place in ("cpu", device):
        torch.manual_seed(0)
        supernet: Any = problem.supernet(problem.space).to(place)
        optimizer = adamw(supernet, lr=1e-3, weight_decay=0.05)
        with use_precision("float32"):
            steps = train_supernet(supernet, data, paths, optimizer, clip_norm=1.0).run()
            network = supernet.extract(problem.space.sample(1)).to(place)
            recalibrate(network, data)
            scores.append(evaluate(network, problem.task.eval_batches("val", 128)).loss)
        losses.append([step.loss for step in steps])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert scores[1] == pytest.approx(scores[0], rel=5e-2)


@EVERYWHERE
def test_steps_that_are_not_finite_change_nothing(device: str) -> None:
    problem, network = network_of("glit")
    network.to(device)
    good = batches(problem, 4)
    bad = [(images * (float("nan") if at == 2 else 1), labels) for at, (images, labels) in enumerate(good)]
    optimizer = adamw(network, lr=1e-3, weight_decay=0.05)
    steps = train(network, seeded(bad, 0), optimizer, clip_norm=1.0)
    records = [next(steps) for _ in range(4)]
    assert [step.skipped for step in records] == [False, False, True, False]
    assert all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values())


RUN = [
    *("--method", "spos", "--set", "supernet.epochs=0.3", "--set", "supernet.warmup_epochs=0"),
    *("--set", "retrain.epochs=0.3", "--set", "retrain.warmup_epochs=0", "--set", "search.population=4"),
    *("--set", "search.generations=2", "--set", "search.parents=2", "--set", "search.top_k=1"),
]


def command(device: str, directory: Path, *more: str, launcher: tuple[str, ...] = ()) -> dict[str, Any]:
    environment = {**os.environ, "NASX_DEVICE": device, "NASX_PROCESSES": "1"}
    line = [sys.executable, *launcher, "-m", "recipes.glit", "run", *RUN, *more, "--run-dir", str(directory), "--json"]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("device", [CUDA])
def test_deterministic_runs_give_the_same_bits(device: str, tmp_path: Path) -> None:
    for name in ("first", "second"):
        command(device, tmp_path / name, "--deterministic")
    first, second = (tmp_path / name for name in ("first", "second"))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert (first / "arch.json").read_bytes() == (second / "arch.json").read_bytes()


@pytest.mark.parametrize("device", [CUDA])  # on a CPU other tests run the same
def test_torchrun_starts_a_run(device: str, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
    assert command(device, tmp_path, launcher=launcher)["networks"]


@EVERYWHERE
def test_a_run_is_exported_and_evaluated(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NASX_DEVICE", device)
    directory, exported = tmp_path / "run", tmp_path / "exported"
    found = run(short_problem("glit"), directory, machine=on(device))
    assert main(["export", str(directory), "--out", str(exported), "--json"]) == 0
    weights = load_file(next(exported.glob("*.safetensors")))
    assert all(
        torch.equal(weights[name], tensor) for name, tensor in found.network.state_dict().items() if name in weights
    )
    assert main(["evaluate", str(directory), "--json"]) == 0


@pytest.mark.parametrize("device", [CUDA])  # on a CPU other tests run the same
def test_the_preset_of_imagenet_runs_shortened(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.data import photographs

    monkeypatch.setenv("NASX_DEVICE", device)
    photographs(tmp_path / "images", images=64, side=256 if device == "cuda" else 48)
    settings = [
        *("data.val_images=32", "supernet.epochs=2", "supernet.batch_size=32", "supernet.batch_norm_group=16"),
        *("retrain.epochs=2", "retrain.batch_size=32", "retrain.warmup_epochs=0.5", "retrain.mix_group=16"),
        *("retrain.batch_norm_group=16", "retrain.repeats=1", "retrain.refit=false"),
        *("search.population=2", "search.generations=1", "search.parents=2", "search.top_k=1"),
        *("search.recalibration_batches=1", "search.recalibration_batch_size=16", "data.leaks=allow"),
    ]
    if device == "cpu":
        settings += ["data.image_size=32", "model.embed_dim=12", "space.blocks=2", "space.kernel_size=[3]"]
        settings += ["space.held_kernel_size=3", "budget.heads_at_most=null", "budget.details_at_most=null"]
    options = [word for setting in settings for word in ("--set", setting)]
    data = ("--data", str(tmp_path / "images"))
    run_directory = tmp_path / "run"
    assert main(["run", "--preset", "glit-tiny", *data, "--run-dir", str(run_directory), *options, "--json"]) == 0
    summary = json.loads((run_directory / "summary.json").read_text())
    assert {"searched", "deit_shaped"} <= summary["networks"].keys()
    assert Arch.from_json((run_directory / "arch.json").read_text())
