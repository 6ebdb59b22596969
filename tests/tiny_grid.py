"""A grid of cells small enough to train in a second."""

from __future__ import annotations

from typing import Any

PAIR = {"student": "resnet8", "teacher": "resnet8"}
TINY: dict[str, Any] = {
    "about": "tiny",
    "data": {"type": "digits", "train_images": 40, "test_images": 40},
    "recipe": {"name": "digits", "epochs": 2, "batch_size": 16},
    "seeds": [0],
    "pairs": [PAIR],
    "methods": ["none"],
}


def expanded(**changes: Any) -> Any:
    """The tiny grid, with changes, as a `Grid`."""
    from bench.plan.expand import expand

    return expand("tiny", {**TINY, **changes}, device="cpu")
