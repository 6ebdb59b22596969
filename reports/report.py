"""All that the report of a grid is made from, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from bench.records.folders import GridFolder, ResultsFolder
from bench.records.problems import Problem
from bench.records.record import Cost, Record
from bench.records.teacher import TeacherAccuracy, key_of
from reports.design import Design
from reports.frame import places, tidy_by, with_costs
from reports.over_pairs import over_pairs
from reports.pair import Pair, pairs_of
from reports.reading import ByImage, Curve, read, read_by_image, read_curves
from reports.style import Style
from reports.style import read as read_style
from reports.summary import summary


@dataclass(frozen=True)
class Other:
    """A second results folder, set beside the first."""

    name: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Report:
    """A grid's records and costs, the frames made from them, and what is wrong with them."""

    grid: str
    manifest: dict[str, Any]
    records: tuple[Record, ...]
    costs: tuple[Cost, ...]
    curves: Mapping[str, Curve]  # by the id of a cell
    by_image: Mapping[str, ByImage]  # likewise; records of former versions lack it
    problems: tuple[Problem, ...]
    frame: pd.DataFrame  # one row a record
    summary: pd.DataFrame  # one row for every method of every pair; empty where no student has been trained
    pairs: tuple[Pair, ...]
    design: Design
    places: tuple[str, ...]  # hardware of the costs; the first is that of `frame` and `summary`
    other: Other | None = None
    teachers: Mapping[str, TeacherAccuracy] = field(default_factory=dict)  # not trained here; by `key_of` a student's cell
    style: Style = field(default_factory=Style)
    hidden: tuple[str, ...] = ()  # what the style does not show, as a sentence
    in_vain: tuple[str, ...] = ()  # what it names that is not here
    grams_per_kwh: float | None = None  # of CO2, as the user states it

    @cached_property
    def shown_frame(self) -> pd.DataFrame:
        """The rows of the frame that are about methods to show."""
        return self.style.shown(self.frame)

    @cached_property
    def over(self) -> pd.DataFrame:
        """The mean gains over several pairs, see `reports.over_pairs`."""
        return over_pairs(self.frame, self.summary, self.design)

    @classmethod
    def of_grid(
        cls,
        folder: GridFolder,
        compare: str | Path | None = None,
        style: Style | None = None,
        grams_per_kwh: float | None = None,
    ) -> Report:
        """Read a grid.

        Args:
            compare: a second results folder with a grid of this name, or a grid's own folder.
            style: by default that of `reports/style.yaml`.
            grams_per_kwh: of CO2.

        Raises:
            UserError: a grid has no manifest, or the style cannot be.
        """
        style = style or read_style()
        manifest = folder.manifest()
        records, problems = read(folder)
        design = Design.of(folder, manifest, records, problems)
        costs, cost_problems = folder.costs()
        curves, curve_problems = read_curves(folder, records)
        by_image, image_problems = read_by_image(folder, records)
        problems += cost_problems + curve_problems + image_problems
        other = None
        if compare is not None:
            other, other_problems = _other(Path(compare), folder.name, style)
            problems += other_problems
        frame = with_costs(tidy_by(manifest, records), costs)
        labels = tuple(dict.fromkeys(frame["label"]))
        frame["label"] = style.renamed(frame["label"])
        trained = bool((frame["role"] == "student").any())
        methods = summary(frame, costs, design) if trained else pd.DataFrame()
        pairs = pairs_of(frame, style.shown(methods), costs, curves, design, by_image, style) if trained else []
        return cls(
            grid=folder.name,
            manifest=manifest,
            records=tuple(records),
            costs=tuple(costs),
            curves=curves,
            by_image=by_image,
            problems=tuple(problems),
            frame=frame,
            summary=methods,
            pairs=tuple(pairs),
            design=design,
            places=tuple(places(costs)),
            teachers=_teachers(folder.results, records),
            other=other,
            style=style,
            hidden=tuple(style.hidden(labels)),
            in_vain=tuple(style.in_vain(labels)),
            grams_per_kwh=grams_per_kwh,
        )


def _other(path: Path, grid: str, style: Style) -> tuple[Other, list[Problem]]:
    if (path / "manifest.json").exists():
        path, grid = path.resolve().parent, path.resolve().name
    folder = ResultsFolder(path).grid(grid)
    records, problems = read(folder)
    costs, cost_problems = folder.costs()
    frame = with_costs(tidy_by(folder.manifest(), records), costs)
    frame["label"] = style.renamed(frame["label"])
    named = [Problem(f"B: {problem.path}", problem.reason) for problem in problems + cost_problems]
    return Other(f"{path.name}/{grid}", frame), named


def _teachers(results: ResultsFolder, records: Sequence[Record]) -> dict[str, TeacherAccuracy]:
    keys = {key for record in records for alone in record.cell.by_teacher() if (key := key_of(alone))}
    return {key: found for key in sorted(keys) if (found := results.teacher_accuracy(key))}
