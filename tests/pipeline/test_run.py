"""`run` from Python: what it finds, how it resumes, what it refuses, and where it may be called from."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from nasx import Arch, Budget, Space, one_of, repeat
from nasx.cli import BadInput
from nasx.cost import AdditiveCost
from nasx.measure import counted
from nasx.pipeline import Diverged, Machine, OutOfMemory, Problem, Refused, RunConfig, Task, plan, report, run, status
from nasx.pipeline.commands import attempt
from nasx.pipeline.config import Retraining, Search
from nasx.pipeline.context import Context
from nasx.pipeline.errors import SearchFailed
from nasx.pipeline.estimate import Estimator, StageEstimate
from nasx.pipeline.events import Event, StageFinished
from nasx.pipeline.networks import compiles
from nasx.pipeline.progress import silent
from nasx.pipeline.stages import RunStage
from nasx.pipeline.supernet_stages import SearchStage
from nasx.run import ConfigChanged, DamagedFile, Interrupted, RunDirectory, RunLocked
from nasx.run.checkpoints import Checkpoints
from nasx.run.lock import RunLock
from nasx.search import Evolution, RandomSearch
from nasx.train import Group, compiled_blocks, evaluate
from tests.pipeline.searches import CONFIG, SPACE, Perceptron, vectors

ROOT = Path(__file__).parents[2]
MACHINE = Machine(device="cpu", processes=1)
STAGES = ("supernet", "search", "retrain", "baselines", "evaluation")


def make(arch: Arch, drop_path: float = 0.0) -> nn.Module:
    return Perceptron(arch, inputs=4, outputs=3, norm=True)


def less_momentum(arch: Arch) -> nn.Module:
    """Return networks of the same tensors that learn otherwise."""
    network = make(arch)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 0.01
    return network


class Tempered(Perceptron):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


Tempered.__qualname__ = Perceptron.__qualname__  # as after an edit


def tempered(arch: Arch) -> nn.Module:
    """Return networks of the same modules that compute something else."""
    return Tempered(arch, inputs=4, outputs=3, norm=True)


class Noisy(Perceptron):
    """Computes the same in evaluation mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.dropout(x, 0.2, self.training))


Noisy.__qualname__ = Perceptron.__qualname__


def noisy(arch: Arch) -> nn.Module:
    """Return networks of the same modules that train otherwise."""
    return Noisy(arch, inputs=4, outputs=3, norm=True)


def another_sample(task: Task) -> TensorDataset:
    """Return the data of a task with one training sample changed, after the first."""
    x, y = (tensor.clone() for tensor in task.train.tensors)  # type: ignore[attr-defined]
    x[task.parts["train"].indices[1]] += 1e-3
    return TensorDataset(x, y)


def task(seed: int = 0) -> Task:
    x = vectors(240, seed)
    return Task(TensorDataset(x, x[:, :3].argmax(dim=1)))


def problem(config: RunConfig = CONFIG, **more: Any) -> Problem[RunConfig]:
    return Problem(SPACE, make, more.pop("task", None) or task(), config=config, **more)


def changed(**sections: Any) -> RunConfig:
    """Return the settings with changes of sections' fields."""
    update = {name: getattr(CONFIG, name).model_copy(update=fields) for name, fields in sections.items()}
    return CONFIG.model_copy(update=update)


def searched(directory: Path, config: RunConfig = CONFIG, **more: Any) -> Any:
    return run(problem(config, **more), directory, machine=MACHINE, progress=silent)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return searched(tmp_path_factory.mktemp("runs") / "run")


def test_a_run_returns_the_network_with_its_weights(finished: Any) -> None:
    searched, own = finished.summary["networks"]["searched"], task()
    assert finished.arch in SPACE
    assert dict(finished.arch) == searched["arch"]
    tested = evaluate(finished.network, own.eval_batches("test", 100))
    assert tested.score == searched["test_score"] == searched["test_accuracy"]
    assert evaluate(finished.network, own.eval_batches("val", 100)).score == searched["val_accuracy"]
    assert not finished.network.training
    assert [network.arch for network in finished.front] == [finished.arch]
    (loaded,) = (network.load() for network in finished.front)
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), finished.network.state_dict(), rtol=0, atol=0)
    assert len(finished.summary["random_all"]) == 2
    best = max(finished.summary["random_all"], key=lambda network: network["val_score"])
    assert finished.summary["networks"]["random"]["val_score"] == best["val_score"]
    for name in ("summary.json", "arch.json", "model.safetensors", "report.html"):
        assert (finished.directory / name).stat().st_size


def test_scores_of_every_sample_are_kept(finished: Any) -> None:
    records = finished.tests["evaluation"]
    for name, network in finished.summary["networks"].items():
        for part in ("val", "test"):
            scores = np.load(finished.directory / records[name][f"{part}_scores"])
            assert scores.mean() == pytest.approx(network[f"{part}_score"])
            assert len(scores) == task().counts[part]


