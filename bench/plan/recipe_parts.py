"""What a recipe names: optimizers and augmentations, looked up, their specs completed, tried before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bench.data import AUGMENTATIONS
from bench.data.augmentations import specs
from bench.engine.optimizer import OPTIMIZERS
from bench.errors import UserError
from bench.plan.recipes import recipe_for
from bench.plan.specs import complete
from bench.records.recipe import Augment, Recipe


def full_recipe(spec: Mapping[str, Any], network: str, where: str) -> Recipe:
    """The recipe of a grid file for this network, with every argument of its optimizer and augmentations.

    Raises:
        UserError: an unknown name or argument, or a value out of range, with its place.
    """
    recipe = recipe_for(spec, network, where)
    parts = {"optimizer": _optimizer(recipe, f"{where}.optimizer"), "augment": _augment(recipe, f"{where}.augment")}
    return recipe.model_copy(update=parts)


def _optimizer(recipe: Recipe, where: str) -> dict[str, Any]:
    full = complete(OPTIMIZERS, "optimizer", recipe.optimizer, where, elsewhere=("groups", "recipe"))
    try:
        rate = torch.zeros((), dtype=torch.float64)
        OPTIMIZERS.build(full, groups=[{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate}], recipe=recipe)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None
    return full


def _augment(recipe: Recipe, where: str) -> Augment:
    """Equal for equal augmentations, however they are written: names, where there are no arguments."""
    try:
        short = specs(recipe.augment)
        full = [complete(AUGMENTATIONS, "augmentation", spec, where) for spec in short]
        for spec in full:
            AUGMENTATIONS.build(spec)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None
    found = [spec if len(spec) > 1 else spec["type"] for spec in full]
    return (tuple(found) if len(found) > 1 else found[0]) if found else "none"
