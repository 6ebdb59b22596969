"""Tables and cards of all that is registered or shipped; cards of finished cells, too."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping

import yaml
from mmengine.registry import Registry
from rich.console import Group, RenderableType
from rich.text import Text

from bench.errors import UserError, unknown
from bench.plan import recipes
from bench.plan.grid_file import SHIPPED, shipped
from bench.plan.networks import FROM_HARNESS
from bench.plan.specs import Builder, arguments_of
from bench.records.folders import ResultsFolder
from bench.screen import Table
from methods.base import Method

PARTNERS = {
    "same_class": "a second image of the same class",
    "second_view": "the same image augmented once more",
    "strong_view": "the same image augmented once more, and strongly",
    "mixed": "the image mixed with another one of the batch",
}


def table(what: str) -> Table:
    """Everything of one kind: methods, models, data, optimizers, augmentations, grids or recipes."""
    columns, rows = _TABLES[what]() if what in _TABLES else _registered(what)
    unneeded = [columns.index(column) for column in ("paper", "needs") if column in columns]
    result = Table(*columns, title=what, title_style="bold", last_needed=unneeded)
    for row in rows:
        result.add_row(*map(Text, row))
    return result


def methods() -> dict[str, type[Method]]:
    """All that are registered, by key."""
    from methods import METHODS

    return dict(sorted(METHODS.module_dict.items()))


def _methods() -> tuple[list[str], list[list[str]]]:
    rows = [[key, _needs(method, {}), method.card.title, method.card.paper] for key, method in methods().items()]
    return ["method", "needs", "what", "paper"], rows


def _registries() -> dict[str, tuple[Registry, tuple[str, ...]]]:
    """Of all but methods, by what they hold: the registry, and arguments that come from elsewhere than a grid file."""
    from bench.data import AUGMENTATIONS, DATASETS
    from bench.engine.optimizer import OPTIMIZERS
    from bench.models import MODELS

    return {
        "models": (MODELS, FROM_HARNESS),
        "data": (DATASETS, ("root",)),
        "optimizers": (OPTIMIZERS, ("groups", "recipe")),
        "augmentations": (AUGMENTATIONS, ()),
    }


def _registered(what: str) -> tuple[list[str], list[list[str]]]:
    registry, _ = _registries()[what]
    return [what.removesuffix("s"), "what"], [[key, _first_line(it)] for key, it in sorted(registry.module_dict.items())]


def _grids() -> tuple[list[str], list[list[str]]]:
    rows = [[name, str(yaml.safe_load(path.read_text()).get("about", ""))] for name, path in shipped().items()]
    return ["grid", "about"], rows


def _recipes() -> tuple[list[str], list[list[str]]]:
    return ["recipe", "what"], [[name, recipes.read(name, "list").about] for name in recipes.shipped()]


_TABLES = {"methods": _methods, "grids": _grids, "recipes": _recipes}


def _needs(method: type[Method], words: Mapping[str, str]) -> str:
    """Which trained network a method needs, in these words; a composition needs what its parts need."""
    inner = {"method", "parts"} & arguments_of(method).keys()
    return "its parts'" if inner else words.get(method.needs, str(method.needs))


def _first_line(builder: Builder) -> str:
    return (inspect.getdoc(builder) or "").partition("\n")[0]


def card(name: str, results: ResultsFolder) -> RenderableType:
    """The card of a method, model, data set, optimizer, augmentation, grid or recipe, or the record of a finished cell.

    Args:
        name: a name of one or several of these, a method's dotted path, or a part of a cell's id.

    Raises:
        UserError: nothing has that name, or the cell is not finished.
    """
    from bench.plugins import looked_up
    from methods import METHODS
    from methods.base import Method

    found: list[RenderableType] = []  # `crd` is a method and a recipe
    if isinstance(method := looked_up(METHODS, name, "show"), type) and issubclass(method, Method):
        found.append(_method_card(name, method))
    registries = _registries().values()
    for registry, elsewhere in registries:
        if name in registry.module_dict:
            found.append(_builder_card(name, registry.get(name), elsewhere))
    if name in shipped():
        found.append(Text((SHIPPED / f"{name}.yaml").read_text()))
    if name in recipes.shipped():
        values = recipes.recipe_for({"name": name}, "", "show").model_dump(mode="json")
        file = recipes.shipped()[name].read_text()
        found.append(Text(f"{file}\n# With every field:\n{yaml.safe_dump(values, sort_keys=False)}"))
    if found:
        return Group(*found)
    try:
        cell = results.find(name)
    except UserError:
        known = {*METHODS.module_dict, *shipped(), *recipes.shipped()}
        known |= {key for registry, _ in registries for key in registry.module_dict}
        raise unknown("name", name, known) from None
    return Text(json.dumps(cell.finished_record().model_dump(mode="json"), indent=1))


def facts_of(method: type[Method]) -> dict[str, str]:
    """What a method's card and its flags state, by heading; what does not apply is left out."""
    facts, arguments = method.card, arguments_of(method)
    prepares = arguments["prepare_epochs"].default if "prepare_epochs" in arguments else 0
    limits = {
        "hard labels (not under mixup, CutMix or a smoothing recipe)": method.needs_hard_labels,
        "a memory by sample (not over several processes)": method.memory_by_sample,
        "random numbers of its own (not in lock-step with others)": method.draws_random,
        "maps of convolutions (not on tokens)": method.needs_maps,
    }
    found = {
        "loss": facts.formula,
        "needs": _needs(method, {"none": "nothing", "teacher": "a trained teacher", "self": "a trained copy of the student"}),
        "partner": PARTNERS.get(method.partner or "", ""),
        "limits": ", ".join(limit for limit, holds in limits.items() if holds),
        "preparation": f"{prepares} epochs before the training, part of its cost" if prepares else "",
        "train-only": facts.train_only,
        "paper": facts.paper,
        "source": facts.source,
        "deviations": facts.deviations,
        "version": str(method.version),
    }
    return {key: value for key, value in found.items() if value}


