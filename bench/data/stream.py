"""The batches of a training run: shuffled, augmented, on the device.

Every draw depends on the data set, the seed and the epoch alone. It is made on the CPU, once an epoch for all samples. Hence
all methods of one seed get the same images, on every device, and a resumed run gets those of an undisturbed one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.data.augment import (
    Mix,
    apply,
    cutout,
    draw_boxes,
    draw_mix,
    draw_squares,
    draw_strong,
    gray_squares,
    resize_boxes,
    send,
)
from bench.data.augmentations import augmentations, rows
from bench.data.files import CROP_PCT, STREAMED_SIZE, Crops, Files, generator
from bench.data.sets import Dataset, Shape, Split
from bench.records.recipe import Recipe
from methods.base import Batch, Partner

MIXED_ALPHA = 0.4  # of the Beta distribution of mixed partners: MixSKD's on CIFAR


class Stream:
    """Batches of one training run.

    Args:
        train: the training set, without what is held out.
        data: the data set it belongs to; gives mean, std and the number of classes.
        recipe: batch size, epochs, augmentation.
        seed: of order and augmentation.
        device, dtype, memory_format: of the images.
        partner: a second image for each sample: another one of its class, the same one augmented once more (and strongly), or
            a mix of the batch's images. It has draws of its own, so that the first images stay the same.

    Attributes:
        shape: (C, H, W) of the images that a network sees.

    Raises:
        ValueError: the recipe's augmentation does not fit the images.
    """

    def __init__(
        self,
        train: Split,
        data: Dataset,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        partner: Partner | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        check_recipe(recipe, data.shape._replace(samples=len(train.targets)), isinstance(train.images, Files))
        self.recipe, self.seed, self.device, self.partner, self.classes = recipe, seed, device, partner, data.classes
        self.cpu_targets, self.targets = train.targets, train.targets.to(device)
        self.samples = _used(recipe, len(train.targets))
        self.batches_at_once = _batches_at_once(train.images, recipe, device)
        self.crops = _crops(train.images, recipe, device, self.batches_at_once * recipe.batch_size)
        self.shape = self.crops.shape
        self.augmentations = augmentations(recipe)
        for _, augmentation in self.augmentations:
            augmentation.setup(data, self.shape)
        self.normalize = Normalize(data, self.shape[2], device, dtype, memory_format)

    def __len__(self) -> int:
        """Steps an epoch; the last batch may be smaller."""
        return -(-self.samples // self.recipe.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, 0-based."""
        recipe, steps = self.recipe, len(self)
        order = torch.randperm(len(self.targets), generator=generator("order", self.seed, epoch))
        order = order.repeat_interleave(recipe.repeats)[: self.samples]
        index = send(order, self.device)
        target = self.targets[index]
        images = self._images(order, "image", epoch)
        partners = self._partners(order, epoch)
        mixed = self._mixed(epoch) if self.partner == "mixed" else None
        mixes = np.random.default_rng(generator("mix", self.seed, epoch).initial_seed())
        for step, (index_, target_) in enumerate(
            zip(index.split(recipe.batch_size), target.split(recipe.batch_size), strict=True)
        ):
            image, partner = next(images), next(partners) if partners else None
            mix = draw_mix(recipe.mixup, recipe.cutmix, *self.shape[1:], mixes, recipe.repeats)
            if mix:
                image = mix.images(image)
                partner = mix.images(partner) if partner is not None else None
            other = kept = None
            if mixed:
                other, kept = next(mixed)
                partner = kept * image + (1 - kept) * image[other]
            yield Batch(
                image=image,
                target=target_,
                index=index_,
                epoch=epoch,
                epochs=recipe.epochs,
                progress=(epoch * steps + step) / (recipe.epochs * steps),
                partner=partner,
                other=other,
                kept=kept,
                soft=self._soft(target_, mix) if recipe.soft_targets else None,
            )

    def _partners(self, order: Tensor, epoch: int) -> Iterator[Tensor] | None:
        """Batches of partner images, but where they are mixes of the images themselves."""
        if self.partner in (None, "mixed"):
            return None
        if self.partner == "same_class":
            order = draw_partners(self.cpu_targets, order, generator("partner of", self.seed, epoch))
        return self._images(order, "partner", epoch, strong=self.partner == "strong_view")

    def _mixed(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch a permutation of its rows and the share that an image keeps, 0-dim, on the device."""
        size, draws = self.recipe.batch_size, generator("mixed", self.seed, epoch)
        shares = np.random.default_rng(draws.initial_seed()).beta(MIXED_ALPHA, MIXED_ALPHA, len(self))
        permutations = torch.cat([row.argsort() for row in torch.rand(self.samples, generator=draws).split(size)])
        kept = send(torch.from_numpy(shares).float(), self.device)
        yield from zip(send(permutations, self.device).split(size), kept, strict=True)

    def _images(self, order: Tensor, view: str, epoch: int, strong: bool = False) -> Iterator[Tensor]:
        """Batches of augmented, normalized images; `view` names the draws."""
        recipe, count, key = self.recipe, len(order), (view, self.seed, epoch)
        flips = send(torch.rand(count, generator=generator("flip", *key)) < 0.5, self.device)
        drawn = [(each, each.draw(count, generator(name, *key))) for name, each in self.augmentations]
        on_pixels, on_normalized = ([pair for pair in drawn if pair[0].normalized is wanted] for wanted in (False, True))
        rounds, squares = [], None
        if strong:
            height, width = self.shape[1:]
            rounds = draw_strong(count, height, width, generator("strong", *key))
            squares = send(draw_squares(count, height, width, generator("square", *key)), self.device)
        centers = torch.rand(count, 2, generator=generator("cutout", *key)) * torch.tensor(self.shape[1:])
        centers = send(centers.long(), self.device)
        done = 0
        for images in self.crops.batches(order, ("crop", *key)):
            part = slice(done, done + len(images))
            done += len(images)
            if recipe.flip:
                images = torch.where(flips[part].view(-1, 1, 1, 1), images.flip(3), images)
            for augmentation, draws in on_pixels:
                images = augmentation.apply(images, rows(draws, part))
            for operations in rounds:
                images = apply(images, rows(operations, part))
            if squares is not None:
                images = gray_squares(images, squares[part])
            images = self.normalize(images)
            if recipe.cutout:
                images = cutout(images, centers[part], recipe.cutout)
            for augmentation, draws in on_normalized:
                images = augmentation.apply(images, rows(draws, part))
            yield from images.split(recipe.batch_size)

    def _soft(self, target: Tensor, mix: Mix | None) -> Tensor:
        """(B, K): one-hot, mixed as the images are, smoothed: (1 - e) y + e / K."""
        soft = F.one_hot(target, self.classes).float()
        if mix:
            soft = mix.targets(soft)
        return soft * (1 - self.recipe.label_smoothing) + self.recipe.label_smoothing / self.classes


def evaluation_batches(
    split: Split,
    data: Dataset,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 500,
    memory_format: torch.memory_format = torch.contiguous_format,
    image_size: int = 0,
    crop_pct: float = CROP_PCT,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, targets) of the whole split in its order, normalized, not augmented.

    Args:
        image_size, crop_pct: the recipe's. Images of another size are resized, the shorter side to `image_size / crop_pct`, and
            center-cropped.
    """
    targets = send(split.targets, device).split(batch_size)
    if isinstance(split.images, Files):
        size = image_size or STREAMED_SIZE
        order = torch.arange(len(split.images))
        batches = Crops(split.images, size, None, crop_pct).batches(order, batch_size, device)
    else:
        size = image_size or split.images.shape[3]
        batches = (_center_crop(send(images, device), image_size, crop_pct) for images in split.images.split(batch_size))
    normalize = Normalize(data, size, device, dtype, memory_format)
    for images, target in zip(batches, targets, strict=True):
        yield normalize(images), target


def _center_crop(images: Tensor, size: int, crop_pct: float) -> Tensor:
    """See `evaluation_batches`. Images that have the size already stay as they are; so do all where `size` is 0."""
    height, width = images.shape[2:]
    if not size or (height, width) == (size, size):
        return images
    scale = round(size / crop_pct) / min(height, width)
    new = [max(size, int(height * scale)), max(size, int(width * scale))]
    images = F.interpolate(images.float(), new, mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8)
    top, left = round((new[0] - size) / 2), round((new[1] - size) / 2)
    return images[:, :, top : top + size, left : left + size]


def draw_partners(targets: Tensor, order: Tensor, draws: torch.Generator) -> Tensor:
    """For each sample of `order` another one of its class, drawn uniformly; itself where it is the only one."""
    members = targets.argsort(stable=True)  # class by class
    place = members.argsort()  # of each sample in `members`
    sizes = torch.bincount(targets)
    first, size = (sizes.cumsum(0) - sizes)[targets[order]], sizes[targets[order]]
    ahead = 1 + (torch.rand(len(order), generator=draws, dtype=torch.float64) * (size - 1)).long()
    return members[first + (place[order] - first + ahead) % size]


class Normalize:
    """uint8 images (B, C, H, W) to (x / 255 - mean) / std in the wanted type and memory format."""

    def __init__(
        self, data: Dataset, width: int, device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format
    ) -> None:
        mean, std = torch.tensor(data.mean, dtype=torch.float64), torch.tensor(data.std, dtype=torch.float64)
        self.scale = (1 / (255 * std)).float().repeat(width).to(device)  # of a whole row, (W * C,), for vector instructions
        self.shift = (-mean / std).float().repeat(width).to(device)
        self.dtype, self.memory_format = dtype, memory_format

    def __call__(self, images: Tensor) -> Tensor:
        rows = images.permute(0, 2, 3, 1).flatten(2).float()
        rows = torch.addcmul(self.shift, rows, self.scale).to(self.dtype)
        return rows.unflatten(2, (images.shape[3], -1)).permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)


