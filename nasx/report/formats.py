"""Numbers as readers of tables expect them."""

from decimal import Decimal

ABSENT = "–"


def si(number: float | None, unit: str = "") -> str:
    """Return a number with four digits and a unit prefix: 1472968128 is "1.473 G"; None is a dash."""
    if number is None:
        return ABSENT
    value = float(f"{number:.3e}")  # rounded before the prefix is chosen, so that 999,960 is "1.000 M"
    prefixes = iter(("", "k", "M", "G", "T", "P"))
    prefix = next(prefixes)
    while abs(value) >= 1000 and (larger := next(prefixes, None)):
        value, prefix = value / 1000, larger
    digits = f"{value:#.4g}".rstrip(".") if prefix else f"{value:g}"
    return f"{digits} {prefix}{unit}".rstrip()


def amount(number: float | None) -> str:
    """Return a cost with three digits at least, and no prefix: 1234.5 is "1,234"; None is a dash."""
    if number is None:
        return ABSENT
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def percent(fraction: float | None) -> str:
    """Return a fraction of one in percent with two decimals; None is a dash."""
    return ABSENT if fraction is None else f"{100 * fraction:.2f} %"


def points(difference: float) -> str:
    """Return a difference of fractions in percentage points, signed: -0.0139 is "−1.39 points"."""
    sign = "+" if difference > 0 else "−" if difference < 0 else "±"
    return f"{sign}{100 * abs(difference):.2f} points"


SHARES = ("accuracy", "top5")
"""Metrics that are shares of samples, which people read in percent."""


def score(value: float | None, metric: str = "accuracy") -> str:
    """Return a score: in percent where the metric is a share, else with four digits; None is a dash."""
    if value is None or metric in SHARES:
        return percent(value)
    return f"{value:.4g}"


def score_difference(value: float, metric: str = "accuracy") -> str:
    """Return a difference of scores, signed: in percentage points where the metric is a share."""
    return points(value) if metric in SHARES else f"{value:+.4g}".replace("-", "−")


def duration(seconds: float) -> str:
    """Return a time in the two units that matter: "4.2 s", "2 min 05 s", "3 h 07 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def large(number: int) -> str:
    """Return a count of any size, rounded to three digits from ten million on: 1,234, or 4.11 × 10²⁷."""
    if number < 10**7:
        return f"{number:,}"
    digits, _, power = f"{Decimal(number):.2e}".partition("e+")  # decimal, because no float is that large
    return f"{digits} × 10{power.translate(_RAISED)}"


_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
