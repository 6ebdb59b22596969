"""The stream of batches against plain per-image references."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from toy_data import CPU, PLAIN, SHARED, pixels, same, streamed, toy

from bench.data.sets import Dataset, Split, load
from bench.data.stream import Stream, evaluation_batches
from bench.records.recipe import Recipe


@pytest.mark.parametrize(
    "options",
    [
        {"crop": "pad", "flip": True},
        {"crop": "pad", "flip": True, "partner": "strong_view"},
        {"partner": "mixed"},
        {"crop": "resized", "image_size": 6, "flip": True, "partner": "same_class", "cutout": 2},
        {
            "crop": "pad",
            "augment": "rand_augment",
            "mixup": 0.4,
            "cutmix": 1.0,
            "label_smoothing": 0.1,
            "partner": "second_view",
        },
    ],
)
def test_an_epoch_depends_on_seed_and_number_alone(options):
    data = toy()
    consumed, fresh = streamed(data, **options), streamed(data, **options)
    earlier = [list(consumed.epoch(epoch, epoch + 1)) for epoch in range(3)]  # a thread draws the fourth
    torch.manual_seed(5)
    state = torch.get_rng_state()
    batches = list(fresh.epoch(3))
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert same(list(consumed.epoch(3)), batches)
    assert not torch.equal(earlier[0][0].index, batches[0].index)
    assert not torch.equal(earlier[0][0].index, next(streamed(data, seed=1, **options).epoch(0)).index)


def test_a_thread_draws_the_next_epoch_and_ends(monkeypatch):
    drawn, draw = [], Stream._draw
    monkeypatch.setattr(
        Stream, "_draw", lambda self, epoch: (drawn.append((epoch, threading.current_thread().name)), draw(self, epoch))[1]
    )
    run = streamed(toy())
    next(run.epoch(0, 1))  # left unfinished, as after an error
    for epoch, following in ((1, 2), (2, 0), (5, None)):
        list(run.epoch(epoch, following))
    assert [(epoch, name.partition("_")[0]) for epoch, name in drawn] == [
        *((0, "MainThread"), (1, "draws"), (2, "draws"), (0, "draws"), (5, "MainThread"))
    ]
    for thread in [each for each in threading.enumerate() if each.name.startswith("draws")]:
        thread.join(5)
        assert not thread.is_alive()


def test_what_goes_wrong_in_a_thread_is_raised_when_its_epoch_begins(monkeypatch):
    draw = Stream._draw
    monkeypatch.setattr(Stream, "_draw", lambda self, epoch: draw(self, epoch) if epoch == 0 else {}[f"draws of {epoch}"])
    run = streamed(toy())
    assert len(list(run.epoch(0, 1))) == len(run)
    with pytest.raises(KeyError, match="draws of 1"):
        next(run.epoch(1))


def test_batches_cover_the_set_and_say_where_training_stands():
    data = toy(samples=42)
    run = streamed(data)
    batches = list(run.epoch(2))
    assert len(run) == len(batches) == 6
    assert [len(batch.image) for batch in batches] == [8, 8, 8, 8, 8, 2]
    index = torch.cat([batch.index for batch in batches])
    assert sorted(index.tolist()) == list(range(42))
    assert torch.equal(torch.cat([batch.target for batch in batches]), data.train.targets[index])
    assert torch.equal(pixels(torch.cat([batch.image for batch in batches]), data), data.train.images[index])
    assert [(batch.epoch, batch.epochs) for batch in batches] == [(2, 4)] * 6
    assert [batch.progress for batch in batches] == pytest.approx([(12 + step) / 24 for step in range(6)])
    assert all(batch.soft is None and batch.partner is None for batch in batches)


def test_a_last_batch_of_one_image_is_dropped():
    run = streamed(toy(samples=41))
    assert [len(batch.image) for batch in run.epoch(0)] == [8] * 5
    assert len(run) == 5


@pytest.mark.parametrize("options", [{"crop": "pad", "flip": True}, {"augment": "rand_augment", "cutout": 2}])
def test_the_same_images_whatever_the_batch_size(options):
    few, many = (torch.cat([batch.image for batch in streamed(toy(), batch_size=size, **options).epoch(0)]) for size in (5, 20))
    assert torch.equal(few, many)


@pytest.mark.parametrize(("padding", "mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_padded_crops_and_flips_equal_a_per_image_reference(padding, mode):
    data = toy(samples=64)
    padded = np.pad(data.train.images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode=mode)
    corners, flipped = set(), 0
    for batch in streamed(data, crop="pad", crop_padding=2, padding=padding, flip=True).epoch(0):
        for image, index in zip(pixels(batch.image, data).numpy(), batch.index.tolist(), strict=True):
            candidates = {
                (top, left, flip): padded[index, :, top : top + 8, left : left + 8][:, :, :: -1 if flip else 1]
                for top in range(5)
                for left in range(5)
                for flip in (False, True)
            }
            (found,) = [drawn for drawn, candidate in candidates.items() if np.array_equal(candidate, image)]
            corners.add(found[:2])
            flipped += found[2]
    assert len(corners) > 15  # of 25
    assert 20 < flipped < 44


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalized_values_and_layout(dtype, memory_format):
    data = toy(channels=3)
    expected = (data.train.images.numpy() / 255 - np.reshape(data.mean, (1, 3, 1, 1))) / np.reshape(data.std, (1, 3, 1, 1))
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8 * 8
    run = Stream(data.train, data, Recipe(**PLAIN), 0, CPU, dtype, memory_format=memory_format)
    batch = next(run.epoch(0))
    evaluated = torch.cat([images for images, _ in evaluation_batches(data.test, data, CPU, dtype, 16, memory_format)])
    assert batch.image.dtype == dtype
    assert batch.image.is_contiguous(memory_format=memory_format)
    np.testing.assert_allclose(batch.image.double().numpy(), expected[batch.index], atol=tolerance)
    np.testing.assert_allclose(evaluated.double().numpy(), expected, atol=tolerance)


def test_partners_of_the_same_class():
    data = toy(samples=40)
    lonely = data.train.targets.clone()
    lonely[7] = 3
    lonely[lonely == 3] = torch.where(torch.arange(40)[lonely == 3] == 7, 3, 0)  # sample 7 is alone in class 3
    data = Dataset(Split(data.train.images, lonely), data.test, 4, data.mean, data.std, data.class_names)
    by_content = {bytes(image.numpy()): index for index, image in enumerate(data.train.images)}
    chosen = {}
    for epoch in range(4):
        for batch, plain in zip(streamed(data, partner="same_class").epoch(epoch), streamed(data).epoch(epoch), strict=True):
            assert torch.equal(batch.image, plain.image), "a partner changes the first images"
            partners = [by_content[bytes(image.numpy())] for image in pixels(batch.partner, data)]
            assert torch.equal(data.train.targets[partners], batch.target)
            for index, partner in zip(batch.index.tolist(), partners, strict=True):
                assert (partner == index) == (index == 7)
                chosen.setdefault(index, set()).add(partner)
    assert sum(len(partners) > 1 for partners in chosen.values()) > 30


def test_partners_that_are_second_views():
    data = toy()
    for batch in streamed(data, partner="second_view", crop="pad").epoch(0):
        assert not torch.equal(batch.image, batch.partner)
    for batch in streamed(data, partner="second_view").epoch(0):
        assert torch.equal(batch.image, batch.partner)


def test_partners_that_are_strong_views():
    data = toy(size=16)
    plain, strong = (list(streamed(data, partner=kind, crop="pad").epoch(0)) for kind in ("second_view", "strong_view"))
    for first, second in zip(plain, strong, strict=True):
        assert torch.equal(first.image, second.image), "a partner changes the first images"
        kept = (pixels(first.partner, data) == pixels(second.partner, data)).flatten(1).float().mean(1)
        assert kept.min() < 0.3  # most operations change every pixel
    again = list(streamed(data, partner="strong_view", crop="pad").epoch(0))
    assert same(again, strong)


def test_mixed_partners():
    data = toy(samples=42)
    shares, others = [], []
    for batch, plain in zip(streamed(data, partner="mixed").epoch(1), streamed(data).epoch(1), strict=True):
        assert torch.equal(batch.image, plain.image), "a partner changes the first images"
        assert batch.kept.shape == ()
        assert torch.equal(batch.other.sort().values, torch.arange(len(batch.image)))
        expected = batch.kept * batch.image + (1 - batch.kept) * batch.image[batch.other]
        assert torch.allclose(batch.partner, expected)
        shares.append(batch.kept.item())
        others.append(batch.other)
    assert len(set(shares)) == len(shares) == 6
    assert not torch.equal(others[0], others[1])
    assert same(list(streamed(data, partner="mixed").epoch(1)), list(streamed(data, partner="mixed").epoch(1)))


def test_mixed_images_and_soft_targets_agree():
    data = toy()
    kinds = set()
    for batch in streamed(data, mixup=1.0, cutmix=1.0, label_smoothing=0.2).epoch(0):
        plain = next(evaluation_batches(Split(data.train.images[batch.index], batch.target), data, CPU))[0]
        rolled = plain.roll(1, 0)
        own, other = torch.eye(4)[batch.target], torch.eye(4)[batch.target.roll(1)]
        taken = ((batch.image == rolled) & (plain != rolled)).float().mean(0).amax(0)  # (H, W)
        if taken.eq(0).all() and not torch.equal(batch.image, plain):
            kinds.add("mixup")
            distances = (batch.image - rolled).double(), (plain - rolled).double()
            kept = float((distances[0] * distances[1]).sum() / distances[1].square().sum())
            torch.testing.assert_close(batch.image, kept * plain + (1 - kept) * rolled, atol=1e-5, rtol=0)
        else:
            kinds.add("cutmix")
            inside = (batch.image == rolled).all(1).all(0)
            kept = 1 - float(inside.float().mean())
            assert torch.equal(batch.image[:, :, ~inside], plain[:, :, ~inside])
        torch.testing.assert_close(batch.soft, 0.8 * (kept * own + (1 - kept) * other) + 0.05, atol=1e-4, rtol=0)
        torch.testing.assert_close(batch.soft.sum(1), torch.ones(len(batch.target)))
    assert kinds == {"mixup", "cutmix"}


def test_label_smoothing_alone():
    batch = next(streamed(toy(), label_smoothing=0.1).epoch(0))
    torch.testing.assert_close(batch.soft, torch.eye(4)[batch.target] * 0.9 + 0.025)


def test_augmentation_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        streamed(toy(samples=1))
    two = toy(channels=2)
    with pytest.raises(ValueError, match="1 or 3 channels; these images have 2"):
        streamed(two, augment="rand_augment")
    streamed(two, crop="pad", flip=True)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_photographs_stream():
    data = load({"type": "imagefolder", "train_images": 6}, root=str(SHARED / "photos_2"))
    batch = next(streamed(data, crop="resized", batch_size=6, flip=True).epoch(0))
    assert batch.image.shape == (6, 3, 224, 224)
    assert -1 < float(batch.image.mean()) < 1
