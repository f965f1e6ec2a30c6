"""Runs whose metric is one of the whole data set, such as the area under a ROC curve."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import TensorDataset
from torchmetrics import MeanSquaredError
from torchmetrics.classification import BinaryAUROC, MulticlassF1Score, MulticlassFBetaScore

from nasx.pipeline import Machine, Problem, RunConfig, Task, plan, run
from nasx.pipeline.scoring import races
from nasx.report.formats import score
from nasx.run import ConfigChanged, Interrupted
from nasx.train import over_dataset
from nasx.train.dataset_metrics import is_dataset_metric
from tests.pipeline.searches import CONFIG, SPACE, Perceptron, area, vectors

HERE = Machine(device="cpu", processes=1)


def negative_error(outputs: Tensor, targets: Tensor) -> float:
    return -float(F.mse_loss(outputs, targets))


def problem(task: Task, outputs: int = 2, config: RunConfig = CONFIG) -> Problem[RunConfig]:
    return Problem(SPACE, lambda arch: Perceptron(arch, inputs=4, outputs=outputs), task, config=config)


def labelled(count: int, seed: int) -> TensorDataset:
    x = vectors(count, seed)
    return TensorDataset(x, (x[:, 0] + x[:, 1] > 1).long())


def test_a_run_is_scored_by_it_from_the_search_to_the_test_samples(tmp_path: Path) -> None:
    found = run(area(), tmp_path, machine=HERE)
    task = area().task
    inputs, targets = (torch.cat(column) for column in zip(*task.eval_batches("test", 50), strict=True))
    with torch.no_grad():
        margins = found.network(inputs)[:, 1] - found.network(inputs)[:, 0]
    truth = roc_auc_score(targets, margins)
    searched = found.summary["networks"]["searched"]
    assert searched["test_score"] == pytest.approx(truth, abs=1e-6)
    assert found.summary["metric"] == "Margin"
    assert not list(tmp_path.rglob("*.npy")), "no sample has a score of its own"
    report = (tmp_path / "report.html").read_text()
    assert f"Its test Margin is {score(searched['test_score'], 'Margin')}." in report
    assert "95 % interval" not in report
    assert "they need a score for each sample" in report


def test_it_continues_with_the_same_bits(tmp_path: Path) -> None:
    run(area(), tmp_path / "whole", machine=HERE)

    def stop(event: Any) -> None:
        if getattr(event, "score", None) is not None:
            seen.append(event)
            if len(seen) == 3:
                raise Interrupted("stopped in the search")

    seen: list[Any] = []
    with pytest.raises(Interrupted):
        run(area(), tmp_path / "stopped", machine=HERE, on_event=stop)
    run(area(), tmp_path / "stopped", machine=HERE)
    whole, stopped = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "stopped"))
    assert whole["networks"] == stopped["networks"]


def test_candidates_do_not_race_for_it(caplog: pytest.LogCaptureFixture) -> None:
    data, val = labelled(300, 0), labelled(2000, 1)
    config = CONFIG.model_copy(update={"search": CONFIG.search.model_copy(update={"racing_error": 0.01})})
    whole = problem(Task(data, val, metric=MulticlassF1Score(2, average="macro")), config=config)
    single = problem(Task(data, val), config=config)
    assert not races(whole.config.search, whole.task)
    assert races(single.config.search, single.task)
    assert [record.getMessage() for record in caplog.records] == [
        "search.racing_error=0.01 has no effect, because MulticlassF1Score is a metric of the whole data set"
    ]


@pytest.mark.filterwarnings("ignore:Only one class")
def test_samples_that_are_ordered_by_class_do_not_stop_it_but_a_single_class_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def margin_area(outputs: Tensor, targets: Tensor) -> float:
        return float(roc_auc_score(targets, outputs[:, 1] - outputs[:, 0]))

    x, y = labelled(400, 0).tensors
    ordered = TensorDataset(x[y.argsort()], y.sort().values)
    metric = over_dataset(margin_area)
    own = problem(Task(ordered, ordered, ordered, metric=metric))
    own.check()
    assert plan(own)["seconds"] > 0
    one_class = TensorDataset(x[y == 0], y[y == 0])
    with pytest.raises(ValueError, match=r"margin_area (is nan for a network whose loss is finite|failed: ValueError)"):
        problem(Task(ordered, one_class, ordered, metric=metric)).check()
    rare = TensorDataset(vectors(999, 0), (torch.arange(999) == 1).long())  # not among the samples that are looked at
    problem(Task(ordered, rare, ordered, metric=metric)).check()


def test_a_metric_of_which_less_is_better_is_refused_and_its_negative_taken() -> None:
    x = vectors(200, 0)
    data = TensorDataset(x, x[:, :1])
    with pytest.raises(ValueError, match="but MeanSquaredError is lower; pass its negative"):
        Task(data, loss=F.mse_loss, metric=MeanSquaredError())
    for metric in (-MeanSquaredError(), over_dataset(negative_error)):
        own = problem(Task(data, loss=F.mse_loss, metric=metric), outputs=1)
        own.check()
        found = own.task.evaluate(own.some_network(), own.task.eval_batches("val", 7))
        assert found.score == pytest.approx(-found.loss)


def test_a_class_of_metrics_is_refused() -> None:
    with pytest.raises(ValueError, match=r"an object with `reset`, `update` and `compute`, but got <class"):
        Task(labelled(100, 0), metric=BinaryAUROC)  # type: ignore[arg-type]


class Spread:
    """How far the outputs differ, where it does not fail."""

    def reset(self) -> None:
        self.outputs: list[Tensor] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.outputs.append(outputs)

    def compute(self) -> float:
        return math.nan if self.fails() else float(torch.cat(self.outputs).std())

    def fails(self) -> bool:
        return False


def test_a_candidate_that_it_is_no_number_for_has_failed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Twice(Spread):
        left = 2

        def fails(self) -> bool:
            failing = Twice.left > 0 and (tmp_path / "search").exists()
            Twice.left -= failing
            return failing

    metric = Twice()
    assert is_dataset_metric(metric)
    own = problem(Task(labelled(100, 0), metric=metric))
    with caplog.at_level(logging.WARNING):
        found = run(own, tmp_path, machine=HERE)
    assert found.summary["searches"]["search"]["failed"] == 2
    assert "a candidate failed, because its metric Twice is nan" in caplog.text
    assert np.isfinite(found.summary["networks"]["searched"]["test_score"])


def test_a_candidate_that_it_raises_for_has_failed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Raising(Spread):
        left = 2

        def compute(self) -> float:
            if Raising.left > 0 and (tmp_path / "search").exists():
                Raising.left -= 1
                raise RuntimeError("constant input")
            return super().compute()

    found = run(problem(Task(labelled(100, 0), metric=Raising())), tmp_path, machine=HERE)
    assert found.summary["searches"]["search"]["failed"] == 2
    assert "a candidate failed: the metric Raising failed: RuntimeError: constant input" in caplog.text


def test_an_average_that_it_is_no_number_for_leaves_the_weights_themselves(tmp_path: Path) -> None:
    class OnAverages(Spread):
        """Not a number for every second evaluation of trained networks, which is that of the average."""

        count = 0

        def fails(self) -> bool:
            OnAverages.count += (tmp_path / "retrain").exists() and not (tmp_path / "evaluation").exists()
            return OnAverages.count > 0 and OnAverages.count % 2 == 0 and not (tmp_path / "evaluation").exists()

    config = CONFIG.model_copy(update={"retrain": CONFIG.retrain.model_copy(update={"ema": 0.9})})
    found = run(problem(Task(labelled(100, 0), metric=OnAverages()), config=config), tmp_path, machine=HERE)
    assert {network["weights_kept"] for network in found.summary["networks"].values()} == {"raw"}


def test_a_test_part_that_it_is_no_number_for_is_refused_before_training() -> None:
    x, y = labelled(400, 0).tensors
    one_class = TensorDataset(x[y == 0], y[y == 0])
    metric = over_dataset(lambda outputs, targets: roc_auc_score(targets, outputs[:, 1]) if targets.any() else math.nan)
    with pytest.raises(ValueError, match=r"the metric metric is nan .*\(on the test data\)"):
        problem(Task(TensorDataset(x, y), TensorDataset(x, y), one_class, metric=metric)).check()


def test_a_run_is_not_continued_with_other_arguments_of_it(tmp_path: Path) -> None:
    x = vectors(600, 0)
    rare = TensorDataset(x, (torch.arange(600) % 100 == 0).long())  # of which untrained networks find none

    def beta(value: float) -> Problem[RunConfig]:
        return problem(Task(rare, rare, rare, metric=MulticlassFBetaScore(value, 2)))

    def stop(event: Any) -> None:
        raise Interrupted("stopped at once")

    with pytest.raises(Interrupted):
        run(beta(1.0), tmp_path, machine=HERE, on_event=stop)
    with pytest.raises(ConfigChanged, match=r"another metric \(MulticlassFBetaScore\(.*beta=1.0.*now .*beta=2.0"):
        run(beta(2.0), tmp_path, machine=HERE)


def test_arguments_that_are_not_plain_are_told_by_what_they_compute(tmp_path: Path) -> None:
    def own(sign: int) -> Problem[RunConfig]:
        metric = over_dataset(lambda outputs, targets: sign * float(outputs[:, 0].std()))
        return problem(Task(labelled(100, 0), metric=metric))

    def stop(event: Any) -> None:
        raise Interrupted("stopped at once")

    with pytest.raises(Interrupted):
        run(own(1), tmp_path, machine=HERE, on_event=stop)
    with pytest.raises(ConfigChanged, match="a metric that compute something else"):
        run(own(-1), tmp_path, machine=HERE)


def test_it_is_given_full_precision_whatever_the_network_computes_in() -> None:
    def spread(outputs: Tensor, targets: Tensor) -> float:
        return float(outputs.numpy().std())  # numpy knows no bfloat16

    config = CONFIG.model_copy(update={"precision": "bfloat16"})
    problem(Task(labelled(100, 0), metric=over_dataset(spread)), config=config).check()


def test_a_trained_network_that_it_is_no_number_for_ends_the_run_which_continues_with_another(tmp_path: Path) -> None:
    class Score(Spread):
        broken = True

        def fails(self) -> bool:
            return Score.broken and (tmp_path / "retrain").exists()

    own = problem(Task(labelled(100, 0), metric=Score()))
    with pytest.raises(ValueError, match="the metric Score is nan for a network whose loss is finite"):
        run(own, tmp_path, machine=HERE)
    Score.broken = False
    assert run(own, tmp_path, machine=HERE).summary["networks"]["searched"]["test_score"] > 0


def test_networks_of_a_pareto_front_and_of_trust_are_scored_by_it(tmp_path: Path) -> None:
    config = CONFIG.model_copy(
        update={
            "search": CONFIG.search.model_copy(update={"method": "pareto"}),
            "trust": CONFIG.trust.model_copy(update={"n": 5}),
        }
    )
    own: Problem[Any] = problem(Task(labelled(300, 0), metric=MulticlassF1Score(2, average="macro")), config=config)
    found = run(own, tmp_path, machine=HERE)
    assert found.front
    assert all(0 <= network.test_score <= 1 for network in found.front)
    assert len(next(iter(found.summary["trust"].values()))) > 0
