"""Data sets, and the streams of batches that training and evaluation read."""

from bench.data import own, standard  # noqa: F401  (they register their data sets)
from bench.data.sets import (
    DATASETS,
    Dataset,
    Normalization,
    Shape,
    Split,
    digest,
    hold_out,
    load,
    normalization_of,
    shape_of,
)
from bench.data.stream import Stream, evaluation_batches

__all__ = [
    "DATASETS",
    "Dataset",
    "Normalization",
    "Shape",
    "Split",
    "Stream",
    "digest",
    "evaluation_batches",
    "hold_out",
    "load",
    "normalization_of",
    "shape_of",
]
