"""What a training leaves while it goes on: its checkpoint, its log, and hints, on which nothing depends. No torch here."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.records.files import LARGE, TEXT, Folder
from bench.records.problems import RefusedError

CHECKPOINT, FAILURE, LOG = "checkpoint", "failure.json", "log.txt"
SCRATCH = (CHECKPOINT, "progress.json", FAILURE, "attempts.json", "eager.json")  # of a cell, until it is done


class Hint(BaseModel):
    """What a hint must hold to be used; other keys are kept. One of another version or of a stranger is as good as none."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Reached(Hint):
    """How far a training is."""

    epoch: int
    epochs: int
    share: float
    top1: float | None = None
    images_per_s: float = 0.0
    clocks: dict[str, float]  # seconds by what they were spent on


class Failure(Hint):
    """Why a training has failed."""

    error: str
    trace: str = ""
    when: str = ""
    again: bool = False  # whether the next `run` tries without being asked to


class Attempts(Hint):
    """Workers that began a cell since its last checkpoint."""

    attempts: int
    checkpoint: str | None  # its first bytes


class Scratch:
    """The scratch files of a cell's folder."""

    _folder: Folder

    def _hint(self, name: str, kind: type[Hint]) -> dict[str, Any] | None:
        body = self._folder.read_hint(name)
        try:
            return None if body is None else kind.model_validate(body).model_dump()
        except ValidationError:
            return None

    def write_checkpoint(self, raw: bytes) -> None:
        self._folder.write(CHECKPOINT, hashlib.sha256(raw).hexdigest().encode() + raw)

    def read_checkpoint(self) -> bytes | None:
        """The last checkpoint; None where there is none. A damaged one is set aside, and the training starts anew."""
        try:
            content = self._folder.read(CHECKPOINT, LARGE)
        except FileNotFoundError:
            return None
        except RefusedError:
            self.set_aside_checkpoint()
            return None
        head, raw = content[:64], content[64:]
        if hashlib.sha256(raw).hexdigest().encode() != head:
            self.set_aside_checkpoint()
            return None
        return raw

    def set_aside_checkpoint(self) -> None:
        self._folder.aside(CHECKPOINT)

    def drop_checkpoint(self) -> None:
        self._folder.remove(CHECKPOINT)

    def progress(self) -> dict[str, Any] | None:
        """What a training wrote last of how far it is; None where absent or damaged: it is a hint, as a failure is."""
        return self._hint("progress.json", Reached)

    def write_progress(self, progress: dict[str, Any]) -> None:
        self._folder.write_json("progress.json", progress, durable=False)

    def failure(self) -> dict[str, Any] | None:
        """{"error", "trace", "when", "again"} of the last failure, or None."""
        return self._hint(FAILURE, Failure)

    def write_failure(self, error: str, trace: str = "", again: bool = False) -> None:
        """Leave a trace in the place of a record. `again`: the next `run` tries without being asked to."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        body = {"error": error, "trace": trace, "when": when, "again": again}
        self._folder.write_json(FAILURE, body)
        self.end_attempts()

    def clear_failure(self) -> None:
        self._folder.remove(FAILURE)

    def begin_attempt(self) -> int:
        """Count the workers that began this cell since its last checkpoint, this one included."""
        head = self._folder.head(CHECKPOINT, 64).hex() or None
        last = self._hint("attempts.json", Attempts) or {}
        attempts = (last["attempts"] if last and last["checkpoint"] == head else 0) + 1
        self._folder.write_json("attempts.json", {"attempts": attempts, "checkpoint": head}, durable=False)
        return attempts

    def end_attempts(self) -> None:
        self._folder.remove("attempts.json")

    def write_eager(self, reason: str) -> None:
        """Have the attempts that follow take their steps one by one."""
        self._folder.write_json("eager.json", {"reason": reason}, durable=False)

    def eager_reason(self) -> str | None:
        """Why this cell's steps are not to be recorded, or None."""
        reason = (self._folder.read_hint("eager.json") or {}).get("reason")
        return reason if isinstance(reason, str) else None

    def log_handler(self) -> logging.Handler:
        """Appends to the cell's log; the caller closes it."""
        handler = _LogHandler(self._folder.append(LOG))
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        return handler

    def log(self) -> str | None:
        try:
            return self._folder.read(LOG, TEXT).decode(errors="replace")
        except FileNotFoundError:
            return None

    def visual_folder(self, attempt: str) -> Path:
        """For what mmengine's visualizer backends write in one attempt."""
        return self._folder.at("visual", attempt).path()


class _LogHandler(logging.StreamHandler[TextIO]):
    """What a full disk does not take of a log is left out: nothing depends on it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        if not isinstance(sys.exception(), OSError):  # a slip in what is logged, say
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what is left to write
            self.stream.close()
        super().close()