def test_networks_of_one_rank_are_trained_with_one_seed(finished: Any, tmp_path: Path) -> None:
    """So that what is found and what is drawn are compared in pairs."""
    first = problem()
    assert first.network_seed(0) == problem().network_seed(0) != first.network_seed(1)
    same = problem(baselines={}).inside.sample(0)
    both = first.with_stages(lambda own: _twins(same))
    run(both, tmp_path, machine=MACHINE, progress=silent)
    weights = [load_file(tmp_path / stage / "0.safetensors") for stage in ("first", "second")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def _twins(arch: Arch) -> Sequence[Any]:
    from nasx.pipeline.network_stages import EvaluationStage, RetrainStage
    from nasx.pipeline.picks import Pick

    stages = [RetrainStage(name, archs=(arch,)) for name in ("first", "second")]
    return [*stages, EvaluationStage("evaluation", {stage.name: Pick(stage.name) for stage in stages})]


@dataclass(frozen=True, slots=True)
class Smallest(RunStage):
    """A stage of one's own, of a kind that the library lacks."""

    name: str
    kind: ClassVar[str] = "smallest"
    sections: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[tuple[str, ...]] = ()

    def work(self, context: Context) -> dict[str, Any]:
        return {"params": min(map(context.problem.params, context.problem.space))}

    def estimate(self, estimator: Estimator) -> StageEstimate:
        return StageEstimate(self.name)


def test_a_stage_of_ones_own_stands_in_the_report(tmp_path: Path) -> None:
    own = problem(baselines={}).with_stages(lambda given: [Smallest("smallest"), *_twins(given.inside.sample(0))])
    assert plan(own, timing=False)["stages"][0]["name"] == "smallest"
    found = run(own, tmp_path, machine=MACHINE, progress=silent)
    assert next(iter(found.summary["stages"])) == "smallest"
    report(tmp_path)
    assert "smallest" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_finished_run_is_only_read(finished: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.directory.rglob("*") if path.is_file()}
    again = searched(finished.directory)
    assert (again.arch, again.summary) == (finished.arch, finished.summary)
    after = {path: path.stat().st_mtime_ns for path in finished.directory.rglob("*") if path.is_file()}
    assert {path.name for path in before if before[path] != after[path]} == set()


SCRIPT = """
    import os, signal, sys
    from pathlib import Path
    from nasx.pipeline import run
    from tests.pipeline.test_run import MACHINE, problem

    def killing(description, done, total, note=""):
        if description.split()[0] == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGKILL)

    run(problem(), sys.argv[1], machine=MACHINE, progress=killing)
"""


def test_a_run_killed_between_every_two_stages_ends_with_the_same_bits(finished: Any, tmp_path: Path) -> None:
    for stage in STAGES:
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path), stage], cwd=ROOT)
        assert done.returncode == -signal.SIGKILL, stage
    again = searched(tmp_path)
    assert again.summary["networks"] == finished.summary["networks"]
    assert again.summary["random_all"] == finished.summary["random_all"]
    for path in sorted(finished.directory.rglob("*.safetensors")):
        if path.parent.name.find("-step") < 0:
            other = tmp_path / path.relative_to(finished.directory)
            assert other.read_bytes() == path.read_bytes(), path
    supernets = [Checkpoints(root / "supernet" / "checkpoints").latest() for root in (finished.directory, tmp_path)]
    assert supernets[0] is not None
    assert supernets[1] is not None
    assert all(torch.equal(supernets[1].tensors[key], tensor) for key, tensor in supernets[0].tensors.items())


