"""Augmentations that process a batch at a time, with draws of its own for each image: crops, policies, Cutout, mixing.

Images are (B, C, H, W) uint8 unless said otherwise; draws are (B, ...) tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def send(draws: Tensor, device: torch.device) -> Tensor:
    """The draws on the device, without waiting for its work to end."""
    if device.type == "cuda" and draws.device.type == "cpu":
        return draws.pin_memory().to(device, non_blocking=True)
    return draws.to(device)


# Random resized crops


def draw_boxes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Boxes (count, 4) int64 of random resized crops: top, left, height, width.

    8 to 100 % of the area, aspect ratio 3/4 to 4/3, up to ten attempts and then the center, as in torchvision.
    """
    area, ratio, top, left = torch.rand(4, count, 10, generator=generator, dtype=torch.float64)
    area = height * width * (0.08 + 0.92 * area)
    ratio = torch.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * ratio)
    heights, widths = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    boxes = torch.stack([(top * (height - heights + 1)).floor(), (left * (width - widths + 1)).floor(), heights, widths], 2)
    first = fits.int().argmax(1)
    central_height, central_width = min(height, round(width / (3 / 4))), min(width, round(height * (4 / 3)))
    center = [(height - central_height) // 2, (width - central_width) // 2, central_height, central_width]
    chosen = boxes[torch.arange(count), first].long()
    return torch.where(fits.any(1, keepdim=True), chosen, torch.tensor(center))


def resize_boxes(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a box (B, 4) out of each image and resize it to size x size, bilinear.

    Without antialiasing, unlike torchvision; equal to it wherever a box is enlarged.
    """
    top, left, height, width = boxes.float().unsqueeze(2).unbind(1)  # (B, 1) each
    centers = (torch.arange(size, device=images.device) + 0.5) / size
    y = (centers * height).clamp(min=0.5).minimum(height - 0.5) + top  # in pixels; the border of the box, not of the image
    x = (centers * width).clamp(min=0.5).minimum(width - 0.5) + left
    y, x = 2 * y / images.shape[2] - 1, 2 * x / images.shape[3] - 1
    grid = torch.stack([x.unsqueeze(1).expand(-1, size, -1), y.unsqueeze(2).expand(-1, -1, size)], 3)
    return F.grid_sample(images.float(), grid, align_corners=False).round().to(torch.uint8)


# Policies: torchvision's spaces and operations, with a magnitude of its own for each image


class Operations(NamedTuple):
    """One round of a policy, on the CPU: the operation of each image, and its magnitude."""

    kind: Tensor  # (B,) int64, position in a table of operations
    magnitude: Tensor  # (B,)


def _blend(images: Tensor, other: Tensor, magnitude: Tensor) -> Tensor:
    """(1 + m) x - m other."""
    return (images * (1 + magnitude) - other * magnitude).clamp(0, 255).to(torch.uint8)


def _gray(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor().unsqueeze(1)


def _color(images: Tensor, magnitude: Tensor) -> Tensor:
    return images if images.shape[1] == 1 else _blend(images, _gray(images), magnitude)


def _sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """x + m (x - smoothed x); the border stays."""
    values = images.to(torch.float32, copy=True)
    kernel = torch.ones(3, 3, device=images.device)
    kernel[1, 1] = 5
    smooth = F.conv2d(values, (kernel / 13).expand(images.shape[1], 1, 3, 3), groups=images.shape[1]).round()
    values[..., 1:-1, 1:-1] += magnitude * (values[..., 1:-1, 1:-1] - smooth)
    return values.clamp(0, 255).to(torch.uint8)


def _posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    return images & (256 - 2 ** (8 - magnitude.long())).to(torch.uint8)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    span = (high - low).float() / 255
    stretched = ((images - low) / torch.where(span > 0, span, 1)).clamp(0, 255).to(torch.uint8)
    return torch.where(span > 0, stretched, images)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Per channel, by Pillow's integer rule: levels below v, plus half a step, over the step."""
    flat = images.flatten(2).long()
    histogram = torch.zeros(*images.shape[:2], 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(2, flat, torch.ones_like(flat))
    largest = flat.amax(2, keepdim=True)
    step = (flat.shape[2] - histogram.gather(2, largest)) // 255
    below = histogram.cumsum(2) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table.gather(2, flat), flat).to(torch.uint8).view(images.shape)


def _affine(
    images: Tensor,
    xx: Tensor | float = 1.0,
    xy: Tensor | float = 0.0,
    x0: Tensor | float = 0.0,
    yx: Tensor | float = 0.0,
    yy: Tensor | float = 1.0,
    y0: Tensor | float = 0.0,
) -> Tensor:
    """Nearest pixel from (xx x + xy y + x0, yx x + yy y + y0), in pixels from the center; black outside. Arguments: (B,)."""
    grid = _grid(images, (xx, xy, x0, yx, yy, y0))
    return F.grid_sample(images.float(), grid, mode="nearest", align_corners=False).to(torch.uint8)


def affine(images: Tensor, fill: Tensor, **entries: Tensor) -> Tensor:
    """As `_affine`, but bilinear, and the levels `fill` (C,) outside, as Pillow has it."""
    usual: dict[str, Tensor | float] = {"xx": 1.0, "xy": 0.0, "x0": 0.0, "yx": 0.0, "yy": 1.0, "y0": 0.0}
    grid = _grid(images, tuple((usual | entries).values()))
    moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False).round()
    outside = (grid.abs() > 1).any(3).unsqueeze(1)
    return torch.where(outside, fill.to(images.device).view(1, -1, 1, 1), moved).to(torch.uint8)


def _grid(images: Tensor, entries: tuple[Tensor | float, ...]) -> Tensor:
    """(B, H, W, 2) for `grid_sample`, from the six numbers that `_affine` takes."""
    height, width = images.shape[2:]
    xx, xy, x0, yx, yy, y0 = entries
    theta = torch.zeros(len(images), 6, device=images.device)
    scaled = (xx, xy * (height / width), x0 * (2 / width), yx * (width / height), yy, y0 * (2 / height))
    for column, entry in zip(theta.unbind(1), scaled, strict=True):
        column += entry
    return F.affine_grid(theta.view(-1, 2, 3), list(images.shape), align_corners=False)


def _shear_x(images: Tensor, magnitude: Tensor) -> Tensor:
    slope = magnitude.flatten()
    return _affine(images, xy=slope, x0=slope * images.shape[2] / 2)


def _shear_y(images: Tensor, magnitude: Tensor) -> Tensor:
    slope = magnitude.flatten()
    return _affine(images, yx=slope, y0=slope * images.shape[3] / 2)


def _rotate(images: Tensor, magnitude: Tensor) -> Tensor:
    angle = magnitude.flatten().deg2rad()
    return _affine(images, xx=angle.cos(), xy=-angle.sin(), yx=angle.sin(), yy=angle.cos())


Table = dict[str, Callable[[Tensor, Tensor], Tensor]]
OPERATIONS: Table = {  # magnitude: (B, 1, 1, 1), in torchvision's units
    "Identity": lambda images, _: images,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": lambda images, magnitude: _affine(images, x0=-magnitude.flatten().trunc()),
    "TranslateY": lambda images, magnitude: _affine(images, y0=-magnitude.flatten().trunc()),
    "Rotate": _rotate,
    "Brightness": lambda images, magnitude: _blend(images, torch.zeros_like(images), magnitude),
    "Color": _color,
    "Contrast": lambda images, magnitude: _blend(images, _gray(images).mean((1, 2, 3), keepdim=True), magnitude),
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": lambda images, magnitude: torch.where(images >= 255 * magnitude, 255 - images, images),
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": lambda images, _: 255 - images,
}
NAMES = list(OPERATIONS)


def apply(images: Tensor, operations: Operations, table: Table = OPERATIONS) -> Tensor:
    """The images (B, C, H, W) after one round of a policy; those with the same operation are processed together."""
    order = operations.kind.argsort(stable=True)
    counts = torch.bincount(operations.kind, minlength=len(table)).tolist()
    magnitudes = send(operations.magnitude[order].view(-1, 1, 1, 1), images.device).split(counts)
    result = torch.empty_like(images)
    for operation, chosen, magnitude in zip(table.values(), send(order, images.device).split(counts), magnitudes, strict=True):
        if len(chosen):
            result[chosen] = operation(images[chosen], magnitude)
    return result


# The strong view of semi-supervised learning: Sohn et al. FixMatch. NeurIPS 2020. arXiv:2001.07685

STRONG = {  # operations and the ends of their strengths, as MLKD's public code has them, in torchvision's units
    "AutoContrast": (0.0, 1.0),
    "Brightness": (-0.95, -0.05),
    "Color": (-0.95, -0.05),
    "Contrast": (-0.95, -0.05),
    "Equalize": (0.0, 1.0),
    "Identity": (0.0, 1.0),
    "Posterize": (4.0, 8.0),
    "Rotate": (-30.0, 30.0),
    "Sharpness": (-0.95, -0.05),
    "ShearX": (-0.3, 0.3),
    "ShearY": (-0.3, 0.3),
    "Solarize": (0.0, 256 / 255),
    "TranslateX": (-0.3, 0.3),  # of the width
    "TranslateY": (-0.3, 0.3),
}
GRAY = (125, 123, 114)  # of its square


def draw_strong(count: int, height: int, width: int, generator: torch.Generator) -> list[Operations]:
    """Two rounds of one of `STRONG` each, with uniform strengths."""
    kinds = torch.tensor([NAMES.index(name) for name in STRONG])
    low, high = torch.tensor(list(STRONG.values())).unbind(1)
    pixels = {"TranslateX": width, "TranslateY": height}
    scale = torch.tensor([float(pixels.get(name, 1)) for name in STRONG])
    rounds = []
    for _ in range(2):
        chosen = torch.randint(len(kinds), (count,), generator=generator)
        strength = low[chosen] + (high - low)[chosen] * torch.rand(count, generator=generator)
        strength = torch.where(scale[chosen] > 1, (scale[chosen] * strength).round(), strength)
        rounds.append(Operations(kinds[chosen], strength))
    return rounds


def draw_squares(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(count, 4) int64: first row, last row, first column and last column of squares about uniform centers.

    The side is uniform up to half the width, rounded up to a pixel. Squares are cut at the border.
    """
    side = 0.5 * width * torch.rand(count, generator=generator)
    edges = []
    for size in (height, width):
        center = size * torch.rand(count, generator=generator)
        first = (center - side / 2).clamp(min=0).floor()
        edges += [first, (first + side).floor().clamp(max=size - 1)]
    return torch.stack(edges, 1).long()


def gray_squares(images: Tensor, squares: Tensor) -> Tensor:
    """Fill squares, (B, 4) as `draw_squares` makes them, with gray."""
    top, bottom, left, right = squares.unsqueeze(2).unbind(1)  # (B, 1) each
    row, column = (torch.arange(size, device=images.device) for size in images.shape[2:])
    inside = ((row >= top) & (row <= bottom)).unsqueeze(2) & ((column >= left) & (column <= right)).unsqueeze(1)
    gray = GRAY if images.shape[1] == len(GRAY) else (round(sum(GRAY) / 3),) * images.shape[1]
    color = torch.stack([torch.full((), level, dtype=torch.uint8, device=images.device) for level in gray])
    return torch.where(inside.unsqueeze(1), color.view(1, -1, 1, 1), images)


# Of normalized images


def cutout(images: Tensor, centers: Tensor, side: int) -> Tensor:
    """Set a square of each normalized image to 0, the mean; `centers` (B, 2) are pixels, and the square may cross the border.

    DeVries, Taylor. Improved regularization of convolutional neural networks with Cutout. 2017.
    """
    top, left = (centers - side // 2).unsqueeze(2).unbind(1)
    row, column = (torch.arange(size, device=images.device) for size in images.shape[2:])
    rows, columns = (row >= top) & (row < top + side), (column >= left) & (column < left + side)
    return images.masked_fill((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0)


class Mix(NamedTuple):
    """Mixes a batch with itself, rolled by `shift` places: x <- kept x + (1 - kept) rolled x, or a box of the rolled x."""

    kept: float  # share of an image's own label
    box: tuple[int, int, int, int] | None = None  # top, bottom, left, right: CutMix; None: mixup
    shift: int = 1

    def images(self, images: Tensor) -> Tensor:
        """Of (B, C, H, W)."""
        rolled = images.roll(self.shift, 0)
        if self.box is None:
            return torch.lerp(rolled, images, self.kept)
        top, bottom, left, right = self.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = rolled[:, :, top:bottom, left:right]
        return mixed

    def targets(self, targets: Tensor) -> Tensor:
        """Of one-hot (B, K)."""
        return torch.lerp(targets.roll(self.shift, 0), targets, self.kept)


def draw_mix(mixup: float, cutmix: float, height: int, width: int, rng: np.random.Generator, shift: int = 1) -> Mix | None:
    """One batch's draw from Beta(alpha, alpha); with both alphas above 0 mixup or CutMix, each with probability 1/2.

    `shift`: how far apart the two images stand in the batch.

    Zhang et al. mixup. ICLR 2018. Yun et al. CutMix. ICCV 2019: a box of area 1 - lambda about a uniform center, cut at the
    border; the label in proportion to what is left.
    """
    if not mixup and not cutmix:
        return None
    if mixup and (not cutmix or rng.random() < 0.5):
        return Mix(float(rng.beta(mixup, mixup)), shift=shift)
    half = math.sqrt(1 - rng.beta(cutmix, cutmix)) / 2
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(0, y - int(half * height)), min(height, y + int(half * height))
    left, right = max(0, x - int(half * width)), min(width, x + int(half * width))
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right), shift)
