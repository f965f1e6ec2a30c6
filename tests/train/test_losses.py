"""Which targets fit a loss, and what a training says of those that do not."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx.train import check_targets, evaluate, is_cross_entropy, logits_of, nesterov_sgd, train
from nasx.train.losses import compute_loss, for_outputs, label_weight, on_device, targets_like

LOGITS, LABELS = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
SMOOTHED = partial(F.cross_entropy, label_smoothing=0.1)


@pytest.mark.parametrize("loss", [F.cross_entropy, SMOOTHED, nn.CrossEntropyLoss(), partial(SMOOTHED, reduction="sum")])
def test_class_numbers_and_probabilities_fit_cross_entropy(loss: Any) -> None:
    assert is_cross_entropy(loss)
    check_targets(LOGITS, LABELS, loss)
    check_targets(LOGITS, LOGITS.softmax(dim=1), loss)
    check_targets(torch.randn(4, 3, 7), torch.zeros(4, 7, dtype=torch.long), loss)


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (torch.randn(4, 1), torch.randn(4, 1), r"at least two classes.*\(4, 1\).*float32.*F\.mse_loss"),
        (torch.randn(4, 1), LABELS, r"at least two classes"),
        (torch.randn(4), LABELS, r"at least two classes.*\(4,\)"),
        (LOGITS, torch.randn(4), r"\(4, 3\) and targets of shape \(4,\) and type float32; for regression"),
        (LOGITS, 10 * torch.randn(4, 3), "sum to 1 over the 3 classes"),
        (LOGITS, torch.tensor([[1.0, 1, 0]] * 4), "sums from 2 to 2.*binary_cross_entropy_with_logits"),
        (LOGITS, LABELS.int(), r"must be int64.*int32.*\.long\(\)"),
        (LOGITS, LABELS + 1, "must be 0 to 2 for the network's 3 outputs, but got 3"),
        (LOGITS, LABELS - 1, "must be 0 to 2 for the network's 3 outputs, but got -1"),
        (LOGITS, LABELS[:2], r"one class number for each sample.*\(2,\)"),
        (LOGITS, ["a"] * 4, "of type list"),
    ],
)
def test_other_targets_are_refused_with_what_was_met(outputs: Tensor, targets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_targets(outputs, targets)


def test_ignored_labels_are_no_wrong_classes() -> None:
    padded = torch.tensor([0, -100, 1, 1])
    check_targets(LOGITS, padded)
    check_targets(LOGITS, torch.tensor([0, 9, 1, 1]), partial(F.cross_entropy, ignore_index=9))
    with pytest.raises(ValueError, match="but got -100"):
        check_targets(LOGITS, padded, nn.CrossEntropyLoss(ignore_index=9))


@pytest.mark.parametrize("loss", [F.mse_loss, nn.L1Loss(), partial(F.huber_loss, delta=2.0)])
def test_regression_targets_have_the_outputs_shape(loss: Any) -> None:
    check_targets(torch.randn(4, 1), torch.randn(4, 1), loss)
    with pytest.raises(ValueError, match=r"same shape.*\(4, 1\).*\(4,\)"):  # torch would compare each with each
        check_targets(torch.randn(4, 1), torch.randn(4), loss)


@pytest.mark.parametrize("loss", [F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss(), F.huber_loss])
def test_losses_that_torch_cannot_compute_of_whole_numbers_ask_for_floats(loss: Any) -> None:
    """The gradient of Huber's loss takes no other type than the outputs', which a first step would show."""
    with pytest.raises(ValueError, match=r"floating-point targets, but got .* type int64; convert them with"):
        check_targets(torch.randn(4, 1), torch.ones(4, 1, dtype=torch.long), loss)


def test_targets_of_hubers_loss_have_the_outputs_type() -> None:
    check_targets(torch.randn(4, 1).double(), torch.ones(4, 1).double(), nn.HuberLoss())
    with pytest.raises(ValueError, match=r"the outputs' type, float32, but got .* type float64"):
        check_targets(torch.randn(4, 1), torch.ones(4, 1).double(), nn.HuberLoss())


def test_classes_in_the_last_dimension_are_named() -> None:
    """As the token classifiers of transformers return them."""
    with pytest.raises(ValueError, match=r"\(4, 7, 3\).*move the classes, the last dimension, to the second"):
        check_targets(torch.randn(4, 7, 3), torch.zeros(4, 7, dtype=torch.long))


def test_a_loss_of_ones_own_takes_what_it_likes() -> None:
    check_targets(torch.randn(4, 1), ["anything"], lambda outputs, targets: outputs.sum())


def regression_model() -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(5, 1)
    return model, nesterov_sgd(model, lr=0.05, weight_decay=0)


def regression_batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    inputs = torch.randn(steps, 16, 5, generator=torch.Generator().manual_seed(1))
    return [(x, x.sum(dim=1, keepdim=True)) for x in inputs]


def test_regression_never_trains_on_cross_entropy_unnoticed() -> None:
    model, optimizer = regression_model()
    before = model.weight.clone()
    with pytest.raises(ValueError, match="for regression pass a loss"):
        train(model, regression_batches(3), optimizer).run()
    assert torch.equal(model.weight, before)
    with pytest.raises(ValueError, match="for regression pass a loss"):
        evaluate(model, regression_batches(1))


def test_a_loss_without_a_gradient_is_refused() -> None:
    model, optimizer = regression_model()
    with pytest.raises(ValueError, match="depends on no weight that is trained; compute it without `detach`"):
        train(model, regression_batches(1), optimizer, loss=lambda o, t: F.mse_loss(o.detach(), t)).run()


def test_regression_trains_with_its_loss() -> None:
    model, optimizer = regression_model()
    steps = train(model, regression_batches(200), optimizer, loss=F.mse_loss).run()
    assert steps[0].loss > 1
    assert steps[-1].loss < 1e-3
    scored = evaluate(model, regression_batches(2), loss=F.mse_loss, metric=lambda y, t: -(y - t).abs().squeeze(1))
    assert -0.05 < scored.score < 0


def test_a_loss_of_many_numbers_is_refused_before_a_step() -> None:
    model, optimizer = regression_model()
    with pytest.raises(ValueError, match=r"one number, the mean over the samples, but got shape \(16, 1\)"):
        train(model, regression_batches(1), optimizer, loss=partial(F.mse_loss, reduction="none")).run()
    assert model.weight.grad is None


class Outputs(dict[str, Tensor]):
    """As Hugging Face's models return them."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


