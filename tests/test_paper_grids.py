"""The shipped grids hold exactly what the papers' tables hold."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from bench.errors import UserError
from bench.plan import estimate as planning
from bench.plan import grid_file
from bench.plan.expand import expand
from bench.records import naming
from bench.records.folders import ResultsFolder
from bench.records.upkeep import verify
from bench.screen import Screen
from methods import METHODS
from reports.published import read as read_published

COMPOSITIONS = ("sum", "logit_std", "ctkd", "sdd", "each_teacher")  # what they need is their parts'

PAIRS = [("resnet20", "resnet110"), ("resnet32", "resnet110"), ("wrn_16_2", "wrn_40_2"), ("wrn_40_1", "wrn_40_2")]
TAUGHT = {"fitnets", "at", "sp", "ab", "nst", "kd", "vid", "pkt", "rkd", "cc", "crd", "tfd+kd", "tfd+crd"}


def expanded(name, **changes):
    _, raw = grid_file.read(name)
    return expand(name, {**raw, **changes}, device="cpu")


def students(grid):
    """(student, teacher's type or None, label, seed) of every cell that is not a teacher, in order."""
    teachers = {cell.teacher.cell for cell in grid.cells if cell.teacher}
    return [
        (cell.student["type"], cell.teacher and cell.teacher.model["type"], cell.label, cell.seed)
        for cell in grid.cells
        if cell.id not in teachers
    ]


@pytest.mark.parametrize(
    ("name", "methods", "cells"),
    [
        ("paper_table1", ["none", "fitnets", "at", "sp", "ab", "nst", "tfd", "tfd+ls"], 98),
        (
            "paper_table2",
            ["none", "kd", "vid", "pkt", "rkd", "cc", "crd", "tfd", "tfd+ls", "tfd+kd", "tfd+crd"],
            134,
        ),
    ],
)
def test_tables_1_and_2_hold_exactly_the_papers_cells(name, methods, cells):
    grid = expanded(name)
    wanted = [(s, t if m in TAUGHT else None, m, seed) for s, t in PAIRS for m in methods for seed in range(3)]
    assert students(grid) == wanted
    assert [(cell.student["type"], cell.label, cell.seed) for cell in grid.cells[:2]] == [
        ("resnet110", "none", 0),
        ("wrn_40_2", "none", 0),
    ]
    assert (len(grid.cells), grid.skipped) == (cells, [])
    recipe = grid.cells[0].recipe
    assert all(cell.recipe == recipe for cell in grid.cells)
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay, recipe.nesterov) == (240, 64, 0.05, 5e-4, False)


