"""What a grid's folder holds that nothing depends on: what was tried out before a training, and what was handed to clusters. No
torch here."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from bench.records.cell import safe
from bench.records.files import Folder
from bench.records.handles import Holder
from bench.records.problems import BarredError

CHECK_LOCK = "check.lock"
Arrays = list[list[list[str]]]  # of a launch: its arrays, their jobs, the ids of the cells of each
ARRAYS = TypeAdapter(Arrays)


class Launch(NamedTuple):
    """What was handed to a cluster at one time."""

    backend: str  # the kind of cluster
    arrays: Arrays


class Finding(NamedTuple):
    """What came of trying a kind of cell out before its training."""

    error: str | None  # "": none; None: it is being tried, or the process died of it
    trace: str = ""
    again: bool = False  # whether the next run may find otherwise


CHECKS = TypeAdapter(dict[str, Finding])


class GridHints:
    """The hints of a grid's folder."""

    _folder: Folder

    def check_lock(self) -> contextlib.AbstractContextManager[None]:
        """Held by whoever tries cells out; waits for another who does."""
        return self._folder.lock(CHECK_LOCK, math.inf)

    def checking(self) -> tuple[bool, Holder | None]:
        """Whether somebody tries cells out right now; and who, or who did so last."""
        return self._folder.locked(CHECK_LOCK), self._folder.holder(CHECK_LOCK)

    def checks(self) -> dict[str, Finding]:
        """What was tried out before, by kind; empty where the file is absent or damaged."""
        found = (self._folder.read_hint("checks.json") or {}).get("checks")
        with contextlib.suppress(ValidationError):
            return CHECKS.validate_python(found or {})
        return {}

    def write_checks(self, checks: dict[str, Finding]) -> None:
        plain = {kind: finding._asdict() for kind, finding in checks.items()}
        self._folder.write_json("checks.json", {"checks": plain}, durable=False)

    def launch_folder(self, launch: str) -> Path:
        """For what submitit writes of one launch."""
        return self._folder.at("launches", safe(launch)).path()

    def write_launch(self, launch: str, backend: str, arrays: Arrays) -> None:
        self._folder.at("launches").write_json(f"{safe(launch)}.json", {"arrays": arrays, "backend": backend})

    def launches(self) -> dict[str, Launch]:
        """What was handed to clusters, by the launch's name. Damaged files are left out: they are hints."""
        found = {}
        with contextlib.suppress(BarredError, OSError):
            folder = self._folder.at("launches")
            for name in folder.files(".json"):
                with contextlib.suppress(ValueError, OSError):
                    body = folder.read_json(name)
                    arrays = ARRAYS.validate_python(body.get("arrays"))
                    found[name.removesuffix(".json")] = Launch(str(body.get("backend", "slurm")), arrays)
        return found
