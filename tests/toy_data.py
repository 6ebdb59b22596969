"""Small data sets of random pixels, their streams, and what tests compare of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bench.data.sets import Dataset, Split
from bench.data.stream import Stream
from bench.records.recipe import Recipe

CPU = torch.device("cpu")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"  # real images, where they are there
PLAIN = {"crop": "none", "flip": False, "batch_size": 8, "epochs": 4}


def toy(samples: int = 40, classes: int = 4, channels: int = 3, size: int = 8) -> Dataset:
    """Random pixels; mean and std that a reference can undo."""
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (samples, channels, size, size), dtype=torch.uint8, generator=draws)
    split = Split(images, torch.arange(samples) % classes)
    mean, std = (0.5, 0.25, 0.75)[:channels], (0.5, 0.25, 0.125)[:channels]
    return Dataset(split, split, classes, mean, std, tuple(map(str, range(classes))))


def streamed(data: Dataset, seed: int = 0, partner: str | None = None, **recipe: object) -> Stream:
    return Stream(data.train, data, Recipe(**(PLAIN | recipe)), seed, CPU, partner=partner)


def pixels(images: Tensor, data: Dataset) -> Tensor:
    """The uint8 images before normalization."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    return ((images.double() * std + mean) * 255).round().to(torch.uint8)


def same(first: list, second: list) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one, two, strict=True)
    )
