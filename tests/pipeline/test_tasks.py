"""Searches over any data: regression, several labels, tokens; on one process and under torchrun."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nasx.data import load_digits
from nasx.pipeline import ImageTask, Machine, Problem, RunConfig, Task, run
from nasx.pipeline.config import Data, Retraining, SupernetTraining
from tests.pipeline.processes import start, summary_of
from tests.pipeline.searches import SEARCHES, SPACE, Perceptron, Sentences, padded, tokens, vectors


def searched(name: str, directory: Path) -> Mapping[str, Any]:
    return run(SEARCHES[name](), directory, machine=Machine(device="cpu", processes=1)).summary


def check_summary(found: Mapping[str, Any]) -> None:
    for network in (*found["networks"].values(), *found["random_all"]):
        assert np.isfinite([network["val_score"], network["test_score"]]).all()
        assert "val_accuracy" not in network
    assert set(found["networks"]) == {"searched", "largest", "smallest", "random"}


@pytest.mark.parametrize("name", ["regression", "multilabel", "tokens"])
def test_a_search_with_a_loss_and_a_metric_of_its_own_runs(name: str, tmp_path: Path) -> None:
    found = searched(name, tmp_path)
    check_summary(found)
    scores = np.load(tmp_path / "baselines" / "0.val.npy")
    assert float(scores.mean()) == pytest.approx(found["networks"]["largest"]["val_score"], rel=1e-5)


class Weighted(torch.nn.Module):
    """A loss that learns how much it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets) * torch.exp(-self.scale) + self.scale


def test_a_loss_with_weights_that_nobody_trains_is_refused() -> None:
    data = TensorDataset(vectors(40, 0), torch.arange(40) % 3)
    with pytest.raises(ValueError, match=r"Weighted has the parameter 'scale', which would never be trained"):
        Task(data, loss=Weighted())
    assert Task(data, loss=Weighted().requires_grad_(False)).counts


@pytest.mark.parametrize("name", ["tokens", "area"])
def test_a_search_runs_on_two_ranks(name: str, tmp_path: Path) -> None:
    words = ["-m", "tests.pipeline.searches", name, str(tmp_path / "two")]
    two = summary_of(start(words, 2), seconds=300)
    check_summary(two)
    assert searched(name, tmp_path / "two") == two, "one process finds the run of two ranks finished"
    # networks that are trained alone, and their scores, do not depend on the number of ranks at all
    one = searched(name, tmp_path / "one")
    for network in ("largest", "smallest"):
        assert one["networks"][network]["val_score"] == two["networks"][network]["val_score"]
    for number in range(2):
        ours, theirs = (load_file(tmp_path / ranks / "baselines" / f"{number}.safetensors") for ranks in ("one", "two"))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_a_function_of_seed_and_step_on_any_number_of_ranks(workers: int) -> None:
    task = tokens().task
    training = Retraining(batch_size=12, epochs=1, warmup_epochs=0)
    whole = task.train_batches(training, seed=5, workers=workers)
    later = list(whole.steps(7, 9))
    for step, batch in zip((7, 8), later, strict=True):
        parts = [
            next(iter(task.train_batches(training, seed=5, part=(rank, 3)).steps(step, step + 1))) for rank in range(3)
        ]
        labels = [row[row >= 0].tolist() for part in parts for row in part["labels"]]
        assert labels == [row[row >= 0].tolist() for row in batch["labels"]]
    order = [row[row >= 0].tolist() for batch in whole.steps(0, whole.steps_per_epoch) for row in batch["labels"]]
    assert len(order) == 12 * whole.steps_per_epoch
    assert order != [row[row >= 0].tolist() for batch in whole.steps(25, 50) for row in batch["labels"]]


class Noisy(Dataset[tuple[torch.Tensor, int]]):
    """Samples with random transforms, drawn from each of the global generators."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        import random

        return torch.tensor([random.random(), np.random.random(), float(torch.rand(()))]), index % 2  # noqa: NPY002


def test_random_transforms_follow_the_step_and_leave_the_generators_alone() -> None:
    task = Task(Noisy())
    training = Retraining(batch_size=8, epochs=1, warmup_epochs=0)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again = (next(iter(task.train_batches(training, seed=0).steps(2, 3))) for _ in range(2))
    other = next(iter(task.train_batches(training, seed=0, workers=1).steps(2, 3)))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[0], other[0])
    assert len(torch.unique(first[0])) == first[0].numel()
    assert torch.equal(torch.random.get_rng_state(), before)
    halves = [next(iter(task.train_batches(training, seed=0, part=(rank, 2)).steps(2, 3))) for rank in range(2)]
    assert torch.equal(torch.cat([half[0] for half in halves]), first[0])


def test_what_is_not_given_is_split_off_and_recorded() -> None:
    data = TensorDataset(vectors(200, 0), torch.arange(200) % 3)
    task = Task(data, seed=4)
    assert (task.train, task.val, task.test) == (data, None, None), "the datasets stay as they are given"
    assert task.counts == {"train": 160, "val": 20, "test": 20}
    members = [set(part.indices.tolist()) for part in task.parts.values()]
    assert set.union(*members) == set(range(200))
    assert sum(map(len, members)) == 200
    assert Task(data, seed=4).record() == task.record()
    assert Task(data, seed=5).record() != task.record()
    assert "by seed" in task.record()["rule"]
    other = TensorDataset(vectors(200, 1), torch.arange(200) % 3)
    assert Task(other, seed=4).record()["train"] != task.record()["train"], "the contents are part of the record"
    given = Task(data, val=other, test=other)
    assert given.counts == {"train": 200, "val": 200, "test": 200}
    assert given.record()["rule"] == "as given"


class WithTargets(Dataset[tuple[torch.Tensor, int]]):
    """Samples as torchvision's: read one by one, their labels at hand."""

    def __init__(self, labels: torch.Tensor) -> None:
        self.targets = labels.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        raise AssertionError("a split reads no sample")


