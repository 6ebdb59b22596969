"""What can be wrong with a file of results. No torch here."""

from __future__ import annotations

from typing import NamedTuple

from bench.errors import UserError


class DamagedError(ValueError):
    """A file is missing, cut short, edited by hand, or not the one that its record names."""


class UnreadableError(ValueError):
    """A file is left alone: another version wrote it, the system does not let it be read, or the way to it is barred."""


class RefusedError(DamagedError, UserError):
    """What stands in the place of a file is no regular file, or is too large."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.reason = reason


class BarredError(UnreadableError, UserError):
    """What stands in the place of a folder is a link, or no folder."""


def reason(error: Exception) -> str:
    """What an error states about a file, without the file's name, which stands beside it."""
    if isinstance(error, RefusedError):
        return error.reason
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class Problem(NamedTuple):
    """A file that cannot be used, and why."""

    path: str  # relative to the results folder
    reason: str
