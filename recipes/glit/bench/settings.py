"""What every network of the benchmark has in common: images, sizes, space and training."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from nasx import Arch, Space

from ..model import GLiTConfig
from ..space import GLiTSpace, heads_space


@dataclass(frozen=True)
class Settings:
    """Images, networks and training; the table records them."""

    train_images: int = 4_000
    val_images: int = 5_000
    split_seed: int = 0
    image_size: int = 32
    patch_size: int = 8
    embed_dim: int = 48
    num_heads: int = 3
    init_std: float = 0.1
    blocks: int = 4
    kernel_size: int = 5
    expansion: int = 2
    epochs: int = 50
    batch_size: int = 128
    lr: float = 3e-3
    warmup_share: float = 0.1
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    pad_crop: int = 1
    flip: bool = True
    checks: int = 8
    """Equal spans of the training, after each of which the validation images are looked at."""
    seeds: tuple[int, ...] = (0, 1)

    @property
    def choices(self) -> GLiTSpace:
        """The choices of stage one: the heads of every block, details held."""
        return GLiTSpace(
            blocks=self.blocks,
            num_heads=self.num_heads,
            kernel_size=(3, self.kernel_size, 9),
            held_kernel_size=self.kernel_size,
            expansion=(1, self.expansion, 4),
            held_expansion=self.expansion,
        )

    @property
    def space(self) -> Space:
        """Stage one's space: 256 networks."""
        return heads_space(self.choices)

    @property
    def vit(self) -> GLiTConfig:
        """What all networks share."""
        return GLiTConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            in_channels=3,
            num_classes=10,
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
        )


def ordered_archs(space: Space) -> list[Arch]:
    """Return all networks of stage one ordered so that any first part is spread evenly over the heads.

    The strata are the total numbers of global heads, 0 to 12, and come in turn; networks of one stratum are shuffled
    with a fixed seed. The networks whose blocks are all alike come first.
    """
    strata: dict[int, list[Arch]] = defaultdict(list)
    alike: list[Arch] = []
    for arch in space:
        heads = [int(value) for value in arch.only("block.*.global_heads").values()]
        (alike if len(set(heads)) == 1 else strata[sum(heads)]).append(arch)
    rng = np.random.default_rng(0)
    queues = [[members[i] for i in rng.permutation(len(members))] for _, members in sorted(strata.items())]
    order = list(alike)
    while any(queues):
        order += [queue.pop() for queue in queues if queue]
    return order