@pytest.mark.parametrize("wrap", [lambda x: Outputs(logits=x), lambda x: SimpleNamespace(logits=x)])
def test_logits_are_found_in_outputs_that_hold_them(wrap: Any) -> None:
    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return wrap(super().forward(x))

    def run(make: type[nn.Linear]) -> tuple[list[float], float]:
        torch.manual_seed(0)
        model = make(5, 3)
        batches = [(torch.randn(8, 5), torch.randint(3, (8,))) for _ in range(3)]
        steps = train(model, batches, nesterov_sgd(model, lr=0.1, weight_decay=0), loss=SMOOTHED).run()
        return [step.loss for step in steps], evaluate(model, batches).score

    assert run(Model) == run(nn.Linear)
    with pytest.raises(ValueError, match="network returns tuple"):
        logits_of((LOGITS,))


def test_a_loss_of_ones_own_gets_the_outputs_as_they_are() -> None:
    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    model = Model(5, 3)
    seen = []

    def loss(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        seen.append(type(outputs))
        return F.cross_entropy(outputs[0], targets)

    train(
        model, [(torch.randn(8, 5), torch.randint(3, (8,)))], nesterov_sgd(model, lr=0.1, weight_decay=0), loss=loss
    ).run()
    assert seen == [tuple]


FIRST_IS_NOTHING = torch.tensor([0.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("loss", "label"),
    [
        (F.cross_entropy, -100),
        (SMOOTHED, -100),
        (partial(F.cross_entropy, weight=FIRST_IS_NOTHING), -100),
        (nn.CrossEntropyLoss(FIRST_IS_NOTHING), 0),
        (partial(nn.CrossEntropyLoss(FIRST_IS_NOTHING)), 0),
    ],
)
def test_a_batch_without_labels_that_count_teaches_nothing(loss: Any, label: int) -> None:
    network = nn.Linear(4, 3)
    before = network.weight.clone()
    empty = torch.full((4,), label)
    batches = [(torch.randn(4, 4), targets) for targets in (empty, empty, empty, empty, empty)]
    steps = train(network, batches, nesterov_sgd(network, lr=0.1, weight_decay=0), loss=loss).run()
    assert [step.loss for step in steps] == [0.0] * 5
    assert torch.equal(network.weight, before)


def test_other_batches_keep_their_bits_where_some_labels_are_ignored() -> None:
    targets = LABELS.clone()
    targets[0] = -100
    found = []
    for loss in (F.cross_entropy, lambda outputs, targets: F.cross_entropy(outputs, targets)):
        torch.manual_seed(0)
        network = nn.Linear(4, 3)
        optimizer = nesterov_sgd(network, lr=0.1, weight_decay=0)
        train(network, [(LOGITS[:, [0, 1, 2, 0]], targets)], optimizer, loss=loss).run()
        found.append(network.weight.detach())
    assert torch.equal(*found)


def test_classes_that_a_network_lacks_are_left_to_the_check_of_targets() -> None:
    """Ranks count labels before the network is called."""
    loss, targets = partial(F.cross_entropy, weight=FIRST_IS_NOTHING), torch.tensor([0, 1, 7, -1, -100])
    assert label_weight(loss, targets, targets != -100) > 0
    with pytest.raises(ValueError, match="class numbers must be 0 to 2"):
        check_targets(torch.randn(5, 3), targets, loss)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(reduction="sum"),
        partial(F.cross_entropy, reduction="sum"),
        partial(nn.CrossEntropyLoss(reduction="sum")),
        nn.MultiMarginLoss(reduction="sum"),
    ],
)
def test_sums_of_torch_are_no_means(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"mean over the samples, but \w+ has reduction='sum'; write reduction='mean'"):
        evaluate(nn.Identity(), [], loss=loss)
    model = nn.Linear(2, 5)
    with pytest.raises(ValueError, match="mean over the samples"):
        train(model, [], nesterov_sgd(model, lr=0.1, weight_decay=0), loss=loss)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        partial(F.cross_entropy, weight=torch.ones(3)),
        partial(nn.CrossEntropyLoss(weight=torch.ones(3))),
    ],
    ids=["module", "function", "module in a partial"],
)
def test_tensors_of_a_loss_come_to_the_device_of_the_network_and_its_own_stay(loss: Any) -> None:
    def weight(of: Any) -> Tensor:
        while isinstance(of, partial):
            if "weight" in of.keywords:
                return of.keywords["weight"]
            of = of.func
        return of.weight

    moved = on_device(loss, torch.device("meta"))
    assert weight(moved).device.type == "meta"
    assert weight(loss).device.type == "cpu"
    assert is_cross_entropy(moved)


