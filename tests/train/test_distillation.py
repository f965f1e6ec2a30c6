"""Teachers, held to the formulas of Hinton et al. and DeiT."""

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx import Arch
from nasx.train import Distillation, nesterov_sgd, train, train_supernet

X, LABELS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])


def network(seed: int, classes: int = 3) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(4, classes)


def expected_gradient(kind: str, weight: float, temperature: float) -> tuple[float, Tensor]:
    """By the formula: (1 - a) CE(z, y) + a T^2 KL(softmax(z_t / T), softmax(z / T)), or a CE(z, argmax z_t)."""
    student, teacher = network(1), network(2)
    z, z_t = student(X), teacher(X).detach()
    if kind == "hard":
        other = -z.log_softmax(dim=1)[torch.arange(6), z_t.argmax(dim=1)].mean()
    else:
        p, q = (z_t / temperature).softmax(dim=1), (z / temperature).softmax(dim=1)
        other = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
    loss = (1 - weight) * F.cross_entropy(z, LABELS) + weight * other
    loss.backward()
    assert student.weight.grad is not None
    return float(loss.detach()), student.weight.grad


CASES: list[tuple[Literal["soft", "hard"], float, float]] = [("soft", 0.5, 1.0), ("soft", 0.9, 3.0), ("hard", 0.5, 1.0)]


@pytest.mark.parametrize(("kind", "weight", "temperature"), CASES)
def test_loss_and_gradient_are_those_of_the_formula(
    kind: Literal["soft", "hard"], weight: float, temperature: float
) -> None:
    student = network(1)
    distillation = Distillation(network(2), kind=kind, weight=weight, temperature=temperature)
    optimizer = nesterov_sgd(student, lr=0.1, weight_decay=0)
    (step,) = train(student, [(X, LABELS)], optimizer, distillation=distillation)
    loss, gradient = expected_gradient(kind, weight, temperature)
    assert step.loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(student.weight.grad, gradient)


def test_soft_gradients_keep_their_size_at_any_temperature() -> None:
    def norm(temperature: float) -> float:
        return float(expected_gradient("soft", 1.0, temperature)[1].norm())

    student = network(1)
    distillation = Distillation(network(2), weight=1.0, temperature=50.0)
    train(student, [(X, LABELS)], nesterov_sgd(student, lr=0.1, weight_decay=0), distillation=distillation).run()
    assert student.weight.grad is not None
    assert float(student.weight.grad.norm()) == pytest.approx(norm(50.0), rel=1e-4)
    assert 0.5 < norm(50.0) / norm(1.0) < 2  # without the factor of T^2 it would be a two-thousandth


def test_a_module_teaches_in_evaluation_mode_and_learns_nothing() -> None:
    teacher = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.9), network(2))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = network(1)
    train(
        student, [(X, LABELS)] * 3, nesterov_sgd(student, lr=0.1, weight_decay=0), distillation=Distillation(teacher)
    ).run()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