def _method_card(name: str, method: type[Method]) -> RenderableType:
    about = Table("", "", show_header=False)
    about.columns[0].style = "bold"
    for key, value in facts_of(method).items():
        about.add_row(key, Text(value))
    parts: list[RenderableType] = [Text(f"{name}: {method.card.title}\n", style="bold"), about]
    parts += _arguments(method, ())
    if method.presets:
        presets = Table("preset", "values", title="\npresets")
        for preset, values in method.presets.items():
            presets.add_row(preset, ", ".join(f"{key}={value}" for key, value in values.items()))
        parts.append(presets)
    parts.append(Text("\n" + (inspect.getdoc(method) or "")))
    return Group(*parts)


def _builder_card(name: str, builder: Builder, elsewhere: tuple[str, ...]) -> RenderableType:
    return Group(Text(f"{name}: {inspect.getdoc(builder)}"), *_arguments(builder, elsewhere))


def arguments_table(builder: Builder, elsewhere: tuple[str, ...] = ()) -> list[tuple[str, str, str]]:
    """Name, default and type of each argument."""
    rows = []
    for key, parameter in arguments_of(builder, elsewhere).items():
        default = "required" if parameter.default is parameter.empty else str(parameter.default)
        kind = getattr(parameter.annotation, "__name__", None) if isinstance(parameter.annotation, type) else None
        rows.append((key, default, kind or str(parameter.annotation).replace("typing.", "")))
    return rows


def _arguments(builder: Builder, elsewhere: tuple[str, ...]) -> list[RenderableType]:
    found = arguments_table(builder, elsewhere)
    if not found:
        return []
    result = Table("argument", "default", "type", title="\narguments")
    for row in found:
        result.add_row(*map(Text, row))
    return [result]
