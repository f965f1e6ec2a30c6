"""Snippets of the documentation of Python's standard library, each labelled with the module that it is from."""

import inspect
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

MODULES = ("argparse", "decimal", "email.message", "logging", "socket", "tarfile")
LENGTH = 64
VOCABULARY = 128  # ASCII


@dataclass(frozen=True, slots=True)
class Snippets:
    """Texts as character codes (N, LENGTH) with the number of the module that each is from (N,)."""

    tokens: Tensor
    labels: Tensor


def load() -> tuple[Snippets, Snippets]:
    """Return what to train on and what to score on: of each module, the last fifth of its text is held out."""
    texts = [documentation(import_module(name)) for name in MODULES]
    return _cut([text[: len(text) * 4 // 5] for text in texts]), _cut([text[len(text) * 4 // 5 :] for text in texts])


def documentation(module: ModuleType) -> str:
    """Return the docstrings of a module and of all that it defines, one after the other."""
    found = [inspect.getdoc(module) or ""]
    for _, member in sorted(vars(module).items()):
        if getattr(member, "__module__", None) == module.__name__:
            found.append(inspect.getdoc(member) or "")
            if inspect.isclass(member):
                found += [inspect.getdoc(inner) or "" for _, inner in sorted(vars(member).items()) if callable(inner)]
    return " ".join(" ".join(found).split())


def _cut(texts: list[str]) -> Snippets:
    rows, labels = [], []
    for label, text in enumerate(texts):
        for start in range(0, len(text) - LENGTH, LENGTH // 2):
            rows.append([min(ord(c), VOCABULARY - 1) for c in text[start : start + LENGTH]])
            labels.append(label)
    return Snippets(torch.tensor(rows), torch.tensor(labels))
