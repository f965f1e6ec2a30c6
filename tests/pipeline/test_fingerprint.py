"""A run is continued with what it was started with: what tells that networks, supernets and teachers are others."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nasx import Arch, Space, one_of, repeat
from nasx.nn import Supernet, stacked
from nasx.pipeline import Problem, Refused, run
from nasx.pipeline.fingerprint import fingerprint, up_to_rounding
from nasx.pipeline.progress import silent
from nasx.run import ConfigChanged
from tests.pipeline.searches import SPACE, Perceptron
from tests.pipeline.test_run import MACHINE, changed, problem, task

OPERATORS = ("ReLU", "GELU", "Tanh", "ELU", "SELU", "SiLU", "Mish", "Softplus")
ONE_OF_EIGHT = Space(operator=one_of(*OPERATORS))


def layer(arch: Arch, replaced: str = "") -> nn.Module:
    operator = nn.Sigmoid if arch["operator"] == replaced else getattr(nn, str(arch["operator"]))
    return nn.Sequential(nn.Linear(4, 8), operator(), nn.Linear(8, 3))


STACKS: Any = partial(Supernet, layout={"blocks.*.weight": stacked(2)})
COPIES: Any = partial(Supernet, separate={"blocks.*": "hidden"})


class _Stop(Exception):
    pass


def started(directory: Path, **more: Any) -> None:
    """Run until the supernet is trained."""

    def stop(event: object) -> None:
        if type(event).__name__ == "StageFinished":
            raise _Stop

    with pytest.raises(_Stop):
        run(problem(**more), directory, machine=MACHINE, progress=silent, on_event=stop)


@pytest.mark.parametrize("replaced", OPERATORS)
def test_every_option_is_compared(replaced: str) -> None:
    found = [fingerprint(Problem(ONE_OF_EIGHT, partial(layer, replaced=name), task())) for name in ("", replaced)]
    assert found[0]["network"] != found[1]["network"]


def test_several_networks_are_compared_where_one_has_every_option() -> None:
    space = Space(block=repeat(Space(hidden=one_of(4, 8)), 8))
    assert len(fingerprint(Problem(space, partial(Perceptron, inputs=4, outputs=3), task()))["untrained"]) >= 3


@pytest.mark.parametrize("supernet", [STACKS, COPIES])
def test_a_supernet_that_shares_otherwise_is_refused(tmp_path: Path, supernet: Any) -> None:
    started(tmp_path)
    with pytest.raises(ConfigChanged, match="a supernet that shares weights otherwise"):
        run(problem(supernet=supernet), tmp_path, machine=MACHINE, progress=silent)
    config = changed(supernet={"from_run": str(tmp_path)})
    with pytest.raises(Refused, match=r"supernet\.from_run: "):
        run(problem(config, supernet=supernet), tmp_path / "other", machine=MACHINE, progress=silent)


def teacher(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Perceptron(SPACE[0], inputs=4, outputs=3)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (lambda: teacher(0), lambda: teacher(1), "a teacher in supernet, now another"),
        (lambda: teacher(0), lambda: None, "a teacher in supernet, now none"),
        (lambda: None, lambda: teacher(0), "no teacher in supernet, now one"),
    ],
)
def test_another_teacher_is_refused(
    tmp_path: Path, first: Callable[[], nn.Module | None], second: Callable[[], nn.Module | None], message: str
) -> None:
    started(tmp_path, teacher=first())
    with pytest.raises(ConfigChanged, match=message):
        run(problem(teacher=second()), tmp_path, machine=MACHINE, progress=silent)


def test_a_training_that_has_not_begun_may_have_another_teacher(tmp_path: Path) -> None:
    started(tmp_path, teacher={"retrain": teacher(0)})
    run(problem(teacher={"retrain": teacher(1)}), tmp_path, machine=MACHINE, progress=silent)


def test_a_run_goes_on_where_losses_differ_by_rounding() -> None:
    asked = fingerprint(problem())
    elsewhere = copy.deepcopy(asked)
    elsewhere["untrained"][0]["loss"] *= 1 + 1e-6
    assert up_to_rounding(asked, elsewhere) == elsewhere
    elsewhere["untrained"][0]["loss"] *= 1.01
    assert up_to_rounding(asked, elsewhere) == asked
    assert up_to_rounding(asked, elsewhere, one_torch=False) == elsewhere, "which may draw other weights"
    assert up_to_rounding(asked, None) == asked
    assert (
        up_to_rounding({**asked, "untrained": [{"loss": "nan", "score": 0.0}]}, asked)["untrained"][0]["loss"] == "nan"
    )
