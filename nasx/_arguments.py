"""What functions that take a space refuse in its place."""

from nasx.space import Space


def check_archs(space: object, call: str) -> None:
    """Refuse what is no set of architectures with a TypeError that says how a function is called, `call`."""
    if not isinstance(getattr(space, "space", None), Space):
        raise TypeError(f"`space` must be a Space or a part of one, but got {space!r}; write {call}")
