"""Image files in class folders, in memory and streamed, against torchvision's transforms."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy_data import CPU, pixels, same, streamed

from bench.data import augment, files, stream
from bench.data.sets import digest, hold_out, load
from bench.data.stream import evaluation_batches


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes; PNG and gray files of several sizes; 9 to train on, 4 to test."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 9), ("val", 4)):
        for position in range(count):
            target = tmp_path / part / ("ants", "bees")[position % 2]
            target.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 256, (5, 6) if position == 0 else (5, 6, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((40 + position, 36), Image.Resampling.BILINEAR).save(target / f"{position}.png")
    (tmp_path / "train" / "ants" / "notes.txt").write_text("no image")
    return tmp_path


def test_image_folder_in_memory_equals_torchvisions_transforms(folder):
    from torchvision import datasets
    from torchvision.transforms import v2

    data = load({"type": "imagefolder", "size": 24}, root=str(folder))
    reference = datasets.ImageFolder(folder / "train", v2.Compose([v2.Resize(24), v2.CenterCrop(24), v2.PILToTensor()]))
    assert data.train.targets.tolist() == reference.targets == [0] * 5 + [1] * 4
    assert data.class_names == ("ants", "bees")
    assert torch.equal(data.train.images, torch.stack([image for image, _ in reference]))


def test_image_files_stream_through_the_standard_transforms(folder):
    from torchvision import datasets
    from torchvision.transforms import v2

    data = load({"type": "imagefolder"}, root=str(folder))
    assert len(data.train.images) == 9
    transform = v2.Compose([v2.Resize(32), v2.CenterCrop(28), v2.PILToTensor()])  # 256/224 of 28
    reference = datasets.ImageFolder(folder / "val", transform)
    evaluated = list(evaluation_batches(data.test, data, CPU, batch_size=3, image_size=28))
    assert [len(images) for images, _ in evaluated] == [3, 1]
    assert torch.equal(
        pixels(torch.cat([images for images, _ in evaluated]), data), torch.stack([image for image, _ in reference])
    )
    assert torch.cat([targets for _, targets in evaluated]).tolist() == reference.targets

    run = streamed(
        data, crop="resized", image_size=20, flip=True, batch_size=4, partner="same_class", augment="trivial_augment"
    )
    batches = list(run.epoch(1))
    assert [batch.image.shape for batch in batches] == [(4, 3, 20, 20)] * 2  # nine images: the last one is alone
    assert [batch.partner.shape for batch in batches] == [(4, 3, 20, 20)] * 2
    again = streamed(
        data, crop="resized", image_size=20, flip=True, batch_size=4, partner="same_class", augment="trivial_augment"
    )
    assert same(batches, list(again.epoch(1)))


def test_streamed_crops_equal_pillows(folder):
    data = load({"type": "imagefolder"}, root=str(folder))
    crops = files.Crops(data.train.images, 20, ("crop", "image", 0, 3))
    for batch in streamed(data, crop="resized", image_size=20, batch_size=9).epoch(3):
        for image, index in zip(pixels(batch.image, data), batch.index.tolist(), strict=True):
            assert torch.equal(image, crops[index].permute(2, 0, 1))
    box = augment.draw_boxes(1, 36, 40 + 8, stream.generator("crop", "image", 0, 3, 4))[0].tolist()
    top, left, height, width = box
    with Image.open(folder / "train" / "ants" / "8.png") as file:
        expected = file.convert("RGB").crop((left, top, left + width, top + height)).resize((20, 20), Image.Resampling.BILINEAR)
    assert np.array_equal(crops[4].numpy(), np.asarray(expected))


def test_held_out_part_of_image_files(folder):
    data = load({"type": "imagefolder", "train_images": 8}, root=str(folder))
    rest, held = hold_out(data.train, 0.25)
    assert (len(rest.images), len(held.images), sorted(held.targets.tolist())) == (6, 2, [0, 1])
    assert {file.parent.name for file in held.images} == {"ants", "bees"}


def test_image_folder_digest_and_mistakes(folder):
    spec = {"type": "imagefolder", "path": str(folder)}
    before = digest(spec)
    (folder / "train" / "bees" / "1.png").rename(folder / "train" / "bees" / "renamed.png")
    assert digest(spec) != before
    data = load(spec)
    with pytest.raises(ValueError, match="crop: 'pad' does not suit image files"):
        streamed(data, crop="pad")
    (folder / "val" / "wasps").mkdir()
    with pytest.raises(ValueError, match="classes that the training folder lacks: wasps"):
        load(spec)
    (folder / "val" / "wasps").rmdir()
    (folder / "train" / "ants" / "broken.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image"):
        load(spec | {"size": 8})
    with pytest.raises(FileNotFoundError, match="lacks train/ or val/"):
        load({"type": "imagefolder"}, root=str(folder / "train"))


def test_links_that_loop_are_named_and_images_have_a_limit(folder, monkeypatch):
    spec, ants = {"type": "imagefolder", "path": str(folder)}, folder / "train" / "ants"
    for to in (".", "..", "../ants", "../.."):
        (ants / "first").symlink_to(to)
        (ants / "second").symlink_to(to)
        with pytest.raises(ValueError, match=r"is the folder \S+ again, whose images would count twice; remove the link"):
            load(spec)
        (ants / "first").unlink()
        (ants / "second").unlink()
    (ants / "nymphs").symlink_to("../bees")  # another class's folder leads nowhere back
    load(spec)
    monkeypatch.setattr(files, "MOST", 3)
    with pytest.raises(ValueError, match="holds more than 3 images, the most that are read"):
        load(spec)


@pytest.mark.parametrize("size", [0, 24])
def test_a_pipe_named_as_an_image_is_named_and_nobody_waits(folder, size):
    os.mkfifo(pipe := folder / "train" / "ants" / "2b.png")
    with pytest.raises(ValueError, match=re.escape(f"{pipe} is no regular file")):
        digest({"type": "imagefolder", "path": str(folder), "size": size})