@pytest.mark.parametrize("name", ["paper_table1", "paper_table2"])
def test_their_plan_needs_no_data_and_estimates_the_cost(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # there are no data here
    text = io.StringIO()
    planning.show(expanded(name), ResultsFolder(tmp_path / "results").grid(name), Screen(file=text, width=120))
    assert "PFLOP in the networks" in text.getvalue() or "EFLOP in the networks" in text.getvalue()
    assert "skipped" not in text.getvalue()


def test_table_3_names_the_missing_data_and_their_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"imagenet lacks train/ or val/.*--data-root"):
        expanded("paper_table3")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Folders of its shape, without images."""
    folder = tmp_path_factory.mktemp("imagenet")
    for part in ("train", "val"):
        for label in range(1000):
            (folder / part / f"{label:04}").mkdir(parents=True)
            (folder / part / f"{label:04}" / "a.jpeg").touch()
    return {"type": "imagefolder", "path": str(folder)}


def test_the_second_pair_of_imagenet(imagenet):
    grid = expanded("imagenet_r50_mobilenetv1", data=imagenet)
    labels = ["none", "kd[imagenet]", "at", "crd", "reviewkd[pair]", "dkd[pair]", "dist[imagenet]", "tfd", "tfd+kd[imagenet]"]
    assert [cell.label for cell in grid.cells] == labels
    assert grid.skipped == []
    rows = read_published()
    named = {naming.method_family(cell.method) for cell in grid.cells} - {"tfd", "tfd+kd", "at"}
    published = rows[(rows["data"] == "imagenet") & (rows["student"] == "mobilenetv1")]
    assert named <= set(published["method"])


def test_table_3_on_data_of_its_shape(imagenet):
    grid = expanded("paper_table3", data=imagenet)
    assert [(cell.label.partition("(")[0], bool(cell.teacher)) for cell in grid.cells] == [
        ("none", False),
        ("kd[imagenet]", True),
        ("eskd", True),
        ("one", False),
        ("frskd", False),
        ("byot", False),
        ("tfd", False),
        ("tfd+ls", False),
    ]
    kd = next(cell for cell in grid.cells if cell.label == "kd[imagenet]")
    assert (kd.method["temperature"], kd.method["weight"], kd.method["ce_weight"]) == (1.0, 0.5, 0.5)
    assert (kd.recipe.epochs, kd.recipe.batch_size, kd.recipe.milestones) == (100, 256, (0.3, 0.6, 0.9))


def test_table_4_holds_the_three_directions():
    grid = expanded("paper_table4")
    assert [(cell.student["type"], cell.method.get("direction"), cell.seed) for cell in grid.cells] == [
        ("resnet32", direction, seed) for direction in (None, "top_down", "bottom_up", "both") for seed in range(3)
    ]


def test_table_5_holds_each_technique_with_and_without_tfd():
    grid = expanded("paper_table5")
    found = {(cell.label, r.dropout, r.cutout, r.augment) for cell in grid.cells for r in [cell.recipe]}
    plain = {(label, 0.0, 0, "none") for label in ("none", "tfd", "ls", "tfd+ls", "kd", "tfd+kd")}
    techniques = [(0.1, 0, "none"), (0.0, 8, "none"), (0.0, 0, "auto_augment")]
    assert found == plain | {(label, *technique) for label in ("none", "tfd") for technique in techniques}
    assert len(grid.cells) == 1 + 3 * len(found)


@pytest.mark.parametrize(
    ("name", "pairs", "skipped"),
    [
        (
            "crd_same_family",
            "wrn_16_2:wrn_40_2 wrn_40_1:wrn_40_2 resnet20:resnet56 resnet20:resnet110 resnet32:resnet110 resnet8x4:resnet32x4 "
            "vgg8:vgg13",
            ["fsp on wrn_40_1 taught by wrn_40_2"],  # as in the paper
        ),
        (
            "crd_cross_family",
            "mobilenetv2:vgg13 mobilenetv2:resnet50 vgg8:resnet50 shufflenetv1:resnet32x4 shufflenetv2:resnet32x4 "
            "shufflenetv1:wrn_40_2",
            [],
        ),
    ],
)
def test_the_fields_pairs_have_all_methods_of_their_tables(name, pairs, skipped):
    grid = expanded(name, seeds=[0])
    assert [skip.what for skip in grid.skipped] == skipped
    has = {(s, t, label.partition("[")[0]) for s, t, label, _ in students(grid)}
    for pair in pairs.split():
        student, teacher = pair.split(":")
        for method in ("kd", "fitnets", "at", "sp", "vid", "rkd", "pkt", "crd", "reviewkd", "dkd"):
            assert (student, teacher, method) in has
    small = {cell.student["type"] for cell in grid.cells if cell.recipe.lr == 0.01}
    assert small == {s for s in (cell.student["type"] for cell in grid.cells) if s.startswith(("mobilenet", "shufflenet"))}


def test_the_teacher_free_grid_has_every_method_without_a_teacher_and_what_rivals_them():
    grid = expanded("teacher_free", seeds=[0])
    free = {key for key, method in METHODS.module_dict.items() if method.needs != "teacher" and key not in COMPOSITIONS}
    assert {cell.method["type"] for cell in grid.cells} == free
    rivals = {(r.cutmix, r.mixup, r.cutout, r.augment) for cell in grid.cells for r in [cell.recipe] if cell.label == "none"}
    assert len(rivals) == 5
    assert grid.skipped == []


def test_the_pairs_of_logit_standardization():
    grid = expanded("lskd_pairs", seeds=[0])
    pairs = {(s, t) for s, t, label, _ in students(grid) if label == "mlkd"}
    assert len(pairs) == 7
    assert pairs >= {("resnet8x4", "wrn_40_2"), ("wrn_40_2", "resnet32x4"), ("mobilenetv2", "resnet50")}
    assert {cell.recipe.lr for cell in grid.cells if cell.label == "mlkd"} == {0.025, 0.01}
    assert grid.skipped == []


def test_students_and_teachers_of_different_kinds():
    pytest.importorskip("timm")
    grid = expanded("cross_architecture")
    names = {(cell.student["name"], cell.teachers[0].model["name"]): cell.recipe for cell in grid.cells if cell.teachers}
    published = read_published().query("table.str.startswith('CIFAR-100') and method in ('ofa', 'rsd')")
    assert set(names) == set(zip(published["student"], published["teacher"], strict=True))
    assert {student for (student, _), recipe in names.items() if recipe.optimizer["type"] == "sgd"} == {
        "resnet18",
        "mobilenetv2_100",
    }
    assert {cell.label.partition("(")[0] for cell in grid.cells} == {"none", "kd", "ofa", "rsd", "tfd"}
    taught_by = {cell.student["name"]: cell for cell in grid.cells if cell.student.get("pretrained")}
    assert set(taught_by) == {teacher for _, teacher in names}
    assert all(cell.recipe.optimizer["type"] == "adamw" for cell in taught_by.values())
    assert grid.skipped == []


def test_every_method_is_in_the_grid_of_every_method():
    grid = expanded("every_method")
    assert {cell.method["type"] for cell in grid.cells} == set(METHODS.module_dict)
    assert grid.skipped == []


@pytest.mark.slow
def test_every_method_finishes(tmp_path, repository):
    command = [sys.executable, "run_bench.py", "run", "every_method", "--no-cost", "--no-report", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = ResultsFolder(tmp_path).grid("every_method")
    records, problems = folder.records()
    assert {record.id for record in records} == {cell.id for cell in expanded("every_method").cells}
    assert (problems, verify(folder)) == ([], [])
