"""Forked processes that end by themselves, by an alarm or where a fault kills them."""

import os
import signal
import warnings
from collections.abc import Callable

KILLED, SECONDS = 7, 60  # the exit status of a killed process, and how long any may take


def described(error: BaseException) -> str:
    """Return an error's type and message in one line."""
    return f"{type(error).__name__}: {error}"


def fork(work: Callable[[], object]) -> int:
    """Run work in a forked process, which ends with status 0 or 1, or by the alarm; return its id."""
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
    """Run work in a forked process that can send bytes; return its exit status and what it sent, or its error."""
    reader, writer = os.pipe()

    def send(data: bytes) -> int:
        return os.write(writer, data)

    def reporting() -> None:
        try:
            work(send)
        except BaseException as error:
            send(described(error).encode())
            raise

    child = fork(reporting)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        sent = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sent
