"""Grid files to cells: every default filled in, every mistake named with its file and key, teachers before students."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import json
import sys
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from mmengine.registry import Registry
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bench.cell import Cell, Recipe, Teacher, method_name, safe
from bench.data import DATASETS, digest
from bench.engine.device import resolve_device, resolve_precision
from bench.errors import UserError, unknown
from bench.models import MODELS
from bench.recipes import recipe_for
from methods import METHODS
from methods.base import Method

SHIPPED = Path(__file__).parent / "grids"
COMMON_DATA = {"train_images": 0, "test_images": 0}  # size of a fixed, stratified subset; 0: all


class Pair(BaseModel):
    model_config = ConfigDict(extra="forbid")
    student: str | dict[str, Any]
    teacher: str | dict[str, Any] | None = None


class GridFile(BaseModel):
    """What a grid file may say."""

    model_config = ConfigDict(extra="forbid")
    about: str = ""
    data: str | dict[str, Any]
    recipe: str | dict[str, Any] = "crd"
    teacher_recipe: str | dict[str, Any] | None = None  # None: as the students', with the teacher's own learning rate
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seeds: list[int] = Field(min_length=1)
    teacher_seeds: Literal["first", "each"] = "first"  # one teacher for all students, or one for each seed
    pairs: list[Pair] = Field(min_length=1)
    methods: list[str | dict[str, Any]] = Field(min_length=1)


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
        }


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
        if isinstance(inner, str):  # 'recipe: crd' is short for 'recipe: {name: crd}'
            inner = {"name" if part.endswith("recipe") else "type": inner}
        if inner is not None and not isinstance(inner, dict):
            raise UserError(f"--set {override}: '{part}' is a {type(inner).__name__}; give it whole, as in --set {part}=...")
        place[part] = place = inner if inner is not None else {}
    place[last] = value


def import_plugin(name: str) -> None:
    """Import a user's module by dotted name or by path, so that what it registers is known.

    Raises:
        UserError: there is no such module, or it fails.
    """
    path = Path(name)
    try:
        if path.suffix == ".py":
            module_name = safe(path.stem).replace("-", "_").replace(".", "_")
            if getattr(sys.modules.get(module_name), "__file__", None) == str(path.resolve()):
                return
            spec = importlib.util.spec_from_file_location(module_name, path.resolve())
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            spec.loader.exec_module(module)
        else:
            importlib.import_module(name)
    except Exception as error:
        sys.modules.pop(path.stem, None)
        raise UserError(f"--import {name}: {type(error).__name__}: {error}") from error


# Specs: what a registry builds, with every argument


def arguments_of(builder: Any, given_elsewhere: Iterable[str] = ()) -> dict[str, inspect.Parameter]:
    """A registered class's or function's arguments by name, annotations resolved."""
    function = builder.__init__ if inspect.isclass(builder) else builder
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(builder).parameters
    return {
        name: parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in parameters.items()
        if name not in given_elsewhere and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def complete(
    registry: Registry, kind: str, spec: Mapping[str, Any], where: str, elsewhere: Iterable[str] = ()
) -> dict[str, Any]:
    """The spec with every argument of its constructor, defaults included, values checked against the annotations.

    Args:
        elsewhere: arguments that the harness gives.

    Raises:
        UserError: unknown type or argument, a missing argument, or a value of the wrong type.
    """
    given = dict(spec)
    key = given.pop("type", None)
    builder = None
    if isinstance(key, str):
        try:
            builder = registry.get(key)
        except Exception as error:  # mmengine raises what the import of a dotted path raises
            raise UserError(f"{where}: {kind} '{key}' cannot be imported: {error}") from None
    if builder is None:
        raise unknown(kind, key, registry.module_dict, where)
    preset = given.pop("preset", None)
    if preset is not None:
        presets = getattr(builder, "presets", {})
        if preset not in presets:
            raise unknown(f"preset of {key}", preset, presets, f"{where}.preset")
        given = {**presets[preset], **given}
    parameters = arguments_of(builder, elsewhere)
    for name in given:
        if name not in parameters:
            raise unknown("key", name, parameters, f"{where}.{name}")
    filled: dict[str, Any] = {"type": key}
    for name, parameter in parameters.items():
        if name in given:
            filled[name] = _value(given[name], parameter.annotation, f"{where}.{name}")
        elif parameter.default is not parameter.empty:
            filled[name] = json.loads(json.dumps(parameter.default))
        else:
            raise UserError(f"{where}: '{key}' needs {name}")
    return filled


def _value(value: Any, annotation: Any, where: str) -> Any:
    if isinstance(value, dict) and "type" in value:  # a method within a method
        return complete(METHODS, "method", value, where)
    if isinstance(value, list) and value and all(isinstance(item, dict) and "type" in item for item in value):
        return [complete(METHODS, "method", item, f"{where}[{index}]") for index, item in enumerate(value)]
    if annotation in (int, float) and isinstance(value, bool):
        raise UserError(f"{where}: a number, not {value} (YAML reads yes, no, on and off as true and false)")
    adapter = TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))
    try:
        return json.loads(adapter.dump_json(adapter.validate_python(value)))
    except ValidationError as error:
        raise UserError(f"{where}: {error.errors()[0]['msg']}, not {value!r}") from None


# Methods: short forms, presets, axes


@dataclass(frozen=True)
class MethodEntry:
    """A method of the grid: its full spec, and how reports name it."""

    spec: dict[str, Any]
    label: str


def expand_methods(entries: list[str | dict[str, Any]], where: str) -> list[tuple[dict[str, Any], str]]:
    """(short spec, where) for every combination of the axes.

    An entry is `kd`, `tfd+kd`, `{kd: {temperature: 4}}`, `{tfd+kd: {tfd: {weight: .01}}}` or `{type: kd, temperature: 4}`;
    a list in the place of a value is an axis.
    """
    expanded = []
    for index, entry in enumerate(entries):
        at = f"{where}[{index}]"
        if isinstance(entry, str):
            entry = {entry: {}}
        if "type" in entry:
            key, arguments = entry["type"], {name: value for name, value in entry.items() if name != "type"}
        elif len(entry) == 1:
            [(key, arguments)] = entry.items()
            arguments = {} if arguments is None else arguments
        else:
            raise UserError(f"{at}: write {{name: {{argument: value}}}} or {{type: name, argument: value}}, not {entry!r}")
        if not isinstance(key, str) or not isinstance(arguments, dict):
            raise UserError(f"{at}: write {{name: {{argument: value}}}}, not {entry!r}")
        expanded += [(spec, at) for spec in _combinations(key, arguments, at)]
    return expanded


def _combinations(key: str, arguments: dict[str, Any], where: str) -> list[dict[str, Any]]:
    if "+" in key:
        parts = key.split("+")
        for name in arguments:
            if name not in parts:
                raise unknown("part", name, parts, f"{where}.{name}")
        each = [_combinations(part, arguments.get(part) or {}, where) for part in parts]
        return [{"type": "sum", "parts": list(combination)} for combination in itertools.product(*each)]
    builder = METHODS.get(key) if key in METHODS.module_dict or "." in key else None
    if builder is None:
        raise unknown("method", key, METHODS.module_dict, where)
    parameters = arguments_of(builder)
    axes = []
    for name, value in arguments.items():
        listed = name in parameters and _takes_list(parameters[name].annotation)
        is_axis = isinstance(value, list) and (not listed or (bool(value) and all(isinstance(item, list) for item in value)))
        if is_axis and not value:
            raise UserError(f"{where}.{name}: the list is empty, so there is nothing to run")
        axes.append([(name, item) for item in value] if is_axis else [(name, value)])
    return [{"type": key, **dict(combination)} for combination in itertools.product(*axes)]


def _takes_list(annotation: Any) -> bool:
    origins = [annotation, *typing.get_args(annotation)]
    return any((typing.get_origin(each) or each) in (list, tuple) for each in origins)


def label(short: Mapping[str, Any], full: dict[str, Any]) -> str:
    """'kd', 'kd(temperature=2.0)', 'tffd[readme]', 'tfd(weight=0.01)+kd': the name and what differs from the defaults."""
    if full["type"] == "sum":
        return "+".join(label(s, f) for s, f in zip(short["parts"], full["parts"], strict=True))
    name = method_name(full)
    if "preset" in short:
        name += f"[{short['preset']}]"
    changed = []
    for argument, parameter in arguments_of(METHODS.get(full["type"])).items():
        if argument in short and (parameter.default is parameter.empty or full[argument] != parameter.default):
            value = full[argument]
            text = label(short[argument], value) if isinstance(value, dict) and "type" in value else value
            changed.append(f"{argument}={text}")
    return name + (f"({', '.join(changed)})" if changed else "")


# Expanding


def expand(name: str, raw: Mapping[str, Any], data_root: str | None = None, device: str = "auto") -> Grid:
    """Cells of a grid, teachers first, each once; what cannot be combined is listed with the reason.

    Raises:
        UserError: anything wrong in the file.
    """
    try:
        file = GridFile.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise unknown("key", first["loc"][-1], GridFile.model_fields, f"{name}, {key}") from None
        raise UserError(f"{name}, {key}: {first['msg']}, not {first['input']!r}") from None
    _unique(file.seeds, f"{name}, seeds")
    precision = resolve_precision(file.precision, resolve_device(device))
    data = _data(file.data, f"{name}, data", data_root)
    entries = expand_methods(file.methods, f"{name}, methods")

    teachers: dict[str, Cell] = {}
    students: dict[str, Cell] = {}
    skipped: list[Skip] = []
    for index, pair in enumerate(file.pairs):
        where = f"{name}, pairs[{index}]"
        student = _model(pair.student, f"{where}.student")
        teacher = _model(pair.teacher, f"{where}.teacher") if pair.teacher is not None else None
        recipe = recipe_for(_named(file.recipe, "name"), student["type"], f"{name}, recipe")
        teacher_recipe = None
        if teacher:
            source = file.teacher_recipe if file.teacher_recipe is not None else file.recipe
            teacher_recipe = recipe_for(_named(source, "name"), teacher["type"], f"{name}, teacher_recipe")

        def plain(model: dict[str, Any], recipe: Recipe, seed: int) -> Cell:
            return Cell(
                data=data,
                student=model,
                teacher=None,
                method={"type": "none"},
                method_version=METHODS.get("none").version,
                recipe=recipe,
                seed=seed,
                precision=precision,
                label="none",
            )

        this_pair: set[str] = set()
        for short, at in entries:
            entry, method, reason = _method(short, student, teacher, recipe, at)
            if reason:
                skipped.append(Skip(f"{entry.label} on {describe(student)}", reason))
                continue
            for seed in file.seeds:
                teacher_seed = seed if file.teacher_seeds == "each" else file.seeds[0]
                supplier = None
                if method.needs == "teacher":
                    assert teacher is not None
                    assert teacher_recipe is not None
                    epochs = max(1, round(teacher_recipe.epochs * method.teacher_epochs_fraction))
                    supplier = plain(teacher, teacher_recipe.model_copy(update={"epochs": epochs}), teacher_seed)
                elif method.needs == "self":
                    supplier = plain(student, recipe, teacher_seed)
                if supplier:
                    teachers[supplier.id] = supplier
                cell = Cell(
                    data=data,
                    student=student,
                    teacher=Teacher(cell=supplier.id, model=supplier.student) if supplier else None,
                    method=entry.spec,
                    method_version=method.version,
                    recipe=recipe,
                    seed=seed,
                    precision=precision,
                    needs=method.needs,
                    label=entry.label,
                    added_later={
                        argument: parameter.default
                        for argument, parameter in arguments_of(type(method)).items()
                        if argument in type(method).added_later
                    },
                )
                if cell.id in this_pair:
                    raise UserError(f"{at}: {entry.label} stands twice in the grid for {describe(student)}; remove one")
                this_pair.add(cell.id)
                students.setdefault(cell.id, cell)
    cells = {**teachers, **students}
    if not cells:
        reasons = "; ".join(f"{skip.what}: {skip.reason}" for skip in skipped)
        raise UserError(f"{name}: the grid expands to nothing. {reasons}")
    return Grid(name, file.about, list(cells.values()), skipped, dict(raw))


def _method(
    short: dict[str, Any], student: dict[str, Any], teacher: dict[str, Any] | None, recipe: Recipe, where: str
) -> tuple[MethodEntry, Method, str | None]:
    """The full spec for this pair, an instance, and why it cannot run here, or None."""
    short = _pair_preset(short, student, teacher, where)
    full = complete(METHODS, "method", short, where)
    entry = MethodEntry(full, label(short, full))
    try:
        method = METHODS.build(full)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None
    reason = None
    if method.needs == "teacher" and teacher is None:
        reason = "needs a teacher, and this pair has none"
    elif method.needs_hard_labels and recipe.soft_targets:
        reason = "needs hard labels, and this recipe mixes or smooths them"
    return entry, method, reason


def _pair_preset(short: dict[str, Any], student: dict[str, Any], teacher: dict[str, Any] | None, where: str) -> dict[str, Any]:
    """Check a preset that was published for one pair, and replace `preset: pair` by this pair's."""
    if short["type"] == "sum":
        return {**short, "parts": [_pair_preset(part, student, teacher, where) for part in short["parts"]]}
    preset = short.get("preset")
    pair = f"{teacher['type']}/{student['type']}" if teacher else None
    builder = METHODS.get(short["type"])
    presets = getattr(builder, "presets", {})
    if preset == "pair" or (isinstance(preset, str) and "/" in preset and preset != pair):
        if pair not in presets:
            published = ", ".join(sorted(name for name in presets if "/" in name)) or "no pair"
            raise UserError(
                f"{where}.preset: {short['type']} has none for {pair or 'a pair without a teacher'}; it has: {published}"
            )
        if preset != "pair":
            raise UserError(f"{where}.preset: '{preset}' was published for that pair, not for {pair}; write preset: pair")
        return {**short, "preset": pair}
    return short


