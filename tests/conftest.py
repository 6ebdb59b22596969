"""What tests share: cells small enough to train in a second."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_grid import expanded

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side
os.environ.pop("COLUMNS", None)  # set where they do; a pipe has no width


@pytest.fixture
def tiny():
    """Expands the tiny grid, with changes, to a `Grid`."""
    return expanded


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="module")
def _registries_as_found():
    """What a file of tests registers is gone after it: other files ask for all that is registered."""
    from bench.data import AUGMENTATIONS, DATASETS
    from bench.engine.optimizer import OPTIMIZERS
    from bench.models import MODELS
    from methods import METHODS

    found = [(registry, dict(registry.module_dict)) for registry in (DATASETS, MODELS, METHODS, OPTIMIZERS, AUGMENTATIONS)]
    yield
    for registry, modules in found:
        registry.module_dict.clear()
        registry.module_dict.update(modules)
