"""One-shot neural architecture search for PyTorch: spaces, exact budgets, supernets, searches, resumable runs."""

from os import PathLike
from typing import TYPE_CHECKING

from nasx.arch import Arch
from nasx.cost import Budget
from nasx.space import Space, one_of, repeat

if TYPE_CHECKING:
    from nasx.pipeline.classifier import Classifier

__all__ = ["Arch", "Budget", "Space", "load", "one_of", "repeat"]
__version__ = "0.2.0"


def load(path: "str | PathLike[str]") -> "Classifier":
    """Return the trained network at `path`: a run directory, or a folder or file that `export` has written.

    It is a module in evaluation mode that maps images (B, C, H, W) to logits (B, classes), with `classes` (names in
    the order of the logits), `preprocess` (from a file, PIL image or array to an input), `predict(image)` and `arch`.

    Raises ValueError where there is no such network, or where code outside of the library's recipes built it.
    """
    from nasx.pipeline.classifier import load_classifier  # torch is loaded here, and not with nasx

    return load_classifier(path)
