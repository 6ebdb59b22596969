"""Packs a set of images so that it travels in parts, losslessly, and unpacks it on the other side.

    gpu_data.py pack IMAGES.npz FOLDER [--parts N]      FOLDER/a, FOLDER/b ... of about equal size; CIFAR-100: two of 50 MB
    gpu_data.py unpack IMAGES.npz FOLDER ...            from the parts, wherever each lies

The file has train_images, train_labels, test_images and test_labels, as data of `type: npz`. Images become mosaics of up to
2,500 in WebP without loss, little more than half of what they take raw. Nothing but numpy and Pillow is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 50  # images in a row of a mosaic, and rows
INDEX = "index.npz"  # in every part: labels, shapes and digests


def pack(source: Path, folder: Path, parts: int) -> list[Path]:
    """Write the parts; returns their folders."""
    arrays = np.load(source)
    mosaics, facts = {}, {}
    for split in ("train", "test"):
        images = arrays[f"{split}_images"]
        facts[split] = {"shape": images.shape, "sha256": hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()}
        for number, start in enumerate(range(0, len(images), SIDE**2)):
            mosaics[f"{split}_{number:02d}.webp"] = _mosaic(images[start : start + SIDE**2])
    with ThreadPoolExecutor() as pool:  # Pillow lets other threads run while it encodes
        packed = dict(zip(mosaics, pool.map(_encode, mosaics.values()), strict=True))
    folders = [folder / chr(ord("a") + number) for number in range(parts)]
    sizes = dict.fromkeys(folders, 0)
    labels = {name: arrays[name] for name in ("train_labels", "test_labels")}
    for each in folders:
        each.mkdir(parents=True, exist_ok=True)
        for old in each.glob("*.webp"):
            old.unlink()
        np.savez_compressed(each / INDEX, facts=np.array(json.dumps(facts)), **labels)
    for name, raw in sorted(packed.items(), key=lambda item: -len(item[1])):
        smallest = min(sizes, key=lambda each: sizes[each])
        (smallest / name).write_bytes(raw)
        sizes[smallest] += len(raw)
    return folders


def unpack(target: Path, parts: list[Path]) -> None:
    """Write the file that was packed.

    Raises:
        FileNotFoundError: a part is missing.
        ValueError: images are not those that were packed.
    """
    index = np.load(next(part / INDEX for part in parts if (part / INDEX).exists()))
    arrays = {name: index[name] for name in ("train_labels", "test_labels")}
    for split, facts in json.loads(str(index["facts"])).items():
        shape = tuple(facts["shape"])
        names = [f"{split}_{number:02d}.webp" for number in range(-(-shape[0] // SIDE**2))]
        places = [next((part / name for part in parts if (part / name).exists()), None) for name in names]
        if None in places:
            raise FileNotFoundError(f"{names[places.index(None)]} is in none of {', '.join(map(str, parts))}")
        with ThreadPoolExecutor() as pool:
            tiles = list(pool.map(_tiles, places, [shape[1:]] * len(places)))
        images = np.ascontiguousarray(np.concatenate(tiles)[: shape[0]])
        if hashlib.sha256(images.data).hexdigest() != facts["sha256"]:
            raise ValueError(f"{split}: these are not the images that were packed")
        arrays[f"{split}_images"] = images
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(target, **arrays)


def _mosaic(images: np.ndarray) -> np.ndarray:
    """(50 H, 50 W, 3) of up to 2,500 images (N, H, W, 3)."""
    _, height, width, channels = images.shape
    full = np.zeros((SIDE**2, height, width, channels), dtype=np.uint8)
    full[: len(images)] = images
    return full.reshape(SIDE, SIDE, height, width, channels).swapaxes(1, 2).reshape(SIDE * height, SIDE * width, channels)


def _tiles(place: Path, shape: tuple[int, ...]) -> np.ndarray:
    height, width, channels = shape
    pixels = np.asarray(Image.open(place).convert("RGB"))
    return pixels.reshape(SIDE, height, SIDE, width, channels).swapaxes(1, 2).reshape(-1, height, width, channels)


def _encode(mosaic: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mosaic).save(buffer, "webp", lossless=True, quality=50)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["pack", "unpack"])
    parser.add_argument("file", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--parts", type=int, default=2)
    given = parser.parse_args()
    if given.verb == "unpack":
        unpack(given.file, given.folders)
        return
    for part in pack(given.file, given.folders[0], given.parts):
        print(part, f"{sum(file.stat().st_size for file in part.iterdir()) / 2**20:.1f} MiB")


if __name__ == "__main__":
    sys.exit(main())
