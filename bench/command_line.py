"""How a verb of the command line is declared, parsed and run: a function, one line about it, and its arguments. Imports nothing
that takes time."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.errors import ExitError, UserError, no_exit
from bench.texts import bounded, one_line, write_what_can_be_written

if TYPE_CHECKING:
    from bench.screen import Screen

Given = argparse.Namespace  # what the user gave
Action = Callable[[Given], int | None]  # returns the exit code; None is 0
Argument = Callable[[argparse._ActionsContainer], object]  # adds an argument, or several


class Verb(NamedTuple):
    action: Action
    about: str
    arguments: tuple[Argument, ...]


VERBS: dict[str, Verb] = {}  # in the order of their declaration


def verb(about: str, *arguments: Argument) -> Callable[[Action], Action]:
    """Make a function a verb of its own name; a '_' at the end of the name is left out."""

    def declare(action: Action) -> Action:
        VERBS[action.__name__.rstrip("_")] = Verb(action, about, arguments)
        return action

    return declare


def argument(*names: str, complete: Callable[..., list[str]] | None = None, **settings: Any) -> Argument:
    """See `argparse.ArgumentParser.add_argument`. `complete`: values that a shell may offer, see argcomplete's completers."""

    def add(parser: argparse._ActionsContainer) -> argparse.Action:
        action = parser.add_argument(*names, **settings)
        if complete:
            action.completer = complete  # type: ignore[attr-defined]
        return action

    return add


def count(text: str) -> int:
    """A number from 0 on."""
    if not text.isdecimal() or len(text) > 6:
        raise argparse.ArgumentTypeError(f"a number from 0 to 999,999, not '{text[:80]}'")
    return int(text)


def number(name: str, about: str, default: int | None = None) -> Argument:
    return argument(name, type=count, default=default, metavar="N", help=about)


def flag(name: str, about: str) -> Argument:
    return argument(name, action="store_true", help=about)


def several(name: str, about: str, metavar: str, *others: str, dest: str, **settings: Any) -> Argument:
    """An option that may be given again and again; `others`: further names."""
    return argument(name, *others, dest=dest, action="append", default=[], metavar=metavar, help=about, **settings)


def together(*arguments: Argument) -> Argument:
    return lambda parser: [add(parser) for add in arguments]


def group(title: str, *arguments: Argument) -> Argument:
    """Arguments with a heading of their own in the help."""
    return lambda parser: together(*arguments)(parser.add_argument_group(title))


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog=name, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for key, declared in VERBS.items():
        sub = verbs.add_parser(key, help=declared.about, description=declared.about)
        together(*declared.arguments)(sub)
    return top


def console() -> Screen:
    """What verbs print to. In a pipe lines are as long as they are: what other programs read is not wrapped."""
    from bench.screen import Screen, environment

    piped = not sys.stdout.isatty() and "COLUMNS" not in environment()
    return Screen(width=10_000) if piped else Screen()


def write(*lines: str) -> None:
    """Print lines that may hold what a user wrote, each as one."""
    for line in lines:
        print(one_line(line))


def _check_links(words: list[str]) -> None:
    """
    Raises:
        UserError: a place that was given is a link that leads to itself, or lies below one.
    """
    for word in words:
        try:
            Path(word).stat()
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UserError(f"{word}: a link that leads to itself") from None
        except ValueError:  # no path: it holds a character that none has
            pass


def _check_current_folder() -> None:
    """
    Raises:
        UserError: it was removed, and torch's libraries would be looked for in vain.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the current folder was removed; change to another one") from None


def run(given: Given) -> int:
    """Run the verb that was given; what a user can mend is one line and exit code 2."""
    write_what_can_be_written()
    texts = [text for value in vars(given).values() for text in (value if isinstance(value, list) else [value])]
    words = [text for text in texts if isinstance(text, str) and text]
    os.environ["MPLBACKEND"] = "agg"  # figures are files; a shell's choice may be none that is installed
    try:
        _check_current_folder()
        _check_links(words)
        with no_exit():
            return VERBS[given.verb].action(given) or 0
    except (UserError, ExitError) as error:
        print(bounded(f"error: {error}", words), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:  # silent, and yet no success: `run` may be in the middle of it
        sys.stderr.close()
        return 128 + signal.SIGPIPE
    except OSError as error:  # of a place that was given: full, read-only, out of reach, no folder, held by another, ...
        place = error.filename2 or error.filename
        print(bounded(f"error: {f'{place}: ' if place else ''}{error.strerror or error}", words), file=sys.stderr)
        return 2
