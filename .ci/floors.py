"""Prints the lowest version of each package that pyproject.toml allows, as pip reads constraints: see `make floors`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def floors(pyproject: str) -> list[str]:
    """["filelock==3.20.3", ...], of extras as well.

    Raises:
        ValueError: a requirement states no lowest version.
    """
    project = tomllib.loads(pyproject)["project"]
    found = []
    for requirement in sum(project["optional-dependencies"].values(), project["dependencies"]):
        parts = re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement)
        if not parts:
            raise ValueError(f"{requirement}: write name>=version, so that the lowest version can be tested")
        found.append(f"{parts[1]}=={parts[2]}")
    return found


if __name__ == "__main__":
    print("\n".join(floors(PYPROJECT.read_text())))
