"""Grid files: read, overridden, checked against their schema. What the names in them refer to is looked up in `expand`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import UserError, unknown
from bench.records.cell import safe

SHIPPED = Path(__file__).parents[1] / "grids"
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]  # NumPy's generators, which mmengine seeds, take no others


class Pair(BaseModel):
    """A student, and the teacher of the methods that need one.

    A teacher may have keys beside its model: `weights`, a file with its trained weights, so that it is not trained here;
    and what that training took, `train_s` (seconds) and `train_flops`. Where a file holds several networks, `part` chooses one.

    A network with weights, from a file or published, may have `normalize` and `image_size` of the images it was trained on.
    """

    model_config = ConfigDict(extra="forbid")
    student: str | dict[str, Any]
    teacher: str | dict[str, Any] | None = None


class GridFile(BaseModel):
    """The keys of a grid file.

    Each entry of `also` adds a variation of this grid, which differs in the keys that the entry has. A mapping is merged into
    this grid's mapping key by key; anything else replaces this grid's value.
    """

    model_config = ConfigDict(extra="forbid")
    about: str = ""
    data: str | dict[str, Any]
    recipe: str | dict[str, Any] = "crd"
    teacher_recipe: str | dict[str, Any] | None = None  # None: the students' recipe, with the teacher's own learning rate
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seeds: list[Seed] = Field(min_length=1)
    teacher_seeds: Literal["first", "each"] | Annotated[int, Field(strict=True, ge=1)] = "first"
    # one teacher for all seeds, one for each, or so many, which take turns
    pairs: list[Pair] = Field(min_length=1)
    methods: list[str | dict[str, Any]] = Field(min_length=1)
    primary: list[str | dict[str, Any]] = []  # the methods in question, as written in `methods`; the others are exploratory
    margin: float | None = Field(None, gt=0)  # points within which two accuracies count as the same; None: the reports' default
    search: list[str | dict[str, Any]] = []  # methods whose values were tried to choose one; its price includes all of an entry
    also: list[dict[str, Any]] = []


def shipped() -> dict[str, Path]:
    """The files of the shipped grids by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def path_of(name: str) -> Path:
    """The file of a shipped grid, or the file of this path."""
    return shipped().get(name, Path(name))


def is_shipped(path: Path) -> bool:
    return path.resolve().parent == SHIPPED.resolve()


def read(name: str, overrides: Iterable[str] = ()) -> tuple[str, dict[str, Any]]:
    """(name, contents) of a shipped grid or of a file, after the `key.key=value` overrides.

    Raises:
        UserError: no such grid, not YAML (with line and column), or not a mapping.
    """
    path = path_of(name)
    if not path.is_file():
        raise unknown("grid", name, shipped(), "no such file")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{path}{at}: not YAML: {error.problem or error.context}") from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a grid is a mapping with keys {', '.join(GridFile.model_fields)}")
    for override in overrides:
        _override(raw, override)
    return safe(path.stem), raw


def _override(raw: dict[str, Any], override: str) -> None:
    """Set the value of `key.key=value` in the contents of a grid file, in place."""
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"--set {override}: write key=value, as in --set recipe.epochs=10")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: '{text}' is not a YAML value") from None
    *path, last = key.split(".")
    place = raw
    for part in path:
        inner = place.get(part)
        if isinstance(inner, str):
            inner = long_form(part, inner)
        if inner is not None and not isinstance(inner, dict):
            raise UserError(f"--set {override}: '{part}' is a {type(inner).__name__}; set all of it, as in --set {part}=...")
        place[part] = place = inner if inner is not None else {}
    place[last] = value


def variations(name: str, raw: Mapping[str, Any]) -> list[tuple[str, GridFile]]:
    """(where, checked contents) of the grid, and of each variation that `also` adds to it.

    Raises:
        UserError: a key or a value that a grid file cannot have, with its place.
    """
    grid = _checked(name, raw)
    base = {key: value for key, value in raw.items() if key != "also"}
    found = [(name, grid)]
    for index, change in enumerate(grid.also):
        where = f"{name}, also[{index}]"
        if "also" in change:
            raise unknown("key", "also", GridFile.model_fields.keys() - {"also"}, f"{where}.also")
        found.append((where, _checked(where, _merged(base, change))))
    return found


def _checked(where: str, raw: Mapping[str, Any]) -> GridFile:
    try:
        file = GridFile.model_validate(raw)
    except ValidationError as error:
        errors = error.errors()
        first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])  # a slip before a missing key
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = Pair.model_fields if first["loc"][0] == "pairs" else GridFile.model_fields
            raise unknown("key", first["loc"][-1], known, f"{where}, {key}") from None
        raise UserError(f"{where}, {key}: {first['msg']}, not {first['input']!r}") from None
    for seed in file.seeds:
        if file.seeds.count(seed) > 1:
            raise UserError(f"{where}, seeds: {seed!r} stands twice; remove one")
    return file


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, str | dict):
            value = {**long_form(key, old), **value}
        merged[key] = value
    return merged


def long_form(key: str, value: str | Mapping[str, Any]) -> dict[str, Any]:
    """The mapping that a grid file's value at this key stands for.

    `recipe: crd` is short for `recipe: {name: crd}`, `data: digits` for `data: {type: digits}`.
    """
    if isinstance(value, str):
        return {"name" if key.endswith("recipe") else "type": value}
    return dict(value)
