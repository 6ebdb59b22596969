"""From the short forms of a grid file to full specs, `{"type": key, **every argument}`, from which a registry builds."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from mmengine.registry import Registry
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from torch import nn

from bench.data import Dataset
from bench.errors import LONGEST_NAME, UserError, defined_at, unknown
from bench.models import MODELS, Network
from bench.plan.ranges import range_of
from bench.plugins import IMPORTED, looked_up
from bench.records.cell import Cell, Spec, digest
from bench.records.naming import Signature, is_shipped, nested
from bench.texts import TRUTH, brief, misfit
from methods import METHODS
from methods.base import Method

PARTS = (Method, Network, Dataset)  # base classes of users' own classes, and what users' own functions are annotated to return
Builder = Callable[..., Any]  # a class or a function
LONGEST_TEXT = 4096  # characters of an argument: as long as a path may be
MOST = 10**9  # that an argument may be, above or below 0: beyond it arithmetic overflows


def arguments_of(builder: Builder, elsewhere: Iterable[str] = ()) -> dict[str, inspect.Parameter]:
    """A registered class's or function's arguments by name, annotations resolved, without those that come from `elsewhere`.

    Raises:
        UserError: an annotation names what is not there.
    """
    function: Builder = builder.__init__ if inspect.isclass(builder) else builder
    try:
        hints = typing.get_type_hints(function)
    except Exception as error:  # of a plug-in: names that are imported for type checkers alone, and the like
        name = getattr(builder, "__name__", builder)
        raise UserError(f"{defined_at(builder)}: the annotations of {name} cannot be read: {error}") from None
    parameters = inspect.signature(builder).parameters
    return {
        name: parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in parameters.items()
        if name not in elsewhere and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def complete(
    registry: Registry, kind: str, spec: Mapping[str, Any], where: str, elsewhere: Iterable[str] = ()
) -> dict[str, Any]:
    """The spec with every argument of its constructor, defaults included, values checked against the annotations.

    Args:
        kind: what the registry builds, for errors.
        where: place of the spec in its file, for errors.
        elsewhere: arguments that the harness adds when it builds.

    Raises:
        UserError: unknown type or argument, a missing argument, or a value of the wrong type or beyond its stated range.
    """
    given = dict(spec)
    if given.get("type") is None:
        raise UserError(
            f"{where}: the key `type` is missing, the name of a {kind}; known: {', '.join(sorted(registry.module_dict))}"
        )
    key = given.pop("type")
    builder = looked_up(registry, key, where) if isinstance(key, str) else None
    if builder is None or not _is_part(builder, registry):
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
            filled[name] = value_of(given[name], parameter.annotation, f"{where}.{name}")
            allowed = range_of(builder, name)
            if allowed and filled[name] not in allowed and filled[name] != parameter.default:
                raise UserError(f"{where}.{name}: {allowed.words}, not {brief(given[name])}")
        elif parameter.default is not parameter.empty:
            filled[name] = as_json(parameter.default, f"{where}: the default of {name} of {key}")
        else:
            raise UserError(f"{where}: '{key}' needs {name}")
    return filled


def as_json(value: Any, what: str) -> Any:
    """The value of a class or a function as JSON, in which grids and records are written.

    Raises:
        UserError: it is no number, text, list or mapping of these.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        allowed = "finite numbers, texts, true, false, null, lists and mappings"
        raise UserError(f"{what}, {brief(value)}, cannot be written down; allowed: {allowed}") from None


def check_recorded(registry: Registry, kind: str, spec: Mapping[str, Any], where: str) -> None:
    """Refuse to build what only a record names: it is data, and a dotted name in it is perhaps a stranger's.

    Raises:
        UserError: the type is not registered, and no module that the user has imported defines it.
    """
    key = str(spec.get("type"))
    module, _, name = key.rpartition(".")
    found = getattr(sys.modules.get(module), name, None) if module in IMPORTED else None
    if key not in registry.module_dict and not (found and _is_part(found, registry)):
        hint = f"; --import {module} if you trust it" if module.isidentifier() or "." in module else ""
        raise UserError(f"{where}: the {kind} {brief(key)} is not imported, since a record is data{hint}")


