import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx import Arch, Space, one_of, repeat
from nasx.nn import Supernet
from nasx.train import (
    Distillation,
    NotFinite,
    UniformPaths,
    adamw,
    cosine_schedule,
    ema,
    nesterov_sgd,
    seeded,
    train,
    train_supernet,
)

SMOOTHED = partial(F.cross_entropy, label_smoothing=0.1)
SPACE = Space(block=repeat(Space(width=one_of(3, 5, 7)), 2))


class Network(nn.Module):
    """Two blocks with BatchNorm inside, and a head."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        sizes = [int(part["width"]) for part in arch.parts("block")]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 4)) for width in sizes
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def batches(first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
    for step in range(first, last):
        rng = torch.Generator().manual_seed(step)
        yield torch.randn(6, 4, generator=rng), torch.randint(3, (6,), generator=rng)


class Fixed:
    def __init__(self, *archs: Arch) -> None:
        self.archs = archs

    def __call__(self, step: int) -> tuple[Arch, ...]:
        return self.archs


def widths(first: int, second: int) -> Arch:
    return Arch({"block.0.width": first, "block.1.width": second})


def reached_by(supernet: Supernet, arch: Arch) -> set[int]:
    copies = {f"blocks.{i}.": f"@width={part['width']}" for i, part in enumerate(arch.parts("block"))}
    return {
        id(tensor)
        for name, tensor in supernet.state_dict(keep_vars=True).items()
        if name.startswith("head.") or any(name.startswith(b) and name.endswith(c) for b, c in copies.items())
    }


def head_weight(supernet: nn.Module) -> nn.Parameter:
    return supernet.get_parameter("head.weight")


def seeded_supernet() -> Supernet:
    """Three candidates of each block, and a shared head."""
    torch.manual_seed(0)
    return Supernet(Network, SPACE, separate={"blocks.*": "width"})


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_unsampled_candidates_keep_weights_momentum_and_statistics_to_the_bit() -> None:
    supernet = seeded_supernet()
    optimizer = nesterov_sgd(supernet, lr=0.1, weight_decay=0.1)
    for width in (3, 5, 7):  # every candidate gets momentum
        list(train_supernet(supernet, batches(0, 3), Fixed(widths(width, width)), optimizer))
    state = {name: copy.deepcopy(optimizer.state[p]) for name, p in supernet.named_parameters()}
    before = copy.deepcopy(supernet.state_dict())

    list(train_supernet(supernet, batches(3, 6), Fixed(widths(3, 7)), optimizer))

    sampled = reached_by(supernet, widths(3, 7))
    for name, value in supernet.state_dict(keep_vars=True).items():
        assert torch.equal(value, before[name]) is not (id(value) in sampled), name
    for name, p in supernet.named_parameters():
        momentum = optimizer.state[p]["momentum_buffer"]
        assert torch.equal(momentum, state[name]["momentum_buffer"]) is not (id(p) in sampled), name


def test_one_supernet_step_is_torch_sgd_on_the_extracted_path() -> None:
    supernet = seeded_supernet()
    plain = copy.deepcopy(supernet)
    arch = widths(5, 3)
    (x, y), *_ = batches(0, 1)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    loss = F.cross_entropy(plain(x, arch), y, label_smoothing=0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    reference.step()

    (step,) = train_supernet(
        supernet, [(x, y)], Fixed(arch), nesterov_sgd(supernet, lr=0.1, weight_decay=0.01), loss=SMOOTHED
    )
    assert float(step.loss) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert (step.step, step.archs, step.lr, step.skipped) == (0, (arch,), 0.1, False)
    for ours, theirs in zip(supernet.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_several_paths_share_one_optimizer_step() -> None:
    supernet = seeded_supernet()
    head = head_weight(supernet).detach().clone()
    pair = (widths(3, 3), widths(7, 7))
    steps = list(train_supernet(supernet, batches(0, 1), Fixed(*pair), nesterov_sgd(supernet, lr=0.1, weight_decay=0)))
    assert [step.archs for step in steps] == [pair]
    assert not torch.equal(head_weight(supernet), head)
    expected = reached_by(supernet, pair[0]) | reached_by(supernet, pair[1])
    assert [id(p) in expected for p in supernet.parameters()] == [p.grad is not None for p in supernet.parameters()]


def test_distilled_paths_learn_from_the_first_ones_outputs() -> None:
    supernet = seeded_supernet()
    plain = copy.deepcopy(supernet)
    teacher, *students = archs = (widths(7, 7), widths(3, 3), widths(7, 5), widths(7, 7))
    (x, y), *_ = batches(0, 1)
    logits = plain(x, teacher)
    soft = logits.detach().softmax(dim=1)
    loss = F.cross_entropy(logits, y, label_smoothing=0.1)
    for student in students:
        loss = loss - (soft * plain(x, student).log_softmax(dim=1)).sum(dim=1).mean()
    (loss / 4).backward()  # type: ignore[no-untyped-call]

    optimizer = nesterov_sgd(supernet, lr=0.1, weight_decay=0)
    (step,) = train_supernet(supernet, [(x, y)], Fixed(*archs), optimizer, loss=SMOOTHED, distill=True)
    assert step.loss == pytest.approx(float(loss.detach()) / 4, rel=1e-6)
    for ours, theirs in zip(supernet.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) is (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_distilled_paths_learn_where_there_is_a_label_alone() -> None:
    supernet = seeded_supernet()
    plain = copy.deepcopy(supernet)
    teacher, student = archs = (widths(7, 7), widths(3, 3))
    (x, y), *_ = batches(0, 1)
    y = y.clone()
    y[3:] = 9
    loss = partial(F.cross_entropy, label_smoothing=0.1, ignore_index=9)
    logits = plain(x, teacher)
    apart = -(logits[:3].detach().softmax(dim=1) * plain(x, student)[:3].log_softmax(dim=1)).sum(dim=1).mean()
    expected = (loss(logits, y) + apart) / 2
    expected.backward()
    optimizer = nesterov_sgd(supernet, lr=0.1, weight_decay=0)
    (step,) = train_supernet(supernet, [(x, y)], Fixed(*archs), optimizer, loss=loss, distill=True)
    assert step.loss == pytest.approx(float(expected.detach()), rel=1e-6)
    torch.testing.assert_close(head_weight(supernet).grad, head_weight(plain).grad)


def test_distillation_changes_nothing_where_a_step_has_one_path() -> None:
    states = []
    for distill in (False, True):
        supernet = seeded_supernet()
        optimizer = nesterov_sgd(supernet, lr=0.1, weight_decay=0)
        list(train_supernet(supernet, batches(0, 3), Fixed(widths(3, 5)), optimizer, distill=distill))
        states.append(supernet.state_dict())
    assert_same(*states)


def test_uniform_paths_are_a_function_of_seed_and_step_that_draws_evenly() -> None:
    paths = UniformPaths(SPACE, seed=3)
    drawn = [paths(step)[0] for step in range(900)]
    assert drawn[::-1] == [UniformPaths(SPACE, seed=3)(step)[0] for step in reversed(range(900))]
    assert drawn != [UniformPaths(SPACE, seed=4)(step)[0] for step in range(900)]
    assert all(arch in SPACE for arch in drawn)
    counts = np.array([sum(a["block.1.width"] == w for a in drawn) for w in (3, 5, 7)])
    assert ((counts - 300) ** 2 / 300).sum() < 13.8  # chi-square, 2 degrees of freedom, p = 0.001


@pytest.mark.parametrize("interrupted_after", [1, 4, 5, 7])
def test_resuming_continues_to_the_bit(interrupted_after: int) -> None:
    def start() -> tuple[Supernet, torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        supernet = seeded_supernet()
        optimizer = nesterov_sgd(supernet, lr=0.1, weight_decay=1e-3)
        return supernet, optimizer, cosine_schedule(optimizer, steps=10, warmup_steps=4, warmup_lr=1e-6)

    paths = UniformPaths(SPACE, seed=0)
    whole, optimizer, schedule = start()
    expected = [step.lr for step in train_supernet(whole, batches(0, 10), paths, optimizer, schedule=schedule)]

    first, optimizer, schedule = start()
    lrs = [
        step.lr for step in train_supernet(first, batches(0, interrupted_after), paths, optimizer, schedule=schedule)
    ]
    saved = first.state_dict(), copy.deepcopy(optimizer.state_dict()), json.dumps(schedule.state_dict())

    second, optimizer, schedule = start()
    second.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    schedule.load_state_dict(json.loads(saved[2]))
    rest = train_supernet(
        second, batches(interrupted_after, 10), paths, optimizer, schedule=schedule, start_step=interrupted_after
    )
    lrs += [step.lr for step in rest]
    assert lrs == expected
    assert_same(second.state_dict(), whole.state_dict())


def drawn(seed: Any, start_step: int = 0) -> float:
    next(seeded([None], seed, start_step))
    return float(torch.rand(()))


def test_batches_are_seeded_by_any_integer_and_nothing_else() -> None:
    for seed, step, plain in ((3, 5, (3 << 32) + 5), (2**32 - 1, 0, (2**32 - 1) << 32), (-3, 5, (-3 << 32) + 5)):
        torch.default_generator.manual_seed(plain)
        expected = float(torch.rand(()))
        assert drawn(seed, step) == expected
    assert drawn(np.int64(3)) == drawn(3)
    assert len({drawn(0), drawn(2**32), drawn(2**40), drawn(-(2**40)), drawn(2**40, 1)}) == 5
    for other in (None, 1.0, "1"):
        with pytest.raises(ValueError, match="`seed` must be a whole number, but got"):
            seeded([], other)  # type: ignore[arg-type]


def test_seeded_batches_make_dropout_a_function_of_the_step() -> None:
    def run(first: int, model: nn.Module) -> None:
        optimizer = nesterov_sgd(model, lr=0.1, weight_decay=0, momentum=0.9)
        if first:
            optimizer.load_state_dict(halfway)
        last = 4 if first or model is whole else 2
        list(train(model, seeded(batches(first, last), 7, first), optimizer, start_step=first))
        states.append(optimizer.state_dict())

    states: list[dict[str, object]] = []
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    parts = copy.deepcopy(whole)
    run(0, whole)
    run(0, parts)
    halfway = states[-1]
    torch.manual_seed(12345)
    run(2, parts)
    assert_same(parts.state_dict(), whole.state_dict())


def plain_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def poisoned(good: Sequence[bool]) -> Iterator[tuple[Tensor, Tensor]]:
    for is_good, (x, y) in zip(good, batches(0, len(good)), strict=True):
        yield (x if is_good else torch.full_like(x, math.nan)), y


@pytest.mark.parametrize("make", [nesterov_sgd, adamw])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_optimizer(
    make: Callable[..., torch.optim.Optimizer],
) -> None:
    model = plain_model()
    optimizer = make(model, lr=0.1, weight_decay=0.1)
    list(train(model, batches(0, 2), optimizer))
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())["state"]
    (step,) = train(model, poisoned([False]), optimizer)
    assert step.skipped
    assert_same(model.state_dict(), weights)
    for index, entries in optimizer.state_dict()["state"].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(state[index][k])) for k, v in entries.items())


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_skipped_too() -> None:
    model = plain_model()
    next(model.parameters()).register_hook(lambda gradient: gradient * math.inf)  # type: ignore[no-untyped-call]
    before = copy.deepcopy(model.state_dict())
    (step,) = train(model, batches(0, 1), nesterov_sgd(model, lr=0.1, weight_decay=0))
    assert step.skipped
    assert math.isfinite(float(step.loss))
    assert_same(model.state_dict(), before)


def test_more_than_the_allowed_skips_in_a_row_raise_with_the_step() -> None:
    model = plain_model()
    optimizer = nesterov_sgd(model, lr=0.01, weight_decay=0)
    alternating = [True, False, False, True, False, False, True]
    flags = [s.skipped for s in train(model, poisoned(alternating), optimizer, max_skipped=2)]
    assert flags == [not good for good in alternating]
    steps = train(model, poisoned([True] + [False] * 9), optimizer, max_skipped=2, start_step=40)
    assert [next(steps).skipped for _ in range(3)] == [False, True, True]
    with pytest.raises(NotFinite, match="43"):
        next(steps)


def test_clipping_bounds_the_gradient_and_spares_small_ones() -> None:
    def moved(clip_norm: float | None) -> float:
        model = plain_model()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        list(train(model, batches(0, 1), optimizer, clip_norm=clip_norm))
        return math.sqrt(
            sum(float((p.detach() - b).square().sum()) for p, b in zip(model.parameters(), before, strict=True))
        )

    free = moved(None)
    assert moved(free / 4) == pytest.approx(free / 4, rel=1e-4)
    assert moved(free * 4) == pytest.approx(free, rel=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "nesterov_sgd", "plain SGD", "foreach Adam"])
@pytest.mark.parametrize("clip_norm", [0.05, 1e6])
def test_clipped_steps_are_those_of_torchs_own_clipping(kind: str, clip_norm: float) -> None:
    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        match kind:
            case "adamw":
                return adamw(model, lr=0.01, weight_decay=0.1)
            case "nesterov_sgd":
                return nesterov_sgd(model, lr=0.1, weight_decay=0.01)
            case "plain SGD":
                return torch.optim.SGD(model.parameters(), lr=0.1)
            case _:
                return torch.optim.Adam(model.parameters(), lr=0.01, foreach=True)

    ours, theirs = plain_model(), plain_model()
    train(ours, batches(0, 4), optimizer_of(ours), clip_norm=clip_norm).run()
    optimizer = optimizer_of(theirs)
    for images, labels in batches(0, 4):
        optimizer.zero_grad()
        F.cross_entropy(theirs(images), labels).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
        optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_label_smoothing_of_soft_targets_is_that_of_the_labels_mixed() -> None:
    # smoothing is linear in the target: smoothing a mixture is mixing smoothed labels (DeiT's order)
    (x, y), (_, other) = batches(0, 2)
    first, second = F.one_hot(y, 3).float(), F.one_hot(other, 3).float()
    mixed = 0.7 * first + 0.3 * second
    log_p = plain_model()(x).log_softmax(dim=1).detach()
    smooth = 0.7 * (0.9 * first + 0.1 / 3) + 0.3 * (0.9 * second + 0.1 / 3)
    model = plain_model()
    (step,) = train(model, [(x, mixed)], nesterov_sgd(model, lr=0.1, weight_decay=0), loss=SMOOTHED)
    assert float(step.loss) == pytest.approx(float(-(smooth * log_p).sum(dim=1).mean()), rel=1e-5)


def test_the_average_follows_the_weights_by_its_recurrence() -> None:
    model = plain_model()
    average = ema(model, decay=0.75)
    expected: Tensor | None = None
    for _ in train(model, batches(0, 5), nesterov_sgd(model, lr=0.1, weight_decay=0), average=average):
        now = next(model.parameters()).detach().clone()
        expected = now if expected is None else 0.75 * expected + 0.25 * now
        assert expected is not None
        torch.testing.assert_close(next(average.parameters()).detach(), expected)


def test_parameters_without_an_optimizer_take_no_part_in_the_norm() -> None:
    model = Network(SPACE[0])
    alone = copy.deepcopy(model)
    for name, parameter in alone.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    for network in (model, alone):
        train(network, batches(0, 4), torch.optim.SGD(network.head.parameters(), lr=0.5), clip_norm=0.1).run()
    assert_same(model.state_dict(), alone.state_dict())


class Masked(nn.Linear):
    """A layer with the mask of causal attention, which it applies to nothing."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))