RARE = (torch.arange(1000) % 83 == 5).long()  # 12 of 1,000
X = torch.zeros(1000, 2)


@pytest.mark.parametrize(
    "train",
    [
        TensorDataset(X, RARE),
        list(zip(X, RARE, strict=True)),
        list(zip(X, RARE.tolist(), strict=True)),
        [{"x": x, "labels": label} for x, label in zip(X, RARE.tolist(), strict=True)],
        WithTargets(RARE),
    ],
    ids=["tensors", "tuples", "numbers", "mappings", "targets"],
)
def test_each_part_that_is_split_off_has_its_share_of_each_class(train: Any) -> None:
    for seed in range(20):
        parts = Task(train, seed=seed).parts
        assert {name: len(part) for name, part in parts.items()} == {"train": 800, "val": 100, "test": 100}
        assert sorted(np.concatenate([part.indices for part in parts.values()])) == list(range(1000))
        assert {int(RARE[parts[name].indices].sum()) for name in ("val", "test")} <= {1, 2}
    assert len({tuple(Task(train, seed=seed).parts["val"].indices) for seed in range(20)}) == 20


def test_the_record_says_that_classes_were_split_alike() -> None:
    assert (
        Task(TensorDataset(X, RARE))
        .record()["rule"]
        .endswith("training samples, the same share of each class, by seed")
    )
    assert Task(TensorDataset(X, X)).record()["rule"].endswith("training samples, by seed")


@pytest.mark.parametrize("targets", [torch.rand(50), torch.arange(100).reshape(50, 2) % 3], ids=["floats", "two each"])
def test_targets_that_are_no_class_numbers_are_split_by_seed_alone(targets: torch.Tensor) -> None:
    train = TensorDataset(torch.zeros(50, 2), targets)
    expected = np.sort(np.random.default_rng(3).permutation(50)[:5])
    assert Task(train, seed=3).parts["test"].indices.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("targets", "outputs", "message"),
    [
        (torch.rand(100), 1, r"at least two classes.*float32.*pass a loss such as `loss=F.mse_loss`"),
        (torch.rand(100, 4), 4, r"probabilities must be at least 0 and sum to 1.*regression"),
        (torch.arange(100) % 5, 3, "class numbers must be 0 to 2 for the network's 3 outputs"),
        ((torch.arange(100) % 3).int(), 3, "class numbers must be int64"),
        (torch.ones(100, 3), 3, "binary_cross_entropy_with_logits"),
    ],
)
def test_targets_that_fit_no_classification_are_refused_before_training(
    targets: torch.Tensor, outputs: int, message: str
) -> None:
    task = Task(TensorDataset(vectors(100, 0), targets))
    problem: Problem[Any] = Problem(SPACE, lambda arch: Perceptron(arch, inputs=4, outputs=outputs), task)
    with pytest.raises(ValueError, match=message):
        problem.check()