def _is_part(builder: Builder, registry: Registry) -> bool:
    """Whether it is safe to build with it. Any callable has a dotted name, and to build is to call it."""
    if any(builder is registered for registered in registry.module_dict.values()):
        return True
    if inspect.isclass(builder):
        return any(base in builder.__mro__ for base in (*PARTS, *([nn.Module] if registry is MODELS else [])))
    annotations = getattr(builder, "__annotations__", None)
    returns = annotations.get("return") if callable(builder) and isinstance(annotations, dict) else None
    return getattr(returns, "__name__", returns) in {part.__name__ for part in PARTS}


def value_of(value: Any, annotation: Any, where: str) -> Any:
    """The value as JSON, checked against the annotation; methods within it are completed.

    Raises:
        UserError: it has another type, or is not finite, or nothing that is written down has such a type.
    """
    methods = True
    if isinstance(value, dict) and "type" in value:  # a method within a method
        value = complete(METHODS, "method", value, where)
    elif isinstance(value, list) and value and all(isinstance(item, dict) and "type" in item for item in value):
        value = [complete(METHODS, "method", item, f"{where}[{index}]") for index, item in enumerate(value)]
    else:
        methods = False
    kinds = {annotation, *typing.get_args(annotation)}
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, bool) and kinds & {int, float} and bool not in kinds:
            raise UserError(f"{where}: a number, not {each}{TRUTH}")
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))
    except PydanticUserError:
        if methods:
            return value
        allowed = "annotate it with int, float, bool, str, list or dict"
        raise UserError(f"{where}: a value in a grid file cannot be a {annotation}; {allowed}") from None
    try:
        found = json.loads(adapter.dump_json(adapter.validate_python(value)))
    except ValidationError as error:
        raise UserError(f"{where}: {misfit(error.errors()[0])}") from None
    _check_bounds(found, where)
    return found


def _check_bounds(value: object, where: str) -> None:
    """Refuse texts and numbers beyond any use, within lists and mappings, too.

    Raises:
        UserError: see above.
    """
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise UserError(f"{where}: at most {LONGEST_TEXT:,} characters, not {brief(value)}")
    if isinstance(value, int | float) and abs(value) > MOST:
        raise UserError(f"{where}: at most {MOST:,}, not {brief(value)}")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_bounds(inner, where)


def amount(value: object, where: str) -> float | None:
    """A number of 0 or more, or None where none is given.

    Raises:
        UserError: it is something else.
    """
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise UserError(f"{where}: a number of 0 or more, not {brief(value)}")
    return number


# Methods: short forms, presets, axes

MOST_VALUES = 10_000  # that one entry of a list of methods may stand for
LONGEST_LABEL = 40
EVERY = "every"  # an entry of a grid's list of methods that stands for all of them


class Entry(NamedTuple):
    """One method of a grid's list."""

    spec: Spec  # short: without defaults
    where: str  # its place in the file, for errors
    label: str | None = None  # the user's own


def expand_methods(entries: list[str | dict[str, Any]], where: str) -> list[Entry]:
    """Every combination of the axes.

    An entry is `kd`, `tfd+kd`, `{kd: {temperature: 4}}`, `{tfd+kd: {tfd: {weight: .01}}}` or `{type: kd, temperature: 4}`;
    a list in place of a value is an axis. `every` and `{every: {prepare_epochs: 1}}` stand for every registered method.
    `label` beside the method is what reports call it: `{kd: {temperature: [2, 4]}, label: "kd (T={temperature})"}`.

    Raises:
        UserError: an entry of another form, an unknown method or part, an empty axis, or a label that cannot be.
    """
    expanded = []
    for index, entry in enumerate(entries):
        at = f"{where}[{index}]"
        if isinstance(entry, str):
            entry = {entry: {}}
        label = entry.get("label")
        entry = {name: value for name, value in entry.items() if name != "label"}
        if "type" in entry:
            key, arguments = entry["type"], {name: value for name, value in entry.items() if name != "type"}
        elif len(entry) == 1:
            [(key, arguments)] = entry.items()
            arguments = {} if arguments is None else arguments
        else:
            raise UserError(f"{at}: write {{name: {{argument: value}}}} or {{type: name, argument: value}}, not {brief(entry)}")
        if not isinstance(key, str) or not isinstance(arguments, dict):
            raise UserError(f"{at}: write {{name: {{argument: value}}}}, not {brief(entry)}")
        named = _every(arguments, at) if key == EVERY else [(key, arguments)]
        specs = [spec for name, given in named for spec in _combinations(name, given, at)]
        expanded += [Entry(spec, at, None if label is None else _own_label(label, spec, at)) for spec in specs]
    return expanded


