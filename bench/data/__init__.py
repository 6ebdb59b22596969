"""Data sets, and the streams of batches that training and evaluation read."""

from bench.data.sets import DATASETS, Dataset, Split, digest, hold_out, load
from bench.data.stream import Stream, evaluation_batches

__all__ = ["DATASETS", "Dataset", "Split", "Stream", "digest", "evaluation_batches", "hold_out", "load"]
