"""Which Python runs `./run_bench.py`: the project's own, where the one that was called lacks the packages.

Runs on any Python 3, before anything else is imported.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

PROJECT = Path(__file__).absolute().parent.parent
PYTHON = PROJECT / ".venv" / "bin" / "python"
OLDEST = (3, 11)
NEEDED = ("pydantic", "rich", "yaml")  # stand for all packages
MARK = "DISTILLATION_BENCH_RESTARTED"  # an environment without the packages is not started again and again


def use_own() -> None:
    """Go on in the project's own environment, where this Python cannot run the project; end with one line where none can."""
    restarted = os.environ.pop(MARK, None)
    if sys.version_info >= OLDEST and all(importlib.util.find_spec(name) for name in NEEDED):
        return
    if os.access(PYTHON, os.X_OK) and not restarted:
        os.environ[MARK] = "1"
        os.execv(PYTHON, [str(PYTHON), *sys.argv])  # noqa: S606 (no shell)
    print(f"error: the packages of this project are not installed; type: make -C '{PROJECT}' bench", file=sys.stderr)
    sys.exit(2)
