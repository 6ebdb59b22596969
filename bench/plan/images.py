"""Which images a network sees: the data's, or those on which its weights were trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.data import Shape
from bench.errors import UserError
from bench.models.own_images import KEYS, Normalization, canonical, normalization, published
from bench.plan.specs import value_of
from bench.records.cell import Spec


def asked(spec: Spec) -> Spec:
    """The keys about its images, taken out of a network's spec."""
    return {key: spec.pop(key) for key in KEYS if key in spec}


def own_images(
    asked: Spec, model: Spec, has_weights: bool, shape: Shape, of_data: Callable[[], tuple[Any, Any]], where: str
) -> Spec:
    """What to add to a network's spec: normalization and size of its images, where they differ from those of the data.

    Args:
        asked: `normalize` and `image_size` as the grid file gives them. Their defaults are the library's for weights of timm
            and torchvision, else the data's; `normalize: data` and `image_size: 0` ask for the data's.
        has_weights: whether the network comes with weights, from a file or published.
        shape: of the images after the recipe's resizing.
        of_data: mean and std of the data.

    Raises:
        UserError: a value that is not possible, or a network without weights.
    """
    if asked and not has_weights:
        raise UserError(
            f"{where}.{next(iter(asked))}: belongs to a network with weights; one trained here sees the data's images"
        )
    library = published(model) if has_weights else None
    if not asked and library is None:
        return {}
    try:
        data = Normalization(*of_data())
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{where}: {error}") from None
    own = _normalization(asked["normalize"], data, f"{where}.normalize") if "normalize" in asked else library and library[0]
    size = asked.get("image_size", library[1] if library else 0)
    size = value_of(size, int, f"{where}.image_size")
    if not 0 <= size <= 4096:
        raise UserError(f"{where}.image_size: pixels from 1 to 4096, or 0 for the data's, not {size}")
    found: Spec = {}
    if own is not None and not own.close_to(data):
        found["normalize"] = canonical(own)
    if size and (size, size) != (shape.height, shape.width):
        found["image_size"] = size
    return found


def _normalization(value: Any, data: Normalization, where: str) -> Normalization:
    if value == "data":
        return data
    try:
        own = normalization(value)
    except ValueError as error:
        raise UserError(f"{where}: data, {error}") from None
    if len(own.mean) != len(data.mean):
        raise UserError(f"{where}: of {len(own.mean)} channels, and the images have {len(data.mean)}")
    return own
