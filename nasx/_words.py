"""Words of messages that depend on numbers."""


def number_of(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun: "1 image", "1,200 images"; `plural` is for nouns that take no s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
