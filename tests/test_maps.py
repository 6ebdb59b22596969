"""Maps of what networks look at."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import run_bench
from bench.errors import UserError
from bench.records.cell_folder import CellFolder
from bench.records.folders import ResultsFolder
from reports.maps import draw


@pytest.fixture
def trained(tiny, tmp_path):
    """The folders of two finished cells."""
    from bench.engine.train import train
    from bench.records.options import Options

    grid = tiny(methods=["none", "ls"])
    folder = ResultsFolder(tmp_path).grid("tiny")
    folder.write_manifest(grid.manifest())
    for cell in grid.cells:
        train([cell], folder, Options(device="cpu", threads=1))
    return [folder.cell(cell.id) for cell in grid.cells]


def test_maps_of_two_students_are_drawn_for_the_report(trained, capsys):
    pytest.importorskip("pytorch_grad_cam")
    folder, ids = trained[0].grid, [cell.id for cell in trained]
    at = ["--results", str(folder.results.root)]
    assert run_bench.main(["maps", *ids, "--images", "0", "7", *at]) == 0
    path = folder.report_folder() / "maps" / f"{ids[0][-12:]}-{ids[1][-12:]}-0-7.png"
    assert capsys.readouterr().out.strip() == str(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    run_bench.main(["report", "tiny", *at])
    assert "Grad-CAM++" in (folder.report_folder() / "report.html").read_text()


def test_a_map_is_the_papers_formula(trained):
    """Of one image, by hand: alpha = g^2 / (2 g^2 + g^3 sum A), ReLU of sum over channels of (sum alpha ReLU(g)) A."""
    pytest.importorskip("pytorch_grad_cam")
    import torch

    from bench.measure.gradcam import _images, _network, look

    cell = trained[0]
    looks = look([cell], [3])
    record = cell.record()
    dataset, image, target = _images(record.cell, [3], None)
    network = _network(record.cell, dataset, cell.weights(record))
    output = network(image)
    feature = output.stages[-1]
    gradient = torch.autograd.grad(output.logits[0, target[0]], feature)[0]
    feature, gradient = feature[0].detach().double().numpy(), gradient[0].double().numpy()
    alpha = gradient**2 / (2 * gradient**2 + feature.sum((1, 2), keepdims=True) * gradient**3 + 1e-6)
    weight = (np.where(gradient != 0, alpha, 0) * np.maximum(gradient, 0)).sum((1, 2))
    by_hand = np.maximum((weight[:, None, None] * feature).sum(0), 0)
    by_hand = (by_hand - by_hand.min()) / (1e-7 + by_hand.max() - by_hand.min())
    corners = looks.networks[0].maps[0][[0, 0, -1, -1], [0, -1, 0, -1]]  # enlarging leaves them as they are
    assert looks.networks[0].maps.shape == (1, 8, 8)
    np.testing.assert_allclose(corners, by_hand[[0, 0, -1, -1], [0, -1, 0, -1]], atol=1e-3)


def test_networks_of_other_data_are_refused_and_of_another_name_of_the_same_are_not(trained, monkeypatch):
    pytest.importorskip("pytorch_grad_cam")
    from bench.measure.gradcam import look

    plain, record = CellFolder.record, trained[1].record()

    def trained_on(**changes):
        data = {**record.cell.data, **changes}
        other = record.model_copy(update={"cell": record.cell.model_copy(update={"data": data})})
        monkeypatch.setattr(CellFolder, "record", lambda self: other if self.id == record.id else plain(self))
        return look(trained, [0])

    assert len(trained_on(name="mine", path="elsewhere").networks) == 2
    with pytest.raises(UserError, match="trained on different data"):
        trained_on(train_images=30)


@pytest.mark.parametrize(("image", "message"), [("400", "no test image 400; there are 0 to 39"), ("-1", "no test image -1")])
def test_an_image_that_is_not_there_is_refused(trained, image, message, capsys):
    pytest.importorskip("pytorch_grad_cam")
    assert run_bench.main(["maps", trained[0].id, f"--images={image}", "--results", str(trained[0].grid.results.root)]) == 2
    assert message in capsys.readouterr().err


def test_grad_cam_that_is_missing_is_named(trained, monkeypatch):
    from bench.measure.gradcam import look

    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(UserError, match=r"pip install 'distillation-bench\[gradcam\]'"):
        look(trained[:1], [0])


def test_hostile_titles_and_gray_images_are_drawn():
    images, maps = np.random.default_rng(0).random((2, 4, 4, 3)), np.zeros((2, 4, 4))
    assert len(draw(images, ["$x$", "</b>"], [("$\\frac{$", ["a", "</b>"], maps)])) > 1000
