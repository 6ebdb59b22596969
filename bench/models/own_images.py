"""The images that a network was trained on: their normalization and size, where they are not those of the data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Normalization(NamedTuple):
    """(pixel / 255 - mean) / std, by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def close_to(self, other: Normalization) -> bool:
        return len(self.mean) == len(other.mean) and all(
            abs(a - b) < 1e-6 for a, b in zip((*self.mean, *self.std), (*other.mean, *other.std), strict=True)
        )


NAMED = {
    "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Normalization((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "half": Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # pixels from -1 to 1, as for many transformers
    "unit": Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # pixels from 0 to 1
}
KEYS = ("normalize", "image_size")  # of a network's spec, beside the arguments of its builder; absent where they are the data's


class OwnImages(nn.Module):
    """From images as the data are normalized to those that a network was trained on; in fp32, whatever the weights are in.

    Args:
        given: how the images that come are normalized.
        own: how the network's were; None: alike.
        size: of the network's images, in pixels; 0: as they come. Resized bilinearly, with antialiasing.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, given: Normalization | None, own: Normalization | None, size: int) -> None:
        super().__init__()
        self.size, self.affine = size, given is not None and own is not None
        values = torch.zeros(2, 1, dtype=torch.float64)
        if given is not None and own is not None:
            mean, std, own_mean, own_std = (torch.tensor(each, dtype=torch.float64) for each in (*given, *own))
            values = torch.stack([std / own_std, (mean - own_mean) / own_std])
        scale, shift = values.float().view(2, -1, 1, 1).unsqueeze(1)
        self.register_buffer("scale", scale, persistent=False)  # they follow from the spec, so no weights hold them
        self.register_buffer("shift", shift, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OwnImages:
        device = fn(self.scale).device  # weights may go to bf16; these two stay exact
        self.scale, self.shift = self.scale.to(device), self.shift.to(device)
        return self

    def forward(self, image: Tensor) -> Tensor:
        x = image.float()
        if self.affine:
            x = torch.addcmul(self.shift, x, self.scale)
        if self.size and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return x.to(image.dtype)


def from_spec(spec: Mapping[str, Any], given: Normalization | None) -> OwnImages | None:
    """What a network needs in front by its spec; None where it sees the data as they are."""
    if not any(key in spec for key in KEYS):
        return None
    own = spec.get("normalize")
    return OwnImages(given, None if own is None else normalization(own), int(spec.get("image_size") or 0))


def normalization(value: str | Mapping[str, Sequence[float]]) -> Normalization:
    """Of a name in `NAMED`, or of {"mean": [...], "std": [...]}.

    Raises:
        ValueError: it is neither, or a standard deviation is not above 0.
    """
    if isinstance(value, str) and value in NAMED:
        return NAMED[value]
    if isinstance(value, Mapping) and set(value) == {"mean", "std"}:
        with contextlib.suppress(TypeError, ValueError):
            mean, std = (tuple(float(each) for each in value[key]) for key in ("mean", "std"))
            if len(mean) == len(std) and min(std) > 0 and all(abs(each) < 1e6 for each in (*mean, *std)):
                return Normalization(mean, std)
    raise ValueError(f"{', '.join(NAMED)}, or {{mean: [...], std: [...]}} of pixels from 0 to 1, by channel; not {value!r}")


def canonical(value: Normalization) -> str | dict[str, list[float]]:
    """As specs hold it: a name where there is one."""
    for name, each in NAMED.items():
        if each.close_to(value):
            return name
    return {"mean": list(value.mean), "std": list(value.std)}


def published(model: Mapping[str, Any]) -> tuple[Normalization, int] | None:
    """Normalization and size of the images that a library's weights of this name were trained on; None where it has none."""
    if model["type"] == "timm":
        from timm import get_pretrained_cfg

        config = get_pretrained_cfg(str(model["name"]))
        return (Normalization(tuple(config.mean), tuple(config.std)), int(config.input_size[-1])) if config else None
    if model["type"] == "torchvision":
        from torchvision import models

        try:
            preset = models.get_model_weights(str(model["name"])).IMAGENET1K_V1.transforms()  # type: ignore[attr-defined]
        except (ValueError, AttributeError):
            return None
        return Normalization(tuple(preset.mean), tuple(preset.std)), int(preset.crop_size[0])
    return None
