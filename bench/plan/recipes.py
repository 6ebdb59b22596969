"""The recipes by name. A recipe is how a network is trained, whatever the method. A grid file may override any field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from bench.errors import UserError, unknown
from bench.records.recipe import Recipe

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "crd": (
        "CIFAR-100 as in CRD's code and TFD's paper: 240 epochs, batch 64, lr .05 (MobileNet, ShuffleNet .01)",
        {},
    ),
    "tfd_code": (
        "as crd, with the values of the public code of TFD's sister paper: batch 128, lr .1, Nesterov, reflect padding",
        # Its normalization differs in the fourth digit, (.5071 .4865 .4409) and (.2673 .2564 .2762): that of the data is kept.
        {"batch_size": 128, "lr": 0.1, "nesterov": True, "padding": "reflect"},
    ),
    "mlkd_240": (
        "as crd, with the lr of MLKD's code: .025 (MobileNet, ShuffleNet .01)",
        {"lr": 0.025},
    ),
    "mlkd_480": (
        "as mlkd_240, but 480 epochs, as MLKD is trained beside logit standardization; lr still falls at 150, 180 and 210",
        {"epochs": 480, "lr": 0.025, "milestones": (150 / 480, 180 / 480, 210 / 480)},
    ),
    "imagenet100": (
        "ImageNet as in torchvision's reference: 100 epochs, batch 256, lr .1, x0.1 at 30/60/90",
        {
            "epochs": 100,
            "batch_size": 256,
            "lr": 0.1,
            "weight_decay": 1e-4,
            "milestones": (0.3, 0.6, 0.9),
            "crop": "resized",
            "image_size": 224,
        },
    ),
    "short": (
        "small images in a few minutes: 30 epochs, one cycle to lr .1",
        {"epochs": 30, "lr": 0.1, "schedule": "one_cycle"},
    ),
    "digits": (
        "a few hundred 8x8 digits: 30 epochs, batch 32, one cycle to lr .1, crops by one pixel, no flips",
        {"epochs": 30, "batch_size": 32, "lr": 0.1, "schedule": "one_cycle", "crop_padding": 1, "flip": False},
    ),
}

SMALL_LR = ("mobilenet", "shufflenet")  # networks whose lr is .01 in recipes after `crd`
AFTER_CRD = ("crd", "tfd_code", "mlkd_240", "mlkd_480")


def recipe_for(spec: Mapping[str, Any], network: str, where: str) -> Recipe:
    """The recipe that `{"name": ..., **overrides}` means for this network.

    Args:
        network: its name; the learning rate of `crd` and the recipes after it depends on it.
        where: place in the grid file, for errors.

    Raises:
        UserError: unknown name or field, or a value out of range.
    """
    overrides = dict(spec)
    name = overrides.pop("name", "crd")
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES, where)
    for field, value in overrides.items():
        if field not in Recipe.model_fields:
            raise unknown("key", field, Recipe.model_fields, f"{where}.{field}")
        if isinstance(value, bool) and Recipe.model_fields[field].annotation in (int, float):
            raise UserError(f"{where}.{field}: a number, not {value} (YAML reads yes, no, on and off as true and false)")
    values = dict(RECIPES[name][1])
    if name in AFTER_CRD and network.startswith(SMALL_LR):
        values["lr"] = 0.01
    try:
        return Recipe(**{**values, **overrides})
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join([where, *map(str, first["loc"])])
        raise UserError(f"{at}: {first['msg']}, not {first['input']!r}") from None
