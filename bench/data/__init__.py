"""Data sets, and the streams of batches that training and evaluation read."""

from bench.data import huggingface, own, standard, table, torchvision  # noqa: F401  (they register their data sets)
from bench.data.dataset import Dataset, Normalization, Shape, Split
from bench.data.sets import DATASETS, Look, digest, hold_out, load, look
from bench.data.stream import Stream, evaluation_batches

__all__ = [
    "DATASETS",
    "Dataset",
    "Look",
    "Normalization",
    "Shape",
    "Split",
    "Stream",
    "digest",
    "evaluation_batches",
    "hold_out",
    "load",
    "look",
]
