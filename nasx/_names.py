"""What messages call a function or an object of a user's."""

from functools import partial


def callable_name(value: object, otherwise: str = "<lambda>") -> str:
    """Return the name of a function, or of an object's type, inside any partial functions; a lambda is `otherwise`."""
    while isinstance(value, partial):
        value = value.func
    name = str(getattr(value, "__name__", type(value).__name__))
    return otherwise if name == "<lambda>" else name
