"""What a problem knows of its networks' costs, and what it says where they do not add up."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset, default_collate

from nasx import Arch, Budget, Space, one_of, repeat
from nasx.arch import Value
from nasx.cost import AdditiveCost
from nasx.measure import CachedCost, count_macs
from nasx.pipeline import Problem, Refused, RunConfig, Task, plan, run
from nasx.pipeline.config import with_settings_named
from nasx.pipeline.planning import stage_lines
from nasx.pipeline.progress import silent
from tests.pipeline.problems import glit
from tests.pipeline.searches import SPACE, Perceptron

WIDTHS = Space(layer=repeat(Space(width=one_of(4, 6, 8)), 3))


class Chain(nn.Module):
    """Layers that read as many features as the layer before writes, so that their costs depend on each other."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        widths = [4, *(int(part["width"]) for part in arch.parts("layer"))]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.head = nn.Linear(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


class Widths(AdditiveCost):
    def fixed(self, shared: Mapping[str, Value]) -> int:
        return 0

    def part(self, name: str, index: int, shared: Mapping[str, Value], choices: Mapping[str, Value]) -> int:
        return int(choices["width"])


def problem(space: Space, make: Any, **more: Any) -> Problem[Any]:
    x = torch.randn(240, 4, generator=torch.Generator().manual_seed(0))
    return Problem(space, make, Task(TensorDataset(x, x[:, :3].argmax(dim=1))), **more)


def test_costs_that_do_not_add_up_are_counted_one_by_one_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    built: list[Arch] = []

    def make(arch: Arch) -> nn.Module:
        built.append(arch)
        return Chain(arch)

    own = problem(WIDTHS, make)
    built.clear()
    assert isinstance(own.macs, CachedCost)
    assert len(built) < 12  # of 27 networks: the first that disproves the sum ends the table
    assert not caplog.records
    assert (own.cost, own.reach, dict(own.baselines)) == (None, None, {})
    (record,) = caplog.records
    message = record.getMessage()
    assert "there is no largest and no smallest network to compare with" in message
    assert "the MACs are counted network by network, because MACs do not add up over the repeated parts" in message
    for arch in WIDTHS.sample(0, 5):
        assert own.macs(arch) == count_macs(Chain(arch), torch.zeros(1, 4))


def test_an_additive_budget_serves_where_macs_do_not_add_up(caplog: pytest.LogCaptureFixture) -> None:
    own = problem(WIDTHS, Chain, budget=Budget(Widths(), at_most="80%"))
    assert own.cost == own.inside.budgets[0].cost
    assert set(own.baselines) == {"largest", "smallest"}
    plain = problem(SPACE, lambda arch: Perceptron(arch, inputs=4, outputs=3))
    assert set(plain.baselines) == {"largest", "smallest"}
    assert not caplog.records


def test_a_problem_is_checked_once() -> None:
    looked: list[None] = []
    own = problem(WIDTHS, Chain, check=lambda: looked.append(None))
    own.check()
    own.check()
    assert len(looked) == 1


def test_a_problem_that_does_not_fit_is_refused_each_time() -> None:
    def refuse() -> None:
        raise ValueError("the width 4 is too small")

    own = problem(WIDTHS, Chain, check=refuse)
    for _ in range(2):
        with pytest.raises(ValueError, match="too small"):
            own.check()


def perceptrons(**task: Any) -> Problem[Any]:
    return Problem(SPACE, lambda arch: Perceptron(arch, inputs=4, outputs=3, norm=True), Task(**task))


def labelled(labels: Tensor) -> TensorDataset:
    return TensorDataset(torch.randn(len(labels), 4), labels)


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("as_list", [False, True])
def test_a_label_without_an_output_is_refused_by_its_sample(part: str, as_list: bool) -> None:
    parts: dict[str, Any] = {name: labelled(torch.arange(40) % 3) for name in ("train", "val", "test")}
    parts[part].tensors[1][33] = 3
    parts = {name: list(data) if as_list else data for name, data in parts.items()}
    name = {"train": "training", "val": "validation", "test": "test"}[part]
    with pytest.raises(ValueError, match=rf"0 to 2 .* but sample 33 of the {name} data has 3; correct the label"):
        perceptrons(**parts).check()


