"""Image files: found in class folders, decoded, cropped as by ImageNet's standard transforms. Runs in loader processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader

from bench.cores import usable_cores
from bench.data import memory
from bench.data.augment import draw_boxes

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
BILINEAR = Image.Resampling.BILINEAR
LISTED = 5  # classes that an error names
MOST = 50_000_000  # images of a folder; ImageNet-21k has 14 million
CROP_PCT = 0.875  # size of a center crop as a share of the shorter side: 224 of 256
STREAMED_SIZE = 224  # height and width of images from files, where the recipe names no `image_size`


class Files:
    """N image files. Kept as one array: a list of a million strings would be copied into every loader process."""

    def __init__(self, paths: Sequence[str] | np.ndarray) -> None:
        self.paths = paths if isinstance(paths, np.ndarray) else np.array([os.fsencode(path) for path in paths])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, positions: Tensor) -> Files:
        return Files(self.paths[positions.numpy()])

    def __iter__(self) -> Iterator[Path]:
        return (self.path(position) for position in range(len(self)))

    def shared_with(self, other: Files) -> int:
        """How many of the others are among these, by their paths."""
        return int(np.isin(other.paths, self.paths).sum())

    def path(self, position: int) -> Path:
        return Path(os.fsdecode(self.paths[position]))

    def digest(self, position: int) -> bytes:
        """SHA-256 of an image as it is stored."""
        with self._opened(position) as opened:
            return hashlib.file_digest(opened, "sha256").digest()

    def open(self, position: int) -> Image.Image:
        """The decoded RGB image, 8 bits a channel; of 16-bit gray files the upper 8.

        Raises:
            ValueError: the file is no image, is damaged or too large, or its values have no known range.
        """
        with self._opened(position) as opened:
            return read(opened, str(self.path(position)))

    @contextlib.contextmanager
    def _opened(self, position: int) -> Iterator[BufferedReader]:
        """Without waiting at a pipe for somebody who writes into it.

        Raises:
            ValueError: it is no regular file.
        """
        with open(self.path(position), "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise ValueError(f"{self.path(position)} is no regular file")
            yield opened


def read(source: BinaryIO, name: str) -> Image.Image:
    """The RGB image in a file or in bytes; `name` is its name in errors."""
    try:
        with Image.open(source) as image:
            return _rgb(image)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read as an image ({error})") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _rgb(image: Image.Image) -> Image.Image:
    """Pillow itself brings 16-bit colors to 8 bits; of 16-bit gray images its `convert` clips at 255."""
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if sixteen:
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise ValueError(f"its pixels are {kind}, whose range is not known; save it with 8 or 16 bits a channel")
    return image.convert("RGB")


def _hidden(name: str) -> bool:
    """Whether a name is a tool's or a system's, as .ipynb_checkpoints, ._0.png and __MACOSX are."""
    return name.startswith(".") or name == "__MACOSX"


def scan(folder: Path, names: tuple[str, ...] = ()) -> tuple[tuple[str, ...], Files, Tensor]:
    """Class names, files and labels of folder/CLASS/**, sorted; without hidden files and folders.

    Args:
        names: the classes that labels count; empty: those that are found.

    Raises:
        FileNotFoundError, ValueError: no images, or a class that is not in `names`.
    """
    found = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _hidden(entry.name)))
    names = names or found
    if unknown := sorted(set(found) - set(names)):
        more = f" and {len(unknown) - LISTED} more" if len(unknown) > LISTED else ""
        raise ValueError(f"{folder} has classes that the training folder lacks: {', '.join(unknown[:LISTED])}{more}")
    paths: list[str] = []
    labels: list[int] = []
    numbers = {name: number for number, name in enumerate(names)}
    for name in found:
        images = _images_below(folder / name)
        paths += images
        if len(paths) > MOST:
            raise ValueError(f"{folder} holds more than {MOST:,} images, the most that are read")
        labels += [numbers[name]] * len(images)
    if not paths:
        raise FileNotFoundError(f"{folder} holds no images; expected CLASS/*, with one of {', '.join(sorted(SUFFIXES))}")
    return names, Files(paths), torch.tensor(labels)


def _images_below(folder: Path) -> list[str]:
    """Paths of a class's images, those in folders within it after its own, as torchvision lists them.

    Raises:
        ValueError: a link leads to a folder of this class again, or there are too many images.
    """
    found: list[str] = []
    seen: dict[tuple[int, int], str] = {}
    for place, folders, files in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if (former := seen.setdefault((status.st_dev, status.st_ino), place)) != place:
            raise ValueError(f"{place} is the folder {former} again, whose images would count twice; remove the link")
        folders[:] = sorted(name for name in folders if not _hidden(name))
        names = sorted(name for name in files if not _hidden(name) and Path(name).suffix.lower() in SUFFIXES)
        found += [str(Path(place) / name) for name in names]
        if len(found) > MOST:
            break
    return found


def center_crop(image: Image.Image, shorter: int, size: int) -> Image.Image:
    """Resize the shorter side to `shorter` pixels, then cut the size x size pixels in the middle."""
    width, height = image.size
    scale = shorter / min(width, height)
    image = image.resize((max(shorter, int(width * scale)), max(shorter, int(height * scale))), BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def decode(files: Files, size: int) -> Tensor:
    """All images, (N, 3, size, size) uint8, center-cropped; in threads, since decoding releases the interpreter's lock.

    Raises:
        ValueError: one cannot be read, or they do not fit into memory.
    """
    what = f"{len(files)} images of {size}x{size} pixels"
    memory.require(3 * size**2 * len(files), what, "give a smaller `size`, or size: 0 to stream them from disk")
    pixels = np.empty((len(files), size, size, 3), dtype=np.uint8)

    def fill(position: int) -> None:
        pixels[position] = np.asarray(center_crop(files.open(position), size, size))

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(fill, range(len(files))))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def generator(*key: object) -> torch.Generator:
    """A CPU generator of its own for each key."""
    seed = hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)


class Crops:
    """What the loader processes read: random resized crops for training, center crops for evaluation.

    It is indexed by position + N * copy: each copy of an image in an epoch, counted from 0, has a crop of its own.

    Args:
        files: the images.
        size: height and width of a crop in pixels.
        key: a crop is drawn from it and the image's position. None: center crops.
        crop_pct: of a center crop: its size as a share of the shorter side.
    """

    def __init__(self, files: Files, size: int, key: tuple[object, ...] | None, crop_pct: float = CROP_PCT) -> None:
        self.files, self.size, self.key, self.crop_pct = files, size, key, crop_pct

    def __getitem__(self, index: int) -> Tensor:
        """(size, size, 3) uint8."""
        copy, position = divmod(index, len(self.files))
        image = self.files.open(position)
        if self.key is None:
            image = center_crop(image, round(self.size / self.crop_pct), self.size)
        else:
            box = draw_boxes(1, image.height, image.width, generator(*self.key, position, *([copy] if copy else [])))
            top, left, height, width = box[0].tolist()
            image = image.crop((left, top, left + width, top + height)).resize((self.size, self.size), BILINEAR)
        return torch.from_numpy(np.array(image))

    def batches(self, order: Tensor, batch_size: int, device: torch.device, copies: Tensor | None = None) -> Iterator[Tensor]:
        """(B, 3, size, size) uint8 on the device, channels last in memory, decoded ahead in processes.

        Args:
            copies: for each place of the order, which copy of its image stands there; None: 0.
        """
        index = order if copies is None else order + len(self.files) * copies
        loader: DataLoader[Tensor] = DataLoader(
            self,  # type: ignore[arg-type]
            batch_size,
            sampler=index.tolist(),
            num_workers=min(usable_cores(), 16, -(-len(order) // batch_size)),
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # of its own: otherwise each epoch would draw from the global one
        )
        try:
            for images in loader:
                yield images.to(device, non_blocking=True).permute(0, 3, 1, 2)
        except (ValueError, OSError) as error:  # of an image; torch puts the process's traceback before its last line
            raise type(error)(str(error).strip().rpartition(f"\n{type(error).__name__}: ")[2]) from None
