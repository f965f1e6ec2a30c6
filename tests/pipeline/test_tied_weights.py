"""Networks whose layers share a parameter train, are interrupted, are continued and are written as others are."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from nasx import Arch, Space, one_of
from nasx.pipeline import Machine, Problem, RunConfig, Task, run
from nasx.pipeline.config import Retraining, Search, SupernetTraining
from nasx.pipeline.weight_files import load_weights, read_weights, write_weights
from nasx.run import Interrupted

MACHINE = Machine(device="cpu", processes=1)
CONFIG = RunConfig(
    threads=1,
    supernet=SupernetTraining(epochs=2, batch_size=16, lr=5e-3, optimizer="adamw"),
    search=Search(population=2, generations=2, parents=2, top_k=2),
    retrain=Retraining(epochs=4, batch_size=16, lr=5e-3, ema=0.5),
)
WORDS = 12


class NextWord(nn.Module):
    """Words (B,) to logits of the next one, with one table for what is read and what is written."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 8)
        self.up, self.down = nn.Linear(8, int(arch["hidden"])), nn.Linear(int(arch["hidden"]), 8)
        self.head = nn.Linear(8, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        return self.head(x + self.down(F.relu(self.up(x))))


def problem() -> Problem[RunConfig]:
    words = torch.randint(WORDS, (240,), generator=torch.Generator().manual_seed(0))
    task = Task(TensorDataset(words, (5 * words + 1) % WORDS))
    return Problem(Space(hidden=one_of(4, 8, 16)), NextWord, task, config=CONFIG)


def test_a_run_of_tied_networks_is_continued_with_the_same_bits(tmp_path: Path) -> None:
    whole = run(problem(), tmp_path / "whole", machine=MACHINE)
    assert isinstance(whole.network, NextWord)
    assert whole.network.head.weight is whole.network.embed.weight

    def stop(description: str, done: float, total: float, note: str = "") -> None:
        if description.startswith("retrain") and done > 0.2:
            raise Interrupted("asked to")

    with pytest.raises(Interrupted):
        run(problem(), tmp_path / "cut", machine=MACHINE, progress=stop)
    again = run(problem(), tmp_path / "cut", machine=MACHINE)
    assert again.summary["networks"] == whole.summary["networks"]
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_weights_of_tied_networks_are_written_under_every_name(tmp_path: Path) -> None:
    network = NextWord(Arch({"hidden": 4}))
    digest = write_weights(tmp_path / "0.safetensors", network)
    weights = read_weights(tmp_path / "0.safetensors", digest)
    assert weights.keys() == network.state_dict().keys()
    words, plain = torch.arange(WORDS), NextWord(Arch({"hidden": 4}))
    plain.load_state_dict(weights)  # as in a program without nasx
    for loaded in (plain, load_weights(NextWord(Arch({"hidden": 4})), weights)):
        assert torch.equal(loaded(words), network(words))
    with pytest.raises(ValueError, match=r"'up\.weight' and 2 more have other shapes \(\(4, 8\) where .* \(8, 8"):
        load_weights(NextWord(Arch({"hidden": 8})), weights)
    del weights["up.bias"]
    with pytest.raises(ValueError, match=r"'up\.bias' is missing"):
        load_weights(NextWord(Arch({"hidden": 4})), weights)


def test_tensors_that_are_parts_of_one_are_written_too(tmp_path: Path) -> None:
    network = nn.Module()
    table = torch.arange(12.0)
    network.register_buffer("first", table[:6])
    network.register_buffer("reshaped", table[:6].view(2, 3))
    network.register_buffer("overlapping", table[3:9])
    digest = write_weights(tmp_path / "0.safetensors", network)
    weights = read_weights(tmp_path / "0.safetensors", digest)
    assert {name: tensor.tolist() for name, tensor in weights.items()} == {
        name: tensor.tolist() for name, tensor in network.state_dict().items()
    }
