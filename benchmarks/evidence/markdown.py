"""Tables and numbers as docs/evidence.md shows them."""

from collections.abc import Iterable, Sequence

from nasx.comparison import Difference


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, its first column to the left and the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def points(difference: Difference) -> str:
    """Return a difference of accuracies in points with its interval, and what may be said of it."""
    text = f"{100 * difference.value:+.2f} ({100 * difference.low:+.2f} to {100 * difference.high:+.2f})"
    return text if difference.shown else f"{text}: no difference that this data can show"


def percent(value: float) -> str:
    """Return an accuracy in percent."""
    return f"{100 * value:.2f}"
