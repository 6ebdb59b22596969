"""Grid files: read, overridden, checked against their schema. What the names in them refer to is looked up in `expand`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from bench.errors import SHOWN, UserError, unknown
from bench.records.cell import safe
from bench.stats import MARGIN
from bench.texts import brief, misfit
from bench.user_files import NOWHERE, Number, mapping, parse

SHIPPED = Path(__file__).parents[1] / "grids"
SEEDS_MOST = 100  # of a sequential rule: its bounds take 10 ms a look
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]  # NumPy's generators, which mmengine seeds, take no others


class Pair(BaseModel):
    """A student, and the teacher of the methods that need one.

    A teacher may have keys beside its model: `weights`, a file with its trained weights, so that it is not trained here;
    and what that training took, `train_s` (seconds) and `train_flops`. Where a file holds several networks, `part` chooses one.

    `teachers` in place of `teacher` lists several that teach at once, for methods that read them all, such as `each_teacher`.

    A network with weights, from a file or published, may have `normalize` and `image_size` of the images it was trained on.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    student: str | dict[str, Any]
    teacher: str | dict[str, Any] | None = None
    teachers: list[str | dict[str, Any]] | None = Field(None, min_length=2)

    @model_validator(mode="after")
    def _one_or_several(self) -> Pair:
        if self.teacher is not None and self.teachers is not None:
            raise ValueError("a pair has `teacher` or `teachers`, not both")
        return self

    @property
    def every_teacher(self) -> list[tuple[str, str | dict[str, Any]]]:
        """Each with its place in the pair."""
        if self.teachers is not None:
            return [(f"teachers[{number}]", teacher) for number, teacher in enumerate(self.teachers)]
        return [] if self.teacher is None else [("teacher", self.teacher)]


class SequentialSeeds(BaseModel):
    """Seeds 0, 1, 2, ... that are spent on open comparisons alone: see `bench.plan.seeds` and `bench.stats.sequential`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    first: int = Field(3, strict=True, ge=2)  # before the first look
    most: int = Field(strict=True, ge=2, le=SEEDS_MOST)  # of each method
    until: Number | None = Field(None, gt=0, le=100)  # points; equivalent within it is decided too; None: the grid's `margin`

    @model_validator(mode="after")
    def _first_within_most(self) -> SequentialSeeds:
        if self.first > self.most:
            raise ValueError(f"most must be at least first, {self.first}, not {self.most}")
        return self


def _kind_of_seeds(value: object) -> str:
    return "sequential" if isinstance(value, dict | SequentialSeeds) else "list"


Seeds = Annotated[
    Annotated[list[Seed], Field(min_length=1), Tag("list")] | Annotated[SequentialSeeds, Tag("sequential")],
    Discriminator(_kind_of_seeds),
]


class Choose(BaseModel):
    """How values of hyper-parameters are chosen: see `bench.plan.choice`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    share: Number = Field(0.1, gt=0, lt=1)  # of the training set that is held out
    seeds: list[Seed] = Field([2000, 2001], min_length=1)  # of the trials alone


class Shortened(BaseModel):
    """Methods that are trained once more for another number of epochs, so that they cost what the plain student does."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    methods: list[str | dict[str, Any]] = Field(min_length=1)  # as written in the grid's `methods`
    epochs: int = Field(strict=True, ge=1)


class GridFile(BaseModel):
    """The keys of a grid file.

    Each entry of `also` adds a variation of this grid, which differs in the keys that the entry has. A mapping is merged into
    this grid's mapping key by key; anything else replaces this grid's value.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    about: str = Field("", max_length=10_000)
    data: str | dict[str, Any]
    recipe: str | dict[str, Any] = "crd"
    teacher_recipe: str | dict[str, Any] | None = None  # None: the students' recipe, with the teacher's own learning rate
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seeds: Seeds
    teacher_seeds: Literal["first", "each"] | Annotated[int, Field(strict=True, ge=1)] = "first"
    # one teacher for all seeds, one for each, or so many, which take turns
    pairs: list[Pair] = Field(min_length=1)
    methods: list[str | dict[str, Any]] = Field(min_length=1)
    primary: list[str | dict[str, Any]] = []  # the methods in question, as written in `methods`; the others are exploratory
    margin: Number | None = Field(
        None, gt=0, le=100
    )  # points within which two accuracies count as the same; None: the reports' default
    search: list[str | dict[str, Any]] = []  # methods whose values were tried to choose one; its price includes all of an entry
    choose: Choose | None = None  # among a method's values; `validation` stands for the defaults
    equal_cost: list[Shortened] = []  # their teachers keep the full schedule
    also: list[dict[str, Any]] = []

    @field_validator("choose", mode="before")
    @classmethod
    def _by_validation(cls, value: object) -> object:
        return {} if value == "validation" else value

    @property
    def every_seed(self) -> list[int]:
        """All that may be trained."""
        return list(range(self.seeds.most)) if isinstance(self.seeds, SequentialSeeds) else self.seeds

    @property
    def until(self) -> float:
        """Points within which two accuracies count as the same."""
        stated = self.seeds.until if isinstance(self.seeds, SequentialSeeds) else None
        return stated or self.margin or MARGIN


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
        raise unknown("grid", name, shipped(), "no regular file" if os.path.lexists(path) else "no such file")
    raw = mapping(path, f"a grid is a mapping with keys {', '.join(GridFile.model_fields)}")
    for override in overrides:
        _override(raw, override)
    if not (name := safe(path.stem)):
        raise UserError(f"{path}: results are named after the file, so its name needs a letter a-z or a digit")
    return name, raw


