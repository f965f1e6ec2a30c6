"""Metrics of a whole data set: what they are given, what they return, and that nothing is left of one evaluation."""

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC, MulticlassF1Score

from nasx.train import evaluate, over_dataset
from nasx.train.dataset_metrics import is_dataset_metric, metric_name

DRAW = torch.Generator().manual_seed(0)
LOGITS = torch.randn(40, 3, generator=DRAW)
LABELS = torch.randint(3, (40,), generator=DRAW)


def batches(size: int, targets: Tensor = LABELS, inputs: Tensor = LOGITS) -> list[tuple[Tensor, Tensor]]:
    return list(zip(torch.split(inputs, size), torch.split(targets, size), strict=True))


def area(outputs: Tensor, targets: Tensor) -> float:
    return float(roc_auc_score(targets == 0, outputs[:, 0]))


@pytest.mark.parametrize("size", [1, 7, 40])
def test_it_scores_all_samples_together(size: int) -> None:
    metric = over_dataset(area)
    found = evaluate(nn.Identity(), batches(size), metric=metric)
    assert found.score == pytest.approx(roc_auc_score(LABELS == 0, LOGITS[:, 0]))
    assert (found.samples, len(found.scores)) == (40, 0)
    assert found.loss == pytest.approx(float(F.cross_entropy(LOGITS, LABELS)), rel=1e-6)


def test_those_of_torchmetrics_are_used_as_they_are_and_stay_as_they_are() -> None:
    metric = MulticlassF1Score(3, average="macro")
    metric.update(LOGITS[:1], 1 - LABELS[:1].clamp(max=1))  # what a user has seen with it does not count
    before = {name: copy.deepcopy(state) for name, state in metric.metric_state.items()}
    truth = f1_score(LABELS, LOGITS.argmax(1), average="macro")
    for size in (5, 40):
        assert evaluate(nn.Identity(), batches(size), metric=metric).score == pytest.approx(truth)
    assert before
    assert str(metric.metric_state) == str(before)


class Pair(NamedTuple):
    logits: Tensor
    names: list[str]


class Structured(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return {"pair": Pair(x.bfloat16(), [f"{row:.2f}" for row in x[:, 0].tolist()]), "count": torch.tensor(len(x))}


def test_outputs_of_any_structure_are_joined() -> None:
    given: list[Any] = []

    def metric(outputs: Any, targets: Any) -> float:
        given.append((outputs, targets))
        return 0.25

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs["pair"].logits.float(), targets)

    found = evaluate(Structured(), batches(15), loss=loss, metric=over_dataset(metric))
    ((outputs, targets),) = given
    assert found.score == 0.25
    assert torch.equal(targets, LABELS)
    assert isinstance(outputs["pair"], Pair)
    assert torch.equal(outputs["pair"].logits, LOGITS.bfloat16().float())
    assert outputs["pair"].names == [f"{row:.2f}" for row in LOGITS[:, 0].tolist()]
    assert outputs["count"].tolist() == [15, 15, 10]


def test_a_network_whose_outputs_are_not_finite_scores_nan() -> None:
    broken = LOGITS.clone()
    broken[17, 0] = torch.nan
    for metric in (over_dataset(area), BinaryAUROC()):  # both would raise
        found = evaluate(nn.Identity(), batches(8, inputs=broken), metric=metric)
        assert math.isnan(found.score)
        assert math.isnan(found.loss)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"map": 0.5, "map_50": 0.7}, "but got a dict with 'map', 'map_50'"),
        (torch.ones(3), r"but got shape \(3,\)"),
        ("0.5", "but got a str"),
    ],
)
def test_what_is_not_one_number_is_refused(value: Any, message: str) -> None:
    def own(outputs: Any, targets: Any) -> Any:
        return value

    with pytest.raises(ValueError, match=rf"the metric own must compute one number for a whole data set, {message}"):
        evaluate(nn.Identity(), batches(20), metric=over_dataset(own))


@pytest.mark.parametrize("value", [np.float32(0.5), torch.tensor([0.5]), np.array(0.5), 0.5])
def test_one_number_may_have_any_type(value: Any) -> None:
    assert evaluate(nn.Identity(), batches(20), metric=over_dataset(lambda outputs, targets: value)).score == 0.5


def test_what_a_metric_raises_names_it() -> None:
    def fails(outputs: Any, targets: Any) -> float:
        raise KeyError("boxes")

    with pytest.raises(ValueError, match="the metric fails failed: KeyError: 'boxes'"):
        evaluate(nn.Identity(), batches(20), metric=over_dataset(fails))
    with pytest.raises(ValueError, match="the metric BinaryAUROC failed: "):
        evaluate(nn.Identity(), batches(20), metric=BinaryAUROC())  # two of the three classes too many


def test_it_is_told_from_a_function_and_has_a_name() -> None:
    metrics: list[Any] = [over_dataset(area), BinaryAUROC()]
    assert all(is_dataset_metric(metric) for metric in metrics)
    assert not is_dataset_metric(area)
    assert not is_dataset_metric("accuracy")
    assert [metric_name(metric) for metric in (*metrics, area, "top5")] == ["area", "BinaryAUROC", "area", "top5"]
