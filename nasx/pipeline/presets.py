"""Settings that presets of several recipes share: ImageNet as DeiT trains on it, and short runs on the digits."""

from typing import Any

from nasx.pipeline.config import Augmentation, Data, Retraining, Search, SupernetTraining

__all__ = [
    "CROPS",
    "DEIT_AUGMENT",
    "DIGITS",
    "DIGITS_RETRAIN",
    "DIGITS_RUN",
    "DIGITS_SEARCH",
    "DIGITS_SUPERNET",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "imagenet",
]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CROPS = Augmentation(resized_crop=(0.08, 1.0), flip=True)
"""What SPOS trains supernets with."""

DEIT_AUGMENT = CROPS.model_copy(update={"auto_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25})
"""DeiT's; its colour jitter of 0.4 does nothing, because timm leaves it out beside RandAugment."""

DIGITS = Data(source="digits", image_size=8, val_fraction=0.2)

DIGITS_SUPERNET = SupernetTraining(
    optimizer="adamw", epochs=25, batch_size=64, lr=1e-2, weight_decay=0.05, warmup_epochs=2, clip_norm=1.0
)
DIGITS_SEARCH = Search(
    population=20, generations=6, parents=8, top_k=2, recalibration_batches=2, recalibration_batch_size=256
)
DIGITS_RETRAIN = Retraining(
    epochs=32,
    batch_size=64,
    lr=7e-3,
    weight_decay=0.3,
    warmup_epochs=3,
    drop_path=0.0,
    mixup=0.0,
    cutmix=0.0,
    augment=Augmentation(),
)
"""Trains networks until they stop improving: three times as many epochs gain nothing (docs/evidence.md)."""

DIGITS_RUN: dict[str, Any] = {
    "preset": "digits",
    "threads": 1,  # a second thread gains nothing on networks this small
    "data": DIGITS,
    "supernet": DIGITS_SUPERNET,
    "search": DIGITS_SEARCH,
    "retrain": DIGITS_RETRAIN,
}
"""Fields of a run on the digits; a recipe adds its sizes, space and budget."""


def imagenet(val_images: int = 50_000) -> Data:
    """Return ImageNet at 224 pixels, with a number of training images held out for the search."""
    return Data(image_size=224, val_images=val_images, mean=IMAGENET_MEAN, std=IMAGENET_STD)
