"""Digests of source code: of a file and of what it imports below its folder. Comments, docstrings and layout change nothing."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LAYOUT = frozenset({tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER})
MARKS = {tokenize.NEWLINE: ";", tokenize.INDENT: "{", tokenize.DEDENT: "}"}
# From Python 3.12 on an f-string is several tokens, before it is one: its text is hashed in every version.
STARTS = frozenset(getattr(tokenize, name) for name in ("FSTRING_START", "TSTRING_START") if hasattr(tokenize, name))
ENDS = frozenset(getattr(tokenize, name) for name in ("FSTRING_END", "TSTRING_END") if hasattr(tokenize, name))


def of_file(path: Path, home: Path | None = None) -> str:
    """Digest of a Python file and of all that it imports, directly or not, from files in `home` or below.

    Args:
        home: default: the file's folder; of a package's file the folder of the outermost package.
    """
    path = path.resolve()
    home = home.resolve() if home else _home(path)
    found = [path]
    for file in found:  # grows meanwhile
        found += [other for other in _imported(file, home) if other not in found]
    return hashlib.sha256("".join(of_text(file.read_bytes()) for file in found).encode()).hexdigest()


def of_text(raw: bytes) -> str:
    """Digest of a file's tokens; of its bytes where they are no Python."""
    try:
        text = "\0".join(_tokens(raw))
    except (SyntaxError, tokenize.TokenError, UnicodeDecodeError):
        return hashlib.sha256(raw).hexdigest()
    return hashlib.sha256(text.encode()).hexdigest()


def _tokens(raw: bytes) -> Iterator[str]:
    """The tokens, line by line; a line of strings alone is a docstring and left out."""
    line: list[str] = []
    plain = False  # whether the line has anything but strings
    lines = raw.decode("utf-8-sig").splitlines(keepends=True)
    depth, start = 0, (0, 0)
    for token in tokenize.tokenize(io.BytesIO(raw).readline):
        if token.type in STARTS:
            depth, start = depth + 1, start if depth else token.start
        if depth:
            depth -= token.type in ENDS
            if not depth:
                line.append(_between(lines, start, token.end))
                plain = True
        elif token.type == tokenize.NEWLINE:
            yield from [*line, MARKS[token.type]] if plain else []
            line, plain = [], False
        elif token.type in MARKS:
            yield MARKS[token.type]
        elif token.type not in LAYOUT:
            line.append(token.string)
            plain = plain or token.type != tokenize.STRING


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]]
    return "".join([lines[start[0] - 1][start[1] :], *lines[start[0] : end[0] - 1], lines[end[0] - 1][: end[1]]])


def _home(path: Path) -> Path:
    home = path.parent
    while (home / "__init__.py").is_file() and (home.parent / "__init__.py").is_file():
        home = home.parent
    return home


def _imported(path: Path, home: Path) -> Iterator[Path]:
    """Files in `home` or below that a file imports, in the order of their names."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    names: set[tuple[Path | None, str]] = set()  # (folder of a relative import, dotted name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(None, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if 0 < node.level <= len(path.parents) else None
            module = node.module or ""
            names |= {(base, ".".join(filter(None, [module, alias.name]))) for alias in node.names}
            names |= {(base, module)} if module else set()
    for base, name in sorted(names, key=str):
        for folder in [base] if base else [home, home.parent, home.parent.parent]:
            place = folder.joinpath(*name.split("."))
            for file in (place.with_name(place.name + ".py"), place / "__init__.py"):
                if file.is_file() and file.resolve().is_relative_to(home):
                    yield file.resolve()


@cache
def shipped(folder: Path, key: str) -> str:
    """Digest of the file in a folder of this project that registers a key, and of its imports there; where it is not found,
    of all files of the folder."""
    every = sorted(folder.glob("*.py"))
    found = [path for path in every if path.stem == key] or [path for path in every if key in _registered(path)]
    if found:
        return of_file(found[0], folder)
    return hashlib.sha256("".join(of_text(path.read_bytes()) for path in every).encode()).hexdigest()


@cache
def _registered(path: Path) -> set[str]:
    """Names of the functions that a file registers under their own names."""
    functions = [node for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.FunctionDef)]
    return {each.name for each in functions if any("register_module" in ast.unparse(by) for by in each.decorator_list)}


_seen: dict[Path, str] = {}


def loaded(path: Path) -> str:
    """Digest of a user's file as it was when this process first asked: that is what runs, whatever is edited meanwhile."""
    path = path.resolve()
    if path not in _seen:
        _seen[path] = of_file(path)
    return _seen[path]


def edited(path: Path) -> bool:
    """Whether a user's file, or what it imports, has changed since this process first asked for its digest."""
    path = path.resolve()
    return path in _seen and of_file(path) != _seen[path]


def forget(path: Path) -> None:
    """Ask anew next time, since the file was not imported."""
    _seen.pop(path.resolve(), None)
