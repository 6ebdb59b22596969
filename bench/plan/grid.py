"""Grid files to cells: every default filled in, every mistake named with its file and key, teachers before students."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.data import DATASETS, digest
from bench.engine.device import resolve_device, resolve_precision
from bench.errors import UserError, unknown
from bench.models import MODELS, weights
from bench.plan.compatibility import Shape, Unbuildable, answer, differences, pretrained, refusal, shape_of, sized
from bench.plan.recipes import recipe_for
from bench.plan.specs import added_later, complete, describe, expand_methods, label, named, pair_presets, short_for, value_of
from bench.records.cell import Cell, Recipe, Teacher, model_name, safe
from bench.records.cell import digest as hashed
from methods import METHODS
from methods.base import Method

SHIPPED = Path(__file__).parents[1] / "grids"
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]  # as NumPy's generators, which mmengine seeds, take it
COMMON_DATA = {"train_images": 0, "test_images": 0}  # size of a fixed, stratified subset; 0: all


class Pair(BaseModel):
    model_config = ConfigDict(extra="forbid")
    student: str | dict[str, Any]
    teacher: str | dict[str, Any] | None = None  # beside its model: "weights", a file that makes its training
    # unnecessary; and, of a teacher that is brought, what its training took: "train_s", seconds, and "train_flops"


class GridFile(BaseModel):
    """What a grid file may say.

    Each entry of `also` adds a grid that differs from this one in the keys it has: a mapping is merged into this grid's key by
    key, anything else takes its place.
    """

    model_config = ConfigDict(extra="forbid")
    about: str = ""
    data: str | dict[str, Any]
    recipe: str | dict[str, Any] = "crd"
    teacher_recipe: str | dict[str, Any] | None = None  # None: as the students', with the teacher's own learning rate
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seeds: list[Seed] = Field(min_length=1)
    teacher_seeds: Literal["first", "each"] = "first"  # one teacher for all students, or one for each seed
    pairs: list[Pair] = Field(min_length=1)
    methods: list[str | dict[str, Any]] = Field(min_length=1)
    also: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Skip:
    what: str
    reason: str


@dataclass(frozen=True)
class Grid:
    name: str
    about: str
    cells: list[Cell]  # teachers first
    skipped: list[Skip] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)  # the file's contents after --set
    shapes: dict[str, Shape] = field(default_factory=dict)  # by the digest of a cell's `data`

    @property
    def by_id(self) -> dict[str, Cell]:
        return {cell.id: cell for cell in self.cells}

    def manifest(self) -> dict[str, Any]:
        teachers = {cell.teacher.cell for cell in self.cells if cell.teacher}
        return {
            "about": self.about,
            "grid": self.source,
            "cells": [{"id": cell.id, "label": cell.label, "teacher": cell.id in teachers} for cell in self.cells],
            "skipped": [{"what": skip.what, "reason": skip.reason} for skip in self.skipped],
            "methods": {key: asdict(METHODS.get(key).card) for key in sorted(_methods(cell.method for cell in self.cells))},
        }


def _methods(specs: Iterable[dict[str, Any]]) -> set[str]:
    """Their registry keys, and those of the methods within them."""
    found = set()
    for spec in specs:
        inner = [item for value in spec.values() for item in (value if isinstance(value, list) else [value])]
        found |= {spec["type"], *_methods(item for item in inner if isinstance(item, dict) and "type" in item)}
    return found


# Reading


def shipped() -> dict[str, Path]:
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def read(name: str, overrides: Iterable[str] = ()) -> tuple[str, dict[str, Any]]:
    """(name, contents) of a shipped grid or a file, with `key.key=value` overrides applied.

    Raises:
        UserError: no such grid, not YAML (with line and column), or not a mapping.
    """
    path = shipped().get(name, Path(name))
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
            inner = named(inner, short_for(part))
        if inner is not None and not isinstance(inner, dict):
            raise UserError(f"--set {override}: '{part}' is a {type(inner).__name__}; give it whole, as in --set {part}=...")
        place[part] = place = inner if inner is not None else {}
    place[last] = value


# Expanding


def expand(name: str, raw: Mapping[str, Any], data_root: str | None = None, device: str = "auto") -> Grid:
    """Cells of a grid, teachers first, each once; what cannot be combined is listed with the reason.

    Raises:
        UserError: anything wrong in the file.
    """
    whole = _checked(name, raw)
    expansion = _Expansion(data_root, device)
    base = {key: value for key, value in raw.items() if key != "also"}
    expansion.add(name, whole)
    for index, change in enumerate(whole.also):
        where = f"{name}, also[{index}]"
        if "also" in change:
            raise unknown("key", "also", GridFile.model_fields.keys() - {"also"}, f"{where}.also")
        expansion.add(where, _checked(where, _merged(base, change)))
    cells = {**expansion.teachers, **expansion.students}
    if not cells:
        reasons = "; ".join(f"{skip.what}: {skip.reason}" for skip in expansion.skipped)
        raise UserError(f"{name}: the grid expands to nothing. {reasons}")
    return Grid(name, whole.about, list(cells.values()), list(expansion.skipped), dict(raw), expansion.shapes)


def _checked(where: str, raw: Mapping[str, Any]) -> GridFile:
    try:
        file = GridFile.model_validate(raw)
    except ValidationError as error:
        errors = error.errors()
        first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])  # a slip, rather than a lack
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = Pair.model_fields if first["loc"][0] == "pairs" else GridFile.model_fields
            raise unknown("key", first["loc"][-1], known, f"{where}, {key}") from None
        raise UserError(f"{where}, {key}: {first['msg']}, not {first['input']!r}") from None
    _unique(file.seeds, f"{where}, seeds")
    return file


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, str | dict):
            value = {**named(old, short_for(key)), **value}
        merged[key] = value
    return merged


@dataclass(frozen=True)
class _Side:
    """One network of a pair, and what it is trained on and how."""

    data: dict[str, Any]
    shape: Shape
    model: dict[str, Any]
    recipe: Recipe
    precision: str

    def plain(self, seed: int) -> Cell:
        return Cell(
            data=self.data,
            student=self.model,
            teacher=None,
            method={"type": "none"},
            method_version=METHODS.get("none").version,
            recipe=self.recipe,
            seed=seed,
            precision=self.precision,
            label="none",
        )


class _Expansion:
    """Collects the cells of a grid and of what it adds to itself."""

    def __init__(self, data_root: str | None, device: str) -> None:
        self.data_root, self.device = data_root, device
        self.teachers: dict[str, Cell] = {}
        self.students: dict[str, Cell] = {}
        self.skipped: dict[Skip, None] = {}
        self.shapes: dict[str, Shape] = {}
        self.brought: dict[str, tuple[dict[str, Any], str]] = {}  # by file: tensors, SHA-256

    def add(self, where: str, file: GridFile) -> None:
        precision = resolve_precision(file.precision, resolve_device(self.device))
        data = _data(file.data, f"{where}, data", self.data_root)
        shape = self._shape(data, f"{where}, data")
        entries = expand_methods(file.methods, f"{where}, methods")
        for index, pair in enumerate(file.pairs):
            at = f"{where}, pairs[{index}]"
            model = _model(pair.student, f"{at}.student")
            recipe = recipe_for(named(file.recipe, "name"), model_name(model), f"{where}, recipe")
            student = _Side(data, sized(shape, recipe.image_size), model, recipe, precision)
            _check_buildable(student, f"{at}.student")
            if pair.teacher is None:
                self._add_pair(file, student, None, None, entries)
                continue
            spec = named(pair.teacher, "type")
            weights_file = spec.pop("weights", None)
            bill = {name: told_number(spec.pop(name, None), f"{at}.teacher.{name}") for name in ("train_s", "train_flops")}
            model = _model(spec, f"{at}.teacher")
            source = file.recipe if file.teacher_recipe is None else file.teacher_recipe
            recipe = recipe_for(named(source, "name"), model_name(model), f"{where}, teacher_recipe")
            teacher = _Side(data, student.shape, model, recipe, precision)
            _check_buildable(teacher, f"{at}.teacher")
            brought = self._brought(teacher, weights_file, f"{at}.teacher.weights")
            if brought:
                brought = brought.model_copy(update=bill)
            elif any(value is not None for value in bill.values()):
                raise UserError(f"{at}.teacher: what its training takes is measured here; tell it of a teacher that is brought")
            self._add_pair(file, student, teacher, brought, entries)

    def _shape(self, data: dict[str, Any], where: str) -> Shape:
        key = hashed(data)
        if key not in self.shapes:
            try:
                self.shapes[key] = shape_of(data, self.data_root)
            except (OSError, ValueError, KeyError) as error:
                raise UserError(f"{where}: {error}") from None
        return self.shapes[key]

    def _brought(self, teacher: _Side, file: Any, where: str) -> Teacher | None:
        """The teacher that needs no training, if it is one."""
        if file is None:
            ready = pretrained(teacher.model, teacher.shape.classes)
            return Teacher(model=teacher.model) if ready else None
        if not isinstance(file, str):
            raise UserError(f"{where}: the path of a file, not {file!r}")
        try:
            if file not in self.brought:
                self.brought[file] = weights.read(file)
            tensors, sha256 = self.brought[file]
            reason = differences(tensors, answer(teacher.model, teacher.shape)[0])
        except (OSError, ValueError) as error:
            raise UserError(f"{where}: {error}") from None
        if reason:
            raise UserError(f"{where}: {file} is not of {describe(teacher.model)} for these data: {reason}")
        return Teacher(model=teacher.model, weights_sha256=sha256, weights=file)

    def _add_pair(
        self,
        file: GridFile,
        student: _Side,
        teacher: _Side | None,
        brought: Teacher | None,
        entries: list[tuple[dict[str, Any], str]],
    ) -> None:
        seen: set[str] = set()
        name = describe(student.model) + (f" taught by {describe(teacher.model)}" if teacher else "")
        for short, at in entries:
            spec, told, method = _method(short, student, teacher, at)
            reason = _misfit(method, student, teacher, brought)
            if reason:
                self.skipped[Skip(f"{told} on {name}", reason)] = None
                continue
            later = added_later(spec)
            teacher_seeds = file.seeds if file.teacher_seeds == "each" else file.seeds[:1]
            supplied = {seed: self._supplied(method, student, teacher, brought, seed) for seed in teacher_seeds}
            for seed in file.seeds:
                cell = Cell(
                    data=student.data,
                    student=student.model,
                    teacher=supplied.get(seed, supplied[file.seeds[0]]),
                    method=spec,
                    method_version=method.version,
                    recipe=student.recipe,
                    seed=seed,
                    precision=student.precision,
                    needs=method.needs,
                    label=told,
                    added_later=later,
                )
                cell_id = cell.id
                if cell_id in seen:
                    raise UserError(f"{at}: {told} stands twice in the grid for {name}; remove one")
                seen.add(cell_id)
                self.students.setdefault(cell_id, cell)

    def _supplied(
        self, method: Method, student: _Side, teacher: _Side | None, brought: Teacher | None, seed: int
    ) -> Teacher | None:
        """Where the network comes from that the method needs; one that must be trained becomes a cell."""
        if method.needs == "none":
            return None
        supplier = student
        if method.needs == "teacher":
            if brought:
                return brought
            assert teacher is not None
            epochs = max(1, round(teacher.recipe.epochs * method.teacher_epochs_fraction))
            supplier = replace(teacher, recipe=teacher.recipe.model_copy(update={"epochs": epochs}))
        cell = supplier.plain(seed)
        cell_id = cell.id
        self.teachers[cell_id] = cell
        return Teacher(cell=cell_id, model=cell.student)


def _check_buildable(network: _Side, where: str) -> None:
    try:
        answer(network.model, network.shape)
    except Unbuildable as error:
        raise UserError(f"{where}: {error}") from None
    except ValueError:
        pass  # it cannot take the images: a reason to skip what needs it


def _method(short: dict[str, Any], student: _Side, teacher: _Side | None, where: str) -> tuple[dict[str, Any], str, Method]:
    """The full spec for this pair, how reports name it, and an instance."""
    pair = f"{model_name(teacher.model)}/{model_name(student.model)}" if teacher else None
    short = pair_presets(short, pair, where)
    full = complete(METHODS, "method", short, where)
    told = label(short, full)
    try:
        method = METHODS.build(full)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None
    if method.prepare_epochs < 0:
        raise UserError(f"{where}: {told}: prepare_epochs is 0 or more, not {method.prepare_epochs}")
    if not 0 < method.teacher_epochs_fraction <= 1:
        allowed = "above 0, at most 1"
        raise UserError(f"{where}: {told}: teacher_epochs_fraction is {allowed}, not {method.teacher_epochs_fraction}")
    return full, told, method


def _misfit(method: Method, student: _Side, teacher: _Side | None, brought: Teacher | None) -> str | None:
    """Why a fresh method cannot run on this pair, or None."""
    if method.needs == "teacher" and teacher is None:
        return "needs a teacher, and this pair has none"
    if method.needs == "teacher" and brought and method.teacher_epochs_fraction < 1:
        return "needs a teacher whose training was stopped early, and this pair's is not trained here"
    if method.memory_by_sample and student.recipe.processes > 1:
        return "keeps a memory by sample, of which each of several processes would see a part"
    if method.needs_hard_labels and student.recipe.soft_targets:
        return "needs hard labels, and this recipe mixes or smooths them"
    other = student if method.needs == "self" else teacher
    return refusal(method, student.model, other.model if other else None, student.shape)


def _model(value: str | Mapping[str, Any], where: str) -> dict[str, Any]:
    return complete(MODELS, "model", named(value, "type"), where, elsewhere=("classes", "channels"))


def _data(value: str | Mapping[str, Any], where: str, data_root: str | None) -> dict[str, Any]:
    spec = named(value, "type")
    common: dict[str, Any] = {}
    for name, default in COMMON_DATA.items():
        common[name] = value_of(spec.pop(name, default), int, f"{where}.{name}")
        if common[name] < 0:
            raise UserError(f"{where}.{name}: a number of images, 0 for all, not {common[name]}")
    if "name" in spec:
        common["name"] = value_of(spec.pop("name"), str, f"{where}.name")
    spec.pop("digest", None)
    filled = complete(DATASETS, "data set", spec, where, elsewhere=("root",))
    try:
        found = digest(filled, data_root)
    except (OSError, ValueError, KeyError) as error:
        hint = "; say where they lie by --data-root or data.path" if "path" in filled else ""
        raise UserError(f"{where}: {error}{hint}") from None
    if "name" in common and found is None:
        raise UserError(f"{where}.name: only data of your own can be given a name; these are {filled['type']}")
    return {**filled, **common, "digest": found}


def _unique(values: list[Any], where: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{where}: {value!r} stands twice; remove one")


def told_number(value: Any, where: str) -> float | None:
    """A number of 0 or more that a user may tell.

    Raises:
        UserError: it is something else.
    """
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise UserError(f"{where}: a number of 0 or more, not {value!r}")
    return number
