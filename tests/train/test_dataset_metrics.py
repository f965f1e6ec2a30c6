"""Metrics of a whole data set: what they are given, what they return, and that nothing is left of one evaluation."""

import copy
import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, r2_score, roc_auc_score
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC, MulticlassF1Score, MulticlassFBetaScore

from nasx.train import evaluate, over_dataset
from nasx.train.dataset_metrics import is_dataset_metric, metric_name, metric_settings, on_few_samples

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


@dataclass
class Output:
    pair: Pair
    count: Tensor
    note: str = "same"
    cache: object = None


class Structured(nn.Module):
    def forward(self, x: Tensor) -> Output:
        return Output(Pair(x.bfloat16(), [f"{row:.2f}" for row in x[:, 0].tolist()]), torch.tensor(len(x)))


def joined(model: nn.Module, loader: Iterable[Any], loss: Callable[[Any, Any], Tensor]) -> tuple[Any, Any]:
    given: list[Any] = []

    def metric(outputs: Any, targets: Any) -> float:
        given.append((outputs, targets))
        return 0.25

    assert evaluate(model, loader, loss=loss, metric=over_dataset(metric)).score == 0.25
    ((outputs, targets),) = given
    return outputs, targets


def test_outputs_of_any_structure_are_joined() -> None:
    def loss(outputs: Output, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.pair.logits.float(), targets)

    outputs, targets = joined(Structured(), batches(15), loss)
    assert torch.equal(targets, LABELS)
    assert torch.equal(outputs.pair.logits, LOGITS.bfloat16().float())
    assert outputs.pair.names == [f"{row:.2f}" for row in LOGITS[:, 0].tolist()]
    assert outputs.count.tolist() == [15, 15, 10]
    assert (outputs.note, outputs.cache) == (["same"] * 3, None)


@pytest.mark.parametrize("size", [2, 16, 40])
def test_a_list_of_heads_is_joined_head_by_head(size: int) -> None:
    class Heads(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x, x[:, :1]]

    loader = [(x, [y, 2.0 * y]) for x, y in batches(size)]  # as collated of samples (x, (y, 2 y))
    outputs, targets = joined(Heads(), loader, lambda outputs, targets: F.cross_entropy(outputs[0], targets[0]))
    assert [tuple(head.shape) for head in outputs] == [(40, 3), (40, 1)]
    assert torch.equal(outputs[0], LOGITS)
    assert torch.equal(targets[1], 2.0 * LABELS)


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("size", [1, 16, 20])
def test_entries_of_samples_are_joined_end_to_end(kind: Callable[[Any], Any], size: int) -> None:
    class Boxes(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return kind([{"boxes": row.repeat(2, 1)} for row in x])

    loader = [(x, kind([{"label": label} for label in y])) for x, y in batches(size)]
    outputs, targets = joined(Boxes(), loader, lambda outputs, targets: outputs[0]["boxes"].mean())
    assert torch.equal(torch.stack([row["boxes"][0] for row in outputs]), LOGITS)
    assert [int(row["label"]) for row in targets] == LABELS.tolist()


def test_batches_of_different_shapes_are_refused_with_a_way_out() -> None:
    loader = [(torch.zeros(2, length, 3), torch.zeros(2, dtype=torch.long)) for length in (4, 6)]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[:, 0], targets)

    with pytest.raises(ValueError, match=r"the shapes \(2, 4, 3\), \(2, 6, 3\); pad all samples alike, or write"):
        evaluate(nn.Identity(), loader, loss=loss, metric=over_dataset(lambda outputs, targets: 0.0))


def test_a_network_may_use_its_outputs_again() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept = torch.zeros(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.kept.copy_(x)

    found = evaluate(Buffered(), batches(8), metric=over_dataset(area))
    assert found.score == pytest.approx(roc_auc_score(LABELS == 0, LOGITS[:, 0]))


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
        (torch.tensor(1j), "but got a Tensor"),
        (10**400, "but got a int"),
    ],
)
def test_what_is_not_one_number_is_refused(value: Any, message: str) -> None:
    def own(outputs: Any, targets: Any) -> Any:
        return value

    with pytest.raises(ValueError, match=rf"the metric own must compute one number for a whole data set, {message}"):
        evaluate(nn.Identity(), batches(20), metric=over_dataset(own))


