"""Small searches over data that are no images, with losses and metrics of their own.

`python -m tests.pipeline.searches NAME DIRECTORY` runs one and prints its summary.
"""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from torchmetrics.classification import BinaryAUROC

from nasx import Arch, Space, one_of, repeat
from nasx.pipeline import Problem, RunConfig, Task, run
from nasx.pipeline.config import Retraining, Search, SupernetTraining

SPACE = Space(block=repeat(Space(hidden=one_of(4, 8, 16)), one_of(1, 2)))
CONFIG = RunConfig(
    threads=1,
    supernet=SupernetTraining(epochs=2, batch_size=16, lr=5e-3, optimizer="adamw"),
    search=Search(population=4, generations=2, parents=2, top_k=2),
    retrain=Retraining(epochs=2, batch_size=16, lr=5e-3),
)
WIDTH = 8


class Residual(nn.Module):
    def __init__(self, hidden: int, norm: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(self.norm(x))))


class Perceptron(nn.Module):
    """Vectors (B, inputs) to outputs (B, outputs)."""

    def __init__(self, arch: Arch, *, inputs: int, outputs: int, norm: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, outputs)
        self.blocks = nn.ModuleList(Residual(int(part["hidden"]), norm) for part in arch.parts("block"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Tagger(nn.Module):
    """Tokens (B, N), a mask (B, N) beside them, to the logits of a tag for every token, under the name `logits`."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(10, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(Residual(int(part["hidden"])) for part in arch.parts("block"))

    def forward(self, tokens: Tensor, mask: Tensor) -> Mapping[str, Tensor]:
        x = self.tokens(tokens) * mask.unsqueeze(-1)
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x)}


class Sentences(Dataset[dict[str, Any]]):
    """Sequences of different lengths, whose tags follow from their tokens."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, 6, (count,), generator=generator).tolist()
        self.rows = [torch.randint(10, (length,), generator=generator) for length in lengths]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"tokens": self.rows[index], "labels": self.rows[index] % 3}


def padded(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    tokens = nn.utils.rnn.pad_sequence([sample["tokens"] for sample in samples], batch_first=True)
    labels = nn.utils.rnn.pad_sequence([sample["labels"] for sample in samples], batch_first=True, padding_value=-100)
    return {"tokens": tokens, "mask": (labels >= 0).float(), "labels": labels}


def tag_loss(outputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs["logits"].transpose(1, 2), labels)


def tag_accuracy(outputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """Return the share of right tags of each sequence, (B,)."""
    known = labels >= 0
    right = (outputs["logits"].argmax(dim=2) == labels) & known
    return right.sum(dim=1) / known.sum(dim=1)


def negative_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return -(outputs - targets).square().mean(dim=1)


def label_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs > 0) == (targets > 0.5)).float().mean(dim=1)


def vectors(count: int, seed: int) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def regression() -> Problem[RunConfig]:
    x = vectors(300, 0)
    data = TensorDataset(x, torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], dim=1))

    def make(arch: Arch) -> nn.Module:
        return Perceptron(arch, inputs=4, outputs=2, norm=True)

    return Problem(SPACE, make, Task(data, loss=F.mse_loss, metric=negative_squared_error), config=CONFIG)


def multilabel() -> Problem[RunConfig]:
    x, y = vectors(300, 1), vectors(60, 2)
    train, test = (TensorDataset(v, (v[:, :3] > 0).float()) for v in (x, y))

    def make(arch: Arch) -> nn.Module:
        return Perceptron(arch, inputs=4, outputs=3)

    task = Task(train, test=test, loss=F.binary_cross_entropy_with_logits, metric=label_accuracy)
    return Problem(SPACE, make, task, config=CONFIG)


def tokens() -> Problem[RunConfig]:
    task = Task(Sentences(300, 3), Sentences(60, 4), loss=tag_loss, metric=tag_accuracy, collate_fn=padded)
    return Problem(SPACE, Tagger, task, config=CONFIG)


class Margin:
    """The area under the ROC curve of two logits' difference."""

    def __init__(self) -> None:
        self.area = BinaryAUROC()

    def reset(self) -> None:
        self.area.reset()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.area.update((outputs[:, 1] - outputs[:, 0]).sigmoid(), targets)

    def compute(self) -> Tensor:
        return self.area.compute()


def area() -> Problem[RunConfig]:
    x = vectors(300, 5)
    data = TensorDataset(x, (x[:, 0] + x[:, 1] + x.sum(dim=1).mul(100).cos() > 1).long())  # a part cannot be learned

    def make(arch: Arch) -> nn.Module:
        return Perceptron(arch, inputs=4, outputs=2)

    return Problem(SPACE, make, Task(data, metric=Margin()), config=CONFIG)


SEARCHES = {"regression": regression, "multilabel": multilabel, "tokens": tokens, "area": area}

if __name__ == "__main__":
    found = run(SEARCHES[sys.argv[1]](), sys.argv[2])
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found.summary))