class _Crops(Protocol):
    """Cropped images, several batches at a time."""

    shape: tuple[int, int, int]  # (C, H, W)

    def batches(self, order: Tensor, key: tuple[object, ...]) -> Iterator[Tensor]:
        """(B, C, H, W) uint8 on the device, channels last in memory; `key` names the draws."""


def _batches_at_once(images: Tensor | Files, recipe: Recipe, device: torch.device) -> int:
    """How many are augmented together: several on a GPU and under a policy, to launch fewer kernels; fewer of large images."""
    if isinstance(images, Files):
        return 1
    wanted = 2048 if device.type != "cpu" else 512 if recipe.augment != "none" or recipe.color_jitter else 1  # images of 32x32
    enlarged = max(recipe.image_size, *images.shape[2:]) ** 2 / 32**2
    return math.ceil(wanted / max(1, enlarged) / recipe.batch_size)


def _used(recipe: Recipe, samples: int) -> int:
    """How many of so many images an epoch takes. Where images are repeated: as many in whole 256s, as DeiT has it."""
    drawn = samples if recipe.repeats == 1 else samples // 256 * 256 or samples
    rest = drawn % recipe.batch_size
    short = rest < 2 * recipe.shares  # batch norm cannot train on a single image: such a last batch is dropped
    return drawn - rest * short


