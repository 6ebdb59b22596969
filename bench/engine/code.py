"""The users' own code in this process: digests of the files that define what cells use and that do not ship with the bench."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path

from bench import sources
from bench.data import AUGMENTATIONS, DATASETS
from bench.engine.optimizer import OPTIMIZERS
from bench.errors import OtherCodeError
from bench.models import MODELS
from bench.records.cell import Cell
from bench.records.source import PROJECT, Code, keys
from methods import METHODS

REGISTRIES = {
    "data": DATASETS,
    "model": MODELS,
    "method": METHODS,
    "optimizer": OPTIMIZERS,
    "augmentation": AUGMENTATIONS,
}
SHIPPED = (PROJECT / "bench", PROJECT / "methods")


def own_code(cells: Iterable[Cell]) -> dict[str, str]:
    """Digests by what is registered ("method:cp"), as this process has imported it."""
    found = {}
    for key in sorted({key for cell in cells for key in keys(cell)}):
        kind, _, name = key.partition(":")
        if own := _own(REGISTRIES[kind].get(name)):
            found[key] = own
    return found


def check_same(planned: Code, cells: Iterable[Cell]) -> None:
    """Refuse to train with other code than the plan's.

    Raises:
        OtherCodeError: a file was edited after the run began.
    """
    here = own_code(cells)
    wanted = {key for cell in cells for key in keys(cell)}
    differing = [key for key in sorted(wanted) if here.get(key) != planned.get(key)]
    if differing:
        raise OtherCodeError(f"the code of {', '.join(differing)} was edited after the run began: run again")


def _own(found: object) -> str | None:
    """The digest of what defines a class or a function; None where it ships with the bench."""
    file = getattr(sys.modules.get(getattr(found, "__module__", "")), "__file__", None)
    if file is None:  # a notebook's
        try:
            return sources.of_text(inspect.getsource(found).encode())  # type: ignore[arg-type]
        except (OSError, TypeError):
            return hashlib.sha256(b"code that cannot be read").hexdigest()
    path = Path(file).resolve()
    return None if any(path.is_relative_to(folder) for folder in SHIPPED) else sources.loaded(path)
