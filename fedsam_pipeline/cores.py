"""How many CPU cores this process may use."""

import os


def usable_cores() -> int:
    """Cores that the scheduler lets this process run on: fewer than the machine has under a batch system or ``taskset``."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
