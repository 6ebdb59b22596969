"""How many CPU cores there are to use. No torch here."""

import os


def usable_cores() -> int:
    """Those that this process may use, which a cluster or container may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
