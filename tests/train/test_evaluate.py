import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx.train import Unpacked, evaluate


class Given(nn.Module):
    """Its input is its logits; it notes the mode it ran in."""

    def __init__(self) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(()))
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append((self.training, torch.is_grad_enabled()))
        return x + self.parameter


LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 5.0], [4.0, 0.0, 0.0], [0.0, 0.5, 0.1]])
LABELS = torch.tensor([0, 1, 2, 1, 1])  # the fourth is wrong


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_accuracy_weighs_samples_not_batches(size: int) -> None:
    batches = list(zip(torch.split(LOGITS, size), torch.split(LABELS, size), strict=True))
    result = evaluate(Given(), batches)
    assert (result.score, result.samples) == (0.8, 5)
    by_hand = sum(
        math.log(sum(math.exp(v) for v in row)) - row[label]
        for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
    )
    assert result.loss == pytest.approx(by_hand / 5, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_it_runs_in_evaluation_mode_without_gradients_and_restores_the_mode(training: bool) -> None:
    model = Given().train(training)
    evaluate(model, [(LOGITS, LABELS)])
    assert model.modes == [(False, False)]
    assert model.training is training
    assert torch.is_grad_enabled()


def test_the_mode_comes_back_after_an_error() -> None:
    model = Given()
    with pytest.raises(ValueError, match="one class number for each sample"):
        evaluate(model, [(LOGITS, LABELS[:2])])
    assert model.training


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        evaluate(nn.Linear(2, 2), [(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))])
    with pytest.raises(ValueError, match="no samples"):
        evaluate(Given(), [])


def test_logits_that_are_not_finite_are_wrong_answers() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.full((3,), float("nan")))

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3] + self.bias

    scored = evaluate(Broken(), [(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))])
    assert scored.score == 0
    assert math.isnan(scored.loss)


def test_a_frozen_part_stays_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    model.train()
    model[1].eval()
    evaluate(model, [(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))])
    assert model.training
    assert not model[1].training


def test_every_sample_has_its_score() -> None:
    result = evaluate(Given(), [(LOGITS[:2], LABELS[:2]), (LOGITS[2:], LABELS[2:])])
    assert result.scores.tolist() == [1, 1, 1, 0, 1]
    assert result.scores.dtype == np.float64


def test_top5_counts_the_first_five() -> None:
    logits = torch.arange(8.0).repeat(8, 1)  # the five best are classes 3 to 7
    result = evaluate(Given(), [(logits, torch.arange(8))], metric="top5")
    assert result.scores.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert evaluate(Given(), [(LOGITS, LABELS)], metric="top5").score == 1  # of three classes


def test_a_metric_may_be_any_score_of_each_sample() -> None:
    def margin(outputs: Tensor, targets: Tensor) -> Tensor:
        own = outputs.gather(1, targets[:, None])[:, 0]
        return own - outputs.scatter(1, targets[:, None], -math.inf).max(dim=1).values

    result = evaluate(Given(), [(LOGITS[:3], LABELS[:3]), (LOGITS[3:], LABELS[3:])], metric=margin)
    assert result.scores.tolist() == pytest.approx([1, 2, 4, -4, 0.4])
    assert result.score == pytest.approx(0.68)