def test_a_loss_that_is_there_already_is_the_same() -> None:
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(weight=torch.ones(3)), nn.MSELoss()):
        assert on_device(loss, torch.device("cpu")) is loss


class Focal(nn.CrossEntropyLoss):
    """A loss of one's own that has torch's arguments (Lin et al. 2017)."""

    def forward(self, outputs: Any, targets: Tensor) -> Tensor:
        each = F.cross_entropy(logits_of(outputs), targets, reduction="none")
        return ((1 - torch.exp(-each)) ** 2 * each).mean()


class Smoothed(nn.CrossEntropyLoss):
    """Torch's loss with arguments of one's own."""

    def __init__(self) -> None:
        super().__init__(label_smoothing=0.1)


def test_a_loss_that_computes_something_else_than_the_class_it_is_made_of_is_ones_own() -> None:
    own, targets = Focal(), torch.tensor([0, 2])
    assert not is_cross_entropy(own)
    assert for_outputs(own) is own
    assert compute_loss(own, Outputs(logits=torch.eye(3)[:2]), targets) > 0
    with pytest.raises(ValueError, match="not for Focal"):
        targets_like(own, torch.eye(3))
    assert is_cross_entropy(Smoothed())
    assert compute_loss(Smoothed(), Outputs(logits=torch.eye(3)[:2]), targets) > 0


@pytest.mark.parametrize(
    "loss",
    [
        partial(F.cross_entropy, weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.3, ignore_index=1),
        partial(nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.3, ignore_index=1)),
    ],
    ids=["function", "module"],
)
def test_probabilities_are_neither_smoothed_nor_ignored(loss: Any) -> None:
    outputs, probabilities = torch.randn(4, 3), torch.randn(4, 3).softmax(1)
    expected = F.cross_entropy(outputs, probabilities, weight=torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(for_outputs(loss)(outputs, probabilities), expected, rtol=0, atol=0)
