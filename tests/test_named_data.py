"""Sets of torchvision by name, each in its own format; bounds of memory; folders without test images."""

from __future__ import annotations

import bz2
import json
import struct
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from PIL import Image
from test_data import md5
from toy_data import CPU

import run_bench
from bench.data import digest, load, look, memory
from bench.data.files import Files
from bench.data.stream import evaluation_batches
from bench.data.torchvision import DEFAULTS, SETS, SHORT
from bench.plan import expand, grid_file

RNG = np.random.default_rng(0)


def save(path: Path, value: int = 0, size: tuple[int, int] = (9, 7)) -> None:
    """An image of one color, (value, 2 value, 3 value)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 2 * value, 3 * value)).save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


# Sets of torchvision, a writer of each format; the color of an image is 20 times its class as torchvision counts it


def write_flowers(root: Path, monkeypatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    folder = root / "flowers-102"
    labels = [1, 2, 3, 1, 2, 3, 1, 2]
    for position, label in enumerate(labels, 1):
        save(folder / "jpg" / f"image_{position:05d}.jpg", 20 * (label - 1), (9 + position, 7))
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels])})
    savemat(folder / "setid.mat", {"trnid": np.array([[1, 2, 3]]), "valid": np.array([[4, 5]]), "tstid": np.array([[6, 7, 8]])})
    files = {name: (file, md5(folder / file)) for name, file in (("label", "imagelabels.mat"), ("setid", "setid.mat"))}
    monkeypatch.setattr(Flowers102, "_file_dict", {**Flowers102._file_dict, **files})


def write_food(root: Path, monkeypatch) -> None:
    for part in ("train", "test"):
        named = {name: [f"{name}/{part}{position}" for position in range(3)] for name in ("pie", "soup")}
        text(root / "food-101" / "meta" / f"{part}.json", json.dumps(named))
        for label, files in enumerate(named.values()):
            for file in files:
                save(root / "food-101" / "images" / f"{file}.jpg", 20 * label)


def write_pets(root: Path, monkeypatch) -> None:
    folder = root / "oxford-iiit-pet"
    for part in ("trainval", "test"):
        rows = [
            f"{name}_{part}_{number} {label} 1 1" for label, name in ((1, "Abyssinian"), (2, "beagle")) for number in (1, 2)
        ]
        rows = [row.replace(f"_{part}_", f"_{9 * (part == 'test')}") for row in rows]
        text(folder / "annotations" / f"{part}.txt", "\n".join(rows))
        for row in rows:
            save(folder / "images" / f"{row.split()[0]}.jpg", 20 * (int(row.split()[1]) - 1))


def write_signs(root: Path, monkeypatch) -> None:
    folder = root / "gtsrb" / "GTSRB"
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label in (0, 1):
        for number in range(3):
            save(folder / "Training" / f"{label:05d}" / f"0_{number}.ppm", 20 * label)
        save(folder / "Final_Test" / "Images" / f"0000{label}.ppm", 20 * label)
        rows.append(f"0000{label}.ppm;9;7;0;0;0;0;{label}")
    text(root / "gtsrb" / "GT-final_test.csv", "\n".join(rows))


def write_textures(root: Path, monkeypatch) -> None:
    folder = root / "dtd" / "dtd"
    for part in ("train", "val", "test"):
        rows = [f"{name}/{name}_{part}.jpg" for name in ("banded", "dotted")]
        for partition in (1, 2):
            text(folder / "labels" / f"{part}{partition}.txt", "\n".join(rows))
        for label, row in enumerate(rows):
            save(folder / "images" / row, 20 * label)


def write_satellites(root: Path, monkeypatch) -> None:
    for label, name in enumerate(("Forest", "River")):
        for number in range(4):
            save(root / "eurosat" / "2750" / name / f"{name}_{number}.jpg", 20 * label, (8, 8))


def write_objects(root: Path, monkeypatch) -> None:
    folder = root / "caltech101" / "101_ObjectCategories"
    for label, name in enumerate(("Faces", "accordion")):
        for number in range(1, 5):
            save(folder / name / f"image_{number:04d}.jpg", 20 * label)
    (folder / "BACKGROUND_Google").mkdir()  # torchvision leaves it out
    (root / "caltech101" / "Annotations").mkdir()


def write_aircraft(root: Path, monkeypatch) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    text(folder / "variants.txt", "707-320\nA300")
    for part in ("trainval", "test"):
        rows = [f"{part}{label} {name}" for label, name in enumerate(("707-320", "A300"))]
        text(folder / f"images_variant_{part}.txt", "\n".join(rows))
        for label, row in enumerate(rows):
            save(folder / "images" / f"{row.split()[0]}.jpg", 20 * label)


FILES = {  # the writer; classes; counts of training and test images; arguments
    "Flowers102": (write_flowers, ("pink primrose", "hard-leaved pocket orchid", "canterbury bells"), (3, 3), {}),
    "Food101": (write_food, ("pie", "soup"), (6, 6), {}),
    "OxfordIIITPet": (write_pets, ("Abyssinian", "Beagle"), (4, 4), {}),
    "GTSRB": (write_signs, ("0", "1"), (6, 2), {}),
    "DTD": (write_textures, ("banded", "dotted"), (4, 2), {"split": "train+val", "arguments": {"partition": 2}}),
    "EuroSAT": (write_satellites, ("Forest", "River"), (6, 2), {"test_share": 0.25}),
    "Caltech101": (write_objects, ("Faces", "accordion"), (6, 2), {"test_share": 0.25}),
    "FGVCAircraft": (write_aircraft, ("707-320", "A300"), (2, 2), {}),
}


@pytest.mark.parametrize("name", FILES)
def test_sets_of_image_files_are_read_as_torchvision_has_them(tmp_path, monkeypatch, name):
    writer, classes, counts, arguments = FILES[name]
    writer(tmp_path, monkeypatch)
    spec = {"type": "torchvision", "name": name, **arguments}
    streamed = load(spec, str(tmp_path))
    assert (len(streamed.train.targets), len(streamed.test.targets)) == counts
    assert isinstance(streamed.train.images, Files)
    assert streamed.class_names == classes
    held = load({**spec, "size": 6}, str(tmp_path))
    assert held.train.images.shape == (counts[0], 3, 6, 6)
    for part in (held.train, held.test):
        assert (part.images[:, 2].float().mean((1, 2)) / 60).round().int().tolist() == part.targets.tolist()
    assert look({**spec, "size": 6}, str(tmp_path)).shape == held.shape
    [(images, _)] = evaluation_batches(streamed.test, streamed, CPU, batch_size=9, image_size=8)
    assert images.shape == (counts[1], 3, 8, 8)


def idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">IIII", 2051, *images.shape)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(labels)) + labels.tobytes())


def test_letters_of_emnist_count_from_the_first_that_occurs(tmp_path):
    written = {}
    for part, prefix in (("train", "emnist-letters-train"), ("test", "emnist-letters-test")):
        images, labels = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8), np.array([1, 2, 3, 1, 2, 3], np.uint8)
        idx(tmp_path / "EMNIST" / "raw", prefix, images, labels)
        written[part] = images
    spec = {"type": "torchvision", "name": "EMNIST", "arguments": {"split": "letters"}}
    data = load(spec, str(tmp_path))
    assert np.array_equal(data.train.images[:, 0].numpy(), written["train"])
    assert np.array_equal(data.test.images[:, 0].numpy(), written["test"])
    assert (data.class_names, data.train.targets.tolist()) == (("a", "b", "c"), [0, 1, 2, 0, 1, 2])
    assert data.mean == pytest.approx([written["train"].mean() / 255])
    assert load({**spec, "size": 32}, str(tmp_path)).shape == look({**spec, "size": 32}, str(tmp_path)).shape
    assert load({**spec, "size": 32}, str(tmp_path)).shape[:3] == (1, 32, 32)


def test_mnist_has_one_channel(tmp_path):
    images, labels = RNG.integers(0, 256, (4, 28, 28), dtype=np.uint8), np.array([3, 1, 3, 1], np.uint8)
    for prefix in ("train", "t10k"):
        idx(tmp_path / "MNIST" / "raw", prefix, images, labels)
    data = load({"type": "torchvision", "name": "MNIST"}, str(tmp_path))
    assert np.array_equal(data.train.images[:, 0].numpy(), images)
    assert (data.train.targets.tolist(), data.class_names) == ([1, 0, 1, 0], ("1 - one", "3 - three"))


def test_stl10_is_read_from_its_binary_files(tmp_path, monkeypatch):
    from torchvision.datasets import STL10

    images = RNG.integers(0, 256, (4, 3, 96, 96), dtype=np.uint8)  # as stored: column by column
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for part in ("train", "test", "unlabeled"):
        (folder / f"{part}_X.bin").write_bytes(images.tobytes())
        (folder / f"{part}_y.bin").write_bytes(bytes([1, 2, 10, 1]))
    text(folder / "class_names.txt", "airplane bird car cat deer dog horse monkey ship truck".replace(" ", "\n"))
    for listed in ("train_list", "test_list"):
        monkeypatch.setattr(STL10, listed, [[name, md5(folder / name)] for name, _ in getattr(STL10, listed)])
    data = load({"type": "torchvision", "name": "STL10"}, str(tmp_path))
    assert np.array_equal(data.train.images.numpy(), images.transpose(0, 1, 3, 2))
    assert data.class_names == ("airplane", "bird", "truck")
    half = load({"type": "torchvision", "name": "STL10", "size": 48}, str(tmp_path))
    assert half.test.images.shape == (4, 3, 48, 48)


def test_usps_is_read_from_its_text_files(tmp_path):
    values = RNG.integers(0, 256, (3, 256))
    rows = [" ".join([str(label), *(f"{i}:{2 * v / 255 - 1:.6f}" for i, v in enumerate(row, 1))]) for label, row in
            zip((1, 10, 2), values, strict=True)]  # fmt: skip
    for name in ("usps.bz2", "usps.t.bz2"):
        (tmp_path / name).write_bytes(bz2.compress("\n".join(rows).encode()))
    data = load({"type": "torchvision", "name": "USPS"}, str(tmp_path))
    assert abs(data.train.images.int().view(3, 256) - torch.tensor(values)).max() <= 1  # it truncates
    assert data.train.targets.tolist() == [0, 2, 1]


def test_every_set_is_one_of_torchvision_and_names_parts_that_it_has(tmp_path, monkeypatch):
    from torchvision import datasets

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    for name in SETS:
        with pytest.raises((FileNotFoundError, ImportError)) as error:
            load({"type": "torchvision", "name": name}, str(tmp_path))
        assert f"{name} is not in {tmp_path}" in str(error.value), name
        assert "nknown value" not in str(error.value), name  # torchvision's words for a part that it does not have
    assert all(hasattr(datasets, name) for name in [*SHORT, *DEFAULTS])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "Flower102"}, r"called 'Flower102' \(did you mean 'Flowers102'\?\)"),
        ({"name": "CIFAR10"}, "write CIFAR10 as data: cifar10"),
        ({"name": "Food101", "arguments": {"partition": 2}}, "arguments: Food101 takes no 'partition'; allowed: split"),
        ({"name": "MNIST", "split": "val"}, "split: 'val' does not suit MNIST"),
        ({"name": "Food101", "split": "val"}, "Unknown value 'val' for argument split"),
        ({"name": "EuroSAT"}, r"torchvision's EuroSAT has no test part; or give test_share"),
        ({"name": "Food101", "test_share": 0.2}, "test_share: 0.2 does not suit data that have a test part"),
        ({"name": "Food101", "size": -1}, "size: -1 is not possible"),
    ],
)
def test_mistakes_in_names_of_torchvision_are_named(tmp_path, monkeypatch, spec, message):
    write_food(tmp_path, monkeypatch)
    write_satellites(tmp_path, monkeypatch)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load({"type": "torchvision", **spec}, str(tmp_path))


def test_a_set_of_torchvision_trains_and_counts_by_its_contents(tmp_path, monkeypatch, capsys):
    write_satellites(tmp_path / "data", monkeypatch)
    spec = {"type": "torchvision", "name": "EuroSAT", "size": 8, "test_share": 0.25}
    grid = small.write_grid(
        tmp_path, data=spec, pairs=[{"student": "resnet8"}], methods=["none"], recipe={"epochs": 1, "batch_size": 3}
    )
    root = str(tmp_path / "data")
    [cell] = expand.expand(*grid_file.read(grid), data_root=root).cells
    assert cell.id.startswith("eurosat-resnet8-none-s0-")
    at = ["--results", str(tmp_path / "results"), "--data-root", root, "--device", "cpu"]
    assert run_bench.main(["run", grid, *at, "--cluster", "debug", "--no-cost", "--no-report"]) == 0
    assert "1 of 1 done" in " ".join(capsys.readouterr().out.split())
    before = digest(spec, root)
    save(tmp_path / "data" / "eurosat" / "2750" / "River" / "River_3.jpg", 21, (8, 8))
    assert digest(spec, root) != before
    [changed] = expand.expand(*grid_file.read(grid), data_root=root).cells
    assert changed.id != cell.id


# Memory


def test_images_that_do_not_fit_into_memory_are_refused(tmp_path, monkeypatch):
    write_food(tmp_path, monkeypatch)
    monkeypatch.setattr(memory, "free", lambda: 1000)
    load({"type": "torchvision", "name": "Food101"}, str(tmp_path))
    with pytest.raises(ValueError, match=r"6 images of 100x100 pixels would need 0.0 GiB of memory.*size: 0 to stream them"):
        load({"type": "torchvision", "name": "Food101", "size": 100}, str(tmp_path))
    np.savez(tmp_path / "d.npz", train_images=np.zeros((2, 99, 99), np.uint8))
    with pytest.raises(ValueError, match=r"the arrays in .*d\.npz would need"):
        load({"type": "npz", "path": str(tmp_path / "d.npz")})


def test_the_limit_of_a_job_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    everything = memory.free()
    for name, content in (("max", "3000000"), ("current", "2000000"), ("stat", "anon 5\ninactive_file 500000\n")):
        text(tmp_path / f"memory.{name}", content)
    assert memory.free() == 1_500_000 < everything
    text(tmp_path / "memory.max", "max")
    assert memory.free() > 1_500_000


def test_labels_that_are_no_numbers_of_classes_are_refused_before_they_are_counted(tmp_path):
    images, labels = np.zeros((2, 4, 4), np.uint8), np.array([0, 2**40])
    np.savez(tmp_path / "d.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    with pytest.raises(ValueError, match=r"d\.npz: 1099511627777 classes; allowed: at most 100000"):
        load({"type": "npz", "path": str(tmp_path / "d.npz")})


def test_subsets_with_fewer_images_than_classes_are_named():
    assert look({"type": "cifar100", "train_images": 40}).notes == ("at least 60 of 100 classes have no training image",)
    assert look({"type": "cifar100"}).notes == ()


# Folders without test images


def test_image_folders_without_test_images_give_a_share(tmp_path):
    for label, name in enumerate("ab"):
        for number in range(4):
            save(tmp_path / "flat" / name / f"{number}.png", 20 * label)
            save(tmp_path / "one" / "train" / name / f"{number}.png", 20 * label)
    for folder in ("flat", "one"):
        spec = {"type": "imagefolder", "path": str(tmp_path / folder)}
        data = load({**spec, "test_share": 0.25, "size": 4})
        assert (len(data.train.targets), data.test.targets.tolist()) == (6, [0, 1])
        with pytest.raises(FileNotFoundError, match=r"lacks train/ or val/ .*or give test_share"):
            load(spec)
        with pytest.raises(FileNotFoundError, match="give test_share"):
            load({**spec, "test_share": 1.5})
    assert digest({"type": "imagefolder", "path": str(tmp_path / "flat"), "test_share": 0.25})
    save(tmp_path / "one" / "val" / "a" / "0.png")
    with pytest.raises(ValueError, match="does not suit data that have a test part"):
        load({"type": "imagefolder", "path": str(tmp_path / "one"), "test_share": 0.25})
