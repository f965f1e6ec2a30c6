"""How candidates are scored when the device runs out of memory, or a network's outputs are not finite."""

import logging
import math
from collections.abc import Callable

import pytest
import torch

from nasx.cli import apply_settings
from nasx.recipe.machine import Machine
from nasx.recipe.problem import load_task
from nasx.recipe.stages import Stages
from nasx.train import Evaluation, evaluate
from nasx.train.modes import Batches
from recipes.glit.config import DIGITS
from recipes.glit.problem import GLiTProblem

CONFIG = apply_settings(DIGITS, ["search.recalibration_batches=1"])


@pytest.fixture
def stages() -> Stages:
    return Stages(GLiTProblem(CONFIG, load_task(CONFIG, None)), Machine(device="cpu", processes=1))


def with_memory_for(images: int) -> Callable[..., Evaluation]:
    def limited(model: torch.nn.Module, batches: Batches) -> Evaluation:
        found = list(batches)
        if max(len(labels) for _, labels in found) > images:
            raise torch.OutOfMemoryError("a small device")
        return evaluate(model, found)

    return limited


def test_a_candidate_that_does_not_fit_is_scored_in_smaller_batches(
    stages: Stages, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    problem = stages.problem
    arch = problem.joint.sample(0)
    supernet = problem.supernet(problem.joint.space)
    score = stages.score(supernet, arch, seed=1)
    monkeypatch.setattr("nasx.recipe.stages.evaluate", with_memory_for(70))
    with caplog.at_level(logging.WARNING):
        assert stages.score(supernet, arch, seed=1) == pytest.approx(score, abs=1 / 287)
    assert [record.args for record in caplog.records] == [(256,), (128,), (64,)]


def test_a_candidate_that_never_fits_has_failed(
    stages: Stages, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    problem = stages.problem
    arch = problem.joint.sample(0)
    supernet = problem.supernet(problem.joint.space)
    monkeypatch.setattr("nasx.recipe.stages.evaluate", with_memory_for(0))
    assert math.isnan(stages.score(supernet, arch, seed=1))
    assert "even image by image" in caplog.text


def test_a_candidate_whose_outputs_are_not_finite_has_failed(stages: Stages) -> None:
    problem = stages.problem
    supernet = problem.supernet(problem.joint.space)
    with torch.no_grad():
        dict(supernet.named_parameters())["head.weight"].fill_(math.nan)
    assert math.isnan(stages.score(supernet, problem.joint.sample(0), seed=1))
