"""One-shot neural architecture search for PyTorch: spaces, exact budgets, supernets, searches, resumable runs."""

from nasx.arch import Arch
from nasx.cost import Budget
from nasx.space import Space, one_of, repeat

__all__ = ["Arch", "Budget", "Space", "one_of", "repeat"]
__version__ = "0.2.0"