@pytest.mark.parametrize("value", [np.float32(0.5), torch.tensor([0.5]), np.array(0.5), 0.5, Decimal("0.5")])
def test_one_number_may_have_any_type(value: Any) -> None:
    assert evaluate(nn.Identity(), batches(20), metric=over_dataset(lambda outputs, targets: value)).score == 0.5


def test_what_a_metric_raises_names_it() -> None:
    def fails(outputs: Any, targets: Any) -> float:
        raise KeyError("boxes")

    with pytest.raises(ValueError, match="the metric fails failed: KeyError: 'boxes'"):
        evaluate(nn.Identity(), batches(20), metric=over_dataset(fails))
    with pytest.raises(ValueError, match="the metric BinaryAUROC failed: "):
        evaluate(nn.Identity(), batches(20), metric=BinaryAUROC())  # two of the three classes too many


def test_memory_that_runs_out_is_no_failure_of_the_metric() -> None:
    def fails(outputs: Any, targets: Any) -> float:
        raise torch.OutOfMemoryError("out of memory")

    for metric in (over_dataset(fails), on_few_samples(over_dataset(fails))):
        with pytest.raises(torch.OutOfMemoryError):
            evaluate(nn.Identity(), batches(20), metric=metric)


def test_a_metric_that_holds_one_of_torchmetrics_computes_in_this_process_alone() -> None:
    class Wrapped:
        def __init__(self) -> None:
            self.parts = {"f1": [MulticlassF1Score(3)]}

        def reset(self) -> None:
            self.parts["f1"][0].reset()

        def update(self, outputs: Tensor, targets: Tensor) -> None:
            alone.append(not self.parts["f1"][0].distributed_available_fn())
            self.parts["f1"][0].update(outputs, targets)

        def compute(self) -> Any:
            return self.parts["f1"][0].compute()

    alone: list[bool] = []
    own = Wrapped()
    found = evaluate(nn.Identity(), batches(20), metric=own)
    assert found.score == evaluate(nn.Identity(), batches(20), metric=MulticlassF1Score(3)).score
    assert alone == [True, True]
    assert own.parts["f1"][0].distributed_available_fn.__module__.startswith("torchmetrics"), "the user's own one stays"


def test_a_metric_that_cannot_be_copied_is_named() -> None:
    metric = BinaryAUROC()
    metric.lock = threading.Lock()
    with pytest.raises(ValueError, match="the metric BinaryAUROC cannot be copied, as each evaluation does: TypeError"):
        evaluate(nn.Identity(), batches(20), metric=metric)


def test_what_is_no_function_of_outputs_and_targets_is_refused() -> None:
    for function in ("f1", MulticlassF1Score, over_dataset(area)):
        with pytest.raises(ValueError, match="over_dataset takes a function of all outputs and targets, but got"):
            over_dataset(function)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"write over_dataset\(lambda outputs, targets: r2_score\(targets, outputs\)\)"
    ):
        over_dataset(r2_score)


@pytest.mark.parametrize("value", [0.5, torch.tensor(0.5)])
def test_one_number_of_a_plain_function_gets_a_hint(value: Any) -> None:
    with pytest.raises(ValueError, match=r"of a whole data set, pass nasx\.train\.over_dataset\(metric\)"):
        evaluate(nn.Identity(), batches(20), metric=lambda outputs, targets: value)


def test_its_settings_are_what_it_was_made_with() -> None:
    def weighted(outputs: Any, targets: Any, weight: float = 1.0) -> float:
        return weight

    class Beta(MulticlassFBetaScore):
        def __init__(self) -> None:
            super().__init__(beta=2.0, num_classes=3)

    assert metric_settings(over_dataset(partial(weighted, weight=0.5))) == {"weight": 0.5}
    found = metric_settings(Beta())
    assert (found["beta"], found["num_classes"], found["average"]) == (2.0, 3, "macro")
    assert metric_settings(area) == metric_settings("accuracy") == {}


def test_it_is_told_from_a_function_and_has_a_name() -> None:
    metrics: list[Any] = [over_dataset(area), BinaryAUROC()]
    assert all(is_dataset_metric(metric) for metric in metrics)
    assert not is_dataset_metric(area)
    assert not is_dataset_metric("accuracy")
    assert [metric_name(metric) for metric in (*metrics, area, "top5")] == ["area", "BinaryAUROC", "area", "top5"]
    assert metric_name(lambda outputs, targets: 0.0) == "metric"
