"""Teachers of a grid: trained first and once, from a file, or with published weights."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from bench.errors import UserError
from bench.models import MODELS


def test_teachers_come_first_and_once(tiny):
    grid = tiny(methods=["kd", "at", {"eskd": {"preset": "early_teacher"}}, "tfkd_self"], seeds=[0, 1], recipe={"epochs": 20})
    taught = [cell.teacher.cell for cell in grid.cells if cell.teacher]
    ids = [cell.id for cell in grid.cells]
    assert sorted(map(ids.index, set(taught))) == [0, 1]  # resnet8 as a teacher and as a self, one cell; the same stopped early
    assert grid.cells[1].recipe.epochs == 7  # .35 of 20


def test_each_seed_may_have_a_teacher_of_its_own(tiny):
    grid = tiny(methods=["kd"], seeds=[3, 4], teacher_seeds="each", pairs=[{"student": "resnet8", "teacher": "resnet14"}])
    by_id = grid.by_id
    assert [(cell.seed, by_id[cell.teacher.cell].seed) for cell in grid.cells if cell.teacher] == [(3, 3), (4, 4)]


def test_so_many_teachers_take_turns(tiny):
    grid = tiny(methods=["kd"], seeds=[3, 4, 7, 8, 9], teacher_seeds=2, pairs=[{"student": "resnet8", "teacher": "resnet14"}])
    found = [(cell.seed, grid.by_id[cell.teacher.cell].seed) for cell in grid.cells if cell.teacher]
    assert found == [(3, 3), (4, 4), (7, 3), (8, 4), (9, 3)]


@pytest.mark.parametrize(("method", "teacher"), [("tfkd_self", None), ("tfkd_self", "resnet14"), ("kd", "resnet8")])
def test_a_teacher_of_the_students_own_spec_has_another_seed(tiny, method, teacher):
    """With the same seed it would be the student itself, without the method: same initialization, same batches."""
    pair = {"student": "resnet8"} | ({"teacher": teacher} if teacher else {})
    for teacher_seeds, seeds in (("first", [1003, 1003]), ("each", [1003, 1004])):
        grid = tiny(methods=["none", method], seeds=[3, 4], teacher_seeds=teacher_seeds, pairs=[pair])
        taught = [cell for cell in grid.cells if cell.teacher]
        teachers = [grid.by_id[cell.teacher.cell] for cell in taught]
        assert [(cell.student, cell.seed) for cell in teachers] == [({"type": "resnet8"}, seed) for seed in seeds]
        plain = {cell.id for cell in grid.cells if cell.label == "none" and cell.seed < 1000}
        assert len(plain) == 2
        assert not plain & {cell.id for cell in teachers}
    last = tiny(methods=[method], seeds=[2**32 - 1], pairs=[pair]).cells
    assert {cell.seed for cell in last} == {2**32 - 1, 999}


@pytest.fixture
def weights(tmp_path):
    """The weights of a resnet8 for ten classes of gray digits."""
    return MODELS.build({"type": "resnet8", "classes": 10, "channels": 1}).state_dict()


def with_teacher_from(tiny, file, model="resnet8", **changes):
    return tiny(**({"pairs": [{"student": "resnet8", "teacher": {"type": model, "weights": str(file)}}]} | changes))


@pytest.mark.parametrize("form", ["safetensors", "plain", "model", "state_dict"])
def test_a_teacher_from_a_file_needs_no_training(tiny, tmp_path, weights, form):
    file = tmp_path / "teacher"
    if form == "safetensors":
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file)
    else:
        torch.save(weights if form == "plain" else {form: weights, "epoch": 3}, file)
    [cell] = with_teacher_from(tiny, file, methods=["kd"]).cells
    moved = tmp_path / "elsewhere"
    moved.write_bytes(file.read_bytes())
    [again] = with_teacher_from(tiny, moved, methods=["kd"]).cells
    assert cell.teacher.cell is None
    assert cell.id == again.id  # the contents are the identity, the path is not
    altered = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    torch.save(altered, moved)
    [other] = with_teacher_from(tiny, moved, methods=["kd"]).cells
    assert other.id != cell.id


def test_a_teacher_from_a_file_teaches(tiny, tmp_path, weights):
    from bench.engine.train import train
    from bench.records.folders import ResultsFolder
    from bench.records.options import Options

    torch.save({"model": weights}, tmp_path / "t.pt")
    [cell] = with_teacher_from(tiny, tmp_path / "t.pt", methods=["kd"]).cells
    [record] = train([cell], ResultsFolder(tmp_path).grid("g"), Options(device="cpu", threads=1))
    assert record.flops.teacher_forward > 0
    torch.save({"model": weights, "epoch": 1}, tmp_path / "t.pt")
    with pytest.raises(UserError, match="not the file that"):
        train([cell.model_copy(update={"seed": 1})], ResultsFolder(tmp_path).grid("g"), Options(device="cpu", threads=1))


def test_a_teacher_from_a_file_may_state_what_its_training_took(tiny, tmp_path, weights):
    torch.save(weights, tmp_path / "t.pt")
    teacher = {"type": "resnet8", "weights": str(tmp_path / "t.pt")}
    [unstated] = tiny(methods=["kd"], pairs=[{"student": "resnet8", "teacher": teacher}]).cells
    stated = {**teacher, "train_s": "3.6e3", "train_flops": 1e15}
    [cell] = tiny(methods=["kd"], pairs=[{"student": "resnet8", "teacher": stated}]).cells
    assert (cell.teacher.train_s, cell.teacher.train_flops) == (3600.0, 1e15)
    assert cell.id == unstated.id
    for wrong in ("long", True, -1, float("nan")):
        with pytest.raises(UserError, match=r"pairs\[0\].teacher.train_s: a number of 0 or more"):
            tiny(methods=["kd"], pairs=[{"student": "resnet8", "teacher": {**teacher, "train_s": wrong}}])
    with pytest.raises(UserError, match="are measured here"):
        tiny(methods=["kd"], pairs=[{"student": "resnet8", "teacher": {"type": "resnet8", "train_s": 1}}])


class Opaque:
    pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet14"}, r"does not fit resnet14.*it lacks blocks\.0\..*and \d+ more"),
        ({"data": "cifar10"}, r"its stem\.\S+ has shape \(16, 1, 3, 3\), not \(16, 3, 3, 3\)"),
        ({"data": "cifar100"}, "its classifier has 10 classes, the data have 100"),
        ({"file": "missing.pt"}, "No such file"),
        ({"contents": b"no weights"}, "neither safetensors nor a torch file"),
        ({"object": {"model": Opaque()}}, "neither safetensors nor a torch file"),
        ({"object": [1, 2]}, "holds no tensors by name"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_training(tiny, tmp_path, weights, change, message):
    torch.save(change.pop("object", weights), tmp_path / "t.pt")
    file = tmp_path / change.pop("file", "t.pt")
    if "contents" in change:
        file.write_bytes(change.pop("contents"))
    with pytest.raises(UserError, match=message) as error:
        with_teacher_from(tiny, file, methods=["kd"], **change)
    assert "tiny, pairs[0].teacher.weights" in str(error.value)


def test_published_weights_teach_where_their_classes_fit(tiny, tmp_path):
    for part in ("train", "val"):
        for label in range(1000):
            (tmp_path / part / f"{label:04}").mkdir(parents=True)
            (tmp_path / part / f"{label:04}" / "a.jpeg").touch()
    pair = {
        "student": {"type": "torchvision", "name": "resnet18"},
        "teacher": {"type": "torchvision", "name": "resnet34", "pretrained": True},
    }
    changes = {"recipe": "imagenet100", "methods": ["kd", {"eskd": {"preset": "early_teacher"}}]}
    grid = tiny(pairs=[pair], data={"type": "imagefolder", "path": str(tmp_path)}, **changes)
    [cell] = grid.cells
    assert cell.teacher.cell is None
    assert cell.id.startswith("imagefolder-resnet18-kd-s0-")
    assert "stopped early" in grid.skipped[0].reason
    assert tiny(pairs=[pair], data="cifar100", methods=["kd"]).cells[0].student["name"] == "resnet34"  # fine-tuned first
