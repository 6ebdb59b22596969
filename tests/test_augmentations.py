"""RandAugment as timm has it, color jitter, random erasing, repeated augmentation: against timm and torchvision, or by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from toy_data import CPU, PLAIN, pixels, same, streamed, toy

from bench.data import AUGMENTATIONS, Stream
from bench.data.augment import Operations, apply
from bench.data.augmentations import RandomErasing, augmentations, from_timm, rows
from bench.data.files import Crops, Files, generator
from bench.data.policies import TimmRandAugment
from bench.errors import UserError
from bench.records.recipe import Recipe

TIMM = "rand-m9-mstd0.5-inc1"
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def smooth(count: int = 6, size: int = 24) -> Tensor:
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(coarse, size=size, mode="bilinear") * 255).to(torch.uint8)


def policy(text: str, data=None, size: int = 24) -> TimmRandAugment:
    found = AUGMENTATIONS.build(from_timm(text))
    found.setup(data or toy(), (3, size, size))
    return found


def timms_name(kind: str, increasing: bool) -> str:
    if kind.startswith("Translate"):
        return f"{kind}Rel"
    changes = kind in ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
    return f"{kind}Increasing" if increasing and changes else kind


@pytest.mark.parametrize("increasing", [True, False])
def test_timms_magnitudes_and_operations_are_timms(increasing, monkeypatch):
    timm = pytest.importorskip("timm.data.auto_augment")
    images, ours = smooth(), policy(f"rand-inc{int(increasing)}")
    fill = (128, 64, 191)  # round(255 mean) of the toy data
    for index, kind in enumerate(ours.KINDS):
        name = timms_name(kind, increasing)
        for level in (0.0, 2.6, 9.0, 10.0):
            for sign in (1.0, -1.0):
                monkeypatch.setattr(timm, "_randomly_negate", lambda value, sign=sign: sign * value)
                rule = timm.LEVEL_TO_ARG[name]
                theirs = rule(level, {}) if rule else ()
                found = ours.arguments(torch.tensor([level / 10], dtype=torch.float64), torch.tensor([sign])).get(kind)
                magnitude = 0.0 if found is None else float(found)
                draws = [Operations(torch.full((6,), index), torch.full((6,), magnitude))]
                result = ours.apply(images, draws)
                how = {"fillcolor": fill, "resample": Image.Resampling.BILINEAR}
                if kind == "Posterize" and theirs == (0,):  # newer versions of Pillow refuse it
                    reference = torch.zeros_like(images)
                else:
                    answers = [timm.NAME_TO_OP[name](tv.to_pil_image(image), *theirs, **how) for image in images]
                    reference = torch.stack([tv.pil_to_tensor(answer) for answer in answers])
                apart = (result.int() - reference.int()).abs()
                where = (kind, level, sign)
                if kind in GEOMETRIC:  # a pixel at the edge may fall in or out
                    assert apart.gt(1).float().mean() < 0.01, where
                else:  # Pillow rounds the mean of contrast and the gray of colors
                    assert apart.max() <= (0 if kind in ("Posterize", "Solarize", "SolarizeAdd", "Invert") else 2), where


def test_timms_policy_is_drawn_as_timm_draws():
    ours = policy(TIMM)
    assert (ours.magnitude, ours.spread, ours.increasing, ours.operations, ours.probability) == (9, 0.5, True, 2, 0.5)
    rounds = ours.draw(30000, torch.Generator().manual_seed(0))
    assert len(rounds) == 2
    for kind, magnitude in rounds:
        shares = torch.bincount(kind, minlength=16) / 30000
        assert shares[-1] == pytest.approx(0.5, abs=0.01)  # nothing happens
        assert shares[:-1].tolist() == pytest.approx([0.5 / 15] * 15, abs=0.006)
        degrees = magnitude[kind == ours.KINDS.index("Rotate")]
        assert float(degrees.sign().mean()) == pytest.approx(0, abs=0.1)
        levels = degrees.abs() / 3  # a normal draw about 9 with spread .5, cut at 10
        assert float(levels.median()) == pytest.approx(9, abs=0.1)
        assert float((levels == 10).double().mean()) == pytest.approx(0.0228, abs=0.02)
        assert float(levels.quantile(0.1587)) == pytest.approx(8.5, abs=0.1)
    uniform = policy("rand-m8-mstd101").draw(30000, torch.Generator().manual_seed(0))[0]
    levels = uniform.magnitude[uniform.kind == ours.KINDS.index("Rotate")].abs() / 3
    assert [float(levels.quantile(q)) for q in (0.25, 0.5, 0.75)] == pytest.approx([2, 4, 6], abs=0.4)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("rand-m9-w0", r"tiny, recipe\.augment: 'rand-m9-w0' has a section 'w0'; allowed, each with a number: m \(magnitude\)"),
        ("rand-m9-mstd", "has a section 'mstd'"),
        ("rand_augmnt", r"tiny, recipe\.augment: .*rand_augmnt.*rand_augment"),
        ({"type": "timm_rand_augment", "magnitud": 9}, r"recipe\.augment\.magnitud: .*magnitude"),
        (["auto_augment", "none"], r"recipe\.augment: .*'none'"),
        ({"type": "timm_rand_augment", "probability": 2}, "probability is 0 to 1"),
    ],
)
def test_mistakes_in_augmentations_are_named(augment, message, tiny):
    with pytest.raises(UserError, match=message):
        tiny(recipe={"name": "digits", "augment": augment})


def test_augmentations_have_one_identity_however_they_are_written(tiny):
    def identity(augment):
        [cell] = tiny(recipe={"name": "digits", "augment": augment}).cells
        return cell.id, cell.recipe.augment

    full = {"type": "timm_rand_augment", "magnitude": 9.0, "spread": 0.5, "increasing": True}
    assert identity(TIMM) == identity("rand-inc1-mstd0.5-m9") == identity(full) == identity([TIMM])
    assert identity("auto_augment") == identity({"type": "auto_augment"}) == identity(["auto_augment"])
    assert identity("auto_augment")[1] == "auto_augment"
    assert identity([]) == identity("none")
    assert len(identity([TIMM, "auto_augment"])[1]) == 2


def test_color_jitter_is_torchvisions():
    images = smooth(60)
    [(_, jitter)] = augmentations(Recipe(color_jitter=0.4))
    jitter.setup(toy(), (3, 24, 24))
    draws = jitter.draw(60, torch.Generator().manual_seed(0))
    found = images
    for operations in draws:
        found = apply(found, operations)
    by_name = {"Brightness": tv.adjust_brightness, "Contrast": tv.adjust_contrast, "Color": tv.adjust_saturation}
    from bench.data.augment import NAMES

    for row, image in enumerate(images):
        for kind, change in draws:
            image = by_name[NAMES[int(kind[row])]](image, 1 + float(change[row]))
        assert (found[row].int() - image.int()).abs().max() <= 3  # three roundings
    orders = {tuple(int(kind[row]) for kind, _ in draws) for row in range(60)}
    assert len(orders) == 6
    assert torch.equal(found, jitter.apply(images, draws))
    changes = torch.cat([change for _, change in draws])
    assert float(changes.min()) == pytest.approx(-0.4, abs=0.03)
    assert float(changes.max()) == pytest.approx(0.4, abs=0.03)


def test_random_erasing_is_timms():
    """Boxes by timm's loop, with the same uniform draws; noise of N(0, 1) inside, and nothing changed outside."""
    count, height, width = 400, 10, 16
    erasing = RandomErasing(0.25)
    erasing.setup(toy(), (3, height, width))
    boxes, seeds = erasing.draw(count, torch.Generator().manual_seed(0))
    draws = torch.Generator().manual_seed(0)
    happens, uniform = torch.rand(count, generator=draws), torch.rand(4, count, 10, generator=draws, dtype=torch.float64)
    for row in range(count):
        expected = [0, 0, 0, 0]
        for area, ratio, top, left in uniform[:, row].T.tolist() if happens[row] <= 0.25 else []:
            target = (0.02 + (1 / 3 - 0.02) * area) * height * width
            aspect = math.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * ratio)
            h, w = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if w < width and h < height:
                expected = [int(top * (height - h + 1)), int(left * (width - w + 1)), h, w]
                break
        assert boxes[row].tolist() == expected
    images = torch.full((count, 3, height, width), 7.0).contiguous(memory_format=torch.channels_last)
    found = erasing.apply(images.clone(), (boxes, seeds))
    noise = []
    for image, (top, left, h, w) in zip(found, boxes.tolist(), strict=True):
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[top : top + h, left : left + w] = True
        assert (image[:, ~inside] == 7).all()
        noise.append(image[:, inside].flatten())
    values = torch.cat(noise)
    assert 60 < sum(len(each) > 0 for each in noise) < 140
    assert float(values.mean()) == pytest.approx(0, abs=0.03)
    assert float(values.std()) == pytest.approx(1, abs=0.03)
    assert len(values.unique()) > 0.99 * len(values)  # each value a draw of its own