def test_metrics_that_are_none_are_refused_before_training() -> None:
    data = TensorDataset(vectors(100, 0), torch.rand(100, 1))

    def problem(metric: Any) -> Problem[RunConfig]:
        task = Task(data, loss=F.mse_loss, metric=metric)
        return Problem(SPACE, lambda arch: Perceptron(arch, inputs=4, outputs=1), task)

    for metric, message in (
        ("accuracy", "metric 'accuracy' needs"),
        (lambda outputs, targets: (outputs - targets).square(), r"one score for each sample, shape \(8,\)"),
        (lambda outputs, targets: 0.5, "must return a tensor"),
        (lambda outputs, targets: outputs[:, 0] * torch.nan, "must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            problem(metric).check()
    with pytest.raises(ValueError, match=r"'accuracy', 'top5', a function, or an object with .* but got 'auc'"):
        Task(data, metric="auc")  # type: ignore[arg-type]


def test_what_is_no_dataset_is_refused() -> None:
    def stream() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"map-style dataset.*got generator"):
        Task(stream())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`train` has no samples"):
        Task([])
    data = TensorDataset(vectors(30, 0), torch.arange(30) % 2)
    loader = DataLoader(data, batch_size=8)
    with pytest.raises(TypeError, match=r"`train`.*DataLoader, whose items are batches; pass its `\.dataset`"):
        Task(loader)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`val`.*pass its `\.dataset`"):
        Task(data, loader)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"dict with the keys 'train', 'test'; pass its datasets one by one"):
        Task({"train": data, "test": data})  # type: ignore[dict-item]
    assert Task({number: data[number] for number in range(30)}).counts["train"] == 24
    few = Task(TensorDataset(vectors(30, 0), torch.arange(30) % 2))
    small: Problem[Any] = Problem(SPACE, lambda arch: Perceptron(arch, inputs=4, outputs=2), few)
    with pytest.raises(ValueError, match="hold out at least 10"):
        small.check()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RunConfig(retrain=Retraining(mixup=0.8)), r"retrain\.mixup=0\.8 has no effect.*use transforms"),
        (RunConfig(supernet=SupernetTraining(cutmix=1.0)), r"supernet\.cutmix=1\.0 has no effect"),
        (RunConfig(retrain=Retraining(label_smoothing=0.1)), r"retrain\.label_smoothing.*the loss is mse_loss"),
        (RunConfig(retrain=Retraining(drop_path=0.1)), r"retrain\.drop_path=0\.1.*no keyword `drop_path`"),
        (RunConfig(data=Data(image_size=32)), r"data\.image_size is a setting of image folders"),
        (RunConfig(supernet=SupernetTraining(batch_size=999)), r"supernet\.batch_size must be at most the 80 training"),
    ],
)
def test_settings_without_an_effect_are_refused_and_defaults_are_inert(config: RunConfig, message: str) -> None:
    def problem(config: RunConfig) -> Problem[RunConfig]:
        data = TensorDataset(vectors(100, 0), torch.rand(100, 1))
        task = Task(data, loss=F.mse_loss, metric=lambda outputs, targets: -(outputs - targets).abs()[:, 0])
        return Problem(SPACE, lambda arch: Perceptron(arch, inputs=4, outputs=1), task, config=config)

    with pytest.raises(ValueError, match=message):
        problem(config).check()
    plain = problem(RunConfig())
    plain.check()
    settled = plain.config.retrain
    assert (settled.mixup, settled.cutmix, settled.label_smoothing, settled.drop_path) == (0, 0, 0, 0)
    assert plain.config.supernet.batch_size <= 80
    assert plain.config.search.recalibration_batches == 0, "the networks have no BatchNorm"


def test_what_is_open_is_fitted_and_what_is_set_stays() -> None:
    sizes = {}
    for samples in (60, 1_000, 20_000):
        data = TensorDataset(torch.zeros(samples, 4), torch.arange(samples) % 3)
        make = lambda arch: Perceptron(arch, inputs=4, outputs=3, norm=True)  # noqa: E731
        config: RunConfig = Problem(SPACE, make, Task(data)).config
        sizes[samples] = config.supernet.batch_size
        assert config.supernet.epochs * (0.8 * samples // config.supernet.batch_size) >= 1_000
        assert config.search.recalibration_batches > 0
        assert config.retrain.warmup_epochs < config.retrain.epochs
        assert config.retrain.label_smoothing == 0.1, "cross-entropy is smoothed"
    assert sizes == {60: 8, 1_000: 32, 20_000: 128}
    own = RunConfig(retrain=Retraining(epochs=3, batch_size=10), supernet=SupernetTraining(optimizer="sgd", lr=0.1))
    fixed = Problem(SPACE, make, Task(data), config=own).config
    assert (fixed.retrain.epochs, fixed.retrain.batch_size) == (3, 10)
    assert (fixed.supernet.optimizer, fixed.supernet.lr) == ("sgd", 0.1)
    assert fixed.retrain.warmup_epochs < 3


def test_a_task_of_images_takes_their_sizes_from_the_data_set() -> None:
    digits = load_digits(seed=0)
    task = ImageTask(digits)
    assert (task.data.image_size, task.data.channels) == (8, 1)
    assert task.example(2).args[0].shape == (2, 1, 8, 8)


def test_hugging_face_datasets_are_tasks() -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"x": vectors(60, 0).tolist(), "label": [i % 3 for i in range(60)]}
    table = datasets.Dataset.from_dict(rows).with_format("torch")
    task = Task(table)
    batch = next(iter(task.train_batches(Retraining(batch_size=6, epochs=1, warmup_epochs=0), seed=0).steps(0, 1)))
    unpacked = task.unpack(batch)
    assert unpacked.targets.shape == (6,)
    assert unpacked.kwargs["x"].shape == (6, 4)


def test_a_sample_that_cannot_be_read_is_named() -> None:
    class Broken(Sentences):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == 7:
                raise OSError("no such file")
            return super().__getitem__(index)

    task = Task(Broken(40, 0), collate_fn=padded)
    batches = task.train_batches(Retraining(batch_size=8, epochs=1, warmup_epochs=0), seed=0)
    with pytest.raises(OSError, match="no such file") as caught:
        list(batches.steps(0, 2 * batches.steps_per_epoch))
    assert caught.value.__notes__ == ["while reading sample 7 of the training data"]
