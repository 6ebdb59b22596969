"""Names of methods, networks and data sets, made from their specs: the one place that names things. No torch.

A name is computed when it is shown. It is never stored to be compared: an argument that a method gains later would change it.
"""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

METHODS_FOLDER = Path(__file__).parents[2] / "methods"

Spec = Mapping[str, Any]  # {"type": registry key, **arguments}


class Signature(NamedTuple):
    """The arguments of a method's constructor."""

    arguments: tuple[str, ...]  # in the constructor's order
    defaults: Mapping[str, Any]  # of the arguments that have one, as plain JSON values
    presets: Mapping[str, Mapping[str, Any]]  # published values by name; "teacher/student" names one pair's


Plugins = Mapping[str, Signature]  # by registry key: methods that do not ship with the bench


# Names


def method_family(spec: Spec) -> str:
    """Registry keys alone: 'kd', 'tfd+kd' for a sum; the last part of a dotted path."""
    if spec["type"] == "sum":
        return "+".join(method_family(part) for part in spec["parts"])
    return str(spec["type"]).rpartition(".")[2]


def method_label(spec: Spec, pair: str | None = None, plugins: Plugins | None = None, stored: str = "") -> str:
    """What reports call a method: 'kd', 'kd[imagenet]', 'dkd[pair]', 'tfd(ramp_epochs=1)', 'tfd(weight=0.01)+kd'.

    Args:
        pair: "teacher/student" by `model_name`; a preset published for it shows as [pair].
        plugins: signatures of methods that do not ship with the bench.
        stored: the label where the signature of a method within `spec` is not known.
    """
    if not all(_signature(str(part["type"]), plugins) for part in nested(spec)):
        return stored or method_family(spec)
    return _written(short_form(spec, pair, plugins))


def short_form(spec: Spec, pair: str | None = None, plugins: Plugins | None = None) -> dict[str, Any]:
    """The spec without its defaults: equal for equal methods, whether an argument was left out or set to its default.

    Where the values are those of a preset, the preset stands in their place; the one for this pair is called "pair".
    Of a method whose signature is not known, all arguments stay.
    """
    given = {name: _shortened(value, pair, plugins) for name, value in spec.items()}
    signature = _signature(str(spec["type"]), plugins)
    if signature is None:
        return given
    defaults = {name: _shortened(value, pair, plugins) for name, value in signature.defaults.items()}
    plain = {"type": spec["type"]} | defaults
    full = plain | given
    fitting = [name for name in signature.presets if name == pair]
    fitting += [name for name in signature.presets if "/" not in name and full != plain]
    for name in fitting:
        preset = {argument: _shortened(value, pair, plugins) for argument, value in signature.presets[name].items()}
        if full == plain | preset:
            return {"type": spec["type"], "preset": "pair" if name == pair else name}
    order = {name: index for index, name in enumerate(("type", *signature.arguments))}
    changed = {name: value for name, value in full.items() if name not in defaults or value != defaults[name]}
    return {name: changed[name] for name in sorted(changed, key=lambda name: order.get(name, len(order)))}


def full_form(spec: Spec, plugins: Plugins | None = None) -> dict[str, Any]:
    """The spec with today's defaults for the arguments that it leaves out, also in methods within it."""

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(item) for item in value]
        return full_form(value, plugins) if isinstance(value, dict) and "type" in value else value

    signature = _signature(str(spec["type"]), plugins)
    return {name: filled(value) for name, value in ({**signature.defaults, **spec} if signature else spec).items()}


def is_published(short: Spec) -> bool:
    """Whether a short form leaves every argument at its default or at a preset's value, in all parts of a sum."""
    if short["type"] == "sum":
        return all(is_published(part) for part in short["parts"])
    return set(short) <= {"type", "preset"}


def is_default(short: Spec) -> bool:
    """Whether a short form leaves every argument at its default, in all parts of a sum."""
    return all("preset" not in part for part in nested(short)) and is_published(short)


def model_name(spec: Spec) -> str:
    """'resnet20'; of a library's network its name there, 'resnet18' for torchvision's; the last part of a dotted path."""
    return str(spec.get("name") or str(spec["type"]).rpartition(".")[2])


