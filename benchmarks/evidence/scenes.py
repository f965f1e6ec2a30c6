"""The two small problems that experiments run on: images, networks and how both are trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nasx import Arch, Space
from nasx.data import Augment, ImageArray, Images, TrainBatches, channel_statistics, eval_batches, load_digits
from nasx.train import Batches, Step, adamw, cosine_schedule, evaluate, seeded, train
from recipes.glit.bench.settings import Settings, ordered_archs
from recipes.glit.bench.training import load_parts
from recipes.glit.config import DIGITS
from recipes.glit.cost import Macs
from recipes.glit.model import GLiTConfig, build_in
from recipes.glit.space import GLiTSpace, heads_space


@dataclass(frozen=True)
class Training:
    """How networks are trained: AdamW, warm-up and cosine to 0."""

    lr: float
    batch_size: int
    warmup_epochs: float
    augment: Augment
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    clip_norm: float = 1.0


@dataclass(frozen=True)
class Scene:
    """Images, sizes and stage one's choices of a small GLiT."""

    name: str
    train: Images
    val: Images
    test: Images
    vit: GLiTConfig
    choices: GLiTSpace
    init_std: float
    alone: Training
    supernet: Training

    @property
    def space(self) -> Space:
        """Stage one's space: the heads of every block."""
        return heads_space(self.choices)

    @property
    def macs(self) -> Macs:
        """The cost of its networks."""
        return Macs(self.vit)

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the training images."""
        return channel_statistics(self.train)

    def batches(self, training: Training, seed: int) -> TrainBatches:
        """Return training batches."""
        mean, std = self.statistics
        return TrainBatches(
            self.train, batch_size=training.batch_size, seed=seed, mean=mean, std=std, augment=training.augment
        )

    def recalibration_batches(self, augmented: bool = False) -> TrainBatches:
        """Return batches of 256 training images, augmented as in a supernet's training or not."""
        augment = self.supernet.augment if augmented else Augment()
        return self.batches(Training(1.0, min(256, len(self.train)), 0, augment), seed=0)

    def hits(self, network: nn.Module, images: Images) -> "np.typing.NDArray[np.bool_]":
        """Return which images a network classifies correctly."""
        return evaluate(network, self.evaluation(images)).scores > 0

    def evaluation(self, images: Images) -> Batches:
        """Return images in order."""
        return eval_batches(images, 500, *self.statistics)

    def make(self, arch: Arch) -> nn.Module:
        """Return an untrained network."""
        return build_in(self.vit, arch, init_std=self.init_std)

    def train_alone(self, make: Callable[[], nn.Module], seed: int, epochs: float) -> nn.Module:
        """Return a network trained from scratch."""
        torch.manual_seed(seed)
        return self.train_on(make(), self.alone, seed, epochs)

    def train_on(self, network: nn.Module, training: Training, seed: int, epochs: float) -> nn.Module:
        """Return a network trained from the weights that it has."""
        batches = self.batches(training, seed)
        total = round(epochs * batches.steps_per_epoch)
        optimizer = adamw(network, lr=training.lr, weight_decay=training.weight_decay)
        warmup = round(training.warmup_epochs * batches.steps_per_epoch)
        schedule = cosine_schedule(optimizer, steps=total, warmup_steps=min(warmup, total - 1))
        steps: Sequence[Step] = train(
            network,
            seeded(batches.steps(0, total), seed),
            optimizer,
            loss=partial(F.cross_entropy, label_smoothing=training.label_smoothing),
            schedule=schedule,
            clip_norm=training.clip_norm,
        ).run()
        assert len(steps) == total
        return network


def digits() -> Scene:
    """Return the digits with the networks of the recipe's preset."""
    data, preset = load_digits(seed=0), DIGITS.retrain
    return Scene(
        name="digits",
        train=data.train,
        val=data.val,
        test=data.open_test(),
        vit=GLiTConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=36, num_heads=3),
        choices=GLiTSpace(blocks=4, kernel_size=(3, 5, 9), held_kernel_size=5),
        init_std=0.2,
        alone=Training(preset.lr, preset.batch_size, preset.warmup_epochs, Augment(), weight_decay=preset.weight_decay),
        supernet=Training(1e-2, 64, 2, Augment()),
    )


@lru_cache(maxsize=1)
def cifar10(data: Path) -> Scene:
    """Return CIFAR-10 with the networks of the recipe's tabular benchmark."""
    settings = Settings()
    parts = load_parts(data, settings)
    augment = Augment(pad_crop=settings.pad_crop, flip=settings.flip)
    training = Training(settings.lr, settings.batch_size, settings.warmup_share * settings.epochs, augment)
    return Scene(
        name="cifar10",
        train=parts.train,
        val=parts.val,
        test=parts.test,
        vit=settings.vit,
        choices=settings.choices,
        init_std=settings.init_std,
        alone=training,
        supernet=training,
    )


def spread(scene: Scene, networks: int) -> list[Arch]:
    """Return some of stage one's networks, spread evenly over their heads."""
    return ordered_archs(scene.space)[:networks]


def both_parts(scene: Scene) -> ImageArray:
    """Return validation and test images together: a sharper truth where a search reads neither's labels."""
    parts = [scene.val, scene.test]
    pixels = torch.cat([part.load(np.arange(len(part))) for part in parts]).numpy()
    return ImageArray(pixels, np.concatenate([part.labels for part in parts]))
