"""Tasks of images in other processes."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx import Arch, Space, one_of
from nasx.data import load_digits
from nasx.pipeline import ImageTask, Problem, RunConfig
from nasx.pipeline.config import Data, Retraining
from nasx.pipeline.image_sources import ImageSource, load_images
from nasx.pipeline.network_stages import retraining
from nasx.pipeline.networks import NetworkJob, train_networks
from tests.pipeline.problems import context_of

DATA = Data(source="digits", image_size=8)


class OwnTask(ImageTask):
    """Images of a user's own kind."""


class Linear(nn.Module):
    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(64, int(arch["width"])), nn.Linear(int(arch["width"]), 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(x.flatten(1)).relu())


def certainty(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.softmax(1)[torch.arange(len(targets)), targets]


@pytest.mark.parametrize("source", [None, ImageSource(DATA, 3)], ids=["loaded", "from a source"])
@pytest.mark.parametrize("metric", ["top5", certainty])
def test_a_task_is_the_same_in_another_process(source: ImageSource | None, metric: Any) -> None:
    dataset = load_images(source).dataset if source else load_digits(seed=3)
    normalised = DATA.model_copy(update={"mean": (0.25,), "std": (0.5,)})
    task = OwnTask(dataset, normalised, source=source, metric=metric)
    task.loss = F.multi_margin_loss
    sent = pickle.dumps(task)
    there = pickle.loads(sent)
    assert type(there) is OwnTask
    assert (there.metric, there.loss, there.data, there.statistics) == (metric, task.loss, task.data, ((0.25,), (0.5,)))
    for part in ("train", "val", "test"):
        here = next(iter(task.eval_batches(part, 50)))
        assert all(map(torch.equal, here, next(iter(there.eval_batches(part, 50)))))
    if source:
        assert len(sent) < 10_000, "where images are is sent, not they"


def test_another_process_takes_the_statistics_that_were_measured() -> None:
    task = load_images(ImageSource(DATA, 0)).unmeasured()
    assert task.statistics == ((0.5,), (0.5,))
    assert pickle.loads(pickle.dumps(task)).statistics == task.statistics
    assert load_images(ImageSource(DATA, 0)).statistics != task.statistics, "a plan's stand-ins stay in the plan"


def test_networks_are_scored_by_the_metric_of_the_task_in_any_number_of_processes(tmp_path: Path) -> None:
    task = ImageTask(load_digits(seed=0), DATA, metric="top5")
    problem = Problem(Space(width=one_of(8, 16)), Linear, task, config=RunConfig(retrain=Retraining(epochs=1)))
    found = []
    for processes in (1, 2):
        context = context_of(problem, tmp_path / str(processes), "retrain", processes=processes)
        jobs = {n: NetworkJob(problem.space[n], n, context.directory / f"{n}.safetensors") for n in range(2)}
        found.append(train_networks(context, retraining(context), jobs))
    assert found[0] == found[1]
