"""Forked processes that end by themselves, by the alarm or where they are told to."""

import os
import signal
import warnings
from collections.abc import Callable

KILLED, SECONDS = 7, 60  # the status of an ended process, and how long any may take


def described(error: BaseException) -> str:
    """Return an error in a line."""
    return f"{type(error).__name__}: {error}"


def fork(work: Callable[[], object]) -> int:
    """Do work in a forked process, which ends with status 0 or 1, or by the alarm; return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, of which the work needs none
        child = os.fork()
    if child:
        return child
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        work()
        os._exit(0)
    finally:
        os._exit(1)


def forked(work: Callable[[Callable[[bytes], object]], object]) -> tuple[int, bytes]:
    """Do work in a forked process that can tell bytes; return its status and what it told."""
    reader, writer = os.pipe()

    def tell(told: bytes) -> int:
        return os.write(writer, told)

    def telling() -> None:
        try:
            work(tell)
        except BaseException as error:
            tell(described(error).encode())
            raise

    child = fork(telling)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told