def describe(spec: Mapping[str, Any]) -> str:
    """'resnet20', or 'torchvision(name=resnet18)'."""
    inner = ", ".join(f"{name}={value}" for name, value in spec.items() if name != "type")
    return spec["type"] + (f"({inner})" if inner else "")


def _named(value: str | Mapping[str, Any], key: str) -> dict[str, Any]:
    return {key: value} if isinstance(value, str) else dict(value)


def _model(value: str | Mapping[str, Any], where: str) -> dict[str, Any]:
    return complete(MODELS, "model", _named(value, "type"), where, elsewhere=("classes", "channels"))


def _data(value: str | Mapping[str, Any], where: str, data_root: str | None) -> dict[str, Any]:
    spec = _named(value, "type")
    common = {}
    for name, default in COMMON_DATA.items():
        common[name] = _value(spec.pop(name, default), int, f"{where}.{name}")
        if common[name] < 0:
            raise UserError(f"{where}.{name}: a number of images, 0 for all, not {common[name]}")
    spec.pop("digest", None)
    filled = complete(DATASETS, "data set", spec, where, elsewhere=("root",))
    try:
        return {**filled, **common, "digest": digest(filled, data_root)}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{where}: {error}") from None


def _unique(values: list[Any], where: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{where}: {value!r} stands twice; remove one")