OWN_OF_LIBRARIES_NAMES = ("resnet18", "resnet34")  # for small images; in presets these names are torchvision's networks


def pair_name(teacher: Spec | None, student: Spec) -> str | None:
    """'resnet110/resnet20', as presets name the pair that they were published for; None without a teacher.

    None was published for our own networks that are called like a library's: 'resnet34 (small)/resnet18 (small)'.
    """
    if not teacher:
        return None
    names = (f"{model_name(spec)}{' (small)' * (spec['type'] in OWN_OF_LIBRARIES_NAMES)}" for spec in (teacher, student))
    return "/".join(names)


def data_name(spec: Spec) -> str:
    """'cifar100'; of the user's own data the name that the grid file gives them."""
    return str(spec.get("name") or spec["type"])


def describe(spec: Spec) -> str:
    """'resnet20', or 'resnet34(pretrained=True)': the name and the arguments that are on."""
    usual = (False, None, *(["sums"] if "taps" in spec else []))  # the usual features need no name
    hidden = ("type", "name", "weights_sha256")
    arguments = {name: value for name, value in spec.items() if name not in hidden and value not in usual}
    if "weights" in arguments:  # the file that a training starts from
        arguments["weights"] = Path(str(arguments["weights"])).name
    inner = ", ".join(f"{name}={value}" for name, value in arguments.items())
    return model_name(spec) + (f"({inner})" if inner else "")


def abbreviated(names: Sequence[str], most: int = 28) -> list[str]:
    """The names cut in their middle to so many characters, to fit beside a drawing; to more where two would become equal."""
    short = [name if len(name) <= most else f"{name[: (most - 1) // 2]}…{name[-(most // 2) :]}" for name in names]
    return short if len(set(short)) == len(set(names)) or most > max(map(len, names)) else abbreviated(names, most + 4)


def distinct(specs: Iterable[Spec], base: Callable[[Spec], str], within: Sequence[str] | None = None) -> list[str]:
    """A name for every spec, equal only for equal specs: the base name, and the values in which its namesakes differ.

    Args:
        within: a group for every spec; only specs of one group are distinguished.
    """
    specs = list(specs)
    groups = [""] * len(specs) if within is None else within
    keys = [(group, base(spec), _text(spec)) for group, spec in zip(groups, specs, strict=True)]
    namesakes: dict[tuple[str, str], dict[str, Spec]] = defaultdict(dict)
    for (group, name, text), spec in zip(keys, specs, strict=True):
        namesakes[group, name][text] = spec
    names: dict[tuple[str, str, str], str] = {}
    for (group, name), variants in namesakes.items():
        arguments = sorted(set[str]().union(*variants.values()))
        differing = [key for key in arguments if len({_text(variant.get(key)) for variant in variants.values()}) > 1]
        for text, spec in variants.items():
            values = ", ".join(f"{key}={shown(spec.get(key))[:24]}" for key in differing)
            names[group, name, text] = f"{name} ({values})" if values else name
    return [names[key] for key in keys]


def shown(value: Any) -> str:
    """A value of a spec or a recipe as text: a spec within it by its name and arguments."""
    if isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        return f"[{', '.join(map(shown, value))}]"
    return describe(value) if isinstance(value, dict) and "type" in value else str(value)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


# Methods within methods


def nested(spec: Spec) -> Iterator[Spec]:
    """A method's spec, then those of all methods within it."""
    yield spec
    for value in spec.values():
        for part in methods_in(value):
            yield from nested(part)


