"""What the suites try things on, and how they expect a refusal."""

from collections.abc import Callable

from nasx.arch import Arch
from nasx.space import Space


def some_numbers(size: int, count: int) -> list[int]:
    """Return all integers below a size, or the first, the last and some between."""
    if size <= count:
        return list(range(size))
    return sorted({i * (size - 1) // (count - 1) for i in range(count)})


def some_archs(space: Space, count: int) -> list[Arch]:
    """Return architectures of a space from its first to its last."""
    return [space[number] for number in some_numbers(space.size, count)]


def assert_raises(error: type[Exception], call: Callable[[], object], what: str) -> None:
    """Fail where a call raises nothing; another error than the expected one passes through."""
    try:
        call()
    except error:
        return
    raise AssertionError(f"{what} must be refused with a {error.__name__}")
