"""One self-contained HTML page from a results folder, with its figures and tables as files beside it."""

from __future__ import annotations

import base64
import gc
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup

from bench import stats
from bench.records.record import Cost, Record
from bench.records.store import Problem, Store
from reports import frame as frames
from reports import plots, sweeps, tables, verdicts
from reports.frame import PAIR_COLUMNS, Curve
from reports.plots import Figure
from reports.published import read as read_published
from reports.tables import Column, Table, number

HERE = Path(__file__).parent
ALL_FIGURES_UP_TO = 8  # pairs; with more of them only the first is drawn, their tables stay complete
FIRST_FIGURES = 1
OPEN_PAIRS = 8  # that are unfolded in the page
SENTENCES_ON_TOP = 3  # pairs; with more of them the top counts, and each pair's sentences stand in its section


@dataclass
class Section:
    """One pair of networks."""

    anchor: str
    title: str
    setting: str
    sentences: list[verdicts.Sentence]
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: list[Table] = field(default_factory=list)


class Missing(NamedTuple):
    id: str
    label: str
    reason: str


@contextmanager
def uncollected() -> Iterator[None]:
    """Garbage collection off: it would walk through all records again and again, a sixth of the time of a large report."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@uncollected()
def write(store: Store, grid: str, folder: Path, compare: str | Path | None = None) -> Path:
    """Write the report of a grid.

    Args:
        store, grid: what to report on.
        folder: where; its `tables` and `figures` are replaced, what the verb `maps` drew in `maps` is shown.
        compare: a second results folder with a grid of this name, or a grid's own folder, to set beside the first.

    Returns:
        The page, `folder/report.html`. Beside it: report.md, records.csv (the tidy frame), tables/ (Markdown, CSV, LaTeX) and
        figures/ (PNG, SVG, PDF).

    Raises:
        UserError: the grid has no manifest.
    """
    manifest = store.manifest(grid)
    for name in ("tables", "figures"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    records, problems = frames.read(store, grid)
    costs, cost_problems = store.costs(grid)
    curves, curve_problems = frames.read_curves(store, grid, records)
    problems += cost_problems + curve_problems
    frame = frames.bill(frames.tidy(records), costs)
    missing = _missing(store, grid, manifest, records, problems)
    context: dict[str, Any] = {
        "grid": grid,
        "about": str(manifest.get("about") or ""),
        "written": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        "cells": len(manifest["cells"]),
        "done": len(records),
        "skipped": manifest.get("skipped", []),
        "missing": missing,
        "missing_rows": [(cell.label, cell.id, cell.reason) for cell in missing],
        "skipped_rows": [(str(skip.get("what", "")), str(skip.get("reason", ""))) for skip in manifest.get("skipped", [])],
        "problems": problems,
        "grid_text": json.dumps(manifest.get("grid", {}), indent=2, ensure_ascii=False),
        "cards": manifest.get("methods", {}),
        "maps": [base64.b64encode(path.read_bytes()).decode() for path in sorted((folder / "maps").glob("*.png"))],
        "sections": [],
        "drawn": 0,
        "open_pairs": OPEN_PAIRS,
        **_facts(records, costs),
    }
    files: list[Table] = []
    if (frame["role"] == "student").any():
        context |= _body(frame, costs, curves, folder / "figures", files)
        counts = len(missing), len(problems)
        processes = max(record.cell.recipe.processes for record in records)
        context["caveats"] = verdicts.caveats(
            context["summary"], *counts, context["places"], context["busy_percent"], processes
        )
    context["steps"] = _steps(costs, frame, {cell["id"] for cell in manifest["cells"]})
    files += context["steps"]
    context["precisions_compared"] = tables.precisions(frame)
    if context["precisions_compared"]:
        files.append(context["precisions_compared"])
    if compare is not None:
        context["compared"] = _compared(frame, Path(compare), grid, context)
        files.append(context["compared"])
    for table in files:
        _write_table(table, folder / "tables")
    frame.to_csv(folder / "records.csv", index=False, lineterminator="\n")
    (folder / "report.md").write_text(_markdown(context, files), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(render(context), encoding="utf-8")
    return page


def render(context: dict[str, Any]) -> str:
    """The page's HTML: everything is escaped but our own style, script and drawings; its policy forbids any request."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
    )
    script = (HERE / "page.js").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.filters["drawing"] = lambda figure: Markup(figure.inline())  # noqa: S704 - matplotlib escapes its texts
    return environment.get_template("page.html").render(
        context,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=f"sha256-{allowed}",
    )


