"""What is measured: networks of the presets, batches for them, and one step of training or scoring."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx import Arch, Space
from nasx.train import adamw, autocast
from recipes.glit.bench.settings import Settings
from recipes.glit.config import DIGITS, TINY
from recipes.glit.cost import Macs
from recipes.glit.model import GLIT_TINY, GLiTConfig, build_in
from recipes.glit.space import heads_space, table2

Row = dict[str, Any]
Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """Networks of one size and space, in batches of one size; `arch` is the one that stands for them."""

    name: str
    vit: GLiTConfig
    space: Space
    arch: Arch
    batch: int
    init_std: float = 0.02

    def network(self, arch: Arch | None = None, device: torch.device | str = "cpu") -> nn.Module:
        """Return a network with fresh weights."""
        torch.manual_seed(0)
        return build_in(self.vit, arch or self.arch, init_std=self.init_std).to(device)

    def images(self, batch: int | None = None, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return a batch of noise with labels."""
        f, generator = self.vit, torch.Generator().manual_seed(0)
        size = (batch or self.batch, f.in_channels, f.image_size, f.image_size)
        images = torch.randn(size, generator=generator)
        labels = torch.randint(f.num_classes, size[:1], generator=generator)
        return images.to(device), labels.to(device)

    @property
    def macs(self) -> int:
        """Multiply-adds of its network for one image."""
        return Macs(self.vit)(self.arch)


def digits_case() -> Case:
    """Return the networks of the preset `digits` with one local, two mixed and one global block."""
    vit = DIGITS.vit(in_channels=1, num_classes=10)
    space = heads_space(DIGITS.choices())
    return Case("digits", vit, space, with_heads(space, (0, 1, 2, 3)), DIGITS.supernet.batch_size, init_std=0.2)


def bench_case() -> Case:
    """Return the networks of the tabular benchmark on CIFAR-10."""
    settings = Settings()
    arch = with_heads(settings.space, (0, 1, 2, 3))
    return Case("cifar10 table", settings.vit, settings.space, arch, settings.batch_size, settings.init_std)


def tiny_case(batch: int = 4) -> Case:
    """Return GLiT-Tiny at 224 pixels; its space is the joint one."""
    return Case("GLiT-Tiny", TINY.vit(), table2(TINY.choices()), GLIT_TINY, batch)


def with_heads(space: Space, heads: tuple[int, ...]) -> Arch:
    """Return the network of a space of heads that has these, block by block."""
    (arch,) = space.pin({f"block.{i}.global_heads": count for i, count in enumerate(heads)})
    return arch


def training_step(
    model: nn.Module, images: Tensor, labels: Tensor, *args: Any, optimizer: torch.optim.Optimizer | None = None
) -> Run:
    """Return a training step as everybody writes it: forward, loss, backward, AdamW."""
    optimizer = optimizer or adamw(model, lr=1e-4, weight_decay=0.05)
    device = images.device

    def step() -> None:
        with autocast(device):
            loss = F.cross_entropy(model(images, *args), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def forward_pass(model: nn.Module, images: Tensor, *args: Any) -> Run:
    """Return a forward pass in evaluation mode, without gradients."""
    model.eval()
    device = images.device

    def run() -> None:
        with torch.inference_mode(), autocast(device):
            model(images, *args)

    return run
