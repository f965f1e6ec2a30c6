import math
from typing import Any

import pytest
import torch
from timm.optim._param_groups import param_groups_weight_decay
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from nasx.train import adamw, cosine_schedule, nesterov_sgd


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)


def lrs(steps: int, count: int, lr: float, **settings: float | int | str) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = cosine_schedule(optimizer, steps=steps, **settings)  # type: ignore[arg-type]
    seen = []
    for _ in range(count):
        seen.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return seen


def test_supernet_schedule_is_half_a_cosine_from_0_2_to_0() -> None:
    seen = lrs(100, 101, 0.2)
    assert seen == pytest.approx([0.1 * (1 + math.cos(math.pi * t / 100)) for t in range(101)], abs=1e-15)
    assert (seen[0], seen[100]) == (0.2, 0.0)
    assert seen[50] == pytest.approx(0.1)


def test_deit_schedule_warms_up_from_1e_6_over_5_epochs_and_ends_at_1e_5() -> None:
    per_epoch, lr = 4, 5e-4 * 1024 / 512
    seen = lrs(300 * per_epoch, 300 * per_epoch + 50, lr, warmup_steps=5 * per_epoch, warmup_lr=1e-6, final_lr=1e-5)
    assert seen[:20] == pytest.approx([1e-6 + (lr - 1e-6) * t / 20 for t in range(20)], rel=1e-12)
    assert seen[20] == pytest.approx(lr, rel=1e-12)
    cosine = [1e-5 + (lr - 1e-5) * (1 + math.cos(math.pi * (t - 20) / 1180)) / 2 for t in range(20, 1200)]
    assert seen[20:1200] == pytest.approx(cosine, rel=1e-12)
    assert seen[1200:] == pytest.approx([1e-5] * 50)
    assert seen[20:1201] == sorted(seen[20:1201], reverse=True)


@pytest.mark.parametrize(("warmup_steps", "steps"), [(10, 10), (11, 10), (-1, 10), (0, 0)])
def test_a_warm_up_that_leaves_no_cosine_is_refused(warmup_steps: int, steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match=f"{warmup_steps}.*{steps}"):
        cosine_schedule(optimizer, steps=steps, warmup_steps=warmup_steps)


def test_adamw_exempts_vectors_class_token_and_positions_from_decay() -> None:
    model = Tokens()
    decay = {p: group["weight_decay"] for group in adamw(model, lr=1e-3, weight_decay=0.05).param_groups
             for p in group["params"]}  # fmt: skip
    assert {name for name, p in model.named_parameters() if decay[p]} == {"linear.weight"}
    assert len(decay) == len(list(model.parameters()))


def test_sgd_decays_every_parameter_by_lr_times_decay() -> None:
    model = Tokens()
    nn.init.ones_(model.cls_token)
    optimizer = nesterov_sgd(model, lr=0.5, weight_decay=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    # Nesterov's first step: lr * (1 + momentum) * gradient
    torch.testing.assert_close(model.norm.weight, torch.full((4,), 1 - 0.5 * 1.9 * 0.1))
    torch.testing.assert_close(model.cls_token, torch.full((1, 1, 4), 1 - 0.5 * 1.9 * 0.1))


class Tables(nn.Module):
    def __init__(self, *spared: str) -> None:
        super().__init__()
        self.inner = nn.ParameterDict({"rel_pos_embed": torch.zeros(3, 4), "pos_embed": torch.zeros(3, 4)})
        self.spared = set(spared)

    def no_weight_decay(self) -> set[str]:
        return self.spared


@pytest.mark.parametrize(("listed", "spared"), [("inner.rel_pos_embed", True), ("rel_pos_embed", False)])
def test_adamw_spares_what_a_model_lists_by_full_names_as_timm_does(listed: str, spared: bool) -> None:
    model = Tables(listed)
    ours = {id(p): group["weight_decay"] > 0 for group in adamw(model, lr=1e-3, weight_decay=0.05).param_groups
            for p in group["params"]}  # fmt: skip
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list={listed})
    theirs = {id(p): group["weight_decay"] > 0 for group in groups for p in group["params"]}
    table = id(model.inner["rel_pos_embed"])
    assert ours[table] is theirs[table] is not spared
    assert not ours[id(model.inner["pos_embed"])]


