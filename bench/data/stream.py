"""The batches of a training run: shuffled, augmented, on the device.

Every draw depends on the data set, the seed and the epoch alone. It is made on the CPU, once an epoch for all samples. Hence
all methods of one seed get the same images, on every device, and a resumed run gets those of an undisturbed one. While a GPU
trains, a thread makes the draws of the next epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.data.augment import (
    Mix,
    Operations,
    apply,
    cutout,
    draw_mix,
    draw_squares,
    draw_strong,
    gray_squares,
    send,
)
from bench.data.augmentations import Draws, augmentations, rows
from bench.data.crops import StreamedCrops, batches_at_once, cropper
from bench.data.files import CROP_PCT, STREAMED_SIZE, Crops, Files, generator
from bench.data.sets import Dataset, Shape, Split
from bench.records.recipe import Recipe
from methods.base import Batch, Partner

MIXED_ALPHA = 0.4  # of the Beta distribution of mixed partners: MixSKD's on CIFAR


class _View(NamedTuple):
    """What is drawn for one image of each sample, in the epoch's order; on the CPU."""

    order: Tensor  # (N,) int64, positions in the training set
    crops: Any  # what `Cropper.draw` returns
    flips: Tensor  # (N,) of bool
    augmentations: list[Draws]
    rounds: list[Operations]  # of strong augmentation, and below its squares; none of a plain image
    squares: Tensor | None
    centers: Tensor  # (N, 2) int64, of Cutout


