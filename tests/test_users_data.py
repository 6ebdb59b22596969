"""Data of a user's own that are not as they should be: read right, or named in one line, before anything is trained."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from PIL import Image

import run_bench
from bench.data import DATASETS, Dataset, Split, digest, load, look
from bench.data.digests import CACHE
from bench.plan import expand, grid_file

RNG = np.random.default_rng(0)


def write(folder: Path, image, extension: str = "png", classes: str = "abc") -> Path:
    """folder/{train,val}/CLASS/*: 3 + 2 images of each class, `image(class, position)`."""
    for part, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for position in range(count):
                save(image(label, position), folder / part / name / f"{position}.{extension}")
    return folder


def save(pixels: np.ndarray, path: Path) -> None:
    if path.suffix == ".pgm":  # Pillow 10 reads 16 bits, and does not write them
        height, width = pixels.shape
        path.write_bytes(f"P5 {width} {height} 65535\n".encode() + pixels.astype(">u2").tobytes())
    else:
        Image.fromarray(pixels).save(path)


def colored(label: int, position: int) -> np.ndarray:
    return RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8)


# Image files


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_sixteen_bit_gray_files_keep_their_upper_eight_bits(tmp_path, extension):
    write(tmp_path, lambda label, _: np.full((6, 6), (0, 30000, 65535)[label], np.uint16), extension)
    images = load({"type": "imagefolder", "path": str(tmp_path), "size": 6}).train.images
    assert [int(image.min()) for image in images[::3]] == [int(image.max()) for image in images[::3]] == [0, 117, 255]


def test_sixteen_bit_files_of_either_byte_order_agree(tmp_path):
    import struct

    values = RNG.integers(0, 65536, (4, 5)).astype(np.uint16)
    for order, mark, kind in (("<", b"II", "<u2"), (">", b"MM", ">u2")):
        tags = [(256, 5), (257, 4), (258, 16), (259, 1), (262, 1), (273, 200), (277, 1), (278, 4), (279, values.nbytes)]
        header = mark + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", len(tags))
        entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags)
        raw = (header + entries + bytes(4)).ljust(200, b"\0") + values.astype(kind).tobytes()
        for part in ("train", "val"):
            for name in ("a", "b"):
                (tmp_path / kind[:1].replace("<", "l").replace(">", "b") / part / name).mkdir(parents=True)
                (tmp_path / kind[:1].replace("<", "l").replace(">", "b") / part / name / "0.tif").write_bytes(raw)
    for folder in ("l", "b"):
        files = load({"type": "imagefolder", "path": str(tmp_path / folder)}).train.images
        assert np.array_equal(np.asarray(files.open(0))[..., 1], values >> 8)


@pytest.mark.parametrize(("kind", "words"), [(np.float32, "floating-point"), (np.int32, "32-bit integers")])
def test_files_without_a_known_range_are_refused(tmp_path, kind, words):
    write(tmp_path, lambda *_: np.full((6, 6), 0.5).astype(kind), "tif")
    with pytest.raises(ValueError, match=rf"0\.tif: its pixels are {words}.*save it with 8 or 16 bits"):
        load({"type": "imagefolder", "path": str(tmp_path), "size": 6})


def test_a_huge_image_is_named(tmp_path):
    write(tmp_path, colored)
    Image.new("1", (20000, 10000)).save(tmp_path / "train" / "a" / "0.png")
    with pytest.raises(ValueError, match=r"0\.png cannot be read as an image .*exceeds limit"):
        load({"type": "imagefolder", "path": str(tmp_path), "size": 6})


def test_hidden_entries_are_no_classes_and_no_images(tmp_path):
    write(tmp_path, colored)
    before = look({"type": "imagefolder", "path": str(tmp_path)})
    for hidden in (".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / "train" / hidden).mkdir()
        (tmp_path / "train" / hidden / "0.png").write_bytes((tmp_path / "train/a/0.png").read_bytes())
    (tmp_path / "train" / "a" / "._0.png").write_bytes(b"a resource fork")
    (tmp_path / "train" / "a" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "a" / ".ipynb_checkpoints" / "0-checkpoint.png").write_bytes(b"")
    data = load({"type": "imagefolder", "path": str(tmp_path), "size": 6})
    assert (data.classes, data.class_names, data.train.targets.tolist()) == (3, ("a", "b", "c"), [0] * 3 + [1] * 3 + [2] * 3)
    assert look({"type": "imagefolder", "path": str(tmp_path)}) == before


def test_folders_within_a_class_belong_to_it_as_torchvision_has_it(tmp_path):
    from torchvision.datasets import ImageFolder

    write(tmp_path, colored)
    (tmp_path / "train" / "b" / "0").mkdir()
    (tmp_path / "train" / "b" / "1.png").rename(tmp_path / "train" / "b" / "0" / "1.png")
    files = load({"type": "imagefolder", "path": str(tmp_path)}).train
    reference = ImageFolder(tmp_path / "train").samples
    assert list(zip(map(str, files.images), files.targets.tolist(), strict=True)) == reference


# Digests


def rewrite(path: Path, flip: int) -> None:
    """Other pixels, the same size, and an unchanged time of modification."""
    found, raw = path.stat(), bytearray(path.read_bytes())
    raw[-1] ^= flip
    path.write_bytes(raw)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def test_other_pixels_of_the_same_size_are_other_data(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.data.digests.SETTLED_S", -1)
    spec = {"type": "imagefolder", "path": str(write(tmp_path, colored, "bmp"))}
    first = digest(spec)
    assert (tmp_path / CACHE).is_file()
    assert digest(spec) == first
    rewrite(tmp_path / "train" / "a" / "1.bmp", 255)
    second = digest(spec)
    assert second != first
    with pytest.raises(ValueError, match="not those that the cell was planned with"):
        load({**spec, "digest": first})
    rewrite(tmp_path / "train" / "a" / "1.bmp", 255)
    (tmp_path / "train" / "a" / "1.bmp").touch()
    assert digest(spec) == first  # time stamps are no part of it
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert digest({**spec, "path": str(moved)}) == first


def test_a_digest_is_kept_until_a_time_stamp_changes(tmp_path, monkeypatch):
    spec = {"type": "imagefolder", "path": str(write(tmp_path, colored))}
    first = digest(spec)
    assert not (tmp_path / CACHE).exists()  # the files are so young that they may change within one time stamp
    monkeypatch.setattr("bench.data.digests.SETTLED_S", -1)
    assert digest(spec) == first
    monkeypatch.setattr("bench.data.digests._contents", lambda _: pytest.fail("read again"))
    assert digest(spec) == first
    for damaged in ("", "[1]", '{"listing": 3}', "no json" * 1000):
        (tmp_path / CACHE).write_text(damaged)
        with pytest.raises(pytest.fail.Exception):
            digest(spec)


def test_data_that_cannot_be_written_keep_their_digest_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.data.digests.SETTLED_S", -1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write(tmp_path / "data", colored)
    (folder / CACHE).mkdir()  # no file can be written in its place
    first = digest({"type": "imagefolder", "path": str(folder)})
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1
    monkeypatch.setattr("bench.data.digests._contents", lambda _: pytest.fail("read again"))
    assert digest({"type": "imagefolder", "path": str(folder)}) == first


# Arrays


def arrays(images: tuple[int, ...] = (8, 8), classes: int = 4, **changes) -> dict[str, np.ndarray]:
    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        return RNG.integers(0, 256, (count, *images), dtype=np.uint8), np.arange(count) % classes

    train, test = part(64), part(20)
    found = {"train_images": train[0], "train_labels": train[1], "test_images": test[0], "test_labels": test[1]}
    return found | changes


def npz(folder: Path, **found) -> dict[str, str]:
    np.savez(folder / "d.npz", **found)
    return {"type": "npz", "path": str(folder / "d.npz")}


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 24, 40), (13, 64, 64), (4, 9, 9)])
def test_arrays_with_channels_first_are_refused(tmp_path, shape):
    with pytest.raises(
        ValueError, match=r"'train_images' is uint8 of shape .*looks like \(N, C, H, W\).*transpose\(0, 2, 3, 1\)"
    ):
        load(npz(tmp_path, **arrays(shape)))


@pytest.mark.parametrize(
    "shape", [(32, 32, 3), (8, 8, 1), (3, 3, 3), (1, 8, 3), (5, 5, 200), (64, 64, 13), (3, 3, 103), (8, 8, 4)]
)
def test_arrays_with_channels_last_are_taken(tmp_path, shape):
    assert load(npz(tmp_path, **arrays(shape))).train.images.shape == (64, shape[2], *shape[:2])


def test_float_images_are_refused_with_the_remedy(tmp_path):
    floats = {f"{part}_images": RNG.random((count, 8, 8)) for part, count in (("train", 64), ("test", 20))}
    with pytest.raises(ValueError, match=r"'train_images' is float64 .*allowed: uint8 .*times 255, rounded"):
        load(npz(tmp_path, **arrays(**floats)))


def test_classes_without_training_images_are_named(tmp_path):
    shifted = arrays()
    shifted |= {key: shifted[key] + 1 for key in ("train_labels", "test_labels")}
    assert look(npz(tmp_path, **shifted)).notes == ("1 of 5 classes have no training image: 0",)
    sparse = arrays()
    sparse |= {key: np.array([0, 5, 9, 300])[sparse[key]] for key in ("train_labels", "test_labels")}
    found = look(npz(tmp_path, **sparse))
    assert (found.shape.classes, found.notes) == (
        301,
        ("297 of 301 classes have no training image: 1, 2, 3, 4, 6 and 292 more",),
    )
    unseen = arrays()
    unseen["test_labels"][:5] = 6
    assert look(npz(tmp_path, **unseen)).notes == (
        "3 of 7 classes have no training image: 4, 5, 6",
        "5 of 20 test images are of classes without a training image",
    )
    assert look(npz(tmp_path, **arrays())).notes == ()
    assert "3 of 4 classes" in look({**npz(tmp_path, **arrays()), "train_images": 1}).notes[0]


def test_an_empty_class_folder_is_named(tmp_path):
    write(tmp_path, colored)
    (tmp_path / "train" / "misc").mkdir()
    assert look({"type": "imagefolder", "path": str(tmp_path)}).notes == ("1 of 4 classes have no training image: misc",)


def test_data_of_one_class_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 classes: a classification needs at least 2"):
        look(npz(tmp_path, **arrays(classes=1)))
    write(tmp_path, colored, classes="a")
    with pytest.raises(ValueError, match="1 classes: a classification needs at least 2"):
        look({"type": "imagefolder", "path": str(tmp_path)})


def test_images_that_lost_their_range_are_named(tmp_path):
    for value, words in ((1, "no pixel is above 1"), (0, "every pixel of the training images is 7")):
        found = arrays()
        for key in ("train_images", "test_images"):
            found[key] = (found[key] > 127).astype(np.uint8) * value + 7 * (1 - value)
        assert words in look(npz(tmp_path, **found)).notes[0]


def test_plan_and_run_name_classes_and_what_is_suspicious(tmp_path, capsys):
    found = arrays()
    found["test_labels"][:5] = 6
    grid = small.write_grid(
        tmp_path, data=npz(tmp_path, **found), pairs=[{"student": "resnet8"}], methods=["none"], recipe={"epochs": 1}
    )
    at = ["--results", str(tmp_path / "results"), "--device", "cpu"]
    assert run_bench.main(["plan", grid, *at]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "data npz: 64 training images of 1x8x8, 7 classes" in text
    assert "warning: data npz: 5 of 20 test images are of classes without a training image" in text
    assert run_bench.main(["run", grid, *at, "--cluster", "debug", "--no-cost", "--no-report"]) == 0
    assert "warning: data npz: 3 of 7 classes have no training image: 4, 5, 6" in " ".join(capsys.readouterr().out.split())


# Data sets from a plug-in


@pytest.fixture
def own():
    """A data set of a user's own: four classes; the pixels depend on `path`, the labels on `shift`."""

    def build(root: str | None = None, path: str = "a", shift: int = 0) -> Dataset:
        draws = torch.Generator().manual_seed(len(path))
        images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=draws)
        split = Split(images, (torch.arange(16) + shift) % 4)
        return Dataset(split, split, 4, (0.5,) * 3, (0.25,) * 3, tuple("abcd"))

    DATASETS.register_module("own", module=build)
    yield build
    del DATASETS.module_dict["own"]


def test_what_a_plug_in_returns_is_part_of_the_id(tmp_path, own):
    def ids(**arguments) -> set[str]:
        grid = small.write_grid(tmp_path, data={"type": "own", **arguments}, methods=["none"])
        return {cell.id for cell in expand.expand(*grid_file.read(grid)).cells}

    assert ids() == ids(path="b")  # the same images and labels
    assert not ids() & ids(path="bb")
    assert not ids() & ids(shift=1)
    spec = {"type": "own", "path": "a", "digest": digest({"type": "own", "path": "a"})}
    load(spec)
    with pytest.raises(ValueError, match="not those that the cell was planned with"):
        load({**spec, "path": "bb"})


def test_plug_ins_that_stream_files_are_digested_by_contents(tmp_path):
    from bench.data.files import Files

    write(tmp_path, colored, "bmp")

    def build(root: str | None = None) -> Dataset:
        files = sorted((tmp_path / "train").rglob("*.bmp"))
        split = Split(Files([str(file) for file in files]), torch.arange(9) % 3)
        return Dataset(split, split, 3, (0.5,) * 3, (0.25,) * 3, tuple("abc"))

    DATASETS.register_module("streams", module=build)
    try:
        first = digest({"type": "streams"})
        rewrite(tmp_path / "train" / "b" / "0.bmp", 1)
        assert digest({"type": "streams"}) != first
    finally:
        del DATASETS.module_dict["streams"]


def changed(data: Dataset, **split) -> Dataset:
    from dataclasses import replace

    return replace(data, train=data.train._replace(**split))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(16, 3, 8, 8)}, r"train images are torch.float32; allowed: uint8 .*multiply by 255"),
        ({"images": torch.zeros(16, 8, 8, 3, dtype=torch.uint8)}, r"have 8 channels, and mean has 3; \(N, H, W, C\) must be"),
        ({"images": torch.zeros(16, 8, 8, dtype=torch.uint8)}, r"have the shape \(16, 8, 8\)"),
        ({"images": torch.zeros(16, 3, 9, 9, dtype=torch.uint8)}, r"training images are \(3, 9, 9\), test images \(3, 8, 8\)"),
        ({"images": np.zeros((16, 3, 8, 8), np.uint8)}, "train images are a ndarray"),
        ({"targets": torch.arange(16)}, "train targets reach from 0 to 15; allowed: 0 to 3, since there are 4 classes"),
        ({"targets": torch.arange(16) % 4 - 1}, "train targets reach from -1 to 2"),
        ({"targets": torch.arange(16).float()}, "train targets are torch.float32; allowed: an int64 tensor"),
        ({"targets": torch.arange(8) % 4}, r"train targets have the shape \(8,\) for 16 images"),
    ],
)
def test_what_a_plug_in_returns_is_checked(own, change, message):
    DATASETS.register_module("wrong", module=lambda root=None: changed(own(), **change))
    try:
        with pytest.raises(ValueError, match=f"data set 'wrong': .*{message}"):
            load({"type": "wrong"})
    finally:
        del DATASETS.module_dict["wrong"]