def test_an_interruption_is_raised_and_the_call_goes_on(tmp_path: Path) -> None:
    def stopping(description: str, done: float, total: float, note: str = "") -> None:
        if description == "search":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(problem(), tmp_path, machine=MACHINE, progress=stopping)
    found = status(tmp_path)
    assert [(stage.name, stage.state) for stage in found.stages][:3] == [
        *(("supernet", "done"), ("search", "begun"), ("retrain", "waiting"))
    ]
    assert not found.finished
    assert searched(tmp_path).summary["networks"]
    assert status(tmp_path).finished


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: problem(changed(retrain={"lr": 0.1})), r"another retrain\.lr \(0\.005, now 0\.1\)"),
        (lambda: problem(changed(search={"population": 5})), r"another search\.population \(4, now 5\)"),
        (lambda: problem(CONFIG.model_copy(update={"seed": 3})), r"another seed \(0, now 3\)"),
        (lambda: problem(task=task(9)), r"other training data \(as many, but not the same\)"),
        (
            lambda: Problem(SPACE, make, Task(TensorDataset(vectors(200, 0), torch.arange(200) % 3)), config=CONFIG),
            r"other training data \(192, now 160\)",
        ),
        (lambda: problem(budget=Budget(lambda arch: 1, at_most=2)), r"another budget \(none, now at most 2\)"),
        (
            lambda: Problem(SPACE, lambda arch: Perceptron(arch, inputs=4, outputs=3), task(), config=CONFIG),
            r"a builder of other networks \(one of \d+ tensors and",
        ),
        (
            lambda: Problem(SPACE, less_momentum, task(), config=CONFIG),
            r"a builder of other networks \(one of \d+ tensors and \d+ parameters, now other modules\)",
        ),
        (
            lambda: Problem(SPACE, tempered, task(), config=CONFIG),
            r"compute something else \(loss of an untrained network \d\.\d+, now \d\.\d+\)",
        ),
        (
            lambda: Problem(SPACE, noisy, task(), config=CONFIG),
            r"compute something else \(loss of an untrained network in training mode \d\.\d+, now \d\.\d+\)",
        ),
        (
            lambda: problem(task=Task(task().train, loss=partial(F.cross_entropy, weight=torch.tensor([1.0, 1, 9])))),
            "compute something else",
        ),
        (lambda: problem(task=Task(another_sample(task()))), r"other training data \(as many, but not the same\)"),
        (
            lambda: Problem(Space(block=repeat(Space(hidden=one_of(4, 8)), one_of(1, 2))), make, task(), config=CONFIG),
            r"another search space \(12 architectures, now 6\)",
        ),
    ],
)
def test_a_directory_of_another_problem_is_refused_in_words(
    finished: Any, other: Callable[[], Problem[RunConfig]], message: str
) -> None:
    before = {path: path.read_bytes() for path in finished.directory.rglob("*.json")}
    with pytest.raises(ConfigChanged, match=message) as caught:
        run(other(), finished.directory, machine=MACHINE, progress=silent)
    assert len(str(caught.value)) < 500
    assert {path: path.read_bytes() for path in finished.directory.rglob("*.json")} == before


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("problem", r"started with another problem\.extra \(1, now absent\);"),
        ("config", r"started with another extra \(1, now absent\);"),
    ],
)
def test_what_another_version_recorded_is_named(finished: Any, section: str, message: str, tmp_path: Path) -> None:
    shutil.copytree(finished.directory, tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    recorded["config"][section]["extra"] = 1
    (tmp_path / "run" / "run.json").write_text(json.dumps(recorded))
    with pytest.raises(ConfigChanged, match=message) as caught:
        searched(tmp_path / "run")
    assert list(caught.value.fields) == [f"{section}.extra"]


def test_what_differs_is_named_and_nothing_that_follows_from_it(tmp_path: Path) -> None:
    def stop(event: object) -> None:
        raise Interrupted("at once")

    def asked(space: Space = SPACE, builder: Any = make, share: str = "60%") -> Problem[RunConfig]:
        params = counted("params", make, space, None)
        return Problem(space, builder, task(), config=CONFIG, budget=Budget(params, at_most=share), baselines={})

    with pytest.raises(Interrupted):
        run(asked(), tmp_path, machine=MACHINE, on_event=stop)
    smaller = Space(block=repeat(Space(hidden=one_of(4, 8)), one_of(1, 2)))
    for other, expected in (
        (asked(share="80%"), ["another budget"]),
        (asked(builder=less_momentum), ["a builder of other networks"]),
        (asked(smaller), ["another search space", "another budget"]),
    ):
        with pytest.raises(ConfigChanged) as caught:
            run(other, tmp_path, machine=MACHINE, progress=silent)
        assert re.findall(r"(another [a-z ]+|a builder of [a-z ]+) \(", str(caught.value)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("null", "is damaged"),
        ('{"config": 3, "versions": {}}', "is damaged"),
    ],
)
def test_a_description_that_is_none_is_refused_as_such(finished: Any, text: str, message: str, tmp_path: Path) -> None:
    shutil.copytree(finished.directory, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(ValueError, match=rf"run.*{message}"):
        searched(tmp_path / "run")


def test_a_directory_in_use_or_of_something_else_is_refused(finished: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Refused, match="neither empty nor a run"):
        searched(tmp_path)
    with pytest.raises(Refused, match="there is no device 'warp'"):
        run(problem(), tmp_path / "new", machine=Machine(device="warp"))
    copy = tmp_path / "copy"
    shutil.copytree(finished.directory, copy)
    recorded = json.loads((copy / "run.json").read_text())
    journal = (copy / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "journal.jsonl").write_bytes(b"".join(journal[:-1]))  # as before its last stage had ended
    with RunDirectory.open(copy, config=recorded["config"], versions=recorded["versions"]), pytest.raises(RunLocked):
        searched(copy)


def test_a_finished_run_is_read_without_its_lock(finished: Any, tmp_path: Path) -> None:
    """Also while another process holds it, and where nothing can be written."""
    copy = tmp_path / "copy"
    shutil.copytree(finished.directory, copy)
    (copy / "run.lock").unlink()

    def state() -> dict[str, tuple[int, int]]:
        found = ((path, path.stat()) for path in (copy, *copy.rglob("*")))
        return {str(path): (stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in found}

    before = state()
    assert searched(copy).summary == finished.summary
    assert state() == before
    with RunLock(copy / "run.lock"):
        assert searched(copy).summary == finished.summary


def test_a_run_may_have_a_name_that_is_no_utf_8(finished: Any, tmp_path: Path) -> None:
    copy = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(finished.directory, copy)
    (copy / "summary.json").unlink()  # which is written again, and the report with it
    (copy / "report.html").unlink()
    assert searched(copy).summary == finished.summary
    assert r"caf\udce9" in (copy / "report.html").read_text(encoding="utf-8")


def test_a_run_leaves_the_global_generators_as_they_were(tmp_path: Path) -> None:
    """Whether it searches, is planned, or is only read."""
    config = changed(search={"population": 3, "generations": 1, "top_k": 1}, retrain={"epochs": 1.0})
    own = problem(config, baselines={})

    def states() -> tuple[Any, Any, list[int]]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]  # noqa: NPY002

    before = states()
    run(own, tmp_path, machine=MACHINE, progress=silent)
    assert states() == before
    run(own, tmp_path, machine=MACHINE, progress=silent)
    assert states() == before
    plan(own, machine=MACHINE)
    assert states() == before


def test_settings_of_a_stage_that_diverged_may_change_and_its_work_begins_again(tmp_path: Path) -> None:
    broken = changed(retrain={"lr": 1e30, "clip_norm": None})
    with pytest.raises(Diverged, match=r"lower retrain\.lr"):
        searched(tmp_path, broken)
    assert [stage.state for stage in status(tmp_path).stages][:3] == ["done", "done", "failed"]
    with pytest.raises(ConfigChanged, match=r"another supernet\.epochs"):
        searched(tmp_path, changed(retrain={"lr": 5e-3}, supernet={"epochs": 1.0}))
    supernet = (tmp_path / "supernet" / "metrics.csv").stat().st_mtime_ns
    mended = searched(tmp_path)
    assert mended.summary["networks"]["searched"]["val_score"] > 0
    assert (tmp_path / "supernet" / "metrics.csv").stat().st_mtime_ns == supernet, "what was finished is kept"
    assert (tmp_path / "retrain.before-1" / "settings.json").exists(), "and what was begun is set aside"
    journal = (tmp_path / "journal.jsonl").read_text()
    assert '"event":"changed"' in journal
    assert "config.retrain.lr" in journal


def stopped_after(stage: str, directory: Path, config: RunConfig = CONFIG) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, StageFinished) and event.stage == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(problem(config), directory, machine=MACHINE, progress=silent, on_event=stop)