def check_recipe(recipe: Recipe, shape: Shape, streamed: bool) -> None:
    """Refuse a recipe that does not suit these images.

    Args:
        shape: as stored; of image files, the size at which they stream.
        streamed: whether they are image files of any size.

    Raises:
        ValueError: see above.
    """
    if not _used(recipe, shape.samples):
        raise ValueError(f"training images: {shape.samples} are too few; allowed: at least {2 * recipe.shares}")
    if streamed and recipe.crop != "resized":
        raise ValueError(f"crop: '{recipe.crop}' does not suit image files of any size; set crop: resized, or data.size")
    padding = recipe.crop_padding if recipe.crop == "pad" else 0
    pixels = f"images of {shape.height}x{shape.width} pixels"
    if recipe.padding == "reflect" and padding >= min(shape.height, shape.width):
        raise ValueError(f"crop_padding: {padding} is too much to reflect {pixels}")
    if padding > min(shape.height, shape.width):
        raise ValueError(f"crop_padding: {padding} is too much for {pixels}: crops would be empty")


def _crops(images: Tensor | Files, recipe: Recipe, device: torch.device, count: int) -> _Crops:
    if isinstance(images, Files):
        return _StreamedCrops(images, recipe.image_size or STREAMED_SIZE, recipe, device)
    if recipe.crop == "resized":
        return _ResizedCrops(images, recipe.image_size or images.shape[3], device, count)
    padding = recipe.crop_padding if recipe.crop == "pad" else 0
    return _PaddedCrops(images, padding, recipe.padding, device, count)


class _PaddedCrops:
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

    def batches(self, order: Tensor, key: tuple[object, ...]) -> Iterator[Tensor]:
        corners = torch.randint(self.windows.shape[1], (2, len(order)), generator=generator(*key))
        drawn = send(torch.cat([order.unsqueeze(0), corners]), self.device)
        for part in drawn.split(self.count, 1):
            yield self.windows[tuple(part)].permute(0, 3, 1, 2)


def _reflected(side: int, padding: int, device: torch.device) -> Tensor:
    """Positions (side + 2 padding,) of a side that is reflected at its first and last pixel, which are not repeated."""
    return side - 1 - (side - 1 - torch.arange(-padding, side + padding, device=device).abs()).abs()


class _ResizedCrops:
    """ImageNet's random resized crops out of images in memory."""

    def __init__(self, images: Tensor, size: int, device: torch.device, count: int) -> None:
        self.shape = (images.shape[1], size, size)
        self.images, self.size, self.device, self.count = images.to(device), size, device, count

    def batches(self, order: Tensor, key: tuple[object, ...]) -> Iterator[Tensor]:
        height, width = self.images.shape[2:]
        boxes = send(draw_boxes(len(order), height, width, generator(*key)), self.device)
        for index, box in zip(send(order, self.device).split(self.count), boxes.split(self.count), strict=True):
            yield resize_boxes(self.images[index], box, self.size)


class _StreamedCrops:
    """ImageNet's random resized crops out of image files, decoded in processes."""

    def __init__(self, files: Files, size: int, recipe: Recipe, device: torch.device) -> None:
        self.shape = (3, size, size)
        self.files, self.size, self.recipe, self.device = files, size, recipe, device

    def batches(self, order: Tensor, key: tuple[object, ...]) -> Iterator[Tensor]:
        copies = torch.arange(len(order)) % self.recipe.repeats
        return Crops(self.files, self.size, key).batches(order, self.recipe.batch_size, self.device, copies)
