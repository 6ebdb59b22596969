"""Augmentations that a recipe names in `augment`, and the two that have fields of their own: color jitter, random erasing.

One is registered in `AUGMENTATIONS`. It draws on the CPU, once an epoch for all images, and changes a batch at a time.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from mmengine.registry import Registry
from torch import Tensor

from bench.data.augment import NAMES, Operations, apply, send
from bench.data.dataset import Dataset
from bench.records.recipe import Recipe

Draws = Any
"""What an augmentation has drawn: a tensor with a row for each image, or a tuple or list of such."""


class Augmentation(ABC):
    """Changes images, each with draws of its own. Constructor arguments are its settings: typed, with defaults.

    Attributes:
        shape: (C, H, W) of the images, after `setup`.
        normalized: whether it takes normalized images (floats), after all that take pixels (uint8, 0 to 255).
    """

    normalized: ClassVar[bool] = False

    def setup(self, data: Dataset, shape: tuple[int, int, int]) -> None:
        """Prepare for these data and images of this shape (C, H, W), before the first draw.

        Raises:
            ValueError: it cannot work with them; the message says why.
        """
        self.shape = shape

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Draw for so many images, on the CPU, from this generator alone. On a GPU a thread draws while `apply` works on the
        epoch before: keep nothing in `self`.
        """

    @abstractmethod
    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Images (B, C, H, W) after it, of the same type and on the same device. `draws`: their rows, still on the CPU."""


def rows(draws: Draws, where: slice) -> Draws:
    """The draws of some of the images."""
    if isinstance(draws, Tensor):
        return draws[where]
    parts = [rows(each, where) for each in draws]
    return type(draws)(*parts) if hasattr(draws, "_fields") else type(draws)(parts)


def build_augmentation(cfg: Mapping[str, Any], registry: Registry, **_: Any) -> Augmentation:
    """Build from `{"type": key, **arguments}`."""
    arguments = dict(cfg)
    key = arguments.pop("type")
    found = registry.get(key)
    if found is None:
        raise KeyError(f"unknown augmentation '{key}'; known: {', '.join(sorted(registry.module_dict))}")
    augmentation: Augmentation = found(**arguments)
    return augmentation


AUGMENTATIONS = Registry("augmentation", build_func=build_augmentation, locations=["bench.data.policies"])


MOST = 20  # augmentations of a recipe
SECTIONS: dict[str, tuple[str, Callable[[str], float]]] = {  # of timm's way of writing: the argument, and how it is read
    "m": ("magnitude", int),
    "n": ("operations", int),
    "p": ("probability", float),
    "mstd": ("spread", float),
    "mmax": ("largest", int),
    "inc": ("increasing", lambda text: bool(int(text))),
}


def from_timm(text: str) -> dict[str, Any] | None:
    """The spec of "rand-m9-mstd0.5-inc1", as timm writes RandAugment; None of any other name.

    Raises:
        ValueError: a section that timm does not have, or that is not here.
    """
    first, *sections = text.split("-")
    if first != "rand":
        return None
    spec: dict[str, Any] = {"type": "timm_rand_augment"}
    for section in sections:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", section)
        try:
            name, read = SECTIONS[match[1] if match else ""]
            spec[name] = read(match[2] if match else "")
        except (KeyError, ValueError):
            allowed = ", ".join(f"{key} ({name})" for key, (name, _) in SECTIONS.items())
            raise ValueError(f"'{text}' has a section '{section}'; allowed, each with a number: {allowed}") from None
    return spec


def specs(augment: object) -> list[dict[str, Any]]:
    """The specs in a recipe's `augment`: "none", a name, timm's way of writing RandAugment, a spec, or a list of these.

    Raises:
        ValueError: RandAugment is written in another way than timm's, or there are too many.
    """
    entries = list(augment) if isinstance(augment, list | tuple) else [] if augment == "none" else [augment]
    if len(entries) > MOST:
        raise ValueError(f"{len(entries)} augmentations; allowed: at most {MOST}")
    return [dict(each) if isinstance(each, Mapping) else from_timm(str(each)) or {"type": each} for each in entries]


def augmentations(recipe: Recipe) -> list[tuple[str, Augmentation]]:
    """A recipe's augmentations after crop and flip, in their order, with names for their draws."""
    found: list[tuple[str, Augmentation]] = []
    if recipe.color_jitter:
        found.append(("color jitter", ColorJitter(recipe.color_jitter)))
    for place, spec in enumerate(specs(recipe.augment)):
        found.append((f"policy {place}" if place else "policy", AUGMENTATIONS.build(spec)))
    if recipe.random_erasing:
        found.append(("erasing", RandomErasing(recipe.random_erasing)))
    return found