class Wide(nn.Module):
    """A supernet of two heads over one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([network(1), network(3)])

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        return self.heads[int(arch["head"])](x)


def test_every_path_of_a_supernet_learns_from_the_teacher() -> None:
    archs = (Arch({"head": 0}), Arch({"head": 1}))
    calls = []

    def teacher(x: Tensor) -> Tensor:
        calls.append(len(x))
        return network(2)(x)

    supernet = Wide()
    distillation = Distillation(teacher, weight=0.9, temperature=3.0)
    optimizer = nesterov_sgd(supernet, lr=0.1, weight_decay=0)
    train_supernet(supernet, [(X, LABELS)], lambda step: archs, optimizer, distillation=distillation).run()
    assert calls == [6]  # once a step, whatever the number of paths
    head = supernet.heads[0]
    assert isinstance(head, nn.Linear)
    assert head.weight.grad is not None
    torch.testing.assert_close(head.weight.grad, expected_gradient("soft", 0.9, 3.0)[1] / 2)


def test_a_teacher_of_other_classes_is_refused() -> None:
    student = network(1)
    steps = train(
        student,
        [(X, LABELS)],
        nesterov_sgd(student, lr=0.1, weight_decay=0),
        distillation=Distillation(network(2, classes=5)),
    )
    with pytest.raises(ValueError, match=r"its outputs are \(6, 5\) and the network's \(6, 3\)"):
        steps.run()


def test_a_teacher_elsewhere_is_refused_before_anything_is_read() -> None:
    student, teacher = network(1), nn.Linear(4, 3, device="meta")
    with pytest.raises(ValueError, match="the teacher is on meta, the network on cpu"):
        train(student, [], nesterov_sgd(student, lr=0.1, weight_decay=0), distillation=Distillation(teacher))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "medium"}, "'soft' or 'hard', but got 'medium'"),
        ({"weight": 0.0}, "0 < weight <= 1"),
        ({"weight": 1.5}, "0 < weight <= 1"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"kind": "hard", "temperature": 2.0}, "changes nothing in hard distillation, but got 2.0"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation(network(2), **settings)


PIXELS = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(4))
TAGS = torch.tensor([[0, 2, -100, -100, -100], [1, 1, 0, 2, -100]])


def tagger(seed: int) -> nn.Conv1d:
    torch.manual_seed(seed)
    return nn.Conv1d(4, 3, 1)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_outputs_at_many_positions_are_averaged_over_those_with_a_label(kind: Literal["soft", "hard"]) -> None:
    """As if each labelled position were a sample of its own."""
    student, teacher = tagger(1), tagger(2)
    distillation = Distillation(teacher, kind=kind, weight=0.7)
    optimizer = nesterov_sgd(student, lr=0.0, weight_decay=0)
    (dense,) = train(student, [(PIXELS, TAGS)], optimizer, distillation=distillation)
    counted = TAGS != -100
    alone = PIXELS.transpose(1, 2)[counted].unsqueeze(2)
    twin = tagger(1)
    optimizer = nesterov_sgd(twin, lr=0.0, weight_decay=0)
    (apart,) = train(twin, [(alone, TAGS[counted].unsqueeze(1))], optimizer, distillation=distillation)
    assert dense.loss == pytest.approx(apart.loss, rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "as_target"),
    [(F.mse_loss, nn.Identity()), (nn.L1Loss(), nn.Identity()), (F.binary_cross_entropy_with_logits, nn.Sigmoid())],
)
def test_a_teacher_of_values_or_of_several_labels_gives_the_targets(loss: Any, as_target: nn.Module) -> None:
    student, teacher, targets = network(1), network(2), torch.rand(6, 3, generator=torch.Generator().manual_seed(3))
    optimizer = nesterov_sgd(student, lr=0.0, weight_decay=0)
    (step,) = train(student, [(X, targets)], optimizer, loss=loss, distillation=Distillation(teacher, weight=0.3))
    with torch.no_grad():
        expected = 0.7 * loss(student(X), targets) + 0.3 * loss(student(X), as_target(teacher(X)))
    assert step.loss == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("settings", [{"kind": "hard"}, {"temperature": 2.0}], ids=["hard", "temperature"])
def test_what_is_for_classes_is_refused_where_there_are_none(settings: dict[str, Any]) -> None:
    student = network(1)
    with pytest.raises(ValueError, match="is for classes, but mse_loss takes the teacher's outputs as they are"):
        train(
            student,
            [],
            nesterov_sgd(student, lr=0.1, weight_decay=0),
            loss=F.mse_loss,
            distillation=Distillation(network(2), **settings),
        )


def test_a_loss_of_ones_own_has_no_teacher_but_of_classes() -> None:
    def squares(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    def focal(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    teacher, zero = Distillation(lambda x: x), torch.zeros(())
    logits, taught = torch.randn(6, 3), torch.randn(6, 3)
    with pytest.raises(ValueError, match="unknown what a teacher's outputs mean to squares"):
        teacher.loss(zero, logits, taught, squares, torch.randn(6, 3))
    assert teacher.loss(zero, logits, taught, focal, LABELS) == teacher.loss(zero, logits, taught)
    with pytest.raises(ValueError, match="unknown what a teacher's outputs mean to focal"):
        teacher.loss(zero, logits[:, :1], taught[:, :1], focal, LABELS)


def test_positions_without_any_label_learn_nothing_from_a_teacher() -> None:
    empty = torch.full((6,), -100)
    assert Distillation(lambda x: x).loss(torch.zeros(()), network(1)(X), network(2)(X), F.cross_entropy, empty) == 0
