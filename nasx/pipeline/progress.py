"""How stages say how far they are."""

from typing import Protocol


class Progress(Protocol):
    """Where stages say how far they are; a command line shows bars, a notebook may print."""

    def __call__(self, description: str, done: float, total: float, note: str = "") -> None:
        """Show one task's state."""


def silent(description: str, done: float, total: float, note: str = "") -> None:
    """Show nothing."""