def test_a_search_has_kept_as_many_networks_as_its_retraining_starts_with(tmp_path: Path) -> None:
    stopped_after("search", tmp_path)
    with pytest.raises(ConfigChanged, match=r'another retrain\.method \("top", now "halving"\)'):
        searched(tmp_path, changed(retrain={"method": "halving", "start": 4}))
    again = searched(tmp_path, changed(retrain={"lr": 6e-3}))
    assert again.summary["networks"]


def test_a_trust_stage_that_failed_lets_no_setting_of_the_finished_search_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(*args: Any, **how: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patched:
        patched.setattr("nasx.pipeline.networks.train", limited)
        with pytest.raises(OutOfMemory, match=r"trust ran out of memory; lower search\.recal.* or retrain\.batch_size"):
            searched(tmp_path, changed(trust={"n": 5}))
    with pytest.raises(ConfigChanged, match=r"another search\.top_k \(2, now 1\)"):
        searched(tmp_path, changed(trust={"n": 5}, search={"top_k": 1}))
    assert searched(tmp_path, changed(trust={"n": 5}, search={"eval_batch_size": 8}, retrain={"batch_size": 8}))


def test_every_setting_of_a_search_is_held_by_it_or_says_how_to_score() -> None:
    scoring = "recalibration_batches", "recalibration_batch_size", "recalibration_augment", "eval_batch_size"
    held = {field for field in SearchStage.fields if field.startswith("search.")}
    assert {f"search.{name}" for name in Search.model_fields} - held == {f"search.{name}" for name in scoring}
    assert {f"retrain.{name}" for name in Retraining.model_fields} >= set(SearchStage.fields) - held


def test_networks_that_an_evaluation_does_not_have_cannot_come_after_it(finished: Any, tmp_path: Path) -> None:
    shutil.copytree(finished.directory, tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(ConfigChanged, match=r"another finetune\.epochs \(0\.0, now 1\.0\)"):
        searched(tmp_path / "run", changed(finetune={"epochs": 1.0}))
    with pytest.raises(ConfigChanged, match=r"another retrain\.refit \(false, now true\)"):
        searched(tmp_path / "run", changed(retrain={"refit": True}))
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert searched(tmp_path / "run").summary == finished.summary


def test_a_finished_run_may_learn_whether_its_ranking_is_trusted(finished: Any, tmp_path: Path) -> None:
    shutil.copytree(finished.directory, tmp_path / "run")
    judged = searched(tmp_path / "run", changed(trust={"n": 5}, retrain={}))
    assert list(judged.summary["trust"]) == ["trust"]
    assert judged.summary["networks"] == finished.summary["networks"]


def test_a_training_without_enough_memory_names_the_setting_and_may_go_on_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(*args: Any, **how: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")

    with monkeypatch.context() as patched:
        patched.setattr("nasx.pipeline.networks.train", limited)
        with pytest.raises(
            OutOfMemory, match=r"retrain ran out of memory; lower retrain\.batch_size \(.*2\.00 GiB\.\)"
        ):
            searched(tmp_path)
    assert [stage.state for stage in status(tmp_path).stages][:3] == ["done", "done", "failed"]
    assert searched(tmp_path, changed(retrain={"batch_size": 8})).summary["networks"]


def test_a_plan_reads_the_same_stages_and_a_report_is_written_again(finished: Any) -> None:
    document = plan(problem(), machine=MACHINE, timing=False)
    assert [stage["name"] for stage in document["stages"]] == list(STAGES) == list(finished.summary["stages"])
    assert document["size"] == SPACE.size
    timed: list[str] = []
    document = plan(problem(), machine=MACHINE, on_timing=timed.append)
    assert len(timed) == 2
    assert all(stage["seconds"] > 0 for stage in document["stages"] if stage["name"] != "evaluation")
    before = (finished.directory / "report.html").read_bytes()
    assert report(finished.directory) == finished.directory / "report.html"
    assert (finished.directory / "report.html").read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_report_of_a_search_that_has_lost_candidates_is_refused(damage: str, finished: Any, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished.directory, tmp_path / "copy"))
    journal = copy / "search" / "journal.jsonl"
    if damage == "cut":
        journal.write_bytes(journal.read_bytes()[:-40])
    else:
        shutil.rmtree(copy / "search")
    with pytest.raises(DamagedFile, match=r"has \d+ of the \d+ candidates that its search scored"):
        report(copy)


class Counting(Evolution):
    """A searcher of one's own."""

    def __init__(self, space: Any, seed: int) -> None:
        super().__init__(space, population=3, generations=2, parents=2, seed=seed)


class Broken(Perceptron):
    """Trains as others do, and has no finite outputs afterwards."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (1.0 if self.training else math.nan)


def test_a_search_of_failed_candidates_says_that_its_supernet_needs_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Problem(SPACE, partial(Broken, inputs=4, outputs=3), task(), config=CONFIG)
    message = r"all 8 candidates failed.*weights of the supernet are finite.*supernet\.lr.*choose another run directory"
    with pytest.raises(BadInput, match=message) as raised:
        attempt(lambda: run(own, tmp_path, machine=MACHINE, progress=silent), "the run")
    assert "takes the change" not in str(raised.value)


class Lazy(Dataset[tuple[torch.Tensor, int]]):
    """Samples that may have to be read from a disk."""

    def __init__(self, seed: int, broken: int | None = None, samples: int = 240) -> None:
        self.inputs = vectors(samples, seed)
        self.labels = self.inputs[:, :3].argmax(dim=1).tolist()
        if broken is not None:
            self.inputs[broken, 1] = math.nan

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.inputs[index], self.labels[index]


@pytest.mark.parametrize(("part", "racing"), [("train", 0.0), ("val", 0.0), ("val", 0.05)])
def test_a_sample_without_which_no_candidate_has_a_score_is_named_and_mended(
    part: str, racing: float, tmp_path: Path
) -> None:
    """The supernet that is trained stays, and so does the run directory."""
    config = changed(search={"racing_error": racing, "recalibration_batches": 15})
    bad: dict[str, Any] = {
        name: Lazy(number, 101 if name == part else None) for number, name in enumerate(("train", "val", "test"))
    }
    good: dict[str, Any] = {name: Lazy(number) for number, name in enumerate(bad)}
    name = {"train": "training", "val": "validation"}[part]
    with pytest.raises(
        SearchFailed, match=rf"all . candidates failed, because sample 101 of the {name} data"
    ) as caught:
        searched(tmp_path / "run", config, task=Task(**bad))
    assert "supernet is kept" in str(caught.value)
    assert "lr" not in str(caught.value)
    assert status(tmp_path / "run").current.note == str(caught.value)  # type: ignore[union-attr]
    weights = [path.read_bytes() for path in sorted((tmp_path / "run" / "supernet").rglob("*.safetensors"))]
    found = searched(tmp_path / "run", config, task=Task(**good))
    assert weights == [path.read_bytes() for path in sorted((tmp_path / "run" / "supernet").rglob("*.safetensors"))]
    assert math.isfinite(found.summary["networks"]["searched"]["test_score"])


def test_more_networks_than_candidates_cannot_be_retrained(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"search\.top_k must be at most the 8 candidates.*but got 9"):
        searched(tmp_path / "run", changed(search={"top_k": 9}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["random", "local", "pareto", Counting, RandomSearch(SPACE, evaluations=6, batch=3)])
def test_the_search_is_a_choice(method: Any, tmp_path: Path) -> None:
    config = changed(search={"method": method, "population": 3, "top_k": 2}, retrain={"epochs": 1.0})
    found = searched(tmp_path, config)
    assert found.summary["searches"]["search"]["evaluations"] == 6
    assert found.network is not None
    if method == "pareto":
        assert len(found.summary["front"]) >= 1
        costs = [network.macs for network in found.front]
        assert costs == sorted(costs)
        assert [network.costs for network in found.front] == [(cost,) for cost in costs]
        assert [network.val_score for network in found.front] == sorted(network.val_score for network in found.front)


class Power(AdditiveCost):
    """Watts of a device that wide blocks suit."""

    unit = "W"

    def fixed(self, shared: Mapping[str, Any]) -> int:
        return 100

    def part(self, name: str, index: int, shared: Mapping[str, Any], choices: Mapping[str, Any]) -> int:
        return -int(choices["hidden"])


def test_the_front_is_of_the_costs_that_were_searched(tmp_path: Path) -> None:
    power = Power()
    config = changed(search={"method": "pareto", "population": 6, "generations": 1, "top_k": 6})
    found = searched(tmp_path, config, budget=Budget(power))
    rows = [(row["val_score"], -power(Arch(row["arch"])), Arch(row["arch"])) for row in found.summary["front"]]
    for network in (*found.summary["networks"].values(), *found.summary["front"]):
        assert network["budget_costs"] == {"W": power(Arch(network["arch"]))}
    best = found.summary["networks"]["searched"]["budget_costs"]["W"]
    page = (found.directory / "report.html").read_text(encoding="utf-8")
    assert '<th scope="col" class="number">W</th>' in page
    assert f'<td class="number">{best:.3g}</td>' in page
    beaten = {
        arch
        for score, cost, arch in rows
        if any(a >= score and b >= cost and (a, b) != (score, cost) for a, b, _ in rows)
    }
    assert {network.arch for network in found.front} == {arch for *_, arch in rows} - beaten
    assert [network.costs for network in found.front] == sorted((power(network.arch),) for network in found.front)
    assert all(network.costs != (network.macs,) for network in found.front)


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        ((make, SPACE, task()), {}, r"`space` must be a Space.*; write Problem\(space, make, task\)"),
        ((SPACE, task(), make), {}, r"`make` must be a function or class.*; write Problem\(space, make, task\)"),
        ((SPACE, make(SPACE[0]), task()), {}, "`make` must build the network of any.*got one network, a Perceptron"),
        ((SPACE, make, task().train), {}, r"`task` must be a Task.*TensorDataset.*Task\(dataset\)"),
        (
            (SPACE, make, task()),
            {"budget": 1000},
            r"but got 1000; write Budget\(cost, at_most=1000\), with a cost such",
        ),
        ((SPACE, make, task()), {"budget": "50%"}, r"but got '50%'; write Budget\(cost, at_most='50%'\)"),
        ((SPACE, make, task()), {"budget": [len]}, r"function len>; write Budget\(len, at_most=\.\.\.\)$"),
        ((SPACE, make, task()), {"budget": {"macs": 1}}, r"but got \{'macs': 1\}; write Budget"),
        ((SPACE, make, task()), {"budget": 0}, "`budget` must be a Budget or several, but got 0"),
        (
            (SPACE, make, task()),
            {"config": {"seed": 1}},
            r"a RunConfig, but got \{'seed': 1\}.*RunConfig\(\*\*settings",
        ),
        ((SPACE, make, task()), {"config": "digits"}, "`config` must be a RunConfig, but got 'digits'"),
        (
            (SPACE, make, task()),
            {"supernet": nn.Linear(2, 2)},
            r"supernet\(make, space\), but got Linear.*leave it out",
        ),
        ((SPACE, make, task()), {"teacher": "timm:vit"}, r"`teacher` must be a network.*'timm:vit'.*supernet\.teacher"),
        ((SPACE, make, task()), {"teacher": make}, "`teacher` must be a network, or a mapping to networks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_of_another_kind_are_refused_before_work_starts(
    arguments: tuple[Any, ...], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        Problem(*arguments, **more)


def test_a_teacher_for_no_training_is_refused() -> None:
    with pytest.raises(ValueError, match="'supernet' and 'retrain', but got 'student'"):
        problem(teacher={"student": make(SPACE[0])})


def test_a_method_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"search\.method must be one of evolution, random, pareto, local"):
        Search(method="annealing")
    with pytest.raises(ValueError, match=r"search\.method"):
        Search(method=3)
    bad = changed(search={"method": lambda archs, seed: object()})
    with pytest.raises(Refused, match="has no `ask`"):
        searched(Path("nowhere"), bad)
    assert not Path("nowhere").exists()


def test_halving_trains_many_for_a_part_and_few_to_the_end(tmp_path: Path) -> None:
    config = changed(retrain={"method": "halving", "start": 8, "epochs": 4.0}, search={"top_k": 2, "generations": 3})
    found = searched(tmp_path, config)
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    results = {r["stage"]: r["result"] for r in (json.loads(line)["record"] for line in lines) if "result" in r}
    for stage in ("retrain", "random"):
        shares = sorted(network["share"] for network in results[stage]["networks"])
        assert shares == [0.25, 0.25, 0.25, 0.25, 0.5, 0.5, 1, 1]
        finalists = [n for n in results[stage]["networks"] if n["share"] == 1]
        assert results[stage]["winner"] == max(finalists, key=lambda n: n["val_score"])["arch"]
        assert not list((tmp_path / stage).glob("*/*-step*")), "no checkpoint is left"
    whole = next(n for n in results["retrain"]["networks"] if n["arch"] == results["retrain"]["winner"])
    alone = searched(tmp_path / "alone", changed(retrain={"epochs": 4.0}, search={"generations": 3}))
    same = [n for n in alone.summary["networks"].values() if n["arch"] == whole["arch"]]
    assert len(found.summary["random_all"]) == 2
    assert all(network["val_score"] == whole["val_score"] for network in same), "rounds continue one training"


def test_a_refit_trains_on_all_samples_and_keeps_the_score_of_the_choice(finished: Any, tmp_path: Path) -> None:
    found = searched(tmp_path, changed(retrain={"refit": True}))
    ours, theirs = found.summary["networks"], finished.summary["networks"]
    assert {name: n["val_score"] for name, n in ours.items()} == {name: n["val_score"] for name, n in theirs.items()}
    assert found.tests["evaluation"]["searched"]["weights"] == "refit/0.safetensors"
    state = found.network.state_dict()
    assert any(not torch.equal(state[name], tensor) for name, tensor in finished.network.state_dict().items())
    lines = (tmp_path / "refit" / "0.metrics.csv").read_text().splitlines()
    assert len(lines) - 1 == 2 * ((192 + 24) // 16), "a step for every batch of training and validation samples"


@pytest.mark.parametrize(
    ("ema", "keep", "possible"),
    [(0.5, "ema", {"ema"}), (0.5, "raw", {"raw"}), (0.5, "better", {"ema", "raw"}), (None, "ema", {"raw"})],
)
def test_the_weights_that_are_kept_are_recorded(
    ema: float | None, keep: str, possible: set[str], tmp_path: Path
) -> None:
    found = searched(tmp_path, changed(retrain={"ema": ema, "keep": keep}))
    assert {network["weights_kept"] for network in found.summary["networks"].values()} <= possible


def test_blocks_are_compiled_where_it_was_asked_for_or_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[nn.Module] = []

    @contextmanager
    def noted(network: nn.Module, *, fall_back: bool) -> Iterator[nn.Module]:
        assert not fall_back
        used.append(network)
        with compiled_blocks(network, backend="eager"):
            yield network

    monkeypatch.setattr("nasx.pipeline.networks.compiled_blocks", noted)
    found = searched(tmp_path / "compiled", changed(retrain={"compile": True}))
    assert len(used) >= len(found.summary["networks"])
    used.clear()
    searched(tmp_path / "plain", CONFIG)
    assert not used, "not on a CPU by default"
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr("nasx.pipeline.networks.missing_for_compilation", lambda device: None)
    assert compiles(Retraining(), cuda, 100_000)
    assert not compiles(Retraining(), cpu, 100_000)
    assert not compiles(Retraining(), cuda, 100), "too short to repay the compiling"
    assert not compiles(Retraining(), cuda, 100_000, deterministic=True)
    assert not compiles(Retraining(), cuda, 100_000, Group(0, 2))
    assert not compiles(Retraining(compile=False), cuda, 100_000)
    assert compiles(Retraining(compile=True), cpu, 1)


def test_compiling_without_a_compiler_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(Refused, match=r"retrain\.compile=true cannot be followed: there is no compiler on the path"):
        searched(tmp_path, changed(retrain={"compile": True}))


def test_the_precision_reaches_every_forward_pass(tmp_path: Path) -> None:
    seen: set[tuple[bool, torch.dtype]] = set()

    def noting(arch: Arch, drop_path: float = 0.0) -> nn.Module:
        network = make(arch, drop_path)
        network.register_forward_hook(
            lambda module, args, outputs: None if outputs.is_meta else seen.add((learns(module), outputs.dtype))
        )
        return network

    def learns(module: nn.Module) -> bool:
        return module.training and torch.is_grad_enabled()

    for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        seen.clear()
        config = CONFIG.model_copy(update={"precision": precision})
        run(Problem(SPACE, noting, task(), config=config), tmp_path / precision, machine=MACHINE, progress=silent)
        assert {kind for kind in seen if kind[0]} == {(True, dtype)}
        assert (False, dtype) in seen, "candidates and networks are scored in it"
    for number in range(4):
        halved, whole = (
            load_file(tmp_path / precision / "baselines" / f"{number}.safetensors")
            for precision in ("bfloat16", "float32")
        )
        for name, tensor in whole.items():
            torch.testing.assert_close(halved[name], tensor, atol=0.02, rtol=0, msg=f"{name} of network {number}")


def test_a_teacher_is_learned_from(finished: Any, tmp_path: Path) -> None:
    teacher = make(SPACE.sample(0))
    for parameter in teacher.parameters():
        nn.init.zeros_(parameter)  # whoever learns from it alone gives all classes the same probability
    alone = changed(retrain={"distillation_weight": 1.0, "epochs": 20.0}, supernet={"epochs": 1.0})
    found = searched(tmp_path / "a", alone, teacher={"retrain": teacher})
    with torch.no_grad():
        outputs = found.network(vectors(50, 5)).softmax(dim=1)
        plain = finished.network(vectors(50, 5)).softmax(dim=1)
    assert float(outputs.max()) < 0.5 < float(plain.max())
    weights = tmp_path / "teacher"
    shutil.copytree(finished.directory, weights)
    named = changed(retrain={"teacher": str(weights), "distillation": "hard"})
    assert searched(tmp_path / "b", named).summary["networks"]["searched"]["val_score"] > 0
    with pytest.raises(Refused, match="a teacher is timm:NAME=WEIGHTS"):
        searched(tmp_path / "c", changed(retrain={"teacher": "nothing"}))
    assert not (tmp_path / "c").exists()


def test_budgets_of_several_costs_are_met(tmp_path: Path) -> None:
    params = counted("params", make, SPACE, None)
    macs = counted("macs", make, SPACE, vectors(1, 0))
    found = searched(tmp_path, budget=[Budget(macs, at_most="90%"), Budget(params, at_most="80%")])
    largest = found.summary["networks"]["largest"]
    searched_network = found.summary["networks"]["searched"]
    assert searched_network["params"] <= 0.8 * largest["params"]
    assert searched_network["macs"] <= 0.9 * largest["macs"]
    with pytest.raises(ValueError, match="attainable"):
        problem(budget=Budget(params, at_most=3))


OWN = """
    import torch
    from torch import nn
    from torch.utils.data import Dataset
    from nasx import Space, one_of
    from nasx.pipeline import Problem, RunConfig, Task, run
    from nasx.pipeline.config import Retraining, Search, SupernetTraining

    class Net(nn.Module):
        def __init__(self, arch):
            super().__init__()
            self.up, self.down = nn.Linear(4, arch["width"]), nn.Linear(arch["width"], 2)

        def forward(self, x):
            return self.down(self.up(x).relu())

    def metric(outputs, targets):
        return (outputs.argmax(1) == targets).float()

    class Samples(Dataset):
        def __init__(self):
            self.x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))

        def __len__(self):
            return len(self.x)

        def __getitem__(self, index):
            return self.x[index], int(self.x[index, 0] > 0)

    config = RunConfig(
        supernet=SupernetTraining(epochs=1), search=Search(population=2, generations=1, top_k=2),
        retrain=Retraining(epochs=1),
    )
    task = Task(Samples(), metric=metric)
    problem = Problem(Space(width=one_of(2, 4, 8)), Net, task, config=config)
    found = run(problem, DIRECTORY)
    print("found", found.summary["networks"]["searched"]["val_score"])
"""


@pytest.mark.parametrize("how", ["standard input", "without cloudpickle", "samples read ahead"])
def test_what_a_program_defines_itself_is_trained_in_several_processes_without_a_guard(
    how: str, tmp_path: Path
) -> None:
    code = textwrap.dedent(OWN).replace("DIRECTORY", repr(str(tmp_path / "run")))
    if how == "without cloudpickle":
        code = "import sys\nsys.modules['cloudpickle'] = None\n" + code
    (tmp_path / "script.py").write_text(code)
    workers = "1" if how == "samples read ahead" else "0"
    environment = {**os.environ, "NASX_PROCESSES": "2", "NASX_WORKERS": workers, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-" if how == "standard input" else "script.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=240,
        input=code if how == "standard input" else None,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("found ")
    assert done.stdout.count("found") == 1, "no process ran the program again"
    in_one_process = "trained one after the other, in one process" in " ".join(done.stderr.split())
    assert in_one_process == (how == "without cloudpickle")


def test_a_run_learns_whatever_the_callers_modes_are(finished: Any, tmp_path: Path) -> None:
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = searched(tmp_path)
    assert found.summary["networks"] == finished.summary["networks"]
