"""A supernet that one run trained serves the searches of others."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nasx import Arch, Budget, Space, one_of, repeat
from nasx.measure import counted
from nasx.pipeline import Machine, Problem, Refused, RunConfig, SearchResult, Task, plan, run
from nasx.pipeline.earlier import find_earlier
from nasx.run import Interrupted
from nasx.run.checkpoints import Checkpoints
from tests.pipeline.problems import glit
from tests.pipeline.searches import SPACE, Perceptron
from tests.pipeline.test_run import changed, problem, task

MACHINE = Machine(device="cpu", processes=1)
BUILD = partial(Perceptron, inputs=4, outputs=3, norm=True)
PARAMS = counted("params", BUILD, SPACE, None)


def tighter(first: Path, **more: Any) -> Problem[RunConfig]:
    """Return the problem of `first` with a budget and another search."""
    config = changed(supernet={"from_run": str(first)}, search={"generations": 3})
    return problem(config, budget=Budget(PARAMS, at_most="60%"), **more)


def weights(directory: Path, stage: str = "supernet") -> dict[str, torch.Tensor]:
    found = Checkpoints(directory / stage / "checkpoints", identity=stage).latest()
    assert found is not None
    return {name: tensor for name, tensor in found.tensors.items() if name.startswith("model")}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return run(problem(), tmp_path_factory.mktemp("first") / "run", machine=MACHINE)


def test_a_tighter_search_takes_the_supernet(first: SearchResult, tmp_path: Path) -> None:
    asked = tighter(first.directory)
    planned = next(stage for stage in plan(asked, machine=MACHINE)["stages"] if stage["name"] == "supernet")
    assert (planned["trained_images"], planned["detail"]) == (0, f"taken from {first.directory}")
    found = run(asked, tmp_path, machine=MACHINE)
    assert same(weights(tmp_path), weights(first.directory))
    assert found.arch in asked.inside
    assert "taken from an earlier run" in (tmp_path / "report.html").read_text()
    again = run(
        problem(changed(search={"generations": 3}), budget=Budget(PARAMS, at_most="60%")),
        tmp_path / "whole",
        machine=MACHINE,
    )
    assert found.summary["networks"] == again.summary["networks"], "as if it had trained the supernet itself"


def test_the_earlier_run_is_needed_no_more_once_its_supernet_is_taken(first: SearchResult, tmp_path: Path) -> None:
    other = Path(shutil.copytree(first.directory, tmp_path / "other"))

    def stop(description: str, done: float, total: float, note: str = "") -> None:
        if description.startswith("search"):
            raise Interrupted("asked to")

    with pytest.raises(Interrupted):
        run(tighter(other), tmp_path / "run", machine=MACHINE, progress=stop)
    shutil.rmtree(other)
    assert run(tighter(other), tmp_path / "run", machine=MACHINE).summary["networks"]
    with pytest.raises(Refused, match=r"supernet\.from_run: .*other is no run directory"):
        run(tighter(other), tmp_path / "another", machine=MACHINE)


def other_builder(arch: Arch) -> torch.nn.Module:
    return Perceptron(arch, inputs=4, outputs=3)


OTHER_SPACE = Space(block=repeat(Space(hidden=one_of(4, 8)), one_of(1, 2)))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda config: Problem(OTHER_SPACE, BUILD, task(), config=config), "no supernet of this space of 6"),
        (lambda config: Problem(SPACE, BUILD, task(9), config=config), "trained on other data, which may hold"),
        (lambda config: Problem(SPACE, BUILD, Task(task().train, seed=1), config=config), "split by the same seed"),
        (lambda config: Problem(SPACE, other_builder, task(), config=config), "their builders differ"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(
    first: SearchResult, other: Any, message: str, tmp_path: Path
) -> None:
    asked = other(changed(supernet={"from_run": str(first.directory)}))
    for start in (lambda: run(asked, tmp_path, machine=MACHINE), lambda: plan(asked, timing=False)):
        with pytest.raises(ValueError, match=rf"^supernet\.from_run: .*{message}"):
            start()
    assert not list(tmp_path.iterdir())


def test_another_loss_and_metric_may_search_it(first: SearchResult, tmp_path: Path) -> None:
    def margin(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.gather(1, targets[:, None])[:, 0] - outputs.mean(dim=1)

    scored = Task(task().train, loss=partial(F.cross_entropy, label_smoothing=0.1), metric=margin)
    config = changed(supernet={"from_run": str(first.directory)})
    assert run(Problem(SPACE, BUILD, scored, config=config), tmp_path, machine=MACHINE).summary["networks"]


def test_glits_second_supernet_is_taken_where_the_heads_are_the_same(tmp_path: Path) -> None:
    short = ["supernet.epochs=0.2", "supernet.warmup_epochs=0", "retrain.epochs=0.2", "retrain.warmup_epochs=0"]
    short += ["search.population=4", "search.generations=1"]
    short += ["search.parents=2", "search.top_k=1", "search.recalibration_batches=1"]
    first = run(glit(short), tmp_path / "first", machine=MACHINE)
    asked = glit([*short, f"supernet.from_run={first.directory}"])
    run(asked, tmp_path / "same", machine=MACHINE)
    for level in ("heads/supernet", "details/supernet"):
        assert same(weights(tmp_path / "same", level), weights(first.directory, level))
    other = next(arch.only("block.*.global_heads") for arch in asked.space.sample(0, 9) if arch != first.arch)
    assert not find_earlier(asked, asked.space.pin(other)), "which is trained"
