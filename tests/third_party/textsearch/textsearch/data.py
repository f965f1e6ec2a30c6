"""Snippets of the documentation of Python's standard library, each labelled with the module that it is from."""

import inspect
from importlib import import_module

import torch
from torch import Tensor

MODULES = ("argparse", "decimal", "email.message", "logging", "socket", "tarfile")
LENGTH, VOCABULARY = 64, 128  # ASCII; 0 pads


def documentation(module: str) -> str:
    """Return the docstrings of all that a module defines, one after the other."""
    members = [m for _, m in sorted(vars(import_module(module)).items()) if getattr(m, "__module__", "") == module]
    inner = [i for m in members if inspect.isclass(m) for _, i in sorted(vars(m).items()) if callable(i)]
    return " ".join(" ".join(inspect.getdoc(member) or "" for member in (*members, *inner)).split())


def snippets(*, held_out: bool = False) -> list[tuple[str, int]]:
    """Return texts with the numbers of their modules: of each module the first four fifths, or the last."""
    found = []
    for label, module in enumerate(MODULES):
        text = documentation(module)
        cut = len(text) * 4 // 5
        part = text[cut:] if held_out else text[:cut]
        found += [(part[at : at + LENGTH], label) for at in range(0, len(part), LENGTH)]
    return found


def collate(samples: list[tuple[str, int]]) -> tuple[Tensor, Tensor]:
    """Return character codes (B, LENGTH) and the numbers of the modules (B,)."""
    codes = [[min(ord(c), VOCABULARY - 1) for c in text.ljust(LENGTH, "\0")] for text, _ in samples]
    return torch.tensor(codes), torch.tensor([label for _, label in samples])