def _own_label(label: object, spec: Spec, where: str) -> str:
    """The user's label, with values in place of `{temperature}`, in a sum of `{kd.temperature}`.

    Raises:
        UserError: it is no short line of text, or it names an argument that the entry does not give.
    """
    if not isinstance(label, str) or not label.strip() or len(label) > LONGEST_LABEL or not label.isprintable():
        raise UserError(f"{where}.label: a line of at most {LONGEST_LABEL} characters, not {brief(label)}")
    parts = {f"{part['type']}.{name}": value for part in spec.get("parts", []) for name, value in part.items()}
    given = {**parts, **{name: value for name, value in spec.items() if name != "parts"}}

    def value(found: re.Match[str]) -> str:
        if found[1] not in given:
            raise unknown("argument", found[1], given.keys() - {"type"}, f"{where}.label")
        return str(given[found[1]])

    found = re.sub(r"\{([^{}]*)\}", value, label.strip())
    if len(found) > LONGEST_NAME or not found.isprintable():
        allowed = f"a line of at most {LONGEST_NAME} characters with the values in it"
        raise UserError(f"{where}.label: {allowed}, not {brief(found)}")
    return found


def _every(arguments: dict[str, Any], where: str) -> list[tuple[str, dict[str, Any]]]:
    """Every registered method by its key, with its example and with those of the arguments that it has."""
    parameters = {key: arguments_of(method) for key, method in sorted(METHODS.module_dict.items())}
    for name in arguments:
        known = set[str]().union(*parameters.values())
        if name not in known:
            raise unknown("argument of any method", name, known, f"{where}.{name}")
    found = []
    for key, own in parameters.items():
        given = {**METHODS.get(key).example, **{name: value for name, value in arguments.items() if name in own}}
        missing = [name for name, each in own.items() if each.default is each.empty and name not in given]
        if missing:
            raise UserError(f"{where}: '{key}' needs {missing[0]}, of which its class gives no `example`")
        found.append((key, given))
    return found


def _combinations(key: str, arguments: dict[str, Any], where: str) -> list[Spec]:
    """The short specs of one entry."""
    if not isinstance(arguments, dict):
        raise UserError(f"{where}: write {{{key}: {{argument: value}}}}, not {brief({key: arguments})}")
    if "type" in arguments:
        raise UserError(f"{where}.type: the method is {key} already; leave the key out")
    if "+" in key:
        parts = key.split("+")
        if not all(parts):
            raise UserError(f"{where}: {brief(key)} has a part without a name; write a sum as in tfd+kd")
        for name in arguments:
            if name not in parts:
                raise unknown("part", name, parts, f"{where}.{name}")
        if "none" in parts:
            raise UserError(f"{where}: none adds nothing to {key}; leave it out of the sum")
        each = [_combinations(part, arguments.get(part) or {}, where) for part in parts]
        _check_count(math.prod(map(len, each)), where)
        return [{"type": "sum", "parts": list(combination)} for combination in itertools.product(*each)]
    builder = looked_up(METHODS, key, where)
    if builder is None or not _is_part(builder, METHODS):
        raise unknown("method", key, METHODS.module_dict, where)
    parameters = arguments_of(builder)
    axes = []
    for name, value in arguments.items():
        listed = name in parameters and _takes_list(parameters[name].annotation)
        is_axis = isinstance(value, list) and (not listed or (bool(value) and all(isinstance(item, list) for item in value)))
        if is_axis and not value:
            raise UserError(f"{where}.{name}: the list is empty, so there is nothing to run")
        axes.append([(name, item) for item in value] if is_axis else [(name, value)])
    _check_count(math.prod(map(len, axes)), where)
    return [{"type": key, **dict(combination)} for combination in itertools.product(*axes)]


