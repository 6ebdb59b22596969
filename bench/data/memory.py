"""How much memory there is for images, asked before they are read: a process that runs out of it dies without a word."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

SHARE = 0.8  # of the free memory; the rest is for the process that reads them
CGROUP = Path("/sys/fs/cgroup")  # what a cluster's job or a container may use stands here on Linux


def free() -> int:
    """Bytes of memory that this process may still take, which a cluster or container may limit."""
    found = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines()).get("inactive_file", 0)
        found = min(found, limit - used + int(cached))
    return max(0, found)


def require(needed: int, what: str, remedy: str) -> None:
    """Refuse to hold what does not fit.

    Args:
        needed: bytes.
        what: what would be held, for the error.
        remedy: what to do instead, for the error.

    Raises:
        ValueError: it needs more than a share of the free memory.
    """
    available = free()
    if needed > SHARE * available:
        sizes = f"{needed / 2**30:.1f} GiB of memory, and {available / 2**30:.1f} GiB are free"
        raise ValueError(f"{what} would need {sizes}; {remedy}")
