"""What this process does with memory that is free again."""

import ctypes
import os


def keep_freed_memory() -> bool:
    """Have this process keep the memory that tensors free, and return whether it will; for processes that train.

    glibc hands large blocks back to the system, which clears them page by page when the next step wants them. Nothing
    changes with other C libraries, and nothing on other devices.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    large = any(mallopt(mmap_threshold, size) for size in (2**30, 2**25))  # older versions take no more than 32 MiB
    return bool(large and mallopt(trim_threshold, 2**31 - 1))
