"""Augmentations against torchvision's and plain per-image references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_data import CPU, pixels, streamed, toy

from bench.data import AUGMENTATIONS, augment
from bench.data.sets import Dataset, Split
from bench.data.stream import evaluation_batches


def test_cutout_erases_one_square_that_may_cross_the_border():
    data = toy(samples=800)
    data = Dataset(Split(data.train.images | 1, data.train.targets), data.test, 4, data.mean, data.std, data.class_names)
    sizes = set()
    for batch in streamed(data, cutout=4).epoch(0):
        plain = next(evaluation_batches(Split(data.train.images[batch.index], batch.target), data, CPU))[0]
        for image, original in zip(batch.image, plain, strict=True):
            erased = (image == 0).all(0)
            assert torch.equal(image[:, ~erased], original[:, ~erased])
            rows, columns = erased.any(1).nonzero(), erased.any(0).nonzero()
            height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
            assert int(erased.sum()) == height * width
            sizes.add((height, width))
    assert sizes == {
        (height, width) for height in (2, 3, 4) for width in (2, 3, 4)
    }  # centers are pixels; 4: two before, one after


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["auto_augment", "rand_augment", "trivial_augment"])
def test_operations_equal_torchvisions_image_by_image(name, channels):
    from torchvision.transforms import v2

    draws = torch.Generator().manual_seed(0)
    coarse = torch.rand(12, channels, 6, 6, generator=draws)
    images = (torch.nn.functional.interpolate(coarse, size=24, mode="bilinear") * 255).to(torch.uint8)
    images[0] = 9  # constant: nothing to stretch or equalize
    transform = {"auto_augment": v2.AutoAugment, "rand_augment": v2.RandAugment, "trivial_augment": v2.TrivialAugmentWide}[
        name
    ]()
    space = transform._AUGMENTATION_SPACE
    for kind, (magnitudes, signed) in space.items():
        values = magnitudes(7, 24, 24)
        values = torch.zeros(2) if values is None else values.float()
        if kind.startswith("Shear"):
            values = values * 0.973  # otherwise every few rows lie exactly between two pixels, and may fall either way
        for magnitude in torch.cat([values, -values] if signed else [values]).tolist():
            reference = torch.stack(
                [
                    transform._apply_image_or_video_transform(
                        image, kind, magnitude, v2.InterpolationMode.NEAREST, {Tensor: None}
                    )
                    for image in images
                ]
            )
            operations = augment.Operations(torch.full((12,), augment.NAMES.index(kind)), torch.full((12,), magnitude))
            difference = (augment.apply(images, operations).int() - reference.int()).abs()
            if kind in ("ShearX", "ShearY", "Rotate"):  # the same for single pixels
                assert difference.gt(0).float().mean() < 0.02, (kind, magnitude)
            else:  # rounding in another order
                assert difference.max() <= 1, (kind, magnitude)


@pytest.mark.parametrize("name", ["auto_augment", "rand_augment", "trivial_augment"])
def test_policies_are_drawn_per_image(name):
    data = toy(samples=128)
    batch = next(streamed(data, augment=name, batch_size=128).epoch(0))
    changed = (pixels(batch.image, data) != data.train.images[batch.index]).flatten(1).any(1)
    assert 60 < int(changed.sum()) <= 128
    policy = AUGMENTATIONS.build({"type": name})
    policy.setup(data, (3, 8, 8))
    rounds = policy.draw(2000, torch.Generator().manual_seed(0))
    assert len(rounds) == (1 if name == "trivial_augment" else 2)
    shares = torch.bincount(rounds[0].kind, minlength=15) / 2000
    if name == "auto_augment":  # identity: 1 - mean chance of the published policy's first operations; Invert: .1 of 1 in 25
        chances = [
            0.1,
            0.7,
            0.8,
            0.5,
            0.5,
            0.2,
            0.4,
            0.3,
            0.6,
            0.6,
            0.7,
            0.3,
            0.4,
            0.9,
            0.5,
            0.2,
            0.2,
            0.9,
            0.8,
            0.1,
            0.4,
            0.9,
            0.9,
            0.8,
            0.7,
        ]
        assert float(shares[augment.NAMES.index("Identity")]) == pytest.approx(1 - sum(chances) / 25, abs=0.05)
        assert float(shares[augment.NAMES.index("Invert")]) == pytest.approx(0.1 / 25, abs=0.005)
    else:
        assert shares[:14].tolist() == pytest.approx([1 / 14] * 14, abs=0.025)


def test_boxes_of_resized_crops():
    boxes = augment.draw_boxes(3000, 40, 60, torch.Generator().manual_seed(0))
    top, left, height, width = boxes.double().unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 40).all()
    assert (left + width <= 60).all()
    assert 0.7 < (width / height).min() < 0.8
    assert 1.25 < (width / height).max() < 1.4
    assert 0.06 < (height * width / 2400).min() < 0.1
    tall = augment.draw_boxes(50, 400, 10, torch.Generator().manual_seed(0))  # nothing of an allowed ratio and area fits
    assert tall.tolist() == [[193, 0, 13, 10]] * 50


def test_resized_crops_in_memory_equal_torchvision_where_they_enlarge():
    from torchvision.transforms.v2 import functional

    images = toy(samples=20, size=12).train.images
    boxes = augment.draw_boxes(20, 12, 12, torch.Generator().manual_seed(0))
    ours = augment.resize_boxes(images, boxes, 16)
    reference = torch.stack(
        [
            functional.resized_crop(image, *box, [16, 16], antialias=False)
            for image, box in zip(images, boxes.tolist(), strict=True)
        ]
    )
    assert (ours.int() - reference.int()).abs().max() <= 1
    run = streamed(toy(size=12), crop="resized", image_size=16)
    assert next(run.epoch(0)).image.shape[1:] == run.shape == (3, 16, 16)


def test_gray_squares_equal_pillows_rectangles():
    from PIL import Image, ImageDraw

    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 12, 16), dtype=torch.uint8, generator=draws)
    squares = augment.draw_squares(40, 12, 16, draws)
    found = augment.gray_squares(images, squares)
    for image, square, ours in zip(images, squares.tolist(), found, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        top, bottom, left, right = square
        ImageDraw.Draw(picture).rectangle((left, top, right, bottom), (125, 123, 114))
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.asarray(picture))
    heights = squares[:, 1] - squares[:, 0]
    assert 0 <= int(heights.min()) < int(heights.max()) <= 8  # up to half the width, and the pixel that it starts in


def test_strong_operations_are_drawn_over_their_range():
    rounds = augment.draw_strong(4000, 32, 32, torch.Generator().manual_seed(0))
    assert len(rounds) == 2
    for operations in rounds:
        counts = torch.bincount(operations.kind, minlength=len(augment.NAMES))
        assert {augment.NAMES[i] for i in counts.nonzero()} == set(augment.STRONG)
        assert counts[counts > 0].min() > 200  # of 286
        for name, scale in (("Rotate", 30), ("ShearX", 0.3), ("TranslateX", 10), ("Posterize", 8)):
            strengths = operations.magnitude[operations.kind == augment.NAMES.index(name)]
            assert 0.9 * scale < strengths.abs().max() <= scale