def overridden(overrides: Iterable[str]) -> set[str]:
    """The keys of a grid file that `key.key=value` overrides set."""
    return {override.partition("=")[0].partition(".")[0] for override in overrides}


def _override(raw: dict[str, Any], override: str) -> None:
    """Set the value of `key.key=value` in the contents of a grid file, in place."""
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"--set {_cut(override)}: write key=value, as in --set recipe.epochs=10")
    if not all(part.strip() for part in key.split(".")):
        raise UserError(f"--set {_cut(override)}: a part of the key is empty; write key=value, as in --set recipe.epochs=10")
    if len(key) > SHOWN:
        raise UserError(f"--set {_cut(override)}: no key is as long")
    if NOWHERE.search(key):
        raise UserError(f"--set {_cut(override)}: the key has a character that no text has")
    value = parse(text, f"--set {_cut(override)}")
    *path, last = key.split(".")
    place = raw
    for depth, part in enumerate(path, start=1):
        inner = place.get(part)
        if isinstance(inner, str):
            inner = long_form(part, inner)
        if inner is not None and not isinstance(inner, dict):
            at, kind = ".".join(path[:depth]), "a list" if isinstance(inner, list) else "no mapping"
            raise UserError(f"--set {_cut(override)}: '{at}' is {kind}; set all of it, as in --set {at}=...")
        place[part] = place = inner if inner is not None else {}
    place[last] = value


def _cut(override: str) -> str:
    return override if len(override) <= SHOWN else f"{override[:SHOWN]}..."


def variations(name: str, raw: Mapping[str, Any]) -> list[tuple[str, GridFile]]:
    """(where, checked contents) of the grid, and of each variation that `also` adds to it.

    Raises:
        UserError: a key or a value that a grid file cannot have, with its place.
    """
    grid = _checked(name, raw)
    base = {key: value for key, value in raw.items() if key not in ("also", "equal_cost")}
    found = [(name, grid)]
    for index, change in enumerate(grid.also):
        where = f"{name}, also[{index}]"
        if "seeds" in change and (isinstance(grid.seeds, SequentialSeeds) or isinstance(change["seeds"], dict)):
            raise UserError(f"{where}, seeds: sequential seeds are one rule for all of a grid; leave the key out here")
        if "margin" in change:
            raise UserError(f"{where}, margin: there is one for all of a grid; leave the key out here")
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
        loc = [part for index, part in enumerate(first["loc"]) if (index, part) not in ((1, "list"), (1, "sequential"))]
        key = ".".join(map(str, loc))
        if first["type"] == "extra_forbidden":
            inner: dict[object, type[BaseModel]] = {"pairs": Pair, "seeds": SequentialSeeds, "equal_cost": Shortened}
            inner["choose"] = Choose
            raise unknown("key", loc[-1], inner.get(loc[0], GridFile).model_fields, f"{where}, {key}") from None
        words = ""
        if loc[0] == "teacher_seeds":
            key, words = "teacher_seeds", "first, each or a number"
        if loc[-1] == "str":  # of a key that is a word or a mapping
            key, words = ".".join(map(str, loc[:-1])), "a name or a mapping"
        raise UserError(f"{where}, {key}: {misfit(first, words)}") from None
    _check_seeds(where, file)
    return file


def _check_seeds(where: str, file: GridFile) -> None:
    """Refuse what the types of a grid file's keys do not show.

    Raises:
        UserError: a seed stands twice, or sequential seeds or a choice contradict another key.
    """
    if file.choose:
        if isinstance(file.seeds, SequentialSeeds):
            raise UserError(f"{where}, choose: not together with sequential seeds; list the seeds")
        if file.search or file.equal_cost:
            raise UserError(f"{where}, choose: not together with {'search' if file.search else 'equal_cost'}")
        if common := set(file.choose.seeds) & set(file.seeds):
            raise UserError(f"{where}, choose.seeds: {min(common)} is among seeds, too; trials need seeds of their own")
    lists = {"seeds": file.seeds, "choose.seeds": file.choose.seeds if file.choose else []}
    for key, seeds in lists.items():
        twice = [seed for seed, count in Counter(seeds).items() if count > 1] if isinstance(seeds, list) else []
        if twice:
            raise UserError(f"{where}, {key}: {twice[0]} stands twice; remove one")
    if not isinstance(file.seeds, SequentialSeeds):
        return
    if file.seeds.until and file.margin and file.seeds.until != file.margin:
        raise UserError(
            f"{where}, seeds.until: {file.seeds.until:g} contradicts margin, {file.margin:g}; leave one of them out"
        )
    if file.teacher_seeds not in ("first", "each", 1):
        allowed = "first or each with sequential seeds, whose teachers cannot take turns"
        raise UserError(f"{where}, teacher_seeds: {allowed}, not {brief(file.teacher_seeds)}")


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