def test_copies_of_a_tensor_for_each_value_of_a_choice_are_spared_as_the_tensor_is() -> None:
    model = nn.Module()
    model.register_parameter("table@heads=2", nn.Parameter(torch.zeros(3, 4)))
    model.no_weight_decay = lambda: {"table"}  # type: ignore[assignment]
    assert adamw(model, lr=1e-3, weight_decay=0.05).param_groups[0]["params"] == []


def test_sgd_decays_only_matrices_where_asked_as_sposs_code_does() -> None:
    model = Tokens()
    nn.init.ones_(model.cls_token)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = nesterov_sgd(model, lr=0.5, weight_decay=0.1, decay="matrices")
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {"cls_token", "linear.weight"}
    torch.testing.assert_close(model.cls_token, torch.full((1, 1, 4), 1 - 0.5 * 1.9 * 0.1))
    with pytest.raises(ValueError, match="'all' or 'matrices', but got 'weights'"):
        nesterov_sgd(model, lr=0.5, weight_decay=0.1, decay="weights")  # type: ignore[arg-type]


@pytest.mark.parametrize("warmup_epochs", [0, 5])
def test_rates_by_epoch_with_the_warm_up_inside_the_cosine_are_timms(warmup_epochs: int) -> None:
    epochs, per_epoch, lr = 30, 7, 1e-3
    theirs = CosineLRScheduler(
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr),
        t_initial=epochs,
        lr_min=1e-5,
        warmup_t=warmup_epochs,
        warmup_lr_init=1e-6,
    )
    expected = []
    for epoch in range(epochs):
        theirs.step(epoch)
        expected += [float(theirs.optimizer.param_groups[0]["lr"])] * per_epoch
    seen = lrs(
        epochs * per_epoch,
        epochs * per_epoch,
        lr,
        warmup_steps=warmup_epochs * per_epoch,
        warmup_lr=1e-6,
        final_lr=1e-5,
        warmup="inside",
        steps_per_epoch=per_epoch,
    )
    assert seen == pytest.approx(expected, rel=1e-12)


def test_a_supernets_schedule_may_start_and_end_above_zero() -> None:
    seen = lrs(100, 101, 0.2, warmup_steps=10, warmup_lr=1e-6, final_lr=1e-5)  # AutoFormer's bounds
    assert (seen[0], seen[10], seen[100]) == pytest.approx((1e-6, 0.2, 1e-5))
    assert min(seen) == pytest.approx(1e-6)


def test_a_rate_of_zero_stays_and_cannot_be_left() -> None:
    assert lrs(10, 11, 0.0, warmup_steps=3) == [0.0] * 11
    assert lrs(10, 11, 0.0, warmup_lr=0.1) == [0.0] * 11  # there is no warm-up
    for bounds in ({"final_lr": 0.1}, {"warmup_lr": 0.1, "warmup_steps": 3}):
        with pytest.raises(ValueError, match="an lr of 0 stays 0, but got"):
            lrs(10, 1, 0.0, **bounds)


def test_a_frozen_first_group_leaves_the_schedule_of_the_others_as_it_is() -> None:
    frozen, trained = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups: list[dict[str, Any]] = [{"params": [frozen], "lr": 0.0}, {"params": [trained]}]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    schedule, seen = cosine_schedule(optimizer, steps=10, warmup_steps=2, final_lr=1e-3), []
    for _ in range(11):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert seen == [[0.0, lr] for lr in lrs(10, 11, 0.2, warmup_steps=2, final_lr=1e-3)]


@pytest.mark.parametrize(("change", "message"), [({"warmup": "after"}, "'after'"), ({"steps_per_epoch": 0}, "got 0")])
def test_schedules_without_a_meaning_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lrs(10, 1, 0.1, **change)  # type: ignore[arg-type]
