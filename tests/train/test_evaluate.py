import math

import pytest
import torch
from torch import Tensor, nn

from nasx.train import evaluate


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
    assert (result.accuracy, result.images) == (0.8, 5)
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
    with pytest.raises(RuntimeError):
        evaluate(model, [(LOGITS, LABELS[:2])])
    assert model.training


def test_no_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        evaluate(nn.Linear(2, 2), [(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))])
    with pytest.raises(ValueError, match="no images"):
        evaluate(Given(), [])


def test_logits_that_are_not_finite_are_wrong_answers() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.full((3,), float("nan")))

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3] + self.bias

    scored = evaluate(Broken(), [(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))])
    assert scored.accuracy == 0
    assert math.isnan(scored.loss)


def test_a_frozen_part_stays_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    model.train()
    model[1].eval()
    evaluate(model, [(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))])
    assert model.training
    assert not model[1].training
