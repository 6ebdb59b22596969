"""Data sets, and the streams of batches that training and evaluation read."""

from bench.data import huggingface, own, policies, standard, table, torchvision  # noqa: F401  (they register what they hold)
from bench.data.augment import send
from bench.data.augmentations import AUGMENTATIONS, Augmentation
from bench.data.dataset import Dataset, Normalization, Shape, Split
from bench.data.sets import DATASETS, Look, digest, hold_out, load, look
from bench.data.stream import Stream, check_recipe, evaluation_batches

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Augmentation",
    "Dataset",
    "Look",
    "Normalization",
    "Shape",
    "Split",
    "Stream",
    "check_recipe",
    "digest",
    "evaluation_batches",
    "hold_out",
    "load",
    "look",
    "send",
]