class ColorJitter(Augmentation):
    """torchvision's: brightness, contrast and saturation in random order, each by a factor in [1 - strength, 1 + strength]."""

    KINDS = ("Brightness", "Contrast", "Color")

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def setup(self, data: Dataset, shape: tuple[int, int, int]) -> None:
        check_channels("color_jitter", shape)

    def draw(self, count: int, generator: torch.Generator) -> list[Operations]:
        order = torch.rand(count, len(self.KINDS), generator=generator).argsort(1)
        change = self.strength * (2 * torch.rand(count, len(self.KINDS), generator=generator) - 1)
        kinds = torch.tensor([NAMES.index(name) for name in self.KINDS])
        return [Operations(kind, by) for kind, by in zip(kinds[order].unbind(1), change.unbind(1), strict=True)]

    def apply(self, images: Tensor, draws: list[Operations]) -> Tensor:
        for operations in draws:
            images = apply(images, operations)
        return images


class RandomErasing(Augmentation):
    """timm's, of normalized images: with this probability a rectangle becomes noise, a draw from N(0, 1) for each value.

    2 % to a third of the area, aspect ratio .3 to 1 / .3, up to ten attempts. Zhong et al. AAAI 2020. arXiv:1708.04896
    """

    normalized = True

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Boxes (count, 4): top, left, height, width, zeros where nothing is erased; seeds (count,) of the noise."""
        _, height, width = self.shape
        happens = torch.rand(count, generator=generator) <= self.probability
        area, ratio, top, left = torch.rand(4, count, 10, generator=generator, dtype=torch.float64)
        area = height * width * (0.02 + (1 / 3 - 0.02) * area)
        ratio = torch.exp(math.log(0.3) * (1 - 2 * ratio))
        heights, widths = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (heights < height) & (widths < width)
        boxes = torch.stack([(top * (height - heights + 1)).floor(), (left * (width - widths + 1)).floor(), heights, widths], 2)
        chosen = boxes[torch.arange(count), fits.int().argmax(1)].long()
        seeds = torch.randint(2**62, (count,), generator=generator)
        return chosen * (happens & fits.any(1)).unsqueeze(1), seeds

    def apply(self, images: Tensor, draws: tuple[Tensor, Tensor]) -> Tensor:
        boxes, seeds = draws
        noise = [
            torch.randn(images.shape[1] * height * width, generator=torch.Generator().manual_seed(seed))
            for (_, _, height, width), seed in zip(boxes.tolist(), seeds.tolist(), strict=True)
            if height * width
        ]
        if not noise:
            return images
        top, left, heights, widths = send(boxes, images.device).unsqueeze(2).unbind(1)  # (B, 1) each
        row, column = (torch.arange(size, device=images.device) for size in images.shape[2:])
        within = ((row >= top) & (row < top + heights)).unsqueeze(2) & ((column >= left) & (column < left + widths)).unsqueeze(
            1
        )
        return images.masked_scatter_(within.unsqueeze(1), send(torch.cat(noise).to(images.dtype), images.device))


def check_channels(name: str, shape: tuple[int, int, int]) -> None:
    if shape[0] not in (1, 3):
        raise ValueError(f"augment: '{name}' needs 1 or 3 channels; these images have {shape[0]}")
