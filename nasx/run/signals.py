"""Stopping in order: the first signal asks, the second one ends.

Within a `StopFlag`, SIGTERM, SIGINT and SIGUSR1 set a flag that the work reads where it can stop; a second signal ends
the process at once with status 75, which the run directory survives as it does any other end. Signals within moments of
the first are the same request: `timeout` signals its child and then the whole process group, and a scheduler signals
every process while torchrun passes on what it received itself.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_ECHO = 0.5  # seconds: less than anyone needs to press Ctrl-C again
_TORCHRUN_ECHO = 3.0
_ENDED = b"interrupted again: ended at once; the same command continues from what was saved\n"


class Interrupted(Exception):
    """The work was asked to stop and did; the same command continues it."""


class StopFlag:
    """A request to stop, set by signals while it is entered; outside the main thread nothing sets it but `request`."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._since = 0.0
        self._process = os.getpid()
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    @property
    def requested(self) -> bool:
        """Whether the work is asked to stop."""
        return self._signal is not None

    def request(self, signum: int = signal.SIGTERM) -> None:
        """Ask the work to stop, as the signal does."""
        self._signal, self._since = signum, time.monotonic()

    def raise_if_requested(self) -> None:
        """Raise Interrupted if the work is asked to stop."""
        if self._signal is not None:
            raise Interrupted(f"stopped by {signal.Signals(self._signal).name}")

    def __enter__(self) -> "StopFlag":
        if threading.current_thread() is threading.main_thread():  # Python allows no other to install handlers
            self._process = os.getpid()
            self._previous = {signum: signal.signal(signum, self._receive) for signum in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)  # None: set by C code, unknown here
        self._previous = {}

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked worker inherits this handler but nobody reads its flag. Ctrl-C reaches the whole group, and
            # the parent, which gets it too, ends its workers; any other signal was meant for the worker.
            if signum != signal.SIGINT:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
        elif not self.requested:
            self.request(signum)
        elif time.monotonic() - self._since > (_TORCHRUN_ECHO if "TORCHELASTIC_RUN_ID" in os.environ else _ECHO):
            os.write(2, _ENDED)
            os._exit(75)