def test_labels_that_the_loss_ignores_have_no_output() -> None:
    data = labelled(torch.arange(100) % 3)
    data.tensors[1][::7] = -100
    perceptrons(train=data).check()


def regression(**task: Any) -> Problem[Any]:
    given = {"loss": nn.functional.mse_loss, "metric": lambda outputs, targets: -(outputs - targets).square().mean(1)}
    return Problem(SPACE, lambda arch: Perceptron(arch, inputs=4, outputs=3), Task(**{**given, **task}))


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("tensor", [0, 1], ids=["inputs", "targets"])
@pytest.mark.parametrize("as_list", [False, True])
def test_a_sample_that_is_not_finite_is_named(part: str, tensor: int, as_list: bool) -> None:
    """Its batches would be left out of trainings, and a score would end a run hours later."""
    parts: dict[str, Any] = {name: labelled(torch.randn(40, 3)) for name in ("train", "val", "test")}
    parts[part].tensors[tensor][33, 1] = torch.nan
    parts = {name: list(data) if as_list else data for name, data in parts.items()}
    name = {"train": "training", "val": "validation", "test": "test"}[part]
    with pytest.raises(ValueError, match=rf"sample 33 of the {name} data has values that are not finite"):
        regression(**parts).check()


def test_a_loss_may_mask_values_that_are_not_finite() -> None:
    """Even all of a sample, whose mean alone would be NaN; it is computed once for each part, and twice before."""
    data, sizes = labelled(torch.randn(100, 3)), []
    data.tensors[1][::3] = torch.nan

    def masked(outputs: Tensor, targets: Tensor) -> Tensor:
        sizes.append(len(targets))
        return (outputs - targets)[targets.isfinite()].square().mean()

    regression(train=data, loss=masked, metric=lambda outputs, targets: -outputs.square().mean(1)).check()
    assert len(sizes) == 2 + len(["train", "val", "test"])


