"""Every model trains with the plain loss, with a teacher, and with terms on its own stages."""

from __future__ import annotations

import pytest

from bench.engine.train import train
from bench.models import MODELS
from bench.records.folders import ResultsFolder
from bench.records.options import Options

BY_NAME = {"torchvision": "resnet18", "timm": "resnet18"}  # adapters to a library's networks


@pytest.mark.parametrize("key", sorted(MODELS.module_dict))
def test_every_model_with_none_kd_and_tfd(key, tiny, tmp_path):
    if key in BY_NAME:
        pytest.importorskip(key)
    student = {"type": key, "name": BY_NAME[key]} if key in BY_NAME else key
    data = {"type": "digits", "train_images": 16, "test_images": 20}
    recipe = {"name": "digits", "epochs": 1, "batch_size": 8}
    if key in BY_NAME:  # for images of ImageNet's size
        recipe |= {"crop": "resized", "image_size": 64}
    methods = ["none", "kd", {"tfd": {"weight": 1.0}}]  # two steps of the published weight leave no mark
    grid = tiny(data=data, recipe=recipe, methods=methods, pairs=[{"student": student, "teacher": "resnet8"}])
    assert grid.skipped == []
    folder, options = ResultsFolder(tmp_path).grid(grid.name), Options(device="cpu", threads=1)
    trained = [train([cell], folder, options)[0] for cell in grid.cells]  # the teacher first
    records = [record for record in trained if record.cell.student["type"] == key and record.cell.seed == 0]
    assert [record.cell.label for record in records] == ["none", "kd", "tfd(weight=1.0)"]
    assert len({record.weights_sha256 for record in records}) == 3  # each method leaves its mark
    assert len({record.parameters.deployed for record in records}) == 1