OPTIONS = {"augment": TIMM, "random_erasing": 0.5, "cutout": 2, "mixup": 0.8}


@pytest.mark.parametrize("options", [OPTIONS, {"color_jitter": 0.4, "repeats": 3}])
def test_images_are_the_same_however_many_are_augmented_together(options, monkeypatch):
    data = toy(samples=100)

    def epoch(together):
        monkeypatch.setattr("bench.data.stream.batches_at_once", lambda *_: together)
        return list(streamed(data, **options).epoch(1))

    assert same(epoch(1), epoch(5))


def test_a_list_of_augmentations_is_applied_in_order():
    data = toy(samples=16)
    stream = Stream(data.train, data, Recipe(**PLAIN, augment=("trivial_augment", TIMM)), 0, CPU)
    assert [name for name, _ in stream.augmentations] == ["policy", "policy 1"]
    batch = next(stream.epoch(0))
    expected = data.train.images[batch.index]
    for name, augmentation in stream.augmentations:
        draws = augmentation.draw(16, generator(name, "image", 0, 0))
        expected = augmentation.apply(expected, rows(draws, slice(0, 8)))
    assert torch.equal(pixels(batch.image, data), expected)
    alone = next(streamed(data, augment="trivial_augment").epoch(0))
    assert not torch.equal(batch.image, alone.image)


