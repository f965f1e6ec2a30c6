"""How stages say how far they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Progress(Protocol):
    """Called by stages as they work."""

    def __call__(self, description: str, done: float, total: float, note: str = "") -> None:
        """Show one task's state."""


def silent(description: str, done: float, total: float, note: str = "") -> None:
    """Show nothing."""


@contextmanager
def bars(console: "Console | None" = None) -> Iterator[Progress]:
    """Show progress on standard error: bars in terminals and notebooks, a line now and then in logs."""
    from rich.console import Console

    from nasx.report import progress

    console = console or Console(stderr=True)
    if console.is_jupyter and find_spec("ipywidgets") is None:
        console = Console(stderr=True, force_jupyter=False, force_terminal=False)  # lines; bars would need widgets
    with progress(console) as shown:
        tasks: dict[str, Any] = {}

        def show(description: str, done: float, total: float, note: str = "") -> None:
            if description not in tasks:
                tasks[description] = shown.add_task(description, total=total, note=note)
            shown.update(tasks[description], completed=done, total=total, note=note)

        yield show
