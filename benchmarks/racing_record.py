"""Which validation images the candidates of a search on CIFAR-10 get right, recorded for `benchmarks.racing`.

`python -m benchmarks.racing_record --data DIR --out tests/search/cifar10_hits.npz` makes the file anew.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from nasx import Arch, Budget, Space
from nasx.feasible import attainable
from nasx.nn import Subnet, Supernet
from nasx.pipeline.config import Augmentation
from nasx.pipeline.image_sources import ImageSource, load_images
from nasx.pipeline.images import ImageTask
from nasx.search import Evolution
from nasx.train import UniformPaths, adamw, cosine_schedule, recalibrate, seeded, train_supernet, use_threads
from recipes.glit.config import CIFAR10, Config, Model
from recipes.glit.cost import Macs
from recipes.glit.space import SpaceConfig, table2
from recipes.glit.supernet import supernet as make_supernet

Bools = npt.NDArray[np.bool_]

RECALIBRATION_BATCHES = 3
POPULATION, GENERATIONS = 60, 3


def light() -> Config:
    """Return the preset `cifar10` made light enough for minutes of one core: half the width, larger patches."""
    supernet = CIFAR10.supernet.model_copy(
        update={"epochs": 4, "batch_size": 64, "warmup_epochs": 0.2, "augment": Augmentation(flip=True)}
    )
    search = CIFAR10.search.model_copy(update={"recalibration_batch_size": 256})
    return CIFAR10.model_copy(
        update={
            "threads": 1,
            "model": Model(patch_size=8, embed_dim=96, init_std=0.05, sharing="entangled"),
            "space": SpaceConfig(blocks=4, kernel_size=(5, 9, 17), held_kernel_size=9),
            "supernet": supernet,
            "search": search,
        }
    )


def record(data: Path, out: Path) -> None:
    """Train a supernet, search with it, and write the hits of every candidate, a bit an image, with how it was made."""
    config = light()
    task = load_images(ImageSource(config.data, config.seed, data))
    space = table2(config.choices())
    cost = Macs(config.vit_for(task))
    with use_threads(config.threads):
        supernet = _trained(config, task, space, cost)
        hits = _searched(config, task, space, cost, supernet)
    made = {
        "data": "CIFAR-10, 5,000 validation images held out of the training images",
        "config": config.model_dump(mode="json"),
        "search": f"Evolution of {GENERATIONS} generations of {POPULATION}, MACs at most 60 % of the way to the most",
        "recalibration_batches": RECALIBRATION_BATCHES,
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out,
        hits=np.packbits(np.array(list(hits.values())), axis=1),
        images=np.array(len(task.dataset.val)),
        population=np.array(POPULATION),
        indices=np.array([str(space.index(arch)) for arch in hits]),
        made=np.array(json.dumps(made, sort_keys=True)),
    )


def _trained(config: Config, task: ImageTask, space: Space, cost: Macs) -> Supernet:
    training, seed = config.supernet, config.seed
    torch.manual_seed(seed)
    supernet = make_supernet(space, cost.vit, sharing=config.model.sharing, init_std=config.model.init_std)
    batches = task.train_batches(training, seed=seed)
    total, warmup = (round(n * batches.steps_per_epoch) for n in (training.epochs, training.warmup_epochs))
    optimizer = adamw(supernet, lr=training.lr, weight_decay=training.weight_decay)
    for step in train_supernet(
        supernet,
        seeded(batches.steps(0, total), seed),
        UniformPaths(space, seed),
        optimizer,
        schedule=cosine_schedule(optimizer, steps=total, warmup_steps=warmup),
        loss=partial(F.cross_entropy, label_smoothing=training.label_smoothing),
        clip_norm=training.clip_norm,
    ):
        if step.step % 200 == 0:
            print(f"step {step.step} of {total}: loss {step.loss:.3f}", flush=True)
    return supernet


def _searched(config: Config, task: ImageTask, space: Space, cost: Macs, supernet: Supernet) -> dict[Arch, Bools]:
    recalibration = list(task.recalibration_batches(config, seed=0).steps(0, RECALIBRATION_BATCHES))
    validation = list(task.eval_batches("val", 500))
    reach = attainable(space, cost)
    inside = space.within(Budget(cost, at_most=reach.low + 0.6 * (reach.high - reach.low)))
    searcher = Evolution(inside, population=POPULATION, generations=GENERATIONS, parents=20, seed=0)
    hits: dict[Arch, Bools] = {}
    supernet.eval()
    while not searcher.done:
        for arch in searcher.ask():
            subnet = Subnet(supernet, arch)
            recalibrate(subnet, recalibration)
            with torch.inference_mode():
                hits[arch] = np.concatenate([(subnet(x).argmax(dim=1) == y).numpy() for x, y in validation])
        searcher.tell({arch: float(hits[arch].mean()) for arch in searcher.ask()})
        print(f"generation {searcher.generation}: best {searcher.best()[0].score:.2%}", flush=True)
    return hits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    record(options.data, options.out)