def test_repeated_images_stand_side_by_side_and_differ():
    """Of 600 images 512 samples, as DeiT's sampler selects: 170 images three times and one twice."""
    data = toy(samples=600)
    stream = streamed(data, repeats=3, flip=True, crop="pad", crop_padding=2, batch_size=32, mixup=1.0)
    index = torch.cat([batch.index for batch in stream.epoch(0)])
    assert len(index) == 512
    assert len(stream) == 16
    assert torch.equal(index, index[::3].repeat_interleave(3)[:512])
    assert len(index.unique()) == 171
    plain = streamed(data, repeats=3, flip=True, crop="pad", crop_padding=2, batch_size=33)
    first = next(plain.epoch(0))
    images = pixels(first.image, data).view(11, 3, -1)
    assert (images[:, 0] != images[:, 1]).any(1).sum() >= 9
    mixed = streamed(data, repeats=3, batch_size=33, mixup=1.0)
    soft = next(mixed.epoch(0)).soft
    labels = next(mixed.epoch(0)).target.view(11, 3)[:, 0]
    partners = labels.roll(1)
    differing = labels != partners
    assert (soft.view(11, 3, -1)[differing].gt(0).sum(2) == 2).all()  # with the next image, never with a copy of itself


def test_repeated_files_have_crops_of_their_own(tmp_path):
    array = torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(array.numpy()).save(tmp_path / "one.png")
    crops = Crops(Files([str(tmp_path / "one.png")] * 2), 16, ("crop", 0, 0))
    assert not torch.equal(crops[1], crops[1 + 2])
    assert torch.equal(crops[1 + 2], crops[3])


def test_a_memory_by_sample_is_skipped_where_images_are_repeated(tiny):
    grid = tiny(recipe={"name": "digits", "epochs": 2, "repeats": 3}, methods=["none", {"crd": {"negatives": 16}}])
    assert [skip.reason for skip in grid.skipped] == [
        "keeps a memory by sample, and this recipe shows a part of the samples in an epoch, several times each"
    ]
