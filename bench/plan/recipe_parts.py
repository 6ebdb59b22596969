"""What a recipe names: optimizers and augmentations, looked up, their specs completed, tried before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bench.engine.optimizer import OPTIMIZERS
from bench.errors import UserError
from bench.plan.recipes import recipe_for
from bench.plan.specs import complete
from bench.records.recipe import Recipe


def full_recipe(spec: Mapping[str, Any], network: str, where: str) -> Recipe:
    """The recipe of a grid file for this network, with every argument of its optimizer.

    Raises:
        UserError: an unknown name or argument, or a value out of range, with its place.
    """
    recipe = recipe_for(spec, network, where)
    at = f"{where}.optimizer"
    optimizer = complete(OPTIMIZERS, "optimizer", recipe.optimizer, at, elsewhere=("groups", "recipe"))
    try:
        rate = torch.zeros((), dtype=torch.float64)
        OPTIMIZERS.build(optimizer, groups=[{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate}], recipe=recipe)
    except (ValueError, TypeError) as error:
        raise UserError(f"{at}: {error}") from None
    return recipe.model_copy(update={"optimizer": optimizer})
