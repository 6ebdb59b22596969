"""Which test images a trained network classified correctly, as the bytes of a file: a bit for each image. No torch here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def packed(correct: NDArray[np.bool_]) -> bytes:
    """The bits of eight images a byte, the first image in the highest bit; the last byte is filled up with zeros.

    Args:
        correct: (N,), in the order of the test set.
    """
    return np.packbits(correct).tobytes()


def unpacked(raw: bytes, images: int | None, top1: float) -> NDArray[np.bool_]:
    """What `packed` was given.

    Args:
        images: how many there are.
        top1: accuracy that they give, in %.

    Raises:
        ValueError: the number of bytes is not that of the images, or they give another accuracy.
    """
    if images is None or len(raw) != (images + 7) // 8:
        raise ValueError(f"{len(raw)} bytes cannot hold a bit for each of {images} images")
    bits = np.unpackbits(np.frombuffer(raw, np.uint8)).astype(bool)
    if bits[images:].any() or abs(100 * bits.sum() / images - top1) > 1e-6:
        raise ValueError(f"its bits do not give the record's accuracy of {top1:.2f} %")
    return bits[:images]
