"""What stands behind the numbers: machines, versions, methods, recipes and wall clocks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.records.naming import method_label, nested, pair_name, plugins_of, shown
from bench.records.record import Clocks, Machine
from reports.report import Report
from reports.tables.table import seconds


@dataclass
class MachineFact:
    """A machine, and what it was used for."""

    machine: Machine
    trained: int = 0  # cells to their end
    began: int = 0  # cells, until they moved to another machine
    timed: int = 0  # steps
    busy_percent: float = 0.0  # of other work, at most, while steps were timed


@dataclass(frozen=True)
class Card:
    """What a reader wants to know of a method."""

    title: str
    formula: str
    paper: str


@dataclass(frozen=True)
class MethodFact:
    """A method as it was trained."""

    label: str
    needs: str
    version: int
    spec: Mapping[str, Any]  # every argument
    cards: tuple[Card, ...]  # its own and those of methods within it


@dataclass(frozen=True)
class Facts:
    """What stands behind the numbers of a report."""

    machines: list[MachineFact] = field(default_factory=list)
    methods: list[MethodFact] = field(default_factory=list)
    recipes: list[dict[str, str]] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    precisions: list[str] = field(default_factory=list)
    clocks: list[tuple[str, str]] = field(default_factory=list)  # what was clocked, and for how long over all cells
    busy_percent: float = 0.0
    processes: int = 1  # that shared out a batch in training, at most


def facts(report: Report) -> Facts:
    """Gather them from a report's records and costs."""
    records = report.records
    recipes: dict[str, dict[str, str]] = {}
    for record in records:
        recipe = record.cell.recipe.model_dump(mode="json")
        recipes.setdefault(json.dumps(recipe, sort_keys=True), {name: shown(value) for name, value in recipe.items()})
    names = [name for name in Clocks.model_fields if any(getattr(record.clocks, name) for record in records)]
    totals = {name: sum(getattr(record.clocks, name) for record in records) for name in names}
    return Facts(
        machines=_machines(report),
        methods=_methods(report),
        recipes=list(recipes.values()),
        commits=sorted({record.commit for record in records if record.commit}),
        precisions=sorted({record.cell.precision for record in records}),
        clocks=[(name.removesuffix("_s"), seconds(total)) for name, total in totals.items()],
        busy_percent=max((cost.busy_percent for cost in report.costs), default=0.0),
        processes=max((record.cell.recipe.processes for record in records), default=1),
    )


def _machines(report: Report) -> list[MachineFact]:
    found: dict[str, MachineFact] = {}

    def of_machine(machine: Machine) -> MachineFact:
        return found.setdefault(f"{machine.hardware}\n{machine.platform}\n{machine.versions}", MachineFact(machine))

    for record in report.records:
        of_machine(record.machine).trained += 1
        for earlier in record.earlier_machines or ():
            of_machine(earlier).began += 1
    for cost in report.costs:
        fact = of_machine(cost.machine)
        fact.timed += 1
        fact.busy_percent = max(fact.busy_percent, cost.busy_percent)
    return list(found.values())


def _methods(report: Report) -> list[MethodFact]:
    """Every method once, those without a teacher first."""
    cards, plugins = report.manifest.get("methods", {}), plugins_of(report.manifest)
    found: dict[str, MethodFact] = {}
    for record in report.records:
        cell = record.cell
        pair = pair_name(cell.teacher.model if cell.teacher else None, cell.student)
        key = json.dumps([cell.method, pair, cell.method_version], sort_keys=True)
        if key not in found:
            keys = dict.fromkeys(part["type"] for part in nested(cell.method))
            known = [cards[key] for key in keys if key in cards]
            shown = tuple(Card(*(str(card.get(name, "")) for name in ("title", "formula", "paper"))) for card in known)
            label = method_label(cell.method, pair, plugins, stored=cell.label)
            label = report.style.named(label)
            found[key] = MethodFact(label, cell.needs, cell.method_version, cell.method, shown)
    unique = {json.dumps([fact.label, fact.spec, fact.version], sort_keys=True): fact for fact in found.values()}
    return sorted(unique.values(), key=lambda fact: (fact.needs, fact.label))


def pairs_in(entries: Sequence[Mapping[str, Any]], first: str, second: str) -> list[tuple[str, str]]:
    """Two values of every entry of a manifest's list, as text; empty where an entry lacks one."""
    return [(str(entry.get(first, "")), str(entry.get(second, ""))) for entry in entries]
