"""A trained network of images with its classes and preprocessing, and what it says of image files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nasx.data import Files, PhotoSet
from nasx.pipeline.exported import ExportedModel, open_model

Ranked = list[tuple[str, float]]
"""Classes with their probabilities, the most probable first."""


@dataclass(frozen=True, slots=True)
class FilePrediction:
    """What a network says of an image file: all classes with their probabilities, or the file's fault."""

    path: Path
    classes: Ranked
    fault: str = ""


class Classifier(nn.Module):
    """A network in evaluation mode that knows its `classes`, its `arch`, and how to `preprocess` images.

    Called with images (B, C, H, W), as `preprocess.batch` returns them, it returns logits (B, classes). `network` is
    the module without what is around it, `described` what is known of its training.
    """

    def __init__(self, model: ExportedModel) -> None:
        super().__init__()
        self.network = model.network
        self.classes = model.class_names
        self.preprocess = model.preprocessing
        self.arch = model.arch
        self.described = model
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes) of preprocessed images (B, C, H, W)."""
        return self.network(images)

    def predict(self, image: Any) -> Ranked:
        """Return the classes of an image with their probabilities, the most probable first.

        `image` is a path, a PIL image or a uint8 array (H, W) or (H, W, C); errors are those of `preprocess`.
        """
        return self._ranked(self.preprocess(image)[None])[0]

    def predict_files(self, paths: Sequence[str | PathLike[str]], *, batch_size: int = 64) -> Iterator[FilePrediction]:
        """Yield what the network says of image files, in their order; a file that is no image has a fault instead.

        Images are decoded by threads, `batch_size` at once. Raises ValueError for a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but got {batch_size}")
        channels = self.preprocess.channels
        photos = PhotoSet(
            Files(map(str, map(Path, paths))),
            np.zeros(len(paths), np.int64),
            self.preprocess.image_size,
            in_memory=False,
            channels=1 if channels == 1 else 3,
        )
        for first in range(0, len(paths), batch_size):
            numbers = range(first, min(first + batch_size, len(paths)))
            pixels, faults = photos.read(list(numbers))
            readable = [number - first for number in numbers if number not in faults]
            ranked = iter(self._ranked(self.preprocess.normalise(pixels[readable])) if readable else ())
            for number in numbers:
                if number in faults:
                    yield FilePrediction(photos.path(number), [], faults[number].fault)
                else:
                    yield FilePrediction(photos.path(number), next(ranked))

    def _ranked(self, images: Tensor) -> list[Ranked]:
        device = next(self.parameters()).device
        with torch.inference_mode():
            probabilities = self.network(images.to(device)).float().softmax(dim=1).cpu()
        values, order = probabilities.sort(dim=1, descending=True, stable=True)
        return [
            [(self.classes[label], value) for label, value in zip(labels, row, strict=True)]
            for labels, row in zip(order.tolist(), values.tolist(), strict=True)
        ]


def load_classifier(path: str | PathLike[str]) -> Classifier:
    """Return the network of a run directory, or of a folder or file that `export` has written as safetensors.

    A ValueError says that there is no such network, or that code outside of the library's recipes built it.
    """
    return Classifier(open_model(Path(path)))
