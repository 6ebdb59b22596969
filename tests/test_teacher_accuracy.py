"""A teacher that was not trained here is measured before anything learns from it, and said to be no good where it is none."""

from __future__ import annotations

import io

import pytest
import safetensors.torch
import torch
from small import GRID

from bench import run
from bench.plan import estimate
from bench.records.folders import ResultsFolder
from bench.records.options import Options
from bench.records.teacher import TeacherAccuracy, key_of
from bench.screen import Screen
from reports import page

CPU = Options(device="cpu", threads=1)
RECIPE = {"name": "digits", "epochs": 2, "batch_size": 16}
DATA = {"type": "digits", "train_images": 300, "test_images": 100}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights of a teacher that has learned the digits, and the record of its training."""
    root = tmp_path_factory.mktemp("teacher")
    record = run.fit(DATA, "resnet8", recipe=RECIPE | {"epochs": 4}, precision="fp32", results=root, options=CPU)
    return safetensors.torch.load(ResultsFolder(root).grid("fit").cell(record.id).weights(record)), record


def grid_of(tiny, file, **changes):
    pairs = [{"student": "resnet8", "teacher": {"type": "resnet8", "weights": str(file)}}]
    return tiny(data=DATA, recipe=RECIPE, precision="fp32", methods=["none", "kd"], pairs=pairs, **changes)


def printed(function, *arguments):
    console = Screen(record=True, width=400, file=io.StringIO())
    function(*arguments, console)
    return console.export_text()


def learn(file, root, seed=0):
    teacher = {"type": "resnet8", "weights": str(file)}
    return run.fit(DATA, "resnet8", "kd", teacher, RECIPE, seed, "fp32", root, options=CPU)


def test_the_accuracy_is_measured_once_and_planned_with(trained, tiny, tmp_path, monkeypatch):
    weights, first = trained
    torch.save({"net": weights}, tmp_path / "t.pth")
    grid, folder = grid_of(tiny, tmp_path / "t.pth"), ResultsFolder(tmp_path / "r").grid("tiny")
    assert "resnet8 (weights" in printed(estimate.show, grid, folder)
    assert "not measured; `run` measures it" in printed(estimate.show, grid, folder)
    record = learn(tmp_path / "t.pth", tmp_path / "r")
    found = folder.results.teacher_accuracy(key_of(record.cell))
    assert found.top1 == first.accuracies.last.top1  # through the folded copy, in fp32
    assert (found.images, found.classes, found.weights_sha256) == (100, 10, record.cell.teacher.weights_sha256)
    assert f"accuracy {found.top1:.2f} % on 100 test images" in printed(estimate.show, grid, folder)
    monkeypatch.setattr("bench.engine.teacher_accuracy.evaluate", None)  # a second measurement would fail
    learn(tmp_path / "t.pth", tmp_path / "r", seed=1)


def test_the_report_states_it(trained, tmp_path):
    weights, _ = trained
    torch.save(weights, tmp_path / "good.pth")
    order = torch.arange(9, -1, -1)
    torch.save({name: t[order] if name.startswith("classifier") else t for name, t in weights.items()}, tmp_path / "bad.pth")
    good, bad = (learn(tmp_path / f"{name}.pth", tmp_path / "r") for name in ("good", "bad"))
    folder = ResultsFolder(tmp_path / "r").grid("fit")
    page.write(folder)
    text = (folder.report_folder() / "report.md").read_text()
    _, _, table = text.partition("Teachers that were not trained here")
    for record, note in ((good, "–"), (bad, "near chance")):
        top1 = folder.results.teacher_accuracy(key_of(record.cell)).top1
        sha256 = record.cell.teacher.weights_sha256[:8]
        [row] = [line for line in table.splitlines() if sha256 in line]
        assert f"| {top1:.2f} |" in row
        assert row.rstrip("| ").endswith(note)
    assert f"> Teacher resnet8 (weights {bad.cell.teacher.weights_sha256[:8]}) has an accuracy of " in text.replace("\\", "")


@pytest.mark.parametrize("fault", ["classes in another order", "another normalization"])
def test_a_teacher_near_chance_is_warned_of_before_training(fault, trained, tiny, tmp_path):
    weights, _ = trained
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    if fault == "classes in another order":
        weights = {name: t[order] if name.startswith("classifier") else t for name, t in weights.items()}
    torch.save(weights, tmp_path / "t.pth")
    folder = ResultsFolder(tmp_path / "r").grid("tiny")
    normalize = {"mean": [30.0], "std": [0.05]} if fault == "another normalization" else "data"
    teacher = {"type": "resnet8", "weights": str(tmp_path / "t.pth"), "normalize": normalize}
    pairs = [{"student": "resnet8", "teacher": teacher}]
    grid = tiny(data=DATA, recipe=RECIPE, precision="fp32", methods=["kd"], pairs=pairs)
    from bench.engine.teacher_accuracy import measure_missing

    measure_missing(grid.cells, folder, CPU)
    text = printed(estimate.show, grid, folder)
    assert "warning: teacher resnet8" in text
    assert "guessing has 10.00 %: check its `normalize`, its `image_size` and the order of its classes" in text


def test_a_worker_measures_what_nobody_has(trained, tmp_path, tiny):
    from bench.engine.train import train

    weights, _ = trained
    torch.save(weights, tmp_path / "t.pth")
    *_, cell = grid_of(tiny, tmp_path / "t.pth").cells
    folder = ResultsFolder(tmp_path / "r").grid("tiny")
    train([cell], folder, CPU)
    assert folder.results.teacher_accuracy(key_of(cell)).top1 > 50


def test_the_key_covers_what_decides_the_accuracy(trained, tmp_path, tiny):
    weights, _ = trained
    torch.save(weights, tmp_path / "t.pth")

    def key(**changes):
        teacher = {"type": "resnet8", "weights": str(tmp_path / "t.pth"), **changes.pop("teacher", {})}
        settings = {"data": DATA, "methods": ["kd"], "precision": "fp32", "pairs": [{"student": "resnet8", "teacher": teacher}]}
        return key_of(tiny(**(settings | changes)).cells[-1])

    assert key() == key(methods=["at"]) == key(data={**DATA, "train_images": 200}) == key(seeds=[3])
    others = [
        key(data={**DATA, "test_images": 50}),
        key(precision="bf16"),
        key(teacher={"normalize": {"mean": [0.5], "std": [0.5]}}),
        key(teacher={"image_size": 12}),
    ]
    assert len({key(), *others}) == 5
    assert key_of(tiny(**GRID).cells[-1]) is None  # a teacher that is trained here has a record


@pytest.mark.parametrize(
    ("top1", "classes", "images", "near"),
    [
        *[(12, 10, 1000, True), (16, 10, 1000, False), (20, 10, 50, True), (0, 10, 1000, True)],
        *[(1.4, 100, 10_000, True), (3, 100, 10_000, False), (55, 2, 1000, True), (70, 2, 1000, False)],
    ],
)
def test_near_chance(top1, classes, images, near):
    found = TeacherAccuracy(
        key="0", teacher="t", weights_sha256=None, data={}, classes=classes, images=images, top1=top1, top5=100, measured=""
    )
    assert found.near_chance == near
    assert bool(found.warning) == near
