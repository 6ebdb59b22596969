"""Hyper-parameters of which a grid tried several values: what was varied, all else being equal."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any, NamedTuple

import pandas as pd

LEAST = 3  # values; two are a comparison, not a sweep


class Line(NamedTuple):
    """Methods that differ in one argument alone."""

    label: str  # the other arguments in which the lines differ
    points: tuple[tuple[float, str], ...]  # (value, `method_id`), by value


class Sweep(NamedTuple):
    """One argument, and every line along it."""

    argument: str  # "tfd.weight"
    lines: tuple[Line, ...]


def find(rows: pd.DataFrame) -> list[Sweep]:
    """All sweeps among the methods of one pair.

    Args:
        rows: of the tidy frame, columns `method_id` and `arguments`.
    """
    methods = {row.method_id: json.loads(row.arguments) for row in rows.drop_duplicates("method_id").itertuples()}
    numeric = {name for arguments in methods.values() for name, value in arguments.items() if _is_number(value)}
    found = [Sweep(name, _lines(name, methods)) for name in sorted(numeric)]
    return [sweep for sweep in found if sweep.lines]


def _lines(name: str, methods: dict[str, dict[str, Any]]) -> tuple[Line, ...]:
    """The lines along one argument.

    Args:
        methods: their arguments by `method_id`.
    """
    groups: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for method_id, arguments in methods.items():
        if _is_number(arguments.get(name)):
            others = {key: value for key, value in arguments.items() if key != name}
            groups[json.dumps(others, sort_keys=True)].append((arguments[name], method_id))
    swept = {text: sorted(points) for text, points in groups.items() if len(dict(points)) >= LEAST}
    others = {text: json.loads(text) for text in swept}
    differing = sorted(
        key
        for key in set().union(*others.values())
        if len({json.dumps(each.get(key), sort_keys=True) for each in others.values()}) > 1
    )
    labels = {text: ", ".join(f"{key} {each[key]}" for key in differing if key in each) for text, each in others.items()}
    return tuple(Line(labels[text], tuple(points)) for text, points in swept.items())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
