"""A grid of tiny trainings for the tests of runs, and what of it must be the same however it was run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from bench.records.folders import ResultsFolder

GRID: dict[str, Any] = {
    "data": {"type": "digits", "train_images": 50, "test_images": 50},
    "recipe": {"name": "digits", "epochs": 3},
    "precision": "fp32",
    "seeds": [0],
    "pairs": [{"student": "resnet8", "teacher": "resnet8x4"}],
    "methods": ["none", "kd", "tfd"],
}


def write_grid(folder: Path, name: str = "small", **changes: Any) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(GRID | changes))
    return str(path)


def results(root: Path, grid: str = "small") -> dict[str, dict[str, Any]]:
    """By cell: all of its record but clocks, machines and moments."""
    records, problems = ResultsFolder(root).grid(grid).records()
    assert problems == []
    left_out = {"clocks", "neighbours", "machine", "commit", "started", "finished", "curves_sha256"}
    return {record.id: record.model_dump(mode="json", exclude=left_out) for record in records}


def trainings(root: Path, grid: str = "small") -> dict[str, int]:
    """By cell: how many times it was trained to the end."""
    logs = (root / grid).glob("*/log.txt")
    return {log.parent.name: sum(line.endswith(" finished") for line in log.read_text().splitlines()) for log in logs}
