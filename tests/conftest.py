"""What tests share: cells small enough to train in a second."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side

PAIR = {"student": "resnet8", "teacher": "resnet8"}
TINY: dict[str, Any] = {
    "about": "tiny",
    "data": {"type": "digits", "train_images": 40, "test_images": 40},
    "recipe": {"name": "digits", "epochs": 2, "batch_size": 16},
    "seeds": [0],
    "pairs": [PAIR],
    "methods": ["none"],
}


@pytest.fixture
def tiny():
    """Expands the tiny grid, with changes, to a `Grid`."""
    from bench.plan.expand import expand

    def expanded(**changes: Any):
        return expand("tiny", {**TINY, **changes}, device="cpu")

    return expanded


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parent.parent
