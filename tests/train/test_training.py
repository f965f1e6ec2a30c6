"""What a training is to its caller: an iterator, a call, and records that may come late."""

import copy
import gc
import math
import pickle
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasx.train import (
    NotFinite,
    Recovery,
    Step,
    Training,
    WeightAverage,
    adamw,
    cosine_schedule,
    ema,
    nesterov_sgd,
    seeded,
    train,
)
from nasx.train.update import Buffers

State = dict[str, Tensor]


class Counting(nn.Module):
    """A network with buffers of several kinds, most of which a forward pass changes."""

    seen: Tensor
    history: Tensor
    latest: Tensor
    constant: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 8), nn.BatchNorm1d(8)
        self.last = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 3))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("history", torch.zeros(2, 4))
        self.register_buffer("latest", torch.zeros(4))
        self.register_buffer("constant", torch.arange(6).view(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
            self.history.mul_(0.5).add_(x.detach().mean(dim=0))
            self.latest = 0.5 * self.latest + x.detach().mean(dim=0)  # another tensor each time
        return self.last(self.norm(self.first(x)))


def start(make: Any = nesterov_sgd) -> tuple[Counting, torch.optim.Optimizer, Any, WeightAverage]:
    torch.manual_seed(0)
    model = Counting()
    optimizer = make(model, lr=0.1, weight_decay=0.01)
    return model, optimizer, cosine_schedule(optimizer, steps=20, warmup_steps=3), ema(model, 0.8)


def batches(first: int, last: int, bad: tuple[int, ...] = ()) -> Iterator[tuple[Tensor, Tensor]]:
    for step in range(first, last):
        rng = torch.Generator().manual_seed(step)
        x, y = torch.randn(6, 4, generator=rng), torch.randint(3, (6,), generator=rng)
        yield (x * math.nan if step in bad else x), y


def state_of(*parts: Any) -> list[Any]:
    return copy.deepcopy([part.state_dict() for part in parts])


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def steps_of(parts: Any, first: int, last: int, bad: tuple[int, ...] = (), **options: Any) -> Training:
    model, optimizer, schedule, average = parts
    data = seeded(batches(first, last, bad), 7, first)
    return train(model, data, optimizer, schedule=schedule, average=average, start_step=first, **options)


def records_of(steps: list[Step]) -> list[tuple[int, str, float, bool]]:
    return [(step.step, repr(step.loss), step.lr, step.skipped) for step in steps]


def test_a_call_takes_all_steps_as_a_loop_does() -> None:
    looped, called = start(), start()
    by_loop = list(steps_of(looped, 0, 6))
    seen: list[Step] = []
    assert records_of(steps_of(called, 0, 6).run(seen.append)) == records_of(by_loop) == records_of(seen)
    assert len(by_loop) == 6
    assert_same(state_of(*called), state_of(*looped))


def test_a_call_takes_what_a_loop_left() -> None:
    steps = steps_of(start(), 0, 6)
    assert [step.step for step in islice(steps, 2)] == [0, 1]
    assert [step.step for step in steps.run()] == [2, 3, 4, 5]


def test_a_training_that_nobody_iterates_says_so() -> None:
    steps = [steps_of(start(), 0, 6)]
    with pytest.warns(RuntimeWarning, match=r"nothing was trained; iterate over it, or call .run\(\)"):
        steps.clear()


def test_a_training_without_batches_or_begun_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert steps_of(start(), 0, 0).run() == []
        next(steps_of(start(), 0, 6))
        gc.collect()


@pytest.mark.parametrize("delay", [1, 2, 30])
def test_late_records_are_the_same_and_in_order(delay: int) -> None:
    prompt, late = start(), start()
    expected = steps_of(prompt, 0, 9, bad=(4,)).run()
    assert records_of(steps_of(late, 0, 9, bad=(4,), delay=delay).run()) == records_of(expected)
    assert [step.skipped for step in expected] == [step == 4 for step in range(9)]
    assert_same(state_of(*late), state_of(*prompt))


@pytest.mark.parametrize("asked_at", [0, 3, 5])
def test_after_a_flush_everything_stands_after_the_last_record(asked_at: int) -> None:
    whole = start()
    expected = steps_of(whole, 0, 9).run()

    first = start()
    steps = steps_of(first, 0, 9, delay=2)
    records = list(islice(steps, asked_at + 1))
    records += steps.flush()
    assert [step.step for step in records] == list(range(asked_at + 3))
    assert steps.flush() == []
    saved, at = state_of(*first), len(records)
    assert records + steps.run() == expected  # the same training goes on

    second = start()
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(state)
    assert records[:at] + steps_of(second, at, 9).run() == expected
    assert_same(state_of(*second), state_of(*whole))


@pytest.mark.parametrize("make", [nesterov_sgd, adamw])
@pytest.mark.parametrize("bad", [0, 5])
def test_a_step_that_is_not_finite_is_undone_to_the_bit(make: Any, bad: int) -> None:
    parts = start(make)
    steps_of(parts, 0, bad).run()
    before = state_of(*parts)
    (step,) = steps_of(parts, bad, bad + 1, bad=(bad,)).run()
    assert step.skipped
    after = state_of(*parts)
    before[2]["last_epoch"] += 1  # the schedule counts steps, whatever became of them
    assert_same(after[0], before[0])
    assert_same(after[3], before[3])
    assert after[2]["last_epoch"] == before[2]["last_epoch"]
    moments = before[1]["state"] or {i: {"step": 0, "exp_avg": 0, "exp_avg_sq": 0} for i in after[1]["state"]}
    for number, entries in after[1]["state"].items():
        for name, value in entries.items():
            assert bool((torch.as_tensor(value) == torch.as_tensor(moments[number][name])).all())


def test_a_gradient_alone_that_is_not_finite_undoes_the_statistics_too() -> None:
    parts = start()
    model = parts[0]
    model.first.weight.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[no-untyped-call]
    before = state_of(model)
    (step,) = steps_of(parts, 0, 1).run()
    assert step.skipped
    assert math.isfinite(step.loss)
    assert_same(state_of(model), before)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),  # whose momentum is not there yet
        lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    ],
)
def test_any_optimizer_of_torchs_leaves_a_bad_first_step_out(make: Any) -> None:
    def run(bad: bool) -> State:
        torch.manual_seed(0)
        model = Counting()
        optimizer = make(model.parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        data = list(batches(0, 4))
        if bad:
            data.insert(0, next(batches(9, 10, bad=(9,))))
        train(model, seeded(data, 3, 1 - bad), optimizer, schedule=schedule).run()
        return model.state_dict()

    assert_same(run(bad=True), run(bad=False))


def test_statistics_changed_between_steps_are_what_a_bad_step_goes_back_to() -> None:
    parts = start()
    model = parts[0]
    steps = steps_of(parts, 0, 3, bad=(1,))
    next(steps)
    mean = model.norm.running_mean
    assert mean is not None
    mean.fill_(5.0)  # as recalibration between two steps would
    assert next(steps).skipped
    assert mean.tolist() == [5.0] * 8


def test_the_schedule_depends_on_the_step_alone() -> None:
    rates = [step.lr for step in steps_of(start(), 0, 10)]
    assert [step.lr for step in steps_of(start(), 0, 10, bad=(2, 3), recovery=Recovery({5}))] == rates


def test_steps_to_be_left_out_are() -> None:
    parts = start()
    records = steps_of(parts, 0, 6, recovery=Recovery({2, 3})).run()
    assert [step.skipped for step in records] == [False, False, True, True, False, False]
    assert [math.isnan(step.loss) for step in records] == [step.skipped for step in records]
    expected = start()
    steps_of(expected, 0, 2).run()
    expected[2].step()
    expected[2].step()
    steps_of(expected, 4, 6).run()
    assert_same(state_of(*parts), state_of(*expected))


def test_steps_left_out_on_purpose_never_end_a_training() -> None:
    records = steps_of(start(), 0, 9, bad=(1, 2, 6, 7), recovery=Recovery(range(1, 6)), max_skipped=2).run()
    assert [step.step for step in records if step.skipped] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("delay", [0, 2])
def test_the_end_of_a_training_says_which_steps_were_not_finite(delay: int) -> None:
    steps = steps_of(start(), 0, 12, bad=(3, 5, 6, 7), max_skipped=2, delay=delay)
    records: list[Step] = []
    with pytest.raises(NotFinite, match="3 steps in a row, the last of them 7") as caught:
        steps.run(records.append)
    assert caught.value.steps == range(5, 8)
    assert [step.step for step in records] == list(range(7))
    assert pickle.loads(pickle.dumps(caught.value)).steps == range(5, 8)


def test_a_flag_on_the_device_undoes_buffers_as_a_known_one_does() -> None:
    model = start()[0]
    model.train()
    for broken in (True, False):
        found = []
        for flag in (broken, torch.tensor(broken)):
            buffers = Buffers(model)
            buffers.note()
            before = copy.deepcopy(model.state_dict())
            model(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))
            buffers.undo(flag)
            found.append(copy.deepcopy(model.state_dict()))
            assert torch.equal(model.history, before["history"]) is broken
            model.load_state_dict(before)
        assert_same(*found)