class _Epoch(NamedTuple):
    """What is drawn before an epoch's first batch; on the CPU."""

    images: _View
    partners: _View | None
    mixed: tuple[Tensor, Tensor] | None  # of mixed partners: (N,) rows of a batch, (steps,) shares that an image keeps


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
        self.batches_at_once = batches_at_once(train.images, recipe, device)
        self.crops = cropper(train.images, recipe, device, self.batches_at_once * recipe.batch_size)
        self.shape = self.crops.shape
        self.augmentations = augmentations(recipe)
        for _, augmentation in self.augmentations:
            augmentation.setup(data, self.shape)
        self.normalize = Normalize(data, self.shape[2], device, dtype, memory_format)
        self._ahead: tuple[int, Future[_Epoch]] | None = None  # the epoch whose draws a thread makes, or has made

    def __len__(self) -> int:
        """Steps an epoch; the last batch may be smaller."""
        return -(-self.samples // self.recipe.batch_size)

    def epoch(self, epoch: int, following: int | None = None) -> Iterator[Batch]:
        """The batches of one epoch, 0-based.

        Args:
            following: the epoch that comes next, where a thread is to make its draws meanwhile. The thread ends with them; what
                goes wrong in it is raised when that epoch begins.
        """
        recipe, steps = self.recipe, len(self)
        drawn = self._drawn(epoch)
        if following is not None and not isinstance(self.crops, StreamedCrops):  # whose processes begin as copies of this one
            pool = ThreadPoolExecutor(1, "draws")
            self._ahead = following, pool.submit(self._draw, following)
            pool.shutdown(wait=False)
        index = send(drawn.images.order, self.device)
        target = self.targets[index]
        images = self._images(drawn.images)
        partners = self._images(drawn.partners) if drawn.partners else None
        mixed = self._mixed(drawn.mixed) if drawn.mixed else None
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

    def _drawn(self, epoch: int) -> _Epoch:
        """An epoch's draws: the thread's, where it was asked for them."""
        ahead, self._ahead = self._ahead, None
        return ahead[1].result() if ahead and ahead[0] == epoch else self._draw(epoch)

    def _draw(self, epoch: int) -> _Epoch:
        """Draw for an epoch. Runs in a thread beside the epoch before: it changes nothing of the stream's."""
        order = torch.randperm(len(self.targets), generator=generator("order", self.seed, epoch))
        order = order.repeat_interleave(self.recipe.repeats)[: self.samples]
        images = self._draw_view(order, "image", epoch)
        if self.partner == "mixed":
            return _Epoch(images, None, self._draw_mixed(epoch))
        if self.partner is None:
            return _Epoch(images, None, None)
        if self.partner == "same_class":
            order = draw_partners(self.cpu_targets, order, generator("partner of", self.seed, epoch))
        return _Epoch(images, self._draw_view(order, "partner", epoch, strong=self.partner == "strong_view"), None)

    def _draw_mixed(self, epoch: int) -> tuple[Tensor, Tensor]:
        size, draws = self.recipe.batch_size, generator("mixed", self.seed, epoch)
        shares = np.random.default_rng(draws.initial_seed()).beta(MIXED_ALPHA, MIXED_ALPHA, len(self))
        permutations = torch.cat([row.argsort() for row in torch.rand(self.samples, generator=draws).split(size)])
        return permutations, torch.from_numpy(shares).float()

    def _mixed(self, drawn: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch a permutation of its rows and the share that an image keeps, 0-dim, on the device."""
        permutations, kept = (send(each, self.device) for each in drawn)
        yield from zip(permutations.split(self.recipe.batch_size), kept, strict=True)

    def _draw_view(self, order: Tensor, view: str, epoch: int, strong: bool = False) -> _View:
        """Draw for one image of each sample; `view` names the draws."""
        count, (height, width), key = len(order), self.shape[1:], (view, self.seed, epoch)
        return _View(
            order=order,
            crops=self.crops.draw(order, ("crop", *key)),
            flips=torch.rand(count, generator=generator("flip", *key)) < 0.5,
            augmentations=[each.draw(count, generator(name, *key)) for name, each in self.augmentations],
            rounds=draw_strong(count, height, width, generator("strong", *key)) if strong else [],
            squares=draw_squares(count, height, width, generator("square", *key)) if strong else None,
            centers=(torch.rand(count, 2, generator=generator("cutout", *key)) * torch.tensor([height, width])).long(),
        )

    def _images(self, view: _View) -> Iterator[Tensor]:
        """Batches of augmented, normalized images."""
        recipe = self.recipe
        flips, centers = send(view.flips, self.device), send(view.centers, self.device)
        squares = None if view.squares is None else send(view.squares, self.device)
        drawn = [(each, draws) for (_, each), draws in zip(self.augmentations, view.augmentations, strict=True)]
        on_pixels, on_normalized = ([pair for pair in drawn if pair[0].normalized is wanted] for wanted in (False, True))
        done = 0
        for images in self.crops.batches(view.order, view.crops):
            part = slice(done, done + len(images))
            done += len(images)
            if recipe.flip:
                images = torch.where(flips[part].view(-1, 1, 1, 1), images.flip(3), images)
            for augmentation, draws in on_pixels:
                images = augmentation.apply(images, rows(draws, part))
            for operations in view.rounds:
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


def _used(recipe: Recipe, samples: int) -> int:
    """How many of so many images an epoch takes. Where images are repeated: as many in whole 256s, as DeiT has it."""
    drawn = samples if recipe.repeats == 1 else samples // 256 * 256 or samples
    rest = drawn % recipe.batch_size
    short = rest < 2 * recipe.shares  # batch norm cannot train on a single image: such a last batch is dropped
    return drawn - rest * short


MOST_PIXELS = 8192  # of a side, to which test images are resized before their middle is cut out


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
    side = (recipe.image_size or max(shape.height, shape.width)) / recipe.crop_pct
    if recipe.crop == "resized" and side > MOST_PIXELS:
        raise ValueError(f"crop_pct: {recipe.crop_pct:g} asks for test images of {side:,.0f} pixels; at most {MOST_PIXELS:,}")
    if streamed and recipe.crop != "resized":
        raise ValueError(f"crop: '{recipe.crop}' does not suit image files of any size; set crop: resized, or data.size")
    padding = recipe.crop_padding if recipe.crop == "pad" else 0
    pixels = f"images of {shape.height}x{shape.width} pixels"
    if recipe.padding == "reflect" and padding >= min(shape.height, shape.width):
        raise ValueError(f"crop_padding: {padding} is too much to reflect {pixels}")
    if padding > min(shape.height, shape.width):
        raise ValueError(f"crop_padding: {padding} is too much for {pixels}: crops would be empty")
