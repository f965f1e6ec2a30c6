"""What the process that workers are forked from imports first: no worker need import it again.

That process has the signals blocked that end a program, because workers could not outlive it; its workers have not.
"""

import os
import signal
from functools import partial

import torch._dynamo  # noqa: F401 - which the first optimizer imports otherwise

from nasx.run.signals import SIGNALS

os.register_at_fork(after_in_child=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, SIGNALS))
