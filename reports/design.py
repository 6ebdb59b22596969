"""What a grid asked for, beside what was trained: primary comparisons, margin, searches, looks, and what is missing."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from bench.records.comparisons import Family
from bench.records.folders import GridFolder
from bench.records.problems import Problem
from bench.records.record import Record
from bench.records.trials import choices_of, trials_of, validation
from bench.stats import MARGIN, SeedRule, look_number
from reports.reading import NOT_A_NUMBER


class Missing(NamedTuple):
    """A cell of the grid without a usable record."""

    id: str
    label: str
    reason: str
    group: str  # see `Cell.cost_key`; empty in the manifest of a former version
    failed: bool  # its training did: the seed is lost, not late


class Lacking(NamedTuple):
    """Trainings of one method that were asked for and are not there."""

    failed: int
    late: int


class Group(NamedTuple):
    """The trainings of one method on one pair, as a manifest knows them."""

    keys: frozenset[str]  # see `Cell.cost_key`; several where records of former versions lack an argument
    stems: frozenset[str]  # ids without seed and digest

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Group:
        return cls(frozenset(rows["cost_key"]), frozenset(map(stem, rows["id"])))


class Trial(NamedTuple):
    """A training that tried a value, see `bench.plan.choice`."""

    choice: int  # number
    label: str
    group: str  # see `Cell.cost_key`: of one value
    seed: int
    validation: float  # % on the held-out images after the last epoch; NaN where it failed, or is not trained yet
    flops: float  # of the training; NaN likewise
    teacher: str  # id of the cell that trained its teacher, or ""
    teacher_flops: float  # 0 without one, NaN where they are not known


@dataclass(frozen=True)
class Design:
    """What a grid's manifest states about its comparisons."""

    margin: float = MARGIN  # points within which two accuracies count as the same
    primary: frozenset[str] = frozenset()  # ids of cells whose comparisons are primary
    searches: Mapping[str, int] = field(default_factory=dict)  # number of the search by the id of a cell
    declared: Family = field(default_factory=lambda: Family(0, 0))  # comparisons, trained or not
    requests: Sequence[Mapping[str, Any]] = ()  # see `bench.records.requests`
    rule: SeedRule | None = None  # of sequential seeds, where the last request has any
    missing: tuple[Missing, ...] = ()
    trials: tuple[Trial, ...] = ()  # of values, for all choices
    choices: Mapping[str, int] = field(default_factory=dict)  # number of the choice by the id of a cell whose value it chose

    @classmethod
    def of(cls, folder: GridFolder, manifest: Mapping[str, Any], records: Iterable[Record], bad: Iterable[Problem]) -> Design:
        """The design of a grid's folder.

        Args:
            records: that are fit for comparison.
            bad: what is wrong with the others.
        """
        cells, records = manifest["cells"], list(records)
        rule = SeedRule(**manifest["rule"]) if manifest.get("rule") else None
        return cls(
            margin=rule.margin if rule else float(manifest.get("grid", {}).get("margin") or MARGIN),
            rule=rule,
            primary=frozenset(cell["id"] for cell in cells if cell.get("primary")),
            searches={cell["id"]: cell["search"] for cell in cells if "search" in cell},
            declared=Family(*(int((manifest.get("comparisons") or {}).get(key, 0)) for key in Family._fields)),
            requests=tuple(manifest.get("requests", ())),
            missing=tuple(_missing(folder, cells, {record.id for record in records}, bad)),
            trials=tuple(_trials(folder, manifest, {record.id: record for record in records})),
            choices=choices_of(manifest),
        )

    def lacking(self, group: Group) -> Lacking:
        """What is missing of a method's trainings."""
        lost = [each for each in self.missing if (each.group in group.keys if each.group else stem(each.id) in group.stems)]
        failed = sum(each.failed for each in lost)
        return Lacking(failed, len(lost) - failed)

    def look(self, method: Group, baseline: Group, requests: Sequence[Mapping[str, Any]] | None = None) -> int:
        """Number of the present look at a comparison, see `bench.stats.look_number`; 1 where no history is known."""
        sets, complete = [], []
        requests = self.requests if requests is None else requests
        for index, request in enumerate(requests):
            asked = _seeds(request["seeds"], method.keys) & _seeds(request["seeds"], baseline.keys)
            later = requests[index + 1]["done"] if index + 1 < len(requests) else {}
            if asked:
                sets.append(asked)
                complete.append(asked <= _seeds(later, method.keys) & _seeds(later, baseline.keys))
        return look_number(sets, complete) if sets else 1

    def planned(self, method: Group, baseline: Group) -> bool:
        """Whether the rule of sequential seeds was fixed before anything of a comparison could be seen.

        The rule plans its own looks, so all requests under it count as one.
        """
        if self.rule is None:
            return False
        rule = self.rule.as_json()
        under_it = [*itertools.takewhile(lambda request: request.get("rule") == rule, reversed(self.requests))]
        if not under_it:
            return True  # no history is known
        one = {**under_it[0], "done": under_it[-1]["done"]}
        return self.look(method, baseline, [*self.requests[: -len(under_it)], one]) == 1

    @property
    def rebuilt(self) -> bool:
        """Whether a part of the history of requests is guessed from records."""
        return any(request.get("rebuilt") for request in self.requests)


def stem(cell_id: str) -> str:
    """'cifar100-resnet8-kd' of 'cifar100-resnet8-kd-s0-b5dadbcab03b'."""
    return cell_id.rsplit("-", 2)[0]


def _seeds(by_group: Mapping[str, Collection[int]], keys: Iterable[str]) -> set[int]:
    return {seed for key in keys for seed in by_group.get(key, ())}


def _missing(
    folder: GridFolder, cells: Iterable[Mapping[str, Any]], done: Collection[str], problems: Iterable[Problem]
) -> list[Missing]:
    """The grid's cells without a usable record, and why as far as the folder shows."""
    bad: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        bad[problem.path.split("/")[1] if "/" in problem.path else problem.path].append(problem.reason)
    found = []
    for entry in cells:
        if entry["id"] in done:
            continue
        cell = folder.cell(entry["id"])
        failed = False
        if entry["id"] in bad:
            reason = "its record cannot be used, see the problems"
            failed = any(each.startswith(NOT_A_NUMBER) for each in bad[entry["id"]])
        elif failure := cell.failure():
            reason = "failed: " + str(failure.get("error", ""))[:300]
            failed = not failure.get("again")
        elif cell.locked():
            reason = "in training"
        elif entry.get("earlier"):  # the last request does not ask for it
            continue
        else:
            reason = "not trained yet"
        found.append(Missing(entry["id"], str(entry.get("label", "")), reason, str(entry.get("group", "")), failed))
    return found


def _trials(folder: GridFolder, manifest: Mapping[str, Any], records: Mapping[str, Record]) -> Iterator[Trial]:
    numbers = trials_of(manifest)
    for entry in manifest["cells"]:
        number, record = numbers.get(entry["id"]), records.get(entry["id"])
        if number is None or entry.get("teacher"):
            continue
        found = validation(folder.cell(entry["id"])) if record else None
        teachers = record.cell.waits_for if record else ()
        teacher, teacher_flops = " ".join(teachers), sum(_flops(records.get(name)) for name in teachers)
        label, group, seed = str(entry["label"]), str(entry.get("group", "")), int(entry.get("seed", 0))
        yield Trial(number, label, group, seed, math.nan if found is None else found, _flops(record), teacher, teacher_flops)


def _flops(record: Record | None) -> float:
    if record is None:
        return math.nan
    return float(record.steps * record.flops.step + record.prepare_steps * record.flops.prepare_step)
