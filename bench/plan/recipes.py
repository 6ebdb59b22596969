"""Recipes by name, and in files of the user's. A recipe is how a network is trained, whatever the method.

A recipe file has the fields of `bench.records.recipe.Recipe`, beside `about`, what it is for, and `lr_for`, the learning rate
of networks whose names begin so. A grid file may override any field.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import UserError, unknown
from bench.records.recipe import Recipe
from bench.texts import TRUTH, misfit
from bench.user_files import Number, expanded, mapping

SHIPPED = Path(__file__).parents[1] / "recipes"


NOTHING = {  # fields at whose largest value nothing is trained
    "ema": "the averaged copy, which is evaluated, would stay as it began",
    "dropout": "nothing of the embedding would reach the classifier",
    "momentum": "no gradient would ever fade",
}


class RecipeFile(BaseModel):
    """What a recipe file has beside the fields of a recipe."""

    model_config = ConfigDict(extra="allow")
    about: str = Field("", max_length=10_000)
    lr_for: dict[str, Annotated[Number, Field(gt=0)]] = {}

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the recipe that it sets."""
        return dict(self.model_extra or {})


def shipped() -> dict[str, Path]:
    """The files of the shipped recipes by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def read(name: str, where: str) -> RecipeFile:
    """A shipped recipe by its name, or the user's by the path of its file, which ends in .yaml.

    Raises:
        UserError: there is no such recipe or file, or it is malformed; with its place.
    """
    try:
        path = shipped().get(name) or expanded(name)
    except FileNotFoundError as error:
        raise UserError(f"{where}: {error}") from None
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{unknown('recipe', name, shipped(), where)}; or the path of your own file, ending in .yaml")
    if not path.is_file():
        raise UserError(f"{where}: there is no file {path}; the path of a recipe begins where you type the command")
    raw = mapping(path, f"a recipe is a mapping with keys about, lr_for, {', '.join(Recipe.model_fields)}")
    try:
        found = RecipeFile.model_validate(raw)
    except ValidationError as error:
        raise _misfit(error, str(path)) from None
    _check_names(found.fields, str(path))
    return found


def recipe_for(spec: Mapping[str, Any], network: str, where: str) -> Recipe:
    """The recipe that `{"name": ..., **overrides}` means for this network.

    Args:
        network: its name; a recipe may have another learning rate for some.
        where: place in the grid file, for errors.

    Raises:
        UserError: unknown name or field, or a value out of range.
    """
    overrides = dict(spec)
    name = str(overrides.pop("name", "crd"))
    file = read(name, where)
    _check_names(overrides, where)
    lr = next(({"lr": lr} for prefix, lr in file.lr_for.items() if network.startswith(prefix)), {})
    try:
        recipe = Recipe(**{**file.fields, **lr, **overrides})
    except ValidationError as error:
        at = error.errors()[0]["loc"]
        raise _misfit(error, where if not at or at[0] in overrides else f"{where}, {name}") from None
    for field, why in NOTHING.items():
        if getattr(recipe, field) == 1:
            raise UserError(f"{where}.{field}: below 1, not 1: {why}")
    return recipe


def _check_names(fields: Mapping[str, Any], where: str) -> None:
    for name, value in fields.items():
        if name not in Recipe.model_fields:
            raise unknown("key", name, Recipe.model_fields, f"{where}.{name}")
        numbers = Recipe.model_fields[name].annotation in (int, float) or name == "milestones"
        if numbers and any(isinstance(each, bool) for each in (value if isinstance(value, list) else [value])):
            raise UserError(f"{where}.{name}: a number, not {value}{TRUTH}")


def _misfit(error: ValidationError, where: str) -> UserError:
    first = error.errors()[0]
    place, words = [str(part) for part in first["loc"]], ""
    if place[:1] == ["augment"]:  # of the kinds that it may have pydantic names one
        place, words = place[:1], "a name, a mapping with `type`, or a list of these"
    return UserError(f"{'.'.join([where, *place])}: {misfit(first, words)}")
