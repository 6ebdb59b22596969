"""Crops of training images, several batches at a time: how each is drawn, and how it is cut out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.data.augment import draw_boxes, resize_boxes, send
from bench.data.files import STREAMED_SIZE, Crops, Files, generator
from bench.records.recipe import Recipe


class Cropper(Protocol):
    """Cropped images, several batches at a time."""

    shape: tuple[int, int, int]  # (C, H, W)

    def draw(self, order: Tensor, key: tuple[object, ...]) -> Any:
        """What `batches` needs, on the CPU; `key` names the draws."""

    def batches(self, order: Tensor, drawn: Any) -> Iterator[Tensor]:
        """(B, C, H, W) uint8 on the device, channels last in memory."""


def batches_at_once(images: Tensor | Files, recipe: Recipe, device: torch.device) -> int:
    """How many are augmented together: several on a GPU and under a policy, to launch fewer kernels; fewer of large images."""
    if isinstance(images, Files):
        return 1
    wanted = 2048 if device.type != "cpu" else 512 if recipe.augment != "none" or recipe.color_jitter else 1  # images of 32x32
    enlarged = max(recipe.image_size, *images.shape[2:]) ** 2 / 32**2
    return math.ceil(wanted / max(1, enlarged) / recipe.batch_size)


def cropper(images: Tensor | Files, recipe: Recipe, device: torch.device, count: int) -> Cropper:
    if isinstance(images, Files):
        return StreamedCrops(images, recipe.image_size or STREAMED_SIZE, recipe, device)
    if recipe.crop == "resized":
        return ResizedCrops(images, recipe.image_size or images.shape[3], device, count)
    padding = recipe.crop_padding if recipe.crop == "pad" else 0
    return PaddedCrops(images, padding, recipe.padding, device, count)


class PaddedCrops:
    """Crops of the stored size out of padded images.

    Every possible crop is a view of the padded set, (N, 2 padding + 1, 2 padding + 1, H, W, C): indexing it copies the crops,
    whole rows at a time, since channels are last.
    """

    def __init__(self, images: Tensor, padding: int, mode: str, device: torch.device, count: int) -> None:
        self.shape = (images.shape[1], images.shape[2], images.shape[3])
        padded = images.permute(0, 2, 3, 1).to(device)
        if mode == "reflect":
            rows, columns = (_reflected(side, padding, device) for side in images.shape[2:])
            padded = padded[:, rows][:, :, columns].contiguous()
        else:
            padded = F.pad(padded, (0, 0, padding, padding, padding, padding)).contiguous()
        windows = padded.unfold(1, self.shape[1], 1).unfold(2, self.shape[2], 1)
        self.windows, self.device, self.count = windows.permute(0, 1, 2, 4, 5, 3), device, count

    def draw(self, order: Tensor, key: tuple[object, ...]) -> Tensor:
        corners = torch.randint(self.windows.shape[1], (2, len(order)), generator=generator(*key))
        return torch.cat([order.unsqueeze(0), corners])

    def batches(self, order: Tensor, drawn: Tensor) -> Iterator[Tensor]:
        for part in send(drawn, self.device).split(self.count, 1):
            yield self.windows[tuple(part)].permute(0, 3, 1, 2)


def _reflected(side: int, padding: int, device: torch.device) -> Tensor:
    """Positions (side + 2 padding,) of a side that is reflected at its first and last pixel, which are not repeated."""
    return side - 1 - (side - 1 - torch.arange(-padding, side + padding, device=device).abs()).abs()


class ResizedCrops:
    """ImageNet's random resized crops out of images in memory."""

    def __init__(self, images: Tensor, size: int, device: torch.device, count: int) -> None:
        self.shape = (images.shape[1], size, size)
        self.images, self.size, self.device, self.count = images.to(device), size, device, count

    def draw(self, order: Tensor, key: tuple[object, ...]) -> Tensor:
        height, width = self.images.shape[2:]
        return draw_boxes(len(order), height, width, generator(*key))

    def batches(self, order: Tensor, drawn: Tensor) -> Iterator[Tensor]:
        indices, boxes = (send(each, self.device).split(self.count) for each in (order, drawn))
        for index, box in zip(indices, boxes, strict=True):
            yield resize_boxes(self.images[index], box, self.size)


class StreamedCrops:
    """ImageNet's random resized crops out of image files, decoded in processes."""

    def __init__(self, files: Files, size: int, recipe: Recipe, device: torch.device) -> None:
        self.shape = (3, size, size)
        self.files, self.size, self.recipe, self.device = files, size, recipe, device

    def draw(self, order: Tensor, key: tuple[object, ...]) -> tuple[object, ...]:
        return key  # each process draws for the images that it decodes

    def batches(self, order: Tensor, drawn: tuple[object, ...]) -> Iterator[Tensor]:
        copies = torch.arange(len(order)) % self.recipe.repeats
        return Crops(self.files, self.size, drawn).batches(order, self.recipe.batch_size, self.device, copies)