def _body(
    frame: pd.DataFrame, costs: Sequence[Cost], curves: dict[str, Curve], figures: Path, files: list[Table]
) -> dict[str, Any]:
    """The sections of the pairs, what spans them, and (in `files`) every table."""
    summary = tables.summary(frame, costs)
    places = frames.places(costs)
    elsewhere = [tables.summary(frames.bill(frame, costs, place), costs) for place in places[1:]]
    rows = frames.by_pair(frame)
    keys = summary[PAIR_COLUMNS].drop_duplicates()
    of_rows = dict(list(rows.groupby(PAIR_COLUMNS, sort=False)))
    of_summary = dict(list(summary.groupby(PAIR_COLUMNS, sort=False)))
    by_key = {cost.key: cost for cost in costs if places and frames.place(cost) == places[0]}
    drawn = len(keys) if len(keys) <= ALL_FIGURES_UP_TO else FIRST_FIGURES
    sections = []
    for index, key in enumerate(keys.itertuples(index=False, name=None)):
        part, runs = of_summary[key], of_rows[key]
        title = part["pair"].iloc[0]
        full = f"{title}, {key[0]}"  # a table or figure is often shown alone: it must say what it is
        name = file_name(index, title)
        section = Section(f"pair-{index + 1}", title, key[0], verdicts.of_pair(part))
        section.tables = [
            tables.accuracy(part, f"{name}-accuracy", f"{full}: accuracy"),
            tables.cost(part, f"{name}-cost", f"{full}: training cost"),
        ]
        goals = tables.targets(part)
        timed = {m: by_key[k] for m, k in zip(runs["method"], runs["cost_key"], strict=True) if k in by_key}
        section.folded = [
            *(
                tables.cost(
                    other.merge(part[[*PAIR_COLUMNS, "method"]]), f"{name}-cost-{n + 2}", f"{full}: training cost, elsewhere"
                )
                for n, other in enumerate(elsewhere)
            ),
            tables.cost(part, f"{name}-resources", f"{full}: memory, energy and what is deployed", tables.RESOURCES),
            tables.step_parts(timed, f"{name}-step", f"{full}: where a step's time goes"),
            tables.break_even(part, f"{name}-break-even", f"{full}: how many students must share a teacher before it pays"),
            tables.time_to(runs, curves, goals, f"{name}-time-to-accuracy", f"{full}: cost to reach an accuracy"),
            tables.equal_cost(runs, curves, f"{name}-equal-cost", f"{full}: accuracy at equal cost"),
        ]
        section.folded = [table for table in section.folded if table]
        if index < drawn:
            drawings = [
                plots.accuracy_cost(part, name, full, figures),
                plots.forest(part, f"{name}-gains", f"{full}: gains over none", figures),
                plots.step_split(part, timed, f"{name}-step", f"{full}: where a step's time goes", figures),
                plots.learning_curves(runs, curves, part["method"], f"{name}-curves", f"{full}: learning curves", figures),
                *(plots.sweep(swept, part, name, full, figures) for swept in sweeps.find(runs)),
            ]
            section.figures = [drawing for drawing in drawings if drawing]
        files += section.tables + section.folded
        sections.append(section)
    published = tables.published(frame, read_published())
    beside = plots.beside_published(published.frame, "published", "Ours beside published", figures) if published else None
    across = [table for table in (tables.teachers(frame), tables.search(frame, curves)) if table]
    ranked = stats.ranks(summary.pivot(index=PAIR_COLUMNS, columns="method", values="top1"))
    diagram = None
    if ranked:
        mean_rank, difference, p = ranked
        diagram = plots.critical_difference(mean_rank, difference, "ranks", "Mean ranks and critical difference", figures)
        note = f"Over {len(keys)} pairs, not independent where they share a student. "
        note += f"Friedman p {_p(p)}, critical difference {difference:.2f}."
        columns = (Column("method", "Method"), Column("mean_rank", "Mean rank", number(2)))
        across.append(
            Table("ranks", "Mean ranks", columns, mean_rank.rename("mean_rank").rename_axis("method").reset_index(), note)
        )
    files += [*across, *([published] if published else [])]
    everything = Table("summary", "Every method of every pair", tables.SUMMARY, summary)
    files.insert(0, everything)
    return {
        "summary": summary,
        "sections": sections,
        "drawn": drawn,
        "on_top": len(keys) <= SENTENCES_ON_TOP,
        "overall": verdicts.of_methods(summary) if len(keys) > 1 else [],
        "published": published if published else None,
        "beside": beside,
        "across": across,
        "diagram": diagram,
        "places": places,
    }


def _steps(costs: Sequence[Cost], frame: pd.DataFrame, cells: set[str]) -> list[Table]:
    """What was timed of cells that are not trained yet: a table for each session of the probe."""
    sessions: dict[tuple[str, str], list[Cost]] = {}
    trained = set(frame["cost_key"])
    for cost in costs:
        if cost.example in cells and cost.key not in trained:
            sessions.setdefault((frames.place(cost), cost.session), []).append(cost)
    found = []
    for index, ((place, _), together) in enumerate(sorted(sessions.items())):
        several = len({cost.teacher for cost in together if cost.teacher}) > 1
        named = {cost.label + (f", {cost.teacher}" if several and cost.teacher else ""): cost for cost in together}
        title = f"{together[0].student}: where a step's time goes, on {place}"
        found.append(tables.step_parts(named, f"steps-{index + 1}-{slug(together[0].student)}", title))
    return found


def _p(p: float) -> str:
    text = tables.p_value(p)
    return text if "<" in text else f"= {text}"


