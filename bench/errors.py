"""Errors that a user can mend: shown without a traceback, exit code 2."""

from __future__ import annotations

import contextlib
import inspect
import sysconfig
import threading
import traceback
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

from bench.texts import brief

OURS = tuple(str(Path(__file__).resolve().parents[1] / name) for name in ("bench/", "methods/", "reports/", "run_bench.py"))
LONGEST_NAME = 200  # characters
LISTED = 100  # names that errors list in full
SHOWN = 130  # characters of a name that errors show in full; a cell's id has at most 120
LONGEST_TEXT = 1000  # of an error's text
INSTALLED = ("site-packages", "dist-packages")


class UserError(Exception):
    """Something that the user gave is wrong; the message says where, what, what is allowed, and what was likely meant."""


def unknown(what: str, name: object, known: Iterable[str], where: str = "") -> UserError:
    """'quick.yaml, methods: unknown method 'kdd'; did you mean 'kd'? Known: at, kd, ...'."""
    known = sorted(known)
    shown = name if isinstance(name, str) and len(name) <= SHOWN else brief(name).strip("'")
    lower = {each.lower(): each for each in known}
    close = get_close_matches(shown, known, n=1, cutoff=0.5)
    close = close or [lower[each] for each in get_close_matches(shown.lower(), lower, n=1, cutoff=0.5)]
    hint = f"; did you mean '{close[0]}'?" if close else "."
    listed = known if len(known) <= LISTED else [*known[:8], f"and {len(known) - 8} more"]
    return UserError(f"{where + ': ' if where else ''}unknown {what} '{shown}'{hint} Known: {', '.join(listed) or 'none'}")


class Stopped(SystemExit):
    """This process was asked to end, by SIGTERM."""


at_time_limit = threading.Event()  # set where a cluster's queue ends this process, and starts it again


class ExitError(RuntimeError):
    """A user's code has called sys.exit, which would end everything without a word."""


@contextlib.contextmanager
def no_exit() -> Iterator[None]:
    """
    Raises:
        ExitError: what runs within ends the process of its own accord.
    """
    try:
        yield
    except SystemExit as error:
        if isinstance(error, Stopped) or at_time_limit.is_set():  # submitit's handler ends the process then
            raise
        raise ExitError(f"it calls sys.exit({'' if error.code is None else repr(error.code)[:80]})") from error


class SplitError(ValueError):
    """Cells cannot go on in lock-step; `parts` are the ids of those that still can, group by group."""

    def __init__(self, reason: str, parts: list[list[str]]) -> None:
        super().__init__(reason)
        self.parts = parts


class OtherCodeError(UserError):
    """A user's file differs from the one that the run was planned with."""


def described(error: BaseException) -> str:
    """'KeyError: 'x' (mine.py:23)': an error of somebody else's code on one line, with its place in a user's own file."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # of a class whose own text fails
        text = ""
    cut = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
    place = place_of(error, ours=False)
    return type(error).__name__ + (f": {cut}" if cut else "") + (f" ({place})" if place else "")


def place_of(error: BaseException, ours: bool = True) -> str:
    """'mine.py:23': the innermost line of a user's own file in a traceback; empty where there is none.

    Args:
        ours: where there is none, take the innermost line of this project.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_installed(frame.filename)]
    found = [frame for frame in frames if not frame.filename.startswith(OURS)] or (frames if ours else [])
    return _shown(found[-1].filename, found[-1].lineno) if found else ""


def defined_at(found: object) -> str:
    """'mine.py:12': where a class or a function begins; empty where its source cannot be read."""
    try:
        return _shown(inspect.getsourcefile(found) or "", inspect.getsourcelines(found)[1])  # type: ignore[arg-type]
    except (OSError, TypeError):
        return ""


def _is_installed(file: str) -> bool:
    """Whether a file belongs to an installed package or to Python itself."""
    inside = any(f"/{folder}/" in file for folder in INSTALLED)
    return inside or file.startswith(("<", sysconfig.get_paths()["stdlib"]))


def _shown(file: str, line: int | None) -> str:
    """A path as short as it can be read from the folder where the command was typed."""
    path = Path(file)
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{line}"
