"""One pair of networks: all that a table, a figure or a sentence about it needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.records.comparisons import Baseline
from bench.records.record import Cost
from reports.design import Design
from reports.frame import PAIR_COLUMNS, by_pair, place, places, with_costs
from reports.reading import ByImage, Curve
from reports.style import Style
from reports.summary import summary


@dataclass(frozen=True)
class Pair:
    """A student and its teacher in one setting."""

    setting: str
    title: str  # 'resnet110 → resnet20'
    name: str  # what names of its files begin with
    anchor: str  # in the page
    methods: pd.DataFrame  # its rows of the summary, best first
    runs: pd.DataFrame  # its rows of the tidy frame, see `by_pair`
    elsewhere: tuple[pd.DataFrame, ...]  # `methods` again with the costs of other hardware, one for each
    curves: Mapping[str, Curve]  # by the id of a cell
    by_image: Mapping[str, ByImage]  # likewise, where it was kept
    costs: Mapping[str, Cost]  # by `method_id`, on the hardware of `methods`
    style: Style

    @property
    def full_title(self) -> str:
        """Pair and setting: a table or figure is often shown alone, so its title names both."""
        return f"{self.title}, {self.setting}"

    def baseline(self, which: Baseline) -> dict[str, Any] | None:
        """The row of the method that the others are compared with, or None."""
        return baseline_of(self.methods, which)

    @property
    def labels(self) -> dict[str, str]:
        """Of all methods, by `method_id`."""
        return dict(zip(self.methods["method_id"], self.methods["label"], strict=True))


def baseline_of(methods: pd.DataFrame, which: Baseline) -> dict[str, Any] | None:
    """The row of one pair's summary that is this baseline, or None."""
    rows = methods[methods["baseline"] == which].to_dict("records")
    return {str(name): value for name, value in rows[0].items()} if rows else None


def pairs_of(
    frame: pd.DataFrame,
    methods: pd.DataFrame,
    costs: Sequence[Cost],
    curves: Mapping[str, Curve],
    design: Design | None = None,
    by_image: Mapping[str, ByImage] | None = None,
    style: Style | None = None,
) -> list[Pair]:
    """All pairs of a report, in the order of the summary.

    Args:
        frame: with the costs of the hardware that timed most cells.
        methods: the summary of the same frame, or the part of it that is shown.
    """
    timed_on = places(costs)
    others = [summary(with_costs(frame, costs, where), costs, design) for where in timed_on[1:]]
    by_key = {cost.key: cost for cost in costs if place(cost) == timed_on[0]}
    runs = dict(list(by_pair(frame).groupby(PAIR_COLUMNS, sort=False)))
    found = []
    for index, (key, part) in enumerate(methods.groupby(PAIR_COLUMNS, sort=False)):
        rows, title = runs[key], str(part["pair"].iloc[0])
        rows = rows[rows["method_id"].isin(part["method_id"])]
        keys = zip(rows["method_id"], rows["cost_key"], strict=True)
        found.append(
            Pair(
                setting=str(part["setting"].iloc[0]),
                title=title,
                name=file_name(index, title),
                anchor=f"pair-{index + 1}",
                methods=part,
                runs=rows,
                elsewhere=tuple(other.merge(part[[*PAIR_COLUMNS, "method_id"]]) for other in others),
                curves=curves,
                by_image=by_image or {},
                style=style or Style(),
                costs={method_id: by_key[cost_key] for method_id, cost_key in keys if cost_key in by_key},
            )
        )
    return found


def file_name(index: int, title: str) -> str:
    """What names of the files of the pair at this place in the report, from 0, begin with."""
    return f"{index + 1:02d}-{slug(title)}"


def slug(name: str) -> str:
    """A file name from any text."""
    return re.sub(r"[^a-z0-9_.]+", "-", name.lower()).strip("-.")[:48] or "pair"
