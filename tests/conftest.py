"""What tests share: cells small enough to train in a second."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_grid import expanded

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side


@pytest.fixture
def tiny():
    """Expands the tiny grid, with changes, to a `Grid`."""
    return expanded


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parent.parent
