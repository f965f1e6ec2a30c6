import math

import pytest
import torch
from torch import nn

from nasx.train import adamw, cosine_schedule, nesterov_sgd


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)


def lrs(steps: int, count: int, lr: float, **settings: float | int) -> list[float]:
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


def test_adamw_spares_what_a_model_says_as_timms_do() -> None:
    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ParameterDict({"table": torch.zeros(3, 4), "weight": torch.zeros(3, 4)})

        def no_weight_decay(self) -> set[str]:
            return {"table"}

    model = Tables()
    spared = adamw(model, lr=1e-3, weight_decay=0.05).param_groups[1]["params"]
    assert [id(p) for p in spared] == [id(model.inner["table"])]
