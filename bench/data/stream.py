"""What a training run sees, epoch after epoch: shuffled and augmented in batches, on the device.

Every draw depends on the data set, the seed and the epoch alone and is made on the CPU, once an epoch for all samples. Hence
methods of one seed see the same images, on every device, and a resumed run sees what an undisturbed one would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cell import Recipe
from bench.data.sets import Dataset, Split
from methods.base import Batch

CHUNK_IMAGES = {"cpu": 1, "cuda": 2048}  # augmented at once, at least; fewer kernel launches on a GPU, better caching on a CPU


def generator(*key: object) -> torch.Generator:
    """A CPU generator of its own for each key."""
    seed = hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)


class Normalise:
    """uint8 images (B, C, H, W) to (x / 255 - mean) / std in the target's type and memory format."""

    def __init__(self, data: Dataset, device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
        mean, std = torch.tensor(data.mean, dtype=torch.float64), torch.tensor(data.std, dtype=torch.float64)
        self.scale = (1 / (255 * std)).float().to(device)
        self.shift = (-mean / std).float().to(device)
        self.dtype, self.memory_format = dtype, memory_format

    def __call__(self, images: Tensor) -> Tensor:
        rows = images.permute(0, 2, 3, 1).flatten(2)  # (B, H, W * C): operands of a whole row, for vector instructions
        width = images.shape[3]
        rows = torch.addcmul(self.shift.repeat(width), rows.float(), self.scale.repeat(width)).to(self.dtype)
        return rows.unflatten(2, (width, -1)).permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)


class Stream:
    """Batches of one training run.

    Args:
        train: the training set, without what is held out.
        data: where it comes from; for mean, std and the number of classes.
        recipe: batch size, epochs, augmentation.
        seed: of order and augmentation.
        device, dtype, memory_format: of the images.
        partner: a second image for each sample: another one of its class, or the same one augmented once more. Drawn apart, so
            that the first images stay the same.
    """

    def __init__(
        self,
        train: Split,
        data: Dataset,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        partner: Literal["same_class", "second_view"] | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        samples, self.batch_size = len(train.targets), recipe.batch_size
        self.samples = samples - (samples % self.batch_size == 1)  # batch norm cannot train on a single image
        if self.samples < 1:
            raise ValueError(f"{samples} training images are too few; allowed: at least 2")
        self.train, self.recipe, self.seed, self.device, self.partner = train, recipe, seed, device, partner
        self.classes = data.classes
        self.normalise = Normalise(data, device, dtype, memory_format)
        assert isinstance(train.images, Tensor)
        self.windows = _windows(train.images, recipe.crop_padding if recipe.crop == "pad" else 0, device)
        self.targets = train.targets.to(device)
        batches = -(-CHUNK_IMAGES[device.type] // self.batch_size)
        self.chunk_size = batches * self.batch_size

    def __len__(self) -> int:
        """Steps an epoch; the last batch may be smaller."""
        return -(-self.samples // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, 0-based."""
        order = torch.randperm(len(self.train.targets), generator=generator("order", self.seed, epoch))[: self.samples]
        index = order.to(self.device)
        target = self.targets[index]
        images = self._images(order, "image", epoch)
        partners = None
        steps = self.recipe.epochs * len(self)
        for step, (batch_index, batch_target) in enumerate(
            zip(index.split(self.batch_size), target.split(self.batch_size), strict=True)
        ):
            yield Batch(
                image=next(images),
                target=batch_target,
                index=batch_index,
                epoch=epoch,
                epochs=self.recipe.epochs,
                progress=(epoch * len(self) + step) / steps,
                partner=next(partners) if partners else None,
            )

    def _images(self, order: Tensor, view: str, epoch: int) -> Iterator[Tensor]:
        """Batches of augmented, normalised images; `view` names the draws."""
        draws = generator(view, self.seed, epoch)
        offsets = torch.randint(0, self.windows.shape[1], (2, len(order)), generator=draws)
        flips = torch.rand(len(order), generator=draws) < 0.5
        tops, lefts = offsets.to(self.device)
        drawn = (order.to(self.device), tops, lefts, flips.to(self.device))
        for index, top, left, flip in zip(*(tensor.split(self.chunk_size) for tensor in drawn), strict=True):
            images = self.windows[index, top, left].permute(0, 3, 1, 2)
            if self.recipe.flip:
                images = torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)
            yield from self.normalise(images).split(self.batch_size)


def _windows(images: Tensor, padding: int, device: torch.device) -> Tensor:
    """Every crop of the zero-padded images as a view, (N, 2 padding + 1, 2 padding + 1, H, W, C): indexing it copies the crops.

    Channels last in memory, so that a crop is copied by whole rows.
    """
    height, width = images.shape[2:]
    padded = F.pad(images.permute(0, 2, 3, 1).to(device), (0, 0, padding, padding, padding, padding)).contiguous()
    return padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)


def evaluation_batches(
    split: Split,
    data: Dataset,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 500,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, targets) of the whole split in its order, normalised, not augmented."""
    assert isinstance(split.images, Tensor)
    normalise = Normalise(data, device, dtype, memory_format)
    for images, targets in zip(split.images.split(batch_size), split.targets.split(batch_size), strict=True):
        yield normalise(images.to(device, non_blocking=True)), targets.to(device)
