"""One file of results at a time: written completely or not at all, sealed by a digest, set aside when damaged. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from bench.records.record import SCHEMA, Cost, Record, seal, unseal
from bench.records.teacher import TeacherAccuracy

Model = TypeVar("Model", Record, Cost, TeacherAccuracy)


class DamagedError(ValueError):
    """A file is missing, cut short, edited by hand, or not the one that its record names."""


class UnreadableError(ValueError):
    """A file is intact, and its schema, a key or a value is unknown here: another version wrote it. It is left alone."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"this version cannot read it and leaves it alone: {reason}")


class Problem(NamedTuple):
    """A file that cannot be used, and why."""

    path: str  # relative to the results folder
    reason: str


def write(path: Path, content: bytes | str) -> str:
    """Write a complete file beside its place and rename it into it; returns the SHA-256 of its content."""
    raw = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return hashlib.sha256(raw).hexdigest()


def copy(source: Path, target: Path) -> None:
    """Copy a file beside its new place and rename it into it."""
    scratch = target.with_name(f".{target.name}.copy")
    shutil.copyfile(source, scratch)
    scratch.replace(target)


def write_json(path: Path, body: dict[str, Any] | BaseModel) -> None:
    """Write sealed JSON: see `bench.records.record.seal`."""
    plain = body.model_dump(mode="json") if isinstance(body, BaseModel) else body
    write(path, json.dumps(seal(plain), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The body of a sealed JSON file.

    Raises:
        DamagedError: it is not JSON, or its digest is wrong.
        OSError: it is not there, or may not be read.
    """
    try:
        sealed = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise DamagedError("it is not JSON: cut short, or damaged") from None
    if not isinstance(sealed, dict):
        raise DamagedError("it is not a JSON object")
    try:
        return unseal(sealed)
    except ValueError as error:
        raise DamagedError(str(error)) from None


def read_hint(path: Path) -> dict[str, Any] | None:
    """The body of a sealed JSON file that nothing depends on; None where it is absent or damaged."""
    try:
        return read_json(path)
    except (ValueError, OSError):
        return None


def set_aside(path: Path) -> Path:
    """Rename a damaged file so that it is neither used nor lost."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return path.rename(aside)


def parse(model: type[Model], body: dict[str, Any]) -> Model:
    """Validate the body of a record or cost.

    Raises:
        UnreadableError: unknown schema, a missing, unknown or impossible value, or an id that its contents do not give.
    """
    version = body.get("schema_version")
    if version != SCHEMA:
        raise UnreadableError(f"its schema is version {version}, this version reads {SCHEMA}")
    try:
        parsed = model.model_validate(body)
    except ValidationError as error:
        raise UnreadableError(first(error)) from None
    if isinstance(parsed, Record) and (reason := parsed.mismatch()):
        raise UnreadableError(reason)
    return parsed


def first(error: ValidationError) -> str:
    """'accuracies.last.top1: Input should be less than or equal to 100'."""
    detail = error.errors()[0]
    return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
