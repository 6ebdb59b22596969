"""Values of hyper-parameters chosen on held-out images: what is tried, what is chosen, what is trained then, and its price."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import synthetic
from small import write_grid
from tiny_grid import expanded

from bench.errors import UserError
from bench.plan import choice
from bench.plan.grid import Grid
from bench.records.folders import GridFolder, ResultsFolder
from reports.report import Report
from reports.tables.choices import choices
from run_bench import main

PAIR = {"student": "resnet8", "teacher": "resnet14"}
METHODS: list[Any] = ["none", {"kd": {"temperature": [2, 4, 8]}}, {"tfd": {"weight": [0.005, 0.05]}}, "ls"]


@pytest.fixture
def grid() -> Grid:
    return expanded(methods=METHODS, pairs=[PAIR], seeds=[0, 1, 2], choose={"share": 0.25, "seeds": [7, 8]})


def folder_of(root: Path) -> GridFolder:
    return ResultsFolder(root).grid("tiny")


def trained(folder: GridFolder, grid: Grid, validation: dict[str, float], failed: str = "") -> None:
    """Train what is missing: the value of a label on held-out images, and 60 % on test images."""
    for cell in grid.cells:
        place = folder.cell(cell.id)
        if place.settled():
            continue
        if cell.label == failed and cell.seed == 8:
            place.write_failure("it diverged")
            continue
        rows = [f"{epoch},0.1,1,1,60,90,{validation.get(cell.label, 50) + cell.seed},99,1" for epoch in (1, 2)]
        text = "\n".join(["epoch,lr,train_s,evaluate_s,test_top1,test_top5,val_top1,val_top5,loss_ce", *rows]) + "\n"
        place.write_curves(text)
        place.write_record(synthetic.record(cell, 60 + cell.seed / 10, text))


def test_trials_come_first_with_seeds_and_teachers_of_their_own(grid: Grid, tmp_path: Path) -> None:
    plain = expanded(methods=METHODS, pairs=[PAIR], seeds=[0, 1, 2])
    assert {cell.id for cell in plain.cells} <= {cell.id for cell in grid.cells}  # the chosen ones have the ids of a plain grid
    first = choice.settle(grid, folder_of(tmp_path))
    trials = [cell for cell in first.cells if cell.recipe.validation == 0.25]
    assert sorted({cell.label for cell in first.cells if cell.recipe.validation == 0}) == ["ls", "none"]
    assert {cell.seed for cell in trials} == {7, 8}
    assert len(trials) == 2 * (3 + 2) + 1  # and a teacher, which does not see the held-out images either
    by_id = first.by_id
    assert {by_id[cell.teacher.cell].recipe.validation for cell in trials if cell.teacher and cell.teacher.cell} == {0.25}
    assert len(first.comparisons) == 1  # ls with none: nothing else is compared so far
    lines = [str(choice.standing(each, folder_of(tmp_path))).partition(": ")[2] for each in grid.declared.choices]
    assert lines == [
        "3 values, 0 of 6 trials done; then 3 trainings of the chosen value",
        "2 values, 0 of 4 trials done; then 3 trainings of the chosen value",
    ]


def test_the_best_on_held_out_images_is_trained_on_all_of_them(grid: Grid, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    first = choice.settle(grid, folder)
    trained(folder, first, {"kd(temperature=2.0)": 70, "kd": 65, "tfd": 40, "tfd(weight=0.05)": 41})
    second = choice.settle(first, folder)
    headline = [cell for cell in second.cells if cell.recipe.validation == 0 and cell.student["type"] == "resnet8"]
    asked = {(cell.label, cell.seed) for cell in headline}
    assert asked == {(name, seed) for name in ("none", "ls", "kd(temperature=2.0)", "tfd(weight=0.05)") for seed in (0, 1, 2)}
    assert len(second.comparisons) == 5  # three with none; tfd and ls with kd
    assert choice.settle(second, folder).cells == second.cells
    line = choice.explained(second, folder)[0]
    assert "kd(temperature=2.0), 77.50 % on held-out images (kd 72.50, kd(temperature=8.0) 57.50)" in line
    assert choice.explained(second, folder)[-1].startswith("warning: budgets of values differ (kd 3, tfd 2)")
    assert {cell.label for cell in second.timed if cell.student["type"] == "resnet8"} == {cell.label for cell in headline}
    assert not any(cell.recipe.validation for cell in second.timed)


def test_a_value_whose_trial_failed_is_not_chosen(grid: Grid, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    first = choice.settle(grid, folder)
    trained(folder, first, {"tfd": 90}, failed="tfd")
    chosen = {cell.label for cell in choice.settle(first, folder).cells if cell.recipe.validation == 0}
    assert "tfd(weight=0.05)" in chosen
    assert "tfd" not in chosen
    assert "kd(temperature=2.0)" in chosen  # of equal ones the first


def test_the_report_has_one_row_a_method_with_the_trials_on_its_bill(grid: Grid, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    first = choice.settle(grid, folder)
    folder.request(first.manifest())
    trained(folder, first, {"kd(temperature=2.0)": 70, "kd": 65, "tfd": 40, "tfd(weight=0.05)": 41})
    second = choice.settle(first, folder)
    folder.request(second.manifest())
    trained(folder, second, {})
    for cell in second.timed:
        folder.write_cost(synthetic.cost(cell))
    report = Report.of_grid(folder)
    assert not report.problems
    summary = report.summary.set_index("label")
    assert sorted(summary.index) == ["kd(temperature=2.0)", "ls", "none", "tfd(weight=0.05)"]
    assert summary["tuned"].to_dict() == {
        "kd(temperature=2.0)": "here, 3 values", "tfd(weight=0.05)": "here, 2 values", "ls": "", "none": ""
    }  # fmt: skip
    assert report.pairs[0].setting.endswith("2 epochs")  # the trials' recipe leaves the setting's name alone
    tfd, kd = summary.loc["tfd(weight=0.05)"], summary.loc["kd(temperature=2.0)"]
    assert tfd["with_search_s"] == pytest.approx(tfd["train_s"] * (1 + 4))  # 2 values with 2 seeds
    assert kd["with_search_s"] == pytest.approx(
        kd["shared_teacher_s"] + 6 * kd["train_s"] + kd["teacher_s"]
    )  # and their teacher
    table = choices(report)
    assert table
    assert [row[1:] for row in table.rows()] == [
        ["kd", "3", "2", "kd(temperature=2.0)", "77.50", "72.50", "60.10"],
        ["tfd", "2", "2", "tfd(weight=0.05)", "48.50", "47.50", "60.10"],
    ]
    assert "Budgets of values differ (kd 3, tfd 2)" in table.note
    assert table.note.endswith("at the values that the grid names: ls.")


def test_a_run_tries_chooses_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"name": "digits", "epochs": 1}
    grid = write_grid(tmp_path, methods=["none", {"tfd": {"weight": [0.005, 0.05]}}], recipe=recipe, choose="validation")
    at = ["--results", str(tmp_path / "results"), "--device", "cpu"]
    once = ["--cluster", "debug", "--threads", "1", "--no-cost", "--no-report", "--no-check"]
    assert main(["run", grid, *at, *once]) == 0
    printed = capsys.readouterr().out
    assert "choice of tfd on resnet8 taught by resnet8x4: tfd" in printed
    assert "6 of 6 done" in printed  # none, two values with two seeds, and the chosen one
    assert main(["run", grid, *at, *once]) == 0
    assert "0 were left; 6 of 6 done" in capsys.readouterr().out
    assert main(["plan", grid, *at]) == 0
    assert "6 cells: 6 done" in capsys.readouterr().out
    assert main(["verify", "small", "--results", str(tmp_path / "results")]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choose": {"seeds": [0, 5]}}, "choose.seeds: 0 is among seeds, too"),
        ({"choose": {"share": 1.5}}, "choose.share"),
        ({"choose": {"chare": 0.1}}, "did you mean 'share'"),
        ({"choose": "validation", "search": [{"kd": {"temperature": [2, 4, 8]}}]}, "not together with search"),
        ({"choose": "validation", "seeds": {"first": 2, "most": 4}}, "not together with sequential seeds"),
        ({"choose": "test"}, "choose"),
    ],
)
def test_choices_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        expanded(**{"methods": METHODS, "pairs": [PAIR], **changes})
