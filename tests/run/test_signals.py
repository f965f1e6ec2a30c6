import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from nasx.run import Interrupted, StopFlag

TWICE = """
import os, signal, sys, time
from nasx.run import StopFlag
with StopFlag() as stop:
    os.kill(os.getpid(), signal.SIGUSR1)
    print(stop.requested, flush=True)
    time.sleep(float(sys.argv[1]))
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
"""
LATER, AT_ONCE = "0.7", "0.01"  # seconds

UNTIL_ASKED = """
import sys, time
from nasx.run import Interrupted, StopFlag
try:
    with StopFlag() as stop:
        print("ready", flush=True)
        while True:
            stop.raise_if_requested()
            time.sleep(0.05)
except Interrupted as error:
    time.sleep(0.2)  # saves what there is
    print(error, flush=True)
    sys.exit(75)
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


def twice(apart: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", TWICE, apart]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_a_second_signal_ends_the_process_at_once_and_says_so() -> None:
    done = twice(LATER)
    assert (done.stdout, done.returncode) == ("True\n", 75)
    assert done.stderr == "interrupted again: ended at once; the same command continues from what was saved\n"


def test_two_signals_within_moments_are_one_request() -> None:
    done = twice(AT_ONCE)
    assert (done.stdout, done.stderr, done.returncode) == ("True\nstill here\n", "", 0)


def test_under_torchrun_moments_are_longer() -> None:
    done = twice(LATER, TORCHELASTIC_RUN_ID="one")
    assert (done.stdout, done.returncode) == ("True\nstill here\n", 0)


@pytest.mark.skipif(shutil.which("timeout") is None, reason="needs coreutils")
@pytest.mark.parametrize("signum", ["TERM", "INT"])
def test_timeout_which_signals_the_child_and_its_group_is_one_request(signum: str) -> None:
    command = ["timeout", "-s", signum, "2", sys.executable, "-c", UNTIL_ASKED]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"ready\nstopped by SIG{signum}\n"
    assert done.stderr == ""


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
