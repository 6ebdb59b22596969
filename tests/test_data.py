"""Data sets in their own formats, and the stream of batches against plain per-image references."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bench.data import augment, files, stream
from bench.data.sets import DATASETS, Dataset, Split, digest, hold_out, load, stratified
from bench.data.stream import Stream, evaluation_batches
from bench.records.recipe import Recipe

CPU = torch.device("cpu")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
PLAIN = {"crop": "none", "flip": False, "batch_size": 8, "epochs": 4}


def toy(samples: int = 40, classes: int = 4, channels: int = 3, size: int = 8) -> Dataset:
    """Random pixels; mean and std that a reference can undo."""
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (samples, channels, size, size), dtype=torch.uint8, generator=draws)
    split = Split(images, torch.arange(samples) % classes)
    mean, std = (0.5, 0.25, 0.75)[:channels], (0.5, 0.25, 0.125)[:channels]
    return Dataset(split, split, classes, mean, std, tuple(map(str, range(classes))))


def streamed(data: Dataset, seed: int = 0, partner: str | None = None, **recipe: object) -> Stream:
    return Stream(data.train, data, Recipe(**(PLAIN | recipe)), seed, CPU, partner=partner)


def pixels(images: Tensor, data: Dataset) -> Tensor:
    """Undo the normalisation."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    return ((images.double() * std + mean) * 255).round().to(torch.uint8)


def same(first: list, second: list) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one, two, strict=True)
    )


# Data sets


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("key", ["cifar10", "cifar100"])
def test_cifar_is_read_from_the_official_archive(tmp_path, monkeypatch, key):
    from torchvision import datasets

    builder = datasets.CIFAR10 if key == "cifar10" else datasets.CIFAR100
    label_key = "labels" if key == "cifar10" else "fine_labels"
    rng = np.random.default_rng(0)
    folder = tmp_path / builder.base_folder
    folder.mkdir()
    written = {}
    for part, count in ((builder.train_list, 2), (builder.test_list, 3)):
        rows, labels = rng.integers(0, 256, (len(part), count, 3072), dtype=np.uint8), rng.integers(0, 10, (len(part), count))
        for (name, _), batch, batch_labels in zip(part, rows, labels, strict=True):
            (folder / name).write_bytes(pickle.dumps({"data": batch, label_key: batch_labels.tolist()}))
        written[count] = rows.reshape(-1, 3, 32, 32), labels.flatten()
    names = folder / builder.meta["filename"]
    names.write_bytes(pickle.dumps({builder.meta["key"]: [f"class {label}" for label in range(int(key[5:]))]}))
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / builder.filename, "w:gz") as archive:
        archive.add(folder, builder.base_folder)
    # torchvision accepts only the official files: name ours as these, so that it verifies and unpacks the archive
    monkeypatch.setattr(builder, "train_list", [[name, md5(folder / name)] for name, _ in builder.train_list])
    monkeypatch.setattr(builder, "test_list", [[name, md5(folder / name)] for name, _ in builder.test_list])
    monkeypatch.setattr(builder, "meta", builder.meta | {"md5": md5(names)})
    monkeypatch.setattr(builder, "tgz_md5", md5(root / builder.filename))

    data = DATASETS.build({"type": key, "root": str(root)})
    assert data.classes == len(data.class_names) == int(key[5:])
    for split, (images, labels) in ((data.train, written[2]), (data.test, written[3])):
        assert np.array_equal(split.images.numpy(), images)
        assert split.targets.tolist() == labels.tolist()