def _missing(
    store: Store, grid: str, manifest: dict[str, Any], records: Sequence[Record], problems: Sequence[Problem]
) -> list[Missing]:
    """The grid's cells without a usable record, and why as far as the folder tells."""
    done = {record.id for record in records}
    bad = {problem.path.split("/")[1] if "/" in problem.path else problem.path for problem in problems}
    found = []
    for cell in manifest["cells"]:
        if (cell_id := cell["id"]) in done:
            continue
        failure = store.scratch(grid, cell_id, "failure.json")
        if cell_id in bad:
            reason = "its record cannot be used, see the problems"
        elif failure:
            reason = "failed: " + str(failure.get("error", ""))[:300]
        else:
            reason = "in training" if store.locked(grid, cell_id) else "not trained yet"
        found.append(Missing(cell_id, str(cell.get("label", "")), reason))
    return found


def _facts(records: Sequence[Record], costs: Sequence[Cost]) -> dict[str, Any]:
    """Machines, versions, recipes and methods behind the numbers."""
    machines: dict[str, dict[str, Any]] = {}
    for owner, role in [*((record, "trained") for record in records), *((cost, "timed") for cost in costs)]:
        machine = owner.machine  # type: ignore[attr-defined]
        text = f"{machine.hardware}\n{machine.platform}\n{machine.versions}"
        fact = machines.setdefault(text, {"machine": machine, "trained": 0, "timed": 0, "busy_percent": 0.0})
        fact[role] += 1
        fact["busy_percent"] = max(fact["busy_percent"], getattr(owner, "busy_percent", 0.0))
    methods: dict[str, dict[str, Any]] = {}
    recipes: dict[str, dict[str, Any]] = {}
    for record in records:
        cell = record.cell
        methods.setdefault(
            json.dumps([cell.label, cell.method], sort_keys=True),
            {"label": cell.label, "needs": cell.needs, "version": cell.method_version, "spec": cell.method}
            | {"types": list(dict.fromkeys(part["type"] for part in frames.nested(cell.method)))},
        )
        recipe = cell.recipe.model_dump(mode="json")
        recipes.setdefault(json.dumps(recipe, sort_keys=True), recipe)
    commits = sorted({record.commit for record in records if record.commit})
    return {
        "machines": list(machines.values()),
        "busy_percent": max((cost.busy_percent for cost in costs), default=0.0),
        "methods": sorted(methods.values(), key=lambda method: (method["needs"], method["label"])),
        "recipes": list(recipes.values()),
        "commits": commits,
        "clocks": [
            (name.removesuffix("_s"), tables.seconds(total))
            for name in type(records[0].clocks).model_fields
            if (total := sum(getattr(record.clocks, name) for record in records))
        ]
        if records
        else [],
        "precisions": sorted({record.cell.precision for record in records}),
    }


def _compared(frame: pd.DataFrame, folder: Path, grid: str, context: dict[str, Any]) -> Table:
    if (folder / "manifest.json").exists():
        folder, grid = folder.resolve().parent, folder.resolve().name
    store = Store(folder)
    records, problems = frames.read(store, grid)
    context["problems"] += [Problem(f"B: {problem.path}", problem.reason) for problem in problems]
    context["other"] = f"{store.root.name}/{grid}"
    other = frames.bill(frames.tidy(records), store.costs(grid)[0])
    return tables.compared({"A": frame, "B": other}, "compared", "Two result folders")


def _write_table(table: Table, folder: Path) -> None:
    for suffix, content in (("md", table.markdown()), ("csv", table.csv()), ("tex", table.latex())):
        (folder / f"{table.name}.{suffix}").write_text(content, encoding="utf-8")


def _markdown(context: dict[str, Any], files: Sequence[Table]) -> str:
    lines = [f"# {tables.markdown_text(context['grid'])}", "", tables.markdown_text(context["about"]), ""]
    for section in context.get("sections", []):
        lines += [
            f"## {tables.markdown_text(f'{section.title}, {section.setting}')}",
            "",
            *(f"- {tables.markdown_text(s.text)}" for s in section.sentences),
            "",
        ]
    lines += [f"> {tables.markdown_text(caveat)}" for caveat in context.get("caveats", [])]
    lines += ["", *(table.markdown() for table in files)]
    listed = {
        "Missing": [f"{cell.label} ({cell.id}): {cell.reason}" for cell in context["missing"]],
        "Skipped": [f"{skip.get('what', '')}: {skip.get('reason', '')}" for skip in context["skipped"]],
        "Problems": [f"{problem.path}: {problem.reason}" for problem in context["problems"]],
    }
    for title, items in listed.items():
        if items:
            lines += [f"### {title}", "", *(f"- {tables.markdown_text(item)}" for item in items), ""]
    return "\n".join(lines)


def file_name(index: int, pair: str) -> str:
    """Of the tables and figures of the pair at this place in the report, from 0."""
    return f"{index + 1:02d}-{slug(pair)}"


def slug(name: str) -> str:
    """A file name from any text."""
    return re.sub(r"[^a-z0-9_.]+", "-", name.lower()).strip("-.")[:48] or "pair"