def test_a_position_of_a_sample_counts_its_share() -> None:
    logits = torch.zeros(2, 3, 4)
    logits[:, 1] = 1
    labels = torch.tensor([[1, 1, 1, 0], [1, 1, 2, 0]])
    assert evaluate(Given(), [(logits, labels)]).scores.tolist() == [0.75, 0.5]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda outputs, targets: outputs.mean(), r"shape \(5,\), but got shape \(\)"),
        (lambda outputs, targets: outputs, r"shape \(5,\), but got shape \(5, 3\)"),
        (lambda outputs, targets: targets, "must be floating-point numbers, but got torch.int64"),
        (lambda outputs, targets: 0.5, "but got float"),
        (lambda outputs, targets: torch.tensor([1.0, 2, math.nan, 3, 4]), "but got nan for sample 2"),
        (lambda outputs, targets: torch.full((5,), math.inf), "but got inf for sample 0"),
        ("f1", "'accuracy', 'top5' or a function, but got 'f1'"),
    ],
)
def test_what_is_no_score_is_refused(metric: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(Given(), [(LOGITS, LABELS)], metric=metric)


def test_hits_may_be_booleans() -> None:
    assert evaluate(Given(), [(LOGITS, LABELS)], metric=lambda y, t: y.argmax(dim=1) == t).score == 0.8


def test_accuracy_of_targets_that_are_no_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'accuracy' needs .*float32; pass a function as `metric`"):
        evaluate(Given(), [(torch.randn(4, 3), torch.randn(4, 3))], loss=F.mse_loss)


def test_a_network_that_broke_down_has_no_score_of_ones_own_metric() -> None:
    broken = [(torch.full((4, 3), math.nan), torch.zeros(4, dtype=torch.long))]
    result = evaluate(Given(), broken, metric=lambda y, t: y.sum(dim=1))
    assert math.isnan(result.score)
    assert math.isnan(result.loss)


def test_dicts_and_several_inputs_reach_the_network() -> None:
    class Sum(Given):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            assert y is not None
            return x + y + self.parameter

    half = LOGITS / 2
    for batch in ({"x": half, "y": half, "labels": LABELS}, (half, half, LABELS)):
        assert evaluate(Sum(), [batch]).score == 0.8
    flipped = evaluate(Sum(), [(LABELS, half, half)], unpack=lambda b: Unpacked(b[1:], {}, b[0]))
    assert flipped.score == 0.8


def test_the_loss_is_the_one_given() -> None:
    smoothed = partial(F.cross_entropy, label_smoothing=0.2)
    result = evaluate(Given(), [(LOGITS[:2], LABELS[:2]), (LOGITS[2:], LABELS[2:])], loss=smoothed)
    assert result.loss == pytest.approx(float(smoothed(LOGITS, LABELS)), rel=1e-6)


def test_positions_that_a_loss_ignores_count_in_neither_score_nor_loss() -> None:
    network = nn.Conv1d(1, 3, 1)
    x = torch.randn(6, 1, 5, generator=torch.Generator().manual_seed(0))
    tags = torch.randint(0, 3, (6, 5), generator=torch.Generator().manual_seed(1))
    tags[0, 1:] = tags[3, 2:] = tags[4:] = -100
    weights = torch.tensor([1.0, 2.0, 0.5])
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(weights), partial(F.cross_entropy, weight=weights)):
        found = evaluate(network, [(x[i : i + 2], tags[i : i + 2]) for i in (0, 2, 4)], loss=loss)
        with torch.no_grad():
            outputs = network(x)
        assert found.loss == pytest.approx(float(loss(outputs, tags)), rel=1e-6)
        hits = (outputs.argmax(1) == tags).float()
        shares = [float(hits[row][tags[row] != -100].mean()) for row in range(4)]
        assert found.scores == pytest.approx([*shares, 0.0, 0.0])  # the last two have no label


def test_a_sample_without_a_label_is_none_that_is_right() -> None:
    network, x = nn.Linear(2, 3), torch.randn(4, 2)
    labels = network(x).argmax(dim=1)
    labels[1] = 9
    found = evaluate(network, [(x, labels)], loss=nn.CrossEntropyLoss(ignore_index=9))
    assert list(found.scores) == [1, 0, 1, 1]


def test_images_without_objects_are_samples() -> None:
    def loss(outputs: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        return torch.stack([t["boxes"].sum() + x.mean() for x, t in zip(outputs, targets, strict=True)]).mean()

    def metric(outputs: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        return torch.tensor([float(len(target["boxes"])) for target in targets])

    counts = [[0, 2], [0, 0], [3]]
    batches = [(torch.ones(len(n), 4), [{"boxes": torch.ones(i, 4)} for i in n]) for n in counts]
    found = evaluate(Given(), batches, loss=loss, metric=metric)
    assert found.scores.tolist() == [0, 2, 0, 0, 3]
    assert found.loss == pytest.approx(1 + 4 * 5 / 5)


def test_targets_whose_samples_cannot_be_counted_are_no_empty_batch() -> None:
    boxes = [torch.zeros(0, 4), torch.zeros(3, 4)]
    with pytest.raises(ValueError, match="one score for each sample"):
        evaluate(
            Given(),
            [(torch.ones(2, 4), boxes)],
            loss=lambda outputs, targets: outputs.mean(),
            metric=lambda outputs, targets: outputs.mean(1),
        )