class Lazy(Dataset[tuple[Tensor, Tensor]]):
    """Samples that may have to be read from a disk."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.data[index]
        return inputs, targets


@pytest.mark.parametrize("tensor", [0, 1], ids=["inputs", "targets"])
def test_what_is_read_from_a_disk_is_looked_at_here_and_there(tensor: int) -> None:
    data = labelled(torch.randn(200, 3))
    data.tensors[tensor][::3] = torch.nan
    whole = Lazy(labelled(torch.randn(40, 3)))
    with pytest.raises(ValueError, match=r"sample 0 of the training data has values that are not finite"):
        regression(train=Lazy(data), val=whole, test=whole).check()


def test_a_sample_without_which_a_network_has_no_score_is_named() -> None:
    data, whole = labelled(torch.randn(60, 3)), Lazy(labelled(torch.randn(60, 3)))
    data.tensors[0][33] = torch.nan
    task = regression(train=whole, val=whole, test=Lazy(data)).task
    network = Perceptron(SPACE.sample(0), inputs=4, outputs=3)
    with pytest.raises(ValueError, match=r"sample 33 of the test data has values that are not finite.*same command"):
        task.evaluate(network, task.eval_batches("test", 20))
    with torch.no_grad():
        network.head.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"the loss of a network is not finite.*lower the learning rate"):
        task.evaluate(network, task.eval_batches("test", 20))


@pytest.mark.parametrize("every", [1, 3])
def test_a_loss_may_mask_what_is_read_from_a_disk(every: int) -> None:
    """Also where all samples that are looked at have no target, with which their mean alone is NaN."""
    data = labelled(torch.randn(200, 3))
    data.tensors[1][::every] = torch.nan

    def masked(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets)[targets.isfinite()].square().mean()

    regression(train=Lazy(data), loss=masked, metric=lambda outputs, targets: -outputs.square().mean(1)).check()


def test_a_sample_that_is_not_finite_is_named_where_the_loss_refuses_it() -> None:
    data = labelled(torch.randn(100, 3))
    data.tensors[1][33] = torch.nan

    def strict(outputs: Tensor, targets: Tensor) -> Tensor:
        torch.testing.assert_close(targets, targets)
        return nn.functional.mse_loss(outputs, targets)

    with pytest.raises(AssertionError, match="not close") as caught:
        regression(train=data, loss=strict).check()
    assert "sample 33 of the" in caught.value.__notes__[0]


def test_a_sample_that_is_not_finite_is_named_in_any_order_of_memory() -> None:
    data = list(zip(torch.randn(100, 4), torch.randn(100, 3), strict=True))
    data[33][0][1] = torch.nan

    def collate(samples: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = default_collate(samples)
        return torch.stack([inputs] * 3, dim=1).transpose(1, 2), targets

    def make(arch: Arch) -> nn.Module:
        return nn.Sequential(nn.Flatten(), Perceptron(arch, inputs=12, outputs=3))

    task = Task(data, loss=nn.functional.mse_loss, metric=lambda o, t: -(o - t).square().mean(1), collate_fn=collate)
    with pytest.raises(ValueError, match=r"sample 33 of the .* data has values that are not finite"):
        Problem(SPACE, make, task).check()


def test_a_sample_that_is_not_finite_is_named_beside_others_without_labels() -> None:
    inputs, labels = torch.randn(40, 4), torch.full((40,), -100)
    inputs[33], labels[33:] = torch.nan, 1
    parts = {name: labelled(torch.arange(40) % 3) for name in ("val", "test")}
    with pytest.raises(ValueError, match=r"sample 33 of the training data has values that are not finite"):
        perceptrons(train=TensorDataset(inputs, labels), **parts).check()


class Keyed(Dataset[Any]):
    """Samples of which some have a key more."""

    def __init__(self, with_age: range, *, nested: bool = False) -> None:
        self.with_age, self.nested = with_age, nested

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        inputs = {"x": torch.full((4,), float(index))}
        if index in self.with_age:
            inputs["age"] = torch.ones(1)
        return (inputs, index % 3) if self.nested else {**inputs, "labels": index % 3}


class Aged(Perceptron):
    def forward(self, x: Any, age: Tensor | None = None) -> Tensor:
        return super().forward(x["x"] if isinstance(x, dict) else x)


@pytest.mark.parametrize(("with_age", "has", "lacks"), [(range(1), 0, 1), (range(1, 40), 1, 0), (range(39, 40), 39, 0)])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("as_list", [False, True])
def test_samples_of_different_keys_are_refused(
    with_age: range, has: int, lacks: int, nested: bool, as_list: bool
) -> None:
    """Torch has a bare KeyError for a key that is missing, and leaves out one that the first sample lacks."""
    data: Any = Keyed(with_age, nested=nested)
    data = [data[index] for index in range(40)] if as_list else data

    def keyed(**more: Any) -> Problem[Any]:
        return Problem(SPACE, lambda arch: Aged(arch, inputs=4, outputs=3), Task(data, data, data, **more))

    message = rf"sample {lacks} of the \w+ data lacks the key 'age', which sample {has} has.*pass a `collate_fn`"
    with pytest.raises(ValueError, match=message):
        keyed().check()

    def without_age(samples: Any) -> Any:
        found = [sample[0] if nested else sample for sample in samples]
        inputs = torch.stack([each["x"] for each in found])
        labels = torch.tensor([sample[1] if nested else sample["labels"] for sample in samples])
        return inputs, labels

    keyed(collate_fn=without_age).check()


def test_networks_without_anything_to_train_are_refused() -> None:
    frozen = problem(SPACE, lambda arch: Perceptron(arch, inputs=4, outputs=3).requires_grad_(False))
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        frozen.check()


class Sparse(Perceptron):
    def __init__(self, arch: Arch) -> None:
        super().__init__(arch, inputs=4, outputs=3)
        self.words = nn.Embedding(10, 4, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.words(torch.zeros(len(x), dtype=torch.long)))


def test_a_loss_without_a_gradient_is_refused_by_a_plan_as_by_a_run(tmp_path: Path) -> None:
    def errors(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(dim=1) != targets).float().mean()

    x = torch.randn(240, 4, generator=torch.Generator().manual_seed(0))
    task = Task(TensorDataset(x, x[:, :3].argmax(dim=1)), loss=errors)
    own: Problem[Any] = Problem(SPACE, lambda arch: Perceptron(arch, inputs=4, outputs=3), task)
    with pytest.raises(ValueError, match="the loss depends on no weight that is trained"):
        plan(own, timing=False)
    with pytest.raises(Refused, match="the loss depends on no weight that is trained"):
        run(own, tmp_path / "run", progress=silent)
    assert not (tmp_path / "run").exists()


def test_gradients_that_no_optimizer_of_a_run_takes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'words' has sparse=True.*; write sparse=False"):
        problem(SPACE, Sparse).check()


def test_an_error_of_a_network_says_what_it_was_given() -> None:
    data = TensorDataset(torch.randn(100, 4, dtype=torch.float64), torch.arange(100) % 3)
    with pytest.raises(RuntimeError) as caught:
        perceptrons(train=data).check()
    assert "with arguments ((8, 4) float64), keyword arguments {} and targets (8,) int64" in caught.value.__notes__[0]


def test_a_run_says_what_a_network_was_given_before_it_counts_costs(tmp_path: Path) -> None:
    """Lists of numbers come as a list of tensors, one for each position."""
    data = [([0.5] * 4, index % 3) for index in range(100)]
    with pytest.raises(Refused, match=r"with arguments \(\[\(8,\) float64, \(8,\) float64, \(8,\) float64, \.\.\.\]\)"):
        run(perceptrons(train=data), tmp_path, progress=silent)


class Noisy(Dataset[tuple[Tensor, int]]):
    """Samples with noise of a generator that no run can seed."""

    def __init__(self, generator: np.random.Generator | None) -> None:
        self.generator = generator

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = self.generator.normal(size=4) if self.generator else torch.randn(4).numpy()
        return torch.from_numpy(noise).float(), index % 3


def test_samples_that_are_others_each_time_are_refused() -> None:
    perceptrons(train=Noisy(None)).check()
    with pytest.raises(ValueError, match=r"sample \d+ of the training data is another each time .* global generators"):
        perceptrons(train=Noisy(np.random.default_rng(0))).check()


class Extra(Perceptron):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"version": 1}


def test_state_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="has '_extra_state', which is no tensor"):
        problem(SPACE, lambda arch: Extra(arch, inputs=4, outputs=3)).check()


def test_a_batch_of_one_is_refused_where_batch_norm_needs_more() -> None:
    settings = {"retrain": {"batch_size": 1}, "search": {"recalibration_batch_size": 1}}
    for section, fields in settings.items():
        config = RunConfig(**{section: fields})
        with pytest.raises(ValueError, match=rf"{section}\.\w+ must be at least 2 for networks with BatchNorm"):
            problem(SPACE, lambda arch: Perceptron(arch, inputs=4, outputs=3, norm=True), config=config).check()
        problem(SPACE, lambda arch: Perceptron(arch, inputs=4, outputs=3), config=config).check()


@pytest.mark.parametrize("section", ["supernet", "retrain"])
def test_batch_norm_groups_of_one_sample_are_refused(section: str) -> None:
    with pytest.raises(ValueError, match=rf"{section}\.batch_norm_group must be at least 2, .* but got 1; write 2"):
        RunConfig(**{section: {"batch_norm_group": 1}})


def test_too_few_validation_samples_are_refused_in_the_words_of_the_task() -> None:
    with pytest.raises(ValueError, match=r"3 validation samples are too few .* with `val_fraction`, or samples of"):
        perceptrons(train=labelled(torch.arange(30) % 3)).check()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("timm cannot augment images in epochs of 7", "timm cannot augment images in epochs of 7"),
        ("use `augment`, not epochs=3; epochs must be 4", "use `at.augment`, not at.epochs=3; at.epochs must be 4"),
        ("lower batch_size, at.batch_size or own_batch_size", "lower at.batch_size, at.batch_size or own_batch_size"),
        ("`0 < batch_size <= 9` must hold", "`0 < at.batch_size <= 9` must hold"),
    ],
)
def test_messages_name_settings_where_they_speak_of_arguments(message: str, expected: str) -> None:
    assert with_settings_named(message, "at", ("augment", "epochs", "batch_size")) == expected


def test_recalibration_that_images_cannot_have_is_refused() -> None:
    augment = 'search.recalibration_augment={"resized_crop": [0.1, 1]}'
    with pytest.raises(ValueError, match=r"search\.recalibration_augment\.resized_crop"):
        glit([augment]).check()


def test_a_plan_of_trust_counts_the_networks_that_there_are() -> None:
    config = RunConfig(trust={"n": 50, "seeds": 2})
    stages = plan(problem(SPACE, lambda arch: Perceptron(arch, inputs=4, outputs=3), config=config), timing=False)
    (trust,) = [stage for stage in stages["stages"] if stage["name"] == "trust"]
    assert SPACE.size == 12
    assert "24 networks x" in trust["detail"]


def test_trust_of_too_few_networks_is_refused_before_anything_is_trained() -> None:
    few = SPACE.pin({"block.count": 1})
    config = RunConfig(trust={"n": 5})
    with pytest.raises(ValueError, match=r"at least 5 networks, but there are only 3 to search; widen"):
        plan(problem(few, lambda arch: Perceptron(arch, inputs=4, outputs=3), config=config), timing=False)


def test_a_plan_says_of_a_later_level_that_its_size_depends_on_what_is_found() -> None:
    document = plan(glit(), timing=False)
    lines = "\n".join(stage_lines(document))
    assert lines.count("networks inside the budget, for one result of heads/retrain") == 1
    assert lines.count("networks inside the budget") == 2


class Towers(nn.Module):
    """Two rows of layers over one input, which lie below `first` and `second`."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.first, self.second = (nn.Module() for _ in range(2))
        for tower, name in ((self.first, "u"), (self.second, "v")):
            tower.layers = nn.ModuleList(nn.Linear(4, int(part["out"])) for part in arch.parts(name))

    def forward(self, x: Tensor) -> Tensor:
        layers = [layer for tower in (self.first, self.second) for layer in tower.get_submodule("layers").children()]
        means = torch.stack([layer(x).mean(1) for layer in layers]).sum(0)
        return torch.stack([means, -means, means**2], dim=1)


def test_repeats_whose_module_lists_have_other_names_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    towers = Space(**{name: repeat(Space(out=one_of(2, 4)), one_of(1, 2)) for name in ("u", "v")})
    data = TensorDataset(torch.randn(200, 4), torch.arange(200) % 3)
    named: Problem[RunConfig] = Problem(towers, Towers, Task(data), parts={"u": "first.layers", "v": "second.layers"})
    assert set(named.baselines) == {"largest", "smallest"}, "because costs add up"
    named.check()
    named.supernet(towers)
    assert not caplog.messages
    assert set(Problem(towers, Towers, Task(data)).baselines) == set()