def methods_in(value: Any) -> list[Spec]:
    """The specs of methods that an argument holds."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict) and "type" in item]


def _shortened(value: Any, pair: str | None, plugins: Plugins | None) -> Any:
    if isinstance(value, list):
        return [_shortened(item, pair, plugins) for item in value]
    return short_form(value, pair, plugins) if isinstance(value, dict) and "type" in value else value


def _written(short: Any) -> str:
    """A short form as text."""
    if isinstance(short, list) and methods_in(short):
        return f"[{', '.join(map(_written, short))}]"
    if not (isinstance(short, dict) and "type" in short):
        return str(short)
    if short["type"] == "sum":
        return "+".join(map(_written, short["parts"]))
    values = ", ".join(f"{name}={_written(value)}" for name, value in short.items() if name not in ("type", "preset"))
    preset = f"[{short['preset']}]" if "preset" in short else ""
    return method_family(short) + preset + (f"({values})" if values else "")


# Signatures


def plugins_of(manifest: Mapping[str, Any]) -> dict[str, Signature]:
    """Signatures of methods that do not ship with the bench, from a grid's manifest; former versions recorded none."""
    found = {}
    for key, entry in manifest.get("plugins", {}).items():
        found[key] = Signature(tuple(entry["arguments"]), entry["defaults"], entry["presets"])
    return found


def own_labels(manifest: Mapping[str, Any]) -> dict[str, str]:
    """By a cell's id: the label that the user's grid file gives to its method."""
    return {cell["id"]: cell["label"] for cell in manifest["cells"] if cell.get("own_label")}


def steps_of_full_schedules(manifest: Mapping[str, Any]) -> dict[str, str]:
    """By the id of a cell of `equal_cost`: the cost key of the cells with the full schedule, whose steps it takes."""
    return {cell["id"]: cell["equal_cost"] for cell in manifest["cells"] if cell.get("equal_cost")}


def is_shipped(key: str) -> bool:
    return shipped_signature(key) is not None


def _signature(key: str, plugins: Plugins | None) -> Signature | None:
    return (plugins or {}).get(key) or shipped_signature(key)


@cache
def shipped_signature(key: str) -> Signature | None:
    """The signature of `methods/<key>.py`, read from its source; None where there is no such method."""
    path = METHODS_FOLDER / f"{key}.py"
    if not key.isidentifier() or not path.is_file():
        return None
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    registered = next((node for node in classes.values() if _registers(node, key)), None)
    if registered is None:
        return None
    lineage = _lineage(registered, classes)
    try:
        arguments, defaults = next(filter(None, map(_constructor, lineage)), ((), {}))
        presets = next((found for node in lineage if (found := _presets(node)) is not None), {})
    except ValueError:  # a value that is computed: without it the method has no label of its own
        return None
    return Signature(arguments, defaults, presets)


def _registers(node: ast.ClassDef, key: str) -> bool:
    """Whether a class is decorated by `@METHODS.register_module("key")`."""
    calls = [decorator for decorator in node.decorator_list if isinstance(decorator, ast.Call)]
    given = [value for call in calls for value in (*call.args, *(keyword.value for keyword in call.keywords))]
    return any(isinstance(value, ast.Constant) and value.value == key for value in given)


def _lineage(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> list[ast.ClassDef]:
    """The class, then those of its base classes that stand in the same file."""
    bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
    return [node, *(found for base in bases for found in _lineage(classes[base], classes))]


def _constructor(node: ast.ClassDef) -> tuple[tuple[str, ...], dict[str, Any]] | None:
    """The arguments and defaults of a class's own `__init__`, or None where it has none."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            positional = [argument.arg for argument in item.args.args][1:]
            named = [argument.arg for argument in item.args.kwonlyargs]
            pairs = [
                *zip(reversed(positional), reversed(item.args.defaults), strict=False),
                *zip(named, item.args.kw_defaults, strict=True),
            ]
            values = {name: _literal(value) for name, value in pairs if value is not None}
            return (*positional, *named), {name: values[name] for name in (*positional, *named) if name in values}
    return None


def _presets(node: ast.ClassDef) -> dict[str, Any] | None:
    """The value of a class's own `presets`, or None where it has none."""
    for item in node.body:
        targets = item.targets if isinstance(item, ast.Assign) else [item.target] if isinstance(item, ast.AnnAssign) else []
        if any(isinstance(target, ast.Name) and target.id == "presets" for target in targets) and item.value:  # type: ignore[attr-defined]
            found: dict[str, Any] = _literal(item.value)  # type: ignore[attr-defined]
            return found
    return None


def _literal(node: ast.expr) -> Any:
    """A constant as a plain JSON value.

    Raises:
        ValueError: it is computed.
    """
    return json.loads(json.dumps(ast.literal_eval(node)))
