import os
import signal
import subprocess
import sys
import threading

import pytest

from nasx.run import Interrupted, StopFlag

TWICE = """
import os, signal
from nasx.run import StopFlag
with StopFlag() as stop:
    os.kill(os.getpid(), signal.SIGUSR1)
    print(stop.requested, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
"""

CHILD = """
import os, signal
from nasx.run import StopFlag
with StopFlag() as stop:
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C reaches the workers, which their parent ends
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), stop.requested)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_sets_the_flag_and_the_handler_before_comes_back(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with StopFlag() as stop:
        stop.raise_if_requested()
        os.kill(os.getpid(), signum)
        assert stop.requested
        with pytest.raises(Interrupted, match=signum.name):
            stop.raise_if_requested()
    assert signal.getsignal(signum) is before


def test_a_second_signal_ends_the_process_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("True\n", 75)


def test_under_torchrun_a_signal_that_comes_twice_at_once_is_one() -> None:
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "one"}
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.returncode) == ("True\nstill here\n", 0)


def test_a_forked_worker_ends_by_its_own_signals_but_not_by_ctrl_c() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True)
    assert done.stdout.split() == [str(-signal.SIGTERM), "False"], done.stderr


def test_another_thread_gets_a_flag_without_handlers() -> None:
    seen = []

    def work() -> None:
        with StopFlag() as stop:
            seen.append(signal.getsignal(signal.SIGTERM))
            stop.request()
            seen.append(stop.requested)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, True]
