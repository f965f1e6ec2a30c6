"""One thread for each test process and all that it starts: pytest-xdist gives every core a process of its own."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
