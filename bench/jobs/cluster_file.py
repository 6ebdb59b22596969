"""Where jobs run and what they ask for: a kind of cluster or a cluster file, with options over it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.errors import UserError, unknown
from bench.jobs.base import Backend, backends
from bench.texts import misfit
from bench.user_files import mapping

KIND_OF_FILES = "slurm"  # of a cluster file without a `kind`


def read(name: str, options: Mapping[str, Any]) -> Backend:
    """The backend that a kind or a cluster file names, with options (None: not given) over the file.

    Raises:
        UserError: no such file, not YAML, an unknown key, a value that cannot be, or one without effect here.
    """
    known = backends()
    raw = {"kind": name} if name in known else {"kind": KIND_OF_FILES} | _file(Path(name), list(known))
    kind = raw.pop("kind")
    if not isinstance(kind, str) or kind not in known:
        raise unknown("kind", kind, known, f"{name}, kind")
    raw |= {key: value for key, value in options.items() if value is not None}
    try:
        return known[kind].model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] != "extra_forbidden":
            raise UserError(f"{name}, {key}: {misfit(first)}") from None
        if any(key in other.model_fields for other in known.values()):
            raise UserError(f"{name}, {key}: has no effect on a cluster of kind {kind}") from None
        raise unknown("key", key, ["kind", *known[kind].model_fields], name) from None


def _file(path: Path, kinds: list[str]) -> dict[str, Any]:
    if not path.exists():
        raise unknown("cluster", str(path), kinds, "no such file")
    keys = dict.fromkeys(key for backend in backends().values() for key in backend.model_fields)
    return mapping(path, f"a cluster file is a mapping with keys {', '.join(['kind', *keys])}")