def test_the_average_keeps_masks_of_infinities() -> None:
    flagged, known = (ema(Masked(), decay=0.5) for _ in range(2))
    for _ in range(3):
        model = Masked()
        flagged.update(model, torch.tensor(False))
        known.update(model)
    for average in (flagged, known):
        assert torch.equal(average.module.state_dict()["mask"], Masked().mask)
    torch.testing.assert_close(flagged.module.weight, known.module.weight)


def test_an_average_that_is_loaded_goes_on_with_the_tensors_that_it_copied() -> None:
    model, average = Masked(), ema(Masked(), decay=0.5)
    average.update(model)
    state = copy.deepcopy(average.state_dict())
    model.mask.zero_()  # as a running maximum, which begins at minus infinity
    loaded = ema(Masked(), decay=0.5)
    loaded.load_state_dict(state)
    for one in (average, loaded):
        one.update(model)
        assert torch.equal(one.module.state_dict()["mask"], torch.zeros_like(model.mask))


def test_a_model_without_weights_has_no_average() -> None:
    with pytest.raises(ValueError, match="needs a model with weights or buffers, but ReLU has none"):
        ema(nn.ReLU(), 0.9)


def test_the_average_of_a_supernet_follows_it_too() -> None:
    supernet = seeded_supernet()
    average = ema(supernet, decay=0.75)
    optimizer = nesterov_sgd(supernet, lr=0.1, weight_decay=0)
    steps = train_supernet(supernet, batches(0, 3), UniformPaths(SPACE, seed=0), optimizer, average=average)
    seen = [head_weight(supernet).detach().clone() for _ in steps]
    assert isinstance(average.module, Supernet)
    expected = 0.75 * (0.75 * seen[0] + 0.25 * seen[1]) + 0.25 * seen[2]
    torch.testing.assert_close(head_weight(average.module).detach(), expected)