def test_fashion_mnist_is_read_from_idx_files(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    written = {}
    for part, count in (("train", 5), ("t10k", 3)):
        images, labels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), rng.integers(0, 10, count, dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
        written[part] = images, labels
    data = DATASETS.build({"type": "fashion_mnist", "root": str(tmp_path)})
    for split, (images, labels) in ((data.train, written["train"]), (data.test, written["t10k"])):
        assert np.array_equal(split.images.numpy(), images[:, None])
        assert split.targets.tolist() == labels.tolist()


def test_svhn_is_read_from_mat_files(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision import datasets

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)  # H, W, C, N, as in the official files
    table = dict(datasets.SVHN.split_list)
    for part in ("train", "test"):
        file = tmp_path / f"{part}_32x32.mat"
        savemat(file, {"X": images, "y": np.array([[1], [10], [3], [9]])})  # 10 stands for the digit 0
        table[part] = [table[part][0], file.name, md5(file)]
    monkeypatch.setattr(datasets.SVHN, "split_list", table)
    data = DATASETS.build({"type": "svhn", "root": str(tmp_path)})
    assert np.array_equal(data.test.images.numpy(), images.transpose(3, 2, 0, 1))
    assert data.test.targets.tolist() == [1, 0, 3, 9]


def test_missing_data_that_cannot_be_downloaded_are_explained(tmp_path, monkeypatch):
    import urllib.request

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(FileNotFoundError) as error:
        DATASETS.build({"type": "cifar100", "root": str(tmp_path)})
    assert all(text in str(error.value) for text in (str(tmp_path), "cifar-100-python", "no network", "--data-root"))


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    data = load({"type": "digits"})
    images = torch.cat([data.train.images, data.test.images]).squeeze(1)
    assert (len(data.train.targets), len(data.test.targets)) == (1000, 797)
    official = load_digits().images
    assert sorted(map(bytes, images.numpy())) == sorted(map(bytes, np.floor(official * 255 / 16 + 0.5).astype(np.uint8)))
    values = data.train.images.double().numpy() / 255
    assert data.mean == pytest.approx((values.mean(),))
    assert data.std == pytest.approx((values.std(),))


def test_unknown_data_set_and_argument_name_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'cifar100'"):
        DATASETS.build({"type": "cifar_100"})
    with pytest.raises(TypeError, match=r"no argument 'sise'.*did you mean 'size'"):
        DATASETS.build({"type": "imagefolder", "sise": 3})


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)
    return {"train_images": images, "train_labels": labels, "test_images": images[:3], "test_labels": labels[:3]} | changes


def test_npz_is_read_as_written(tmp_path):
    np.savez(tmp_path / "own.npz", **arrays(class_names=np.array(["a", "b", "c"])))
    data = load({"type": "npz", "path": "own.npz"}, root=str(tmp_path))
    written = arrays()["train_images"]
    assert np.array_equal(data.train.images.numpy(), written.transpose(0, 3, 1, 2))
    assert (data.classes, data.class_names) == (3, ("a", "b", "c"))
    assert data.mean == pytest.approx((written / 255).mean((0, 1, 2)).tolist())
    assert data.std == pytest.approx((written / 255).std((0, 1, 2)).tolist())
    np.savez_compressed(tmp_path / "grey.npz", **arrays(train_images=written[..., 0], test_images=written[:3, ..., 0]))
    assert load({"type": "npz"}, root=str(tmp_path / "grey.npz")).train.images.shape == (6, 1, 5, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.zeros((6, 5, 4, 3))}, r"'train_images' is float64 of shape \(6, 5, 4, 3\); allowed: uint8"),
        (
            {"test_images": np.zeros((3, 4, 4, 3), np.uint8)},
            r"'test_images' is uint8 of shape \(3, 4, 4, 3\); allowed: \(N, 5, 4, 3\)",
        ),
        (
            {"train_labels": np.zeros(5, np.int64)},
            r"'train_labels' is int64 of shape \(5,\); allowed: integers of shape \(6,\)",
        ),
        ({"test_labels": np.array([0, -1, 2])}, "'test_labels' has the label -1"),
        ({"class_names": np.array(["a", "b"])}, "at least 3 texts"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, "x"], dtype=object)}, "no .npz file of plain arrays"),  # would need pickle
    ],
)
def test_npz_mistakes_name_file_key_and_what_is_allowed(tmp_path, changes, message):
    np.savez(tmp_path / "own.npz", **arrays(**changes))
    with pytest.raises(ValueError, match=rf"own\.npz.*{message}"):
        load({"type": "npz"}, root=str(tmp_path / "own.npz"))


