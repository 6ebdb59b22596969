"""Data sets in their own formats."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_data import SHARED

from bench.data.sets import (
    DATASETS,
    DIGESTS,
    SHAPES,
    Dataset,
    Shape,
    Split,
    digest,
    hold_out,
    load,
    look,
    statistics,
    stratified,
)


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def write_cifar(folder: Path, builder: type, monkeypatch, train, test, names: list[str]) -> None:
    """Write (N, 3, 32, 32) uint8 images with their labels as the official files, and have torchvision take them for these."""
    label_key = "fine_labels" if builder.base_folder == "cifar-100-python" else "labels"
    folder.mkdir(parents=True)
    for part, (images, labels) in ((builder.train_list, train), (builder.test_list, test)):
        rows = zip(np.split(images.reshape(-1, 3072), len(part)), np.split(labels, len(part)), strict=True)
        for (name, _), (batch, batch_labels) in zip(part, rows, strict=True):
            (folder / name).write_bytes(pickle.dumps({"data": batch, label_key: batch_labels.tolist()}))
    meta = folder / builder.meta["filename"]
    meta.write_bytes(pickle.dumps({builder.meta["key"]: names}))
    # torchvision accepts only the official files: give it the digests of ours
    monkeypatch.setattr(builder, "train_list", [[name, md5(folder / name)] for name, _ in builder.train_list])
    monkeypatch.setattr(builder, "test_list", [[name, md5(folder / name)] for name, _ in builder.test_list])
    monkeypatch.setattr(builder, "meta", builder.meta | {"md5": md5(meta)})


@pytest.mark.parametrize("key", ["cifar10", "cifar100"])
def test_cifar_is_read_from_the_official_archive(tmp_path, monkeypatch, key):
    from torchvision import datasets

    builder = datasets.CIFAR10 if key == "cifar10" else datasets.CIFAR100
    rng = np.random.default_rng(0)
    written = [
        (rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, count))
        for count in (2 * len(builder.train_list), 3)
    ]
    folder = tmp_path / builder.base_folder
    write_cifar(folder, builder, monkeypatch, *written, [f"class {label}" for label in range(int(key[5:]))])
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / builder.filename, "w:gz") as archive:
        archive.add(folder, builder.base_folder)
    monkeypatch.setattr(builder, "tgz_md5", md5(root / builder.filename))

    data = DATASETS.build({"type": key, "root": str(root)})
    assert len(data.class_names) == data.classes
    assert data.shape == SHAPES[key]._replace(samples=len(written[0][1]))
    for split, (images, labels) in zip((data.train, data.test), written, strict=True):
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
    assert data.shape == SHAPES["fashion_mnist"]._replace(samples=5)
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
    assert data.shape == SHAPES["svhn"]._replace(samples=4)
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
    np.savez_compressed(tmp_path / "gray.npz", **arrays(train_images=written[..., 0], test_images=written[:3, ..., 0]))
    assert load({"type": "npz"}, root=str(tmp_path / "gray.npz")).train.images.shape == (6, 1, 5, 4)


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
        (
            {"train_labels": np.array([0, 1, 2, 0, 1, "x"], dtype=object)},
            "is not an .npz file of plain arrays",
        ),  # would need pickle
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
    with pytest.raises(ValueError, match=r"is no \.npz file"):
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


# The facts that stand beside a builder


def test_the_shape_of_digits_is_that_of_the_data():
    assert load({"type": "digits"}).shape == SHAPES["digits"]
    assert set(SHAPES) == set(DATASETS.module_dict) - {*DIGESTS, "torchvision", "csv", "huggingface"}
    subset = {"type": "digits", "train_images": 300, "test_images": 0}
    assert look(subset).shape == load(subset).shape == SHAPES["digits"]._replace(samples=300)


def check_facts(data: Dataset, shape: Shape) -> None:
    """Shape, classes, mean and standard deviation are those of the data."""
    assert data.shape == shape
    assert data.train.targets.unique().tolist() == data.test.targets.unique().tolist() == list(range(shape.classes))
    mean, std = statistics(data.train.images)
    assert data.mean == pytest.approx(mean, abs=0.0002)  # the field's: CIFAR-100's is off by 0.00015
    assert data.std == pytest.approx(std, abs=0.0002)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_the_facts_of_fashion_mnist_are_those_of_the_data(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (SHARED / "FashionMNIST" / "raw").glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    data = load({"type": "fashion_mnist"}, root=str(tmp_path))
    check_facts(data, SHAPES["fashion_mnist"])
    assert data.test.images.shape == (10000, 1, 28, 28)
    assert data.class_names[0] == "T-shirt/top"
    subset = load({"type": "fashion_mnist", "train_images": 1000}, root=str(tmp_path))
    assert torch.bincount(subset.train.targets).tolist() == [100] * 10


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_the_facts_of_cifar100_are_those_of_the_data(tmp_path, monkeypatch):
    from torchvision import datasets

    subprocess.run([sys.executable, str(SHARED / "unpack_cifar100.py"), str(tmp_path)], check=True)
    with np.load(tmp_path / "cifar100.npz") as arrays:
        splits = [(arrays[f"{part}_images"].transpose(0, 3, 1, 2), arrays[f"{part}_labels"]) for part in ("train", "test")]
        names = arrays["class_names"].tolist()
    write_cifar(tmp_path / datasets.CIFAR100.base_folder, datasets.CIFAR100, monkeypatch, *splits, names)
    data = load({"type": "cifar100"}, root=str(tmp_path))
    check_facts(data, SHAPES["cifar100"])
    assert data.test.images.shape == (10000, 3, 32, 32)
    assert data.class_names[0] == "apple"