def test_a_flag_on_the_device_updates_an_average_as_a_known_one_does() -> None:
    model = start()[0]
    known, flagged = ema(model, 0.75), ema(model, 0.75)
    for broken in (True, False, False, True, False):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
            model.seen += 1
        before = state_of(flagged.module)[0]
        known.update(model, broken)
        flagged.update(model, torch.tensor(broken))
        found, expected = flagged.module.state_dict(), known.module.state_dict()
        if broken:
            assert_same({n: v for n, v in found.items() if "seen" not in n},
                        {n: v for n, v in before.items() if "seen" not in n})  # fmt: skip
        for name, value in expected.items():
            if "seen" not in name:
                torch.testing.assert_close(found[name], value)
    assert int(flagged.n_averaged) == int(known.n_averaged) == 3


def test_an_average_of_a_training_is_that_of_its_steps() -> None:
    parts = start()
    model, followed = parts[0], ema(parts[0], 0.8)
    steps_of(parts, 0, 6).run(on_step=lambda step: followed.update(model))
    assert model.latest.any()
    assert_same(state_of(parts[3]), state_of(followed))


class Fourier(nn.Module):
    """Has a complex weight beside a real layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6, dtype=torch.complex64))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((torch.fft.fft(x) @ self.weight).abs())


@pytest.mark.parametrize("make", [nesterov_sgd, adamw])
@pytest.mark.parametrize("broken", [False, torch.tensor(False)], ids=["known", "on the device"])
def test_complex_weights_are_trained_and_averaged(make: Any, broken: bool | Tensor) -> None:
    torch.manual_seed(0)
    model = Fourier()
    average, expected = ema(model, 0.5), model.weight.detach().clone()
    optimizer = make(model, lr=0.1, weight_decay=0.01)
    average.update(model, broken)
    batch = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    for _ in train(model, [batch, batch], optimizer, clip_norm=1.0):
        average.update(model, broken)
        expected = (expected + model.weight.detach()) / 2
    assert (expected - model.weight).abs().min() > 1e-4
    torch.testing.assert_close(average.module.weight, expected)


def test_buffers_that_got_another_shape_are_brought_back() -> None:
    model = start()[0]
    buffers = Buffers(model)
    buffers.note()
    before = copy.deepcopy(model.state_dict())
    model.latest = torch.ones(2, 2)
    buffers.undo(True)
    assert_same(model.state_dict(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", [nesterov_sgd, adamw])
def test_on_cuda_no_step_waits_for_the_device(make: Any) -> None:
    torch.manual_seed(0)
    model = Counting().cuda()
    optimizer = make(model, lr=0.1, weight_decay=0.01)
    schedule, average = cosine_schedule(optimizer, steps=20), ema(model, 0.8)
    data = seeded(batches(0, 9, bad=(4,)), 7)
    steps = train(model, data, optimizer, schedule=schedule, average=average, clip_norm=1.0)
    next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        records = list(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [step.skipped for step in records] == [step == 4 for step in range(1, 9)]