def test_a_skipped_step_leaves_the_average_alone() -> None:
    model = plain_model()
    average = ema(model, decay=0.5)
    optimizer = nesterov_sgd(model, lr=0.1, weight_decay=0)
    list(train(model, batches(0, 3), optimizer, average=average))
    before = copy.deepcopy(average.state_dict())
    list(train(model, poisoned([False]), optimizer, average=average))
    assert_same(average.state_dict(), before)


def test_a_skipped_step_leaves_finite_batch_norm_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    bad = (torch.full((4, 3), math.nan), torch.zeros(4, dtype=torch.long))
    good = (torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
    optimizer = nesterov_sgd(model, lr=0.1, weight_decay=0.0)
    steps = list(train(model, [bad, good], optimizer, schedule=cosine_schedule(optimizer, steps=2)))
    assert [step.skipped for step in steps] == [True, False]
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def path_gradients(reduction: Literal["mean", "sum"]) -> tuple[list[Tensor | None], float]:
    supernet = seeded_supernet()
    pair = Fixed(widths(3, 3), widths(7, 7))
    optimizer = nesterov_sgd(supernet, lr=0.1, weight_decay=0)
    (step,) = train_supernet(supernet, batches(0, 1), pair, optimizer, reduction=reduction)
    return [p.grad for p in supernet.parameters()], step.loss


def test_gradients_of_several_paths_are_averaged_or_added() -> None:
    mean, mean_loss = path_gradients("mean")
    total, total_loss = path_gradients("sum")
    for averaged, added in zip(mean, total, strict=True):
        assert (averaged is None) is (added is None)
        if averaged is not None and added is not None:
            torch.testing.assert_close(added, 2 * averaged)
    assert total_loss == pytest.approx(mean_loss)  # what is reported is the mean, to be compared


def test_in_place_distillation_of_a_regression_teaches_values() -> None:
    supernet = seeded_supernet()
    plain: nn.Module = copy.deepcopy(supernet)
    teacher, student = widths(7, 7), widths(3, 5)
    (x, _), *_ = batches(0, 1)
    y = torch.randn(6, 3)
    values = plain(x, teacher)
    loss = (F.mse_loss(values, y) + F.mse_loss(plain(x, student), values.detach())) / 2
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer = nesterov_sgd(supernet, lr=0.1, weight_decay=0)
    (step,) = train_supernet(supernet, [(x, y)], Fixed(teacher, student), optimizer, loss=nn.MSELoss(), distill=True)
    assert step.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    torch.testing.assert_close(head_weight(supernet).grad, head_weight(plain).grad)


@pytest.mark.parametrize("given", [widths(3, 3), (), [], None, [3], "abc", iter([widths(3, 3)])])
def test_paths_that_return_no_architectures_in_a_row_are_refused_before_a_step(given: Any) -> None:
    supernet = seeded_supernet()
    before = copy.deepcopy(supernet.state_dict())
    training = train_supernet(
        supernet, batches(0, 1), lambda step: given, nesterov_sgd(supernet, lr=0.1, weight_decay=0)
    )
    with pytest.raises(TypeError, match=r"one architecture or more.*at step 0; return \(arch,\) for one"):
        training.run()
    assert all(torch.equal(before[name], tensor) for name, tensor in supernet.state_dict().items())


def test_paths_that_cannot_be_called_are_refused_at_once() -> None:
    supernet = seeded_supernet()
    with pytest.raises(TypeError, match=r"must be a function of the step.*UniformPaths\(space, seed=0\)"):
        train_supernet(supernet, batches(0, 1), [SPACE[0]], nesterov_sgd(supernet, lr=0.1, weight_decay=0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "max"}, "'mean' or 'sum', but got 'max'"),
        ({"distill": True, "distillation": Distillation(lambda x: x)}, "two teachers"),
        ({"distill": True, "loss": lambda outputs, targets: outputs.sum()}, "but not for <lambda>; set distill=False"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    supernet = seeded_supernet()
    with pytest.raises(ValueError, match=message):
        train_supernet(
            supernet, batches(0, 1), Fixed(widths(3, 3)), nesterov_sgd(supernet, lr=0.1, weight_decay=0), **options
        )


def test_an_optimizer_that_wants_a_closure_is_refused_at_once() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(TypeError, match=r"without a closure, but the step of LBFGS is missing .* 'closure'"):
        train(model, [], torch.optim.LBFGS(model.parameters()))


class Wrapped:
    """An optimizer that has nothing of its own, as libraries wrap them."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.inner = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_an_optimizer_may_be_wrapped() -> None:
    plain = Network(SPACE[0])
    other = copy.deepcopy(plain)
    train(plain, batches(0, 2), torch.optim.SGD(plain.parameters(), lr=0.1)).run()
    wrapped: Any = Wrapped(torch.optim.SGD(other.parameters(), lr=0.1))
    train(other, batches(0, 2), wrapped).run()
    assert_same(other.state_dict(), plain.state_dict())


def test_an_optimizer_of_another_model_is_refused_at_once() -> None:
    """It would change nothing of this one, as one that was made before the model was copied."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="AdamW has none of them; make it of this model"):
        train(copy.deepcopy(model), [], optimizer)


def test_a_schedule_of_the_loss_is_refused_at_once() -> None:
    model = nn.Linear(3, 2)
    optimizer = nesterov_sgd(model, lr=0.1, weight_decay=0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(TypeError, match=r"`schedule` must depend on the step alone.* ReduceLROnPlateau is missing"):
        train(model, [], optimizer, schedule=schedule)
