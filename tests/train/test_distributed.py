import copy
import math
import multiprocessing
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nasx import Arch, Space, one_of
from nasx.data import TrainBatches, eval_batches, load_digits
from nasx.nn import Attention, DropPath, FeedForward, Subnet, Supernet, drop_path
from nasx.train import (
    ALONE,
    Distillation,
    Group,
    NotFinite,
    Rows,
    SandwichPaths,
    UniformPaths,
    WholeBatch,
    adamw,
    ema,
    evaluate,
    nesterov_sgd,
    pick_device,
    process_group,
    recalibrate,
    seeded,
    sync_batch_norm,
    train,
    train_supernet,
    use_threads,
)
from recipes.glit.cost import macs
from recipes.glit.model import GLiTConfig, build_in
from recipes.glit.space import GLiTSpace, table2
from recipes.glit.supernet import supernet as make_supernet

CHOICES = GLiTSpace(blocks=2, kernel_size=(3, 5, 9), held_kernel_size=5)
VIT = GLiTConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=36, num_heads=3)
SPACE: Space = table2(CHOICES)
BATCH = 32
Sharing = Literal["separate", "entangled"]
State = dict[str, Tensor]


class Pair:
    """Two ranks that run one function after the other, each with its Group."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self.ends, self.processes = [], []
        for rank in range(2):
            end, other = context.Pipe()
            process = context.Process(target=serve, args=(rank, port, other), daemon=True)
            process.start()
            self.ends.append(end)
            self.processes.append(process)

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        for end in self.ends:
            end.send_bytes(pickle.dumps((function, args, kwargs)))
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + 60
        while len(answers) < 2:
            assert time.monotonic() < deadline, f"only ranks {sorted(answers)} came back"
            for rank, end in enumerate(self.ends):
                if rank not in answers and end.poll(0.01):
                    answers[rank] = pickle.loads(end.recv_bytes())
        for answer in answers.values():
            if isinstance(answer, Exception):
                raise answer
        return answers[0], answers[1]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def serve(rank: int, port: int, end: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    with process_group(torch.device("cpu")) as group:
        while True:
            function, args, kwargs = pickle.loads(end.recv_bytes())
            try:
                end.send_bytes(pickle.dumps(function(group, *args, **kwargs)))
            except Exception as error:
                error.add_note(f"on rank {rank}")
                end.send_bytes(pickle.dumps(error))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with use_threads(1):
        yield


def assert_close(a: State, b: State, atol: float) -> None:
    assert a.keys() == b.keys()
    far = {name: float((a[name].double() - b[name].double()).abs().max()) for name in a}
    assert {name: distance for name, distance in far.items() if not distance <= atol} == {}


def assert_close_with_adam(a: State, b: State) -> None:
    # BatchNorm takes these biases out again: Adam makes steps of what rounding leaves of their gradient, which is 0,
    # and any other order of a batch's rows gives others
    free = {name for name in a if name.endswith(("depthwise.bias", "local.norm.running_mean"))}
    assert_close({n: a[n] for n in free}, {n: b[n] for n in free}, 1e-5)
    assert_close({n: a[n] for n in a if n not in free}, {n: b[n] for n in b if n not in free}, 1e-8)


def assert_equal(a: State, b: State) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def digits(group: Group, dtype: torch.dtype, steps: int, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
    data = load_digits(seed=0)
    batches = TrainBatches(
        data.train, batch_size=BATCH, seed=3, mean=(0.3,), std=(0.4,), part=group.part, classes=10, **options
    )
    for images, targets in seeded(batches.steps(0, steps), 5):
        yield images.to(dtype), targets.to(dtype) if targets.is_floating_point() else targets


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> State:
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def supernet_run(
    group: Group, sharing: Sharing, dtype: torch.dtype, steps: int, kind: str, sandwich: bool = False
) -> tuple[State, State, list[float]]:
    torch.manual_seed(0)
    supernet = make_supernet(SPACE, VIT, sharing=sharing, drop_path=0.3, init_std=0.2).to(dtype)
    make_optimizer = adamw if kind == "adamw" else nesterov_sgd
    optimizer = make_optimizer(supernet, lr=5e-3, weight_decay=0.05)
    paths = SandwichPaths(SPACE, macs.configured(image_size=8, patch_size=2, embed_dim=36), 1, random=1)
    done = train_supernet(
        supernet,
        digits(group, dtype, steps),
        paths if sandwich else UniformPaths(SPACE, 1),
        optimizer,
        loss=partial(F.cross_entropy, label_smoothing=0.1),
        distill=sandwich,
        clip_norm=1.0,
        group=group,
    )
    losses = [step.loss for step in done]
    return supernet.state_dict(), optimizer_tensors(optimizer), losses


@pytest.mark.parametrize("sharing", ["separate", "entangled"])
def test_two_ranks_follow_one_process_through_a_supernets_training(pair: Pair, sharing: Sharing) -> None:
    # BatchNorm, stochastic depth, clipping, weight decay, momentum, and a path of its own at each step
    alone = supernet_run(ALONE, sharing, torch.float64, 50, "sgd")
    ranks = pair(supernet_run, sharing, torch.float64, 50, "sgd")
    for mine, others, reference in zip(*(run[:2] for run in (*ranks, alone)), strict=True):
        assert_equal(mine, others)
        assert_close(mine, reference, 1e-8)
    assert ranks[0][2] == ranks[1][2] == pytest.approx(alone[2], rel=1e-6)


def test_two_ranks_follow_one_process_with_adam_too(pair: Pair) -> None:
    alone, _, _ = supernet_run(ALONE, "entangled", torch.float64, 50, "adamw")
    (mine, _, _), (others, _, _) = pair(supernet_run, "entangled", torch.float64, 50, "adamw")
    assert_equal(mine, others)
    assert_close_with_adam(mine, alone)


@pytest.mark.parametrize("sharing", ["separate", "entangled"])
def test_in_single_precision_the_first_step_is_that_of_one_process(pair: Pair, sharing: Sharing) -> None:
    alone = supernet_run(ALONE, sharing, torch.float32, 1, "sgd")
    rank, _ = pair(supernet_run, sharing, torch.float32, 1, "sgd")
    assert_close(rank[0], alone[0], 1e-5)
    assert_close(rank[1], alone[1], 1e-5)


def test_sandwich_steps_with_distillation_follow_one_process(pair: Pair) -> None:
    alone = supernet_run(ALONE, "entangled", torch.float64, 5, "sgd", sandwich=True)
    rank, _ = pair(supernet_run, "entangled", torch.float64, 5, "sgd", sandwich=True)
    assert_close(rank[0], alone[0], 1e-10)


class Everything(nn.Module):
    """All layers whose result in training depends on the batch or on chance, images in, logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.GELU(), nn.Dropout2d(0.2)
        )
        self.attention = Attention(12, 3, dropout=0.2)
        self.mlp = FeedForward(12, 24, dropout=0.2)
        self.norm = nn.BatchNorm1d(12)
        self.drop_path = DropPath(0.3)
        self.head = nn.Linear(12, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        tokens = tokens + self.drop_path(self.attention(tokens))
        tokens = tokens + self.drop_path(self.mlp(self.norm(tokens.transpose(1, 2)).transpose(1, 2)))
        flat = F.dropout(tokens.flatten(0, 1), 0.1, self.training)  # rows are samples times tokens
        return self.head(flat.view_as(tokens).mean(dim=1))


def plain_run(group: Group, glit: bool, dtype: torch.dtype, steps: int, **options: Any) -> tuple[State, State]:
    torch.manual_seed(0)
    arch = SPACE.sample(3)
    model = build_in(VIT, arch, drop_path=0.3, init_std=0.2) if glit else Everything()
    model.to(dtype)
    optimizer, average = adamw(model, lr=5e-3, weight_decay=0.05), ema(model, 0.9)
    batches = digits(group, dtype, steps, mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    train(model, batches, optimizer, average=average, clip_norm=1.0, group=group, **options).run()
    return model.state_dict(), average.state_dict()


@pytest.mark.parametrize("glit", [True, False])
def test_two_ranks_follow_one_process_through_a_networks_training(pair: Pair, glit: bool) -> None:
    alone = plain_run(ALONE, glit, torch.float64, 50)
    ranks = pair(plain_run, glit, torch.float64, 50)
    for mine, others, reference in zip(*ranks, alone, strict=True):
        assert_equal(mine, others)
        assert_close_with_adam(mine, reference)


def taught_run(group: Group) -> tuple[State, State]:
    torch.manual_seed(1)
    return plain_run(group, False, torch.float64, 20, distillation=Distillation(Everything().double(), temperature=2.0))


def grouped_run(group: Group) -> tuple[State, State]:
    return plain_run(group, False, torch.float64, 20, batch_norm_group=8)


@pytest.mark.parametrize("run", [taught_run, grouped_run])
def test_two_ranks_follow_one_process_with_a_teacher_or_with_groups(
    pair: Pair, run: Callable[[Group], tuple[State, State]]
) -> None:
    alone, ranks = run(ALONE), pair(run)
    for mine, others, reference in zip(*ranks, alone, strict=True):
        assert_equal(mine, others)
        assert_close(mine, reference, 1e-8)


class Checkpointed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def checkpointed_run(group: Group) -> State:
    torch.manual_seed(0)
    block = Checkpointed(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.GELU())
    model = nn.Sequential(nn.Flatten(), block, nn.Linear(16, 10)).double()
    train(model, digits(group, torch.float64, 10), nesterov_sgd(model, lr=0.1, weight_decay=0), group=group).run()
    return model.state_dict()


def test_two_ranks_follow_one_process_through_gradient_checkpoints(pair: Pair) -> None:
    ranks = pair(checkpointed_run)
    assert_equal(*ranks)
    assert_close(ranks[0], checkpointed_run(ALONE), 1e-10)


class Tempered(nn.Module):
    """A loss with a temperature that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.cold = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs * self.cold.exp(), targets)


def tempered_run(group: Group) -> State:
    torch.manual_seed(0)
    model, loss = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double(), Tempered()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.5)
    train(model, digits(group, torch.float64, 10), optimizer, loss=loss, clip_norm=0.5, group=group).run()
    return {**model.state_dict(), "cold": loss.cold.detach()}


def test_two_ranks_follow_one_process_with_parameters_of_a_loss(pair: Pair) -> None:
    ranks = pair(tempered_run)
    assert_equal(*ranks)
    assert_close(ranks[0], tempered_run(ALONE), 1e-10)


def unequal_run(group: Group) -> State:
    torch.manual_seed(0)
    model = Everything().double()
    generator = torch.Generator().manual_seed(1)
    batches = []
    for step in range(10):
        cut = 2 + step % 5
        own = slice(None) if group.size == 1 else (slice(cut), slice(cut, 8))[group.rank]
        images, labels = (
            torch.randn(8, 1, 8, 8, generator=generator).double(),
            torch.randint(10, (8,), generator=generator),
        )
        batches.append((images[own], labels[own]))
    for _ in train(model, seeded(batches, 9), nesterov_sgd(model, lr=0.05, weight_decay=0), group=group):
        pass
    return model.state_dict()


def test_ranks_may_hold_unequal_parts_of_a_batch(pair: Pair) -> None:
    ranks = pair(unequal_run)
    assert_equal(*ranks)
    assert_close(ranks[0], unequal_run(ALONE), 1e-10)


CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 0.2, 3.0], dtype=torch.float64)
WITHOUT_BACKGROUND = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
WIDTHS = Space(width=one_of(5, 9))


class Segmenter(nn.Sequential):
    def __init__(self, arch: Arch) -> None:
        width = int(arch["width"])
        super().__init__(nn.Conv1d(3, width, 1), nn.ReLU(), nn.Conv1d(width, len(CLASS_WEIGHTS), 1))


def labelled_run(group: Group, weight: Tensor | None, teacher: Literal["none", "other", "own"]) -> tuple[State, float]:
    torch.manual_seed(0)
    supernet = Supernet(Segmenter, WIDTHS).double()
    other = Distillation(Segmenter(WIDTHS[1]).double(), temperature=2.0) if teacher == "other" else None
    generator, batches = torch.Generator().manual_seed(1), []
    for labels in (20, 3, 0):
        own = slice(None) if group.size == 1 else (slice(3), slice(3, 8))[group.rank]
        points = torch.randn(8, 3, 5, generator=generator).double()
        targets = torch.randint(4, (40,), generator=generator)
        targets[labels:] = -100
        batches.append((points[own], targets.view(8, 5)[own]))
    steps = train_supernet(
        supernet,
        batches,
        lambda step: (WIDTHS[1], WIDTHS[0]),
        nesterov_sgd(supernet, lr=0.5, weight_decay=0.0),
        loss=partial(F.cross_entropy, weight=weight),
        distillation=other,
        distill=teacher == "own",
        group=group,
    ).run()
    return supernet.state_dict(), sum(step.loss for step in steps)


@pytest.mark.parametrize("teacher", ["none", "other", "own"])
@pytest.mark.parametrize("weight", [None, CLASS_WEIGHTS, WITHOUT_BACKGROUND], ids=["none", "weights", "zeros"])
def test_ranks_may_hold_unequal_parts_of_the_labels_and_of_their_weights(
    pair: Pair, weight: Tensor | None, teacher: Literal["none", "other", "own"]
) -> None:
    alone, loss = labelled_run(ALONE, weight, teacher)
    (mine, mean), (others, _) = pair(labelled_run, weight, teacher)
    assert_equal(mine, others)
    assert_close(mine, alone, 1e-6 if teacher == "own" else 1e-12)  # whose outputs are targets in single precision
    assert mean == pytest.approx(loss, rel=1e-5)


def norm_run(group: Group, make: Callable[[], nn.Module], x: Tensor, cut: int) -> dict[str, Tensor]:
    """Two forward passes and one backward pass in training, over a part of x or all of it."""
    own = slice(None) if group.size == 1 else (slice(cut), slice(cut, None))[group.rank]
    torch.manual_seed(0)
    norm = make().to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    mine = x[own].clone().requires_grad_()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x.dtype)[own]
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    rows = Rows(own.start or 0, len(mine), len(x))
    context = WholeBatch(rows) if group.size > 1 else use_threads(1)
    with context:
        norm(2 * mine.detach())
        y = norm(mine)
        (y * weights).square().sum().backward()
    results = {"y": y.detach(), "x.grad": mine.grad, **norm.state_dict()}
    gradients = {f"{name}.grad": p.grad for name, p in norm.named_parameters() if p.grad is not None}
    return {name: value for name, value in (results | gradients).items() if value is not None}


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (partial(nn.BatchNorm1d, 5), (7, 5)),
        (partial(nn.BatchNorm1d, 5, momentum=None), (7, 5, 3)),
        (partial(nn.BatchNorm2d, 5, affine=False), (7, 5, 3, 2)),
        (partial(nn.BatchNorm2d, 5, track_running_stats=False), (7, 5, 3, 2)),
    ],
)
@pytest.mark.parametrize("cut", [1, 4])
def test_batch_norm_over_ranks_is_torchs_over_the_whole_batch(
    pair: Pair, make: Callable[[], nn.Module], shape: tuple[int, ...], cut: int
) -> None:
    x = 3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole, parts = norm_run(ALONE, make, x, cut), pair(norm_run, make, x, cut)
    joined = dict(parts[0])
    for name in joined:
        if name in ("y", "x.grad"):
            joined[name] = torch.cat([part[name] for part in parts])
        elif name.endswith(".grad"):
            joined[name] = parts[0][name] + parts[1][name]
        else:
            assert torch.equal(parts[0][name], parts[1][name])
    assert_close(joined, whole, 1e-12)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.04)])
def test_batch_norm_over_ranks_bears_large_means_and_half_precision(
    pair: Pair, dtype: torch.dtype, atol: float
) -> None:
    offset = 100 if dtype == torch.float32 else 1
    x = (offset + torch.randn(64, 5, generator=torch.Generator().manual_seed(1))).to(dtype)
    exact = norm_run(ALONE, partial(nn.BatchNorm1d, 5), x.double(), 8)
    parts = pair(norm_run, partial(nn.BatchNorm1d, 5), x, 8)
    assert parts[0]["y"].dtype == dtype
    assert_close({"y": torch.cat([p["y"] for p in parts])}, {"y": exact["y"]}, 10 * atol)
    assert_close({"v": parts[0]["running_var"]}, {"v": exact["running_var"]}, 10 * atol)


def test_batch_norm_outside_training_is_torchs_and_sends_nothing() -> None:
    x, mean, var = torch.randn(4, 3), torch.randn(3), torch.rand(3)
    torch.testing.assert_close(sync_batch_norm(x, mean, var), F.batch_norm(x, mean, var), rtol=0, atol=0)


MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "drop_path": partial(drop_path, rate=0.5, training=True),
    "dropout": partial(F.dropout, p=0.5),
    "torch's own": lambda x: torch.dropout(x, 0.5, True),
    "in place": lambda x: F.dropout(x.clone(), 0.5, True, True),
    "dropout2d": lambda x: F.dropout2d(x.unsqueeze(-1), 0.5).squeeze(-1),
    "samples times tokens": lambda x: F.dropout(x.flatten(0, 1), 0.5).view_as(x),
    "another order in memory": lambda x: F.dropout(x.transpose(1, 2), 0.5).transpose(1, 2),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
}


@pytest.mark.parametrize("name", MASKS)
def test_the_masks_of_parts_are_the_rows_of_the_whole_batchs_mask(name: str) -> None:
    x = torch.randn(6, 4, 10, dtype=torch.float64)
    torch.manual_seed(7)
    whole = MASKS[name](x)
    after = torch.rand(1)
    for first, count in ((0, 2), (2, 3), (5, 1)):
        torch.manual_seed(7)
        with WholeBatch(Rows(first, count, 6)):
            part = MASKS[name](x[first : first + count])
        torch.testing.assert_close(part, whole[first : first + count], rtol=0, atol=1e-14)
        assert torch.equal(torch.rand(1), after)


def test_a_mask_that_is_not_per_sample_is_the_same_on_every_rank() -> None:
    drawn = []
    for first in (0, 2):
        torch.manual_seed(7)
        with WholeBatch(Rows(first, 2, 4)):
            drawn.append(torch.empty(3, 5).bernoulli_(0.5))
    assert torch.equal(*drawn)


def test_masks_that_cannot_be_shared_are_refused_and_harmless_calls_are_not() -> None:
    x = torch.randn(4, 6, 8)
    attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
    with WholeBatch(Rows(0, 4, 8)):
        with pytest.raises(ValueError, match="alpha_dropout"):
            F.alpha_dropout(x, 0.1, True)
        with pytest.raises(ValueError, match=r"nasx\.nn\.Attention"):
            attention(x, x, x)
        with pytest.raises(ValueError, match="attention dropout"):
            F.scaled_dot_product_attention(x, x, x, dropout_p=0.1, is_causal=True)
        packed = nn.utils.rnn.pack_padded_sequence(x, [4, 4, 3, 2, 2, 1])
        for kind in (nn.LSTM, nn.GRU, nn.RNN, partial(nn.RNN, nonlinearity="relu")):
            layer = kind(8, 3, num_layers=2, dropout=0.1)
            for given in (x, packed):
                with pytest.raises(ValueError, match="recurrent layers"):
                    layer(given)
            layer.eval()(packed)
            kind(8, 3, bidirectional=True)(x)
        F.scaled_dot_product_attention(x, x, x, is_causal=True)
        F.alpha_dropout(x, 0.1, False)
        attention.eval()(x, x, x)


def unsampled_run(group: Group) -> dict[str, tuple[bool, bool, bool]]:
    """Two paths; for each parameter whether the second has a gradient, and whether weight or momentum moved."""
    torch.manual_seed(0)
    supernet = make_supernet(SPACE, VIT, init_std=0.2)
    optimizer = nesterov_sgd(supernet, lr=0.1, weight_decay=0.1)
    archs = [SPACE.sample(0), SPACE.sample(1)]
    batches = list(digits(group, torch.float32, 4))
    list(train_supernet(supernet, batches[:2], lambda step: (archs[0],), optimizer, group=group))
    weights = copy.deepcopy(dict(supernet.named_parameters()))
    momenta = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in supernet.named_parameters()}
    list(train_supernet(supernet, batches[2:], lambda step: (archs[1],), optimizer, group=group))
    return {
        name: (
            p.grad is not None,
            not torch.equal(p, weights[name]),
            not torch.equal(optimizer.state[p]["momentum_buffer"], momenta[name]),
        )
        for name, p in supernet.named_parameters()
    }


def test_what_a_path_leaves_out_gets_no_gradient_and_keeps_weights_and_momentum(pair: Pair) -> None:
    alone, ranks = unsampled_run(ALONE), pair(unsampled_run)
    assert ranks[0] == ranks[1] == alone
    assert set(alone.values()) == {(True, True, True), (False, False, False)}


def poisoned_run(group: Group) -> tuple[list[bool], State, int]:
    torch.manual_seed(0)
    model = Everything()
    optimizer = adamw(model, lr=1e-3, weight_decay=0)
    batches = [
        (images.fill_(math.nan) if group.rank == 1 and step in (1, 3, 4, 5) else images, labels)
        for step, (images, labels) in enumerate(digits(group, torch.float32, 8))
    ]
    steps = train(model, batches, optimizer, max_skipped=2, group=group)
    flags = [step.skipped for step in islice(steps, 5)]
    try:
        next(steps)
    except NotFinite as error:
        flags.append("5" in str(error))
    state = model.state_dict()
    return flags, state, sum(int(not value.isfinite().all()) for value in state.values())


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(pair: Pair) -> None:
    ranks = pair(poisoned_run)
    assert ranks[0][0] == ranks[1][0] == [False, True, False, True, True, True]
    assert_equal(ranks[0][1], ranks[1][1])
    assert ranks[0][2] == 0


def score(supernet: nn.Module, arch: Arch) -> tuple[float, float]:
    data = load_digits(seed=0)
    batches = TrainBatches(data.train, batch_size=128, seed=0, mean=(0.3,), std=(0.4,))
    subnet = Subnet(supernet, arch)
    recalibrate(subnet, batches.steps(0, 2))
    scored = evaluate(subnet, islice(eval_batches(data.val, 100, (0.3,), (0.4,)), 2))
    return scored.score, scored.loss


def scores_run(group: Group, sharing: Sharing, state: State) -> dict[Arch, tuple[float, float]]:
    supernet = make_supernet(SPACE, VIT, sharing=sharing)
    supernet.load_state_dict(state)
    archs = [SPACE.sample(seed) for seed in range(7)]
    found: dict[Arch, tuple[float, float]] = {}
    for first in range(0, len(archs), group.size):
        mine = group.shared_out(archs[first : first + group.size])
        found |= group.gather({arch: score(supernet, arch) for arch in mine})
    assert list(found) == archs
    return found


@pytest.mark.parametrize("sharing", ["separate", "entangled"])
def test_any_number_of_ranks_gives_candidates_the_same_scores(pair: Pair, sharing: Sharing) -> None:
    state, _, _ = supernet_run(ALONE, sharing, torch.float32, 30, "adamw")
    alone = scores_run(ALONE, sharing, state)
    ranks = pair(scores_run, sharing, state)
    assert ranks[0] == ranks[1] == alone
    assert len(set(alone.values())) > 3


def messages_run(group: Group) -> dict[str, Any]:
    found = {
        "rank": group.rank,
        "first": group.first,
        "part": group.part,
        "share": list(group.shared_out("abcde")),
        "gathered": group.gather(dict.fromkeys(group.shared_out("abcde"), group.rank)),
        "from_first": group.from_first({"mine": group.rank}),
        "any": [group.any(flag) for flag in (False, group.rank == 1, True)],
    }
    group.wait()
    return found


def test_ranks_share_work_out_and_agree(pair: Pair) -> None:
    first, second = pair(messages_run)
    assert (first["rank"], first["first"], first["part"], first["share"]) == (0, True, (0, 2), ["a", "c", "e"])
    assert (second["rank"], second["first"], second["part"], second["share"]) == (1, False, (1, 2), ["b", "d"])
    for found in (first, second):
        assert found["gathered"] == {"a": 0, "c": 0, "e": 0, "b": 1, "d": 1}
        assert found["from_first"] == {"mine": 0}
        assert found["any"] == [False, True, True]


def test_a_process_on_its_own_needs_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with process_group(torch.device("cpu")) as group:
        assert group == ALONE
        assert messages_run(group) == {
            "rank": 0,
            "first": True,
            "part": (0, 1),
            "share": list("abcde"),
            "gathered": dict.fromkeys("abcde", 0),
            "from_first": {"mine": 0},
            "any": [False, False, True],
        }
    assert not torch.distributed.is_initialized()


def differing_run(group: Group, start_step: int, seed: int) -> str:
    torch.manual_seed(seed * group.rank)
    model = nn.Linear(4, 2)
    batches: Iterable[tuple[Tensor, Tensor]] = [(torch.randn(2, 4), torch.tensor([0, 1]))]
    try:
        list(
            train(model, batches, adamw(model, lr=1.0, weight_decay=0), start_step=start_step * group.rank, group=group)
        )
    except ValueError as error:
        return str(error)
    return ""


def test_ranks_that_start_differently_are_refused(pair: Pair) -> None:
    assert pair(differing_run, 0, 0) == ("", "")
    for message in pair(differing_run, 40, 0):
        assert "rank 1 starts from step 40, rank 0 from step 0" in message
    for message in pair(differing_run, 0, 1):
        assert "rank 1 starts from other weights" in message


SCRIPT = """
    import os, pathlib, signal, sys, time
    import torch
    from torch import nn
    from nasx.run import Interrupted, StopFlag
    from nasx.train import nesterov_sgd, pick_device, process_group, train, use_threads

    mode, folder = sys.argv[1], pathlib.Path(sys.argv[2])

    def batches():
        while True:
            yield torch.randn(4, 3), torch.zeros(4, dtype=torch.long)

    def main():
        device = pick_device("cpu")
        with process_group(device, timeout_seconds=5) as group, StopFlag() as stop, use_threads(2):
            assert torch.get_num_threads() == 2, "torchrun's OMP_NUM_THREADS holds"
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
            (folder / f"pid{group.rank}").write_text(str(os.getpid()))
            for step in train(model, batches(), nesterov_sgd(model, lr=0.1, weight_decay=0), group=group):
                if mode == "fail" and group.rank == 1 and step.step == 5:
                    raise KeyError("the disk of this rank is gone")
                if mode == "hang" and group.rank == 1 and step.step == 5:
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun would wait half a minute
                    time.sleep(600)
                if group.any(stop.requested):
                    if group.first:
                        time.sleep(1)  # a checkpoint takes its time
                    (folder / f"saved{group.rank}").write_text(str(step.step))
                    raise Interrupted("stopped")
                if step.step == 20:
                    (folder / f"running{group.rank}").touch()

    try:
        main()
    except Interrupted:
        sys.exit(75)
"""


def torchrun(tmp_path: Path, mode: str) -> "subprocess.Popen[str]":
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [*command, mode, str(tmp_path)],
        env=environment | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    try:
        return process.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise


@pytest.mark.parametrize("mode", ["fail", "hang"])
def test_a_rank_that_fails_or_hangs_ends_the_group_within_a_minute(tmp_path: Path, mode: str) -> None:
    process = torchrun(tmp_path, mode)
    output = finish(process)
    assert process.returncode != 0
    if mode == "fail":
        assert "on rank 1 of 2" in output
        root_cause = output[output.rindex("Root Cause") :]
        assert re.search(r"rank\s*: 1 ", root_cause)
        assert "the disk of this rank is gone" in root_cause
    else:
        assert "on rank 0 of 2" in output
        assert re.search("timed out", output, re.IGNORECASE)


def test_a_signal_to_one_rank_stops_all_at_one_step_with_status_75(tmp_path: Path) -> None:
    process = torchrun(tmp_path, "run")
    deadline = time.monotonic() + 40
    while not all((tmp_path / f"running{rank}").exists() for rank in range(2)):
        assert time.monotonic() < deadline
        assert process.poll() is None, finish(process)
        time.sleep(0.05)
    os.kill(int((tmp_path / "pid1").read_text()), signal.SIGTERM)
    output = finish(process)
    assert (tmp_path / "saved0").read_text() == (tmp_path / "saved1").read_text()
    assert set(re.findall(r"rank\s*: (\d) .*\n\s*exitcode\s*: (-?\d+)", output)) == {("0", "75"), ("1", "75")}


def test_under_torchrun_cuda_is_the_ranks_own_and_the_cpu_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert pick_device() == pick_device("cuda") == torch.device("cuda:3")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="nproc-per-node"):
        pick_device()
