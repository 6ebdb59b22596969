"""Methods at the plain student's cost: trained for other epochs, teachers as before, compared in a table of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from small import GRID, write_grid

from bench import run
from bench.errors import UserError
from bench.plan.expand import expand
from bench.plan.grid import Grid
from bench.records.folders import GridFolder
from bench.records.options import Options
from bench.stats import Word, decide, estimate
from reports.equal_cost import at_equal_cost
from reports.report import Report
from run_bench import main

METHODS = ["none", "kd", "tfd", "tfkd_self"]
SHORT = [{"methods": ["kd", "tfkd_self"], "epochs": 2}, {"methods": ["none"], "epochs": 9}]
CPU = Options(device="cpu")


def expanded(**changes: Any) -> Grid:
    return expand("small", GRID | {"methods": METHODS, "seeds": [0, 1, 2], "equal_cost": SHORT} | changes, device="cpu")


def test_shortened_trainings_are_cells_whose_teachers_keep_the_full_schedule() -> None:
    grid, plain = expanded(), expanded(equal_cost=[])
    short = [cell for cell in grid.cells if cell.id in grid.declared.equal_cost]
    assert [cell.id for cell in grid.cells if cell not in short] == [cell.id for cell in plain.cells]
    assert sorted({(cell.label, cell.recipe.epochs) for cell in short}) == [("kd", 2), ("none", 9), ("tfkd_self", 2)]
    teachers = {cell.label: cell.teacher.cell for cell in plain.cells if cell.teacher}
    assert {cell.label: cell.teacher.cell for cell in short if cell.teacher} == teachers
    assert grid.comparisons == plain.comparisons  # no part of the grid's families
    full = {(cell.label, cell.seed): cell.cost_key for cell in plain.cells if cell.student["type"] == "resnet8"}
    assert all(grid.declared.equal_cost[cell.id] == full[cell.label, cell.seed] for cell in short)
    assert [cell.id for cell in grid.timed] == [cell.id for cell in plain.cells]
    sequential = expanded(seeds={"first": 2, "most": 5})
    assert {cell.seed for cell in sequential.cells if cell.id in sequential.declared.equal_cost} == {0, 1}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"methods": ["kd"], "epochs": 3}, r"equal_cost\[0\].epochs: 3 are the full schedule"),
        ({"methods": ["kd"], "epochs": 0}, "small, equal_cost.0.epochs: a number of 1 or more, not 0"),
        ({"methods": ["kd"]}, "small, equal_cost.0.epochs: the key is missing"),
        ({"methods": ["ls"], "epochs": 2}, r"equal_cost\[0\], methods.*: ls is not among this grid's `methods`"),
        ({"method": ["kd"], "epochs": 2}, "unknown key 'method'; did you mean 'methods'"),
    ],
)
def test_what_cannot_be_is_named(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        expanded(equal_cost=[asked])


def test_set_takes_methods_away_here_too(tmp_path: Path) -> None:
    file = write_grid(tmp_path, methods=METHODS, equal_cost=SHORT)
    grid, _ = run.plan(file, tmp_path, ["methods=[none, kd]"], CPU)
    assert grid.declared.notes == ("equal_cost: tfkd_self is left out, as --set took it away",)
    assert {cell.label for cell in grid.cells if cell.id in grid.declared.equal_cost} == {"kd", "none"}


@pytest.fixture
def folder(tmp_path: Path) -> GridFolder:
    """All of the grid trained: kd gains two points, and none where it is short; its steps take 1.8 times none's."""
    file = write_grid(tmp_path, methods=METHODS, seeds=[0, 1, 2], equal_cost=SHORT)
    grid, folder = run.plan(file, tmp_path / "results", options=CPU)
    run.begin(grid, folder)
    for cell in grid.cells:
        rng = np.random.default_rng([cell.seed, cell.recipe.epochs, len(cell.label)])
        value = 60 + 2 * (cell.label == "kd" and cell.recipe.epochs == 3) + 3 * (cell.recipe.epochs == 9) + rng.normal(0, 0.1)
        place, curve = folder.cell(cell.id), synthetic.curves(cell.recipe.epochs, value)
        place.write_curves(curve)
        place.write_record(synthetic.record(cell, value, curve))
    for cell in {cell.cost_key: cell for cell in grid.timed}.values():
        folder.write_cost(synthetic.cost(cell, step_ms=50.0 if "4" in cell.student["type"] else None))
    return folder


def top1(report: Report, label: str, epochs: int) -> Mapping[int, float]:
    rows = report.frame[(report.frame["label"] == label) & (report.frame["epochs"] == epochs)]
    rows = rows[(rows["student"] == "resnet8") & (rows["seed"] < 1000)]
    return dict(zip(rows["seed"], rows["top1"], strict=True))


def test_the_report_compares_them_with_the_full_plain_student_and_states_every_price(folder: GridFolder) -> None:
    report = Report.of_grid(folder)
    rows = at_equal_cost(report).set_index("label")
    assert sorted(rows.index) == ["kd", "none", "tfkd_self"]
    plain = top1(report, "none", 3)
    differences = [
        [top1(report, name, rows.loc[name, "epochs"])[seed] - plain[seed] for seed in range(3)] for name in rows.index
    ]
    expected = decide(estimate(np.array(differences)), 3, margin=report.design.margin, exploratory=True)
    assert rows["gain"].tolist() == pytest.approx(np.mean(differences, axis=1))
    assert rows["low"].tolist() == pytest.approx(expected.low)
    assert rows.loc["none", "claim"] == f"gain {Word.SHOWN_EXPLORATORY}"
    kd = rows.loc["kd"]
    assert (kd["epochs"], kd["full_epochs"], kd["n"]) == (2, 3, 3)
    assert kd["full_top1"] == pytest.approx(np.mean([*top1(report, "kd", 3).values()]))
    assert kd["ratio"] == pytest.approx(2 / 3 * 1.8)  # fewer of the steps that were timed in turn
    assert kd["ratio_low"] <= kd["ratio"] <= kd["ratio_high"]
    assert kd["with_teacher_ratio"] == pytest.approx(2 / 3 * 1.8 + 5)  # a teacher of 3 epochs, whose steps take 5 times none's
    assert kd["shared_teacher_ratio"] == pytest.approx(2 / 3 * 1.8 + 0.5)
    [pair] = report.pairs  # no pair of its own, and no row in the others' tables
    assert sorted(pair.methods["label"]) == sorted(METHODS)
    assert set(report.summary["n"]) <= {3, 4}  # of none, with the copy that teaches
    assert pair.methods["comparisons"].max() == 5


def test_page_and_plan_show_them(folder: GridFolder, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder.results.root
    assert main(["report", "small", "--results", str(root)]) == 0
    page = (root / "small/report/report.html").read_text()
    assert "At the plain student&#39;s cost" in page or "At the plain student's cost" in page
    assert (root / "small/report/tables/equal-cost.csv").exists()
    capsys.readouterr()
    assert main(["plan", str(root.parent / "small.yaml"), "--results", str(root), "--device", "cpu", "--equal-cost"]) == 0
    printed = capsys.readouterr().out
    assert "  kd on resnet8: 2 of 3 without its teacher's training, 1 with a tenth of it, none with all of it" in printed
    assert "  tfd on resnet8: 3 of 3" in printed


def test_plan_asks_for_costs_where_there_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_grid(tmp_path, methods=["none", "kd"])
    assert main(["plan", file, "--results", str(tmp_path / "results"), "--device", "cpu", "--equal-cost"]) == 0
    assert "equal cost: no steps of these methods are timed; `cost small` does that" in capsys.readouterr().out