def test_npz_missing_key_damage_and_absence(tmp_path):
    file = tmp_path / "own.npz"
    with pytest.raises(FileNotFoundError, match=r"own\.npz is not a file"):
        load({"type": "npz"}, root=str(file))
    np.savez(file, train_images=arrays()["train_images"])
    with pytest.raises(ValueError, match="no train_labels, test_images, test_labels; it holds: train_images"):
        load({"type": "npz"}, root=str(file))
    np.savez(file, **arrays())
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match="damaged"):
        load({"type": "npz"}, root=str(file))
    np.save(file.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(ValueError, match=r"no \.npz file"):
        load({"type": "npz"}, root=str(file.with_suffix(".npy")))


def test_digest_follows_the_content_and_not_the_place(tmp_path):
    changed = arrays()
    changed["test_labels"] = changed["test_labels"][::-1]
    np.savez(tmp_path / "a.npz", **arrays())
    np.savez_compressed(tmp_path / "b.npz", **arrays())
    np.savez(tmp_path / "c.npz", **changed)
    a, b, c = (digest({"type": "npz", "path": str(tmp_path / f"{name}.npz")}) for name in "abc")
    assert a == b != c
    assert digest({"type": "digits"}) is None
    load({"type": "npz", "digest": a}, root=str(tmp_path / "b.npz"))
    with pytest.raises(ValueError, match="not those that the cell was planned with"):
        load({"type": "npz", "digest": a}, root=str(tmp_path / "c.npz"))


def test_subsets_and_held_out_parts_keep_the_classes_in_proportion():
    targets = torch.tensor([0] * 50 + [1] * 30 + [2] * 17 + [3] * 3)[
        torch.randperm(100, generator=torch.Generator().manual_seed(3))
    ]
    chosen = stratified(targets, 20)
    assert torch.bincount(targets[chosen]).tolist() == [10, 6, 3, 1]  # 10, 6, 3.4, 0.6
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert torch.equal(chosen, stratified(targets, 20))
    split = Split(torch.arange(100).view(100, 1, 1, 1), targets)
    rest, held = hold_out(split, 0.2)
    assert sorted(torch.cat([rest.images, held.images]).flatten().tolist()) == list(range(100))
    assert torch.equal(held.images.flatten(), chosen)
    data = load({"type": "digits", "train_images": 300, "test_images": 0})
    assert torch.bincount(data.train.targets).tolist() == pytest.approx([30] * 10, abs=1)
    assert len(data.test.targets) == 797
    with pytest.raises(ValueError, match="train_images: 1001 is not possible; allowed: 1 to 1000"):
        load({"type": "digits", "train_images": 1001})


# The stream


@pytest.mark.parametrize(
    "options",
    [
        {"crop": "pad", "flip": True},
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
    earlier = [list(consumed.epoch(epoch)) for epoch in range(3)]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    batches = list(fresh.epoch(3))
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert same(list(consumed.epoch(3)), batches)
    assert not torch.equal(earlier[0][0].index, batches[0].index)
    assert not torch.equal(earlier[0][0].index, next(streamed(data, seed=1, **options).epoch(0)).index)


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


def test_padded_crops_and_flips_equal_a_per_image_reference():
    data = toy(samples=64)
    padded = np.pad(data.train.images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    corners, flipped = set(), 0
    for batch in streamed(data, crop="pad", crop_padding=2, flip=True).epoch(0):
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
def test_normalised_values_and_layout(dtype, memory_format):
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
    }  # centres are pixels; 4: two before, one after


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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["auto_augment", "rand_augment", "trivial_augment"])
def test_operations_equal_torchvisions_image_by_image(name, channels):
    from torchvision.transforms import v2

    draws = torch.Generator().manual_seed(0)
    coarse = torch.rand(12, channels, 6, 6, generator=draws)
    images = (torch.nn.functional.interpolate(coarse, size=24, mode="bilinear") * 255).to(torch.uint8)
    images[0] = 9  # constant: nothing to stretch or equalise
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
    rounds = augment.Policy(name, "cifar10", 8, 8).draw(2000, torch.Generator().manual_seed(0))
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


def test_augmentation_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        streamed(toy(samples=1))
    two = toy(channels=2)
    with pytest.raises(ValueError, match="1 or 3 channels; these images have 2"):
        streamed(two, augment="rand_augment")
    streamed(two, crop="pad", flip=True)


# Image files


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes; PNG and grey files of several sizes; 9 to train on, 4 to test."""
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
    with pytest.raises(FileNotFoundError, match="has not both train/ and val/"):
        load({"type": "imagefolder"}, root=str(folder / "train"))


# Real images


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_fashion_mnist(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (SHARED / "FashionMNIST" / "raw").glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    data = load({"type": "fashion_mnist", "train_images": 1000}, root=str(tmp_path))
    assert torch.bincount(data.train.targets).tolist() == [100] * 10
    assert data.test.images.shape == (10000, 1, 28, 28)
    assert data.class_names[0] == "T-shirt/top"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_photographs_stream():
    data = load({"type": "imagefolder", "train_images": 6}, root=str(SHARED / "photos_2"))
    batch = next(streamed(data, crop="resized", batch_size=6, flip=True).epoch(0))
    assert batch.image.shape == (6, 3, 224, 224)
    assert -1 < float(batch.image.mean()) < 1