def _check_count(combinations: int, where: str) -> None:
    if combinations > MOST_VALUES:
        raise UserError(f"{where}: {combinations:,} combinations of values; allowed: at most {MOST_VALUES:,}")


def unordered(cell: Cell) -> str:
    """Equal for cells whose methods are sums of the same parts in another order; such are trained alike, to rounding."""
    if cell.method["type"] != "sum":
        return cell.id
    method = {**cell.method, "parts": sorted(cell.method["parts"], key=digest)}
    return cell.model_copy(update={"method": method, "added_later": {}}).id


def _takes_list(annotation: Any) -> bool:
    """Whether an argument is a list itself, so that a list of lists is the axis."""
    origins = [annotation, *typing.get_args(annotation)]
    return any((typing.get_origin(each) or each) in (list, tuple) for each in origins)


def signatures(specs: Iterable[Mapping[str, Any]]) -> dict[str, Signature]:
    """By registry key: arguments, defaults and presets of the methods that do not ship with the bench. Labels need them."""
    found = {}
    for key in {part["type"] for spec in specs for part in nested(spec)}:
        if not is_shipped(key):
            builder = METHODS.get(key)
            parameters = arguments_of(builder)
            defaults = {name: each.default for name, each in parameters.items() if each.default is not each.empty}
            presets = getattr(builder, "presets", {})
            values = [as_json(value, f"{what} of {key}") for what, value in (("defaults", defaults), ("presets", presets))]
            found[key] = Signature(tuple(parameters), *values)
    return found


def pair_presets(short: dict[str, Any], pair: str | None, where: str) -> dict[str, Any]:
    """The short spec with the pair's name in place of `preset: pair`, in methods within methods, too.

    Args:
        pair: "teacher/student"; None without a teacher.

    Raises:
        UserError: no preset was published for this pair.
    """
    replaced = {name: _within_presets(value, pair, where) for name, value in short.items()}
    preset = short.get("preset")
    if preset != "pair" and not (isinstance(preset, str) and "/" in preset):
        return replaced
    presets = getattr(METHODS.get(short["type"]), "presets", {})
    if pair not in presets:
        published = ", ".join(sorted(name for name in presets if "/" in name)) or "no pair"
        raise UserError(
            f"{where}.preset: {short['type']} has none for {pair or 'a pair without a teacher'}; it has: {published}"
        )
    if preset not in ("pair", pair):
        raise UserError(f"{where}.preset: '{preset}' was published for that pair, not for {pair}; write preset: pair")
    return {**replaced, "preset": pair}


def _within_presets(value: Any, pair: str | None, where: str) -> Any:
    if isinstance(value, list):
        return [_within_presets(item, pair, where) for item in value]
    return pair_presets(value, pair, where) if isinstance(value, dict) and "type" in value else value


def added_later(registry: Registry, spec: Spec, prefix: str = "") -> dict[str, Any]:
    """Arguments newer than what they belong to, with their defaults; of a part by its place, "parts.0.gamma".

    A registered class or function names them in its attribute `added_later`.
    """
    builder = registry.get(spec["type"])
    later: tuple[str, ...] = getattr(builder, "added_later", ())
    found = {f"{prefix}{name}": arguments_of(builder)[name].default for name in later}
    for name, value in spec.items():
        within = {f"{name}.{i}": item for i, item in enumerate(value)} if isinstance(value, list) else {name: value}
        for path, inner in within.items():
            if isinstance(inner, dict) and "type" in inner:
                found |= added_later(registry, inner, f"{prefix}{path}.")
    return found
