"""Maps of what networks look at."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import run_bench
from bench.errors import UserError
from bench.records.store import Store
from reports.maps import draw


@pytest.fixture
def trained(tiny, tmp_path):
    from bench.engine.train import train
    from bench.records.options import Options

    store, grid = Store(tmp_path), tiny(methods=["none", "ls"])
    store.write_manifest("tiny", grid.manifest())
    for cell in grid.cells:
        train([cell], store, "tiny", Options(device="cpu", threads=1))
    return store, [cell.id for cell in grid.cells]


def test_maps_of_two_students_are_drawn_for_the_report(trained, capsys):
    pytest.importorskip("pytorch_grad_cam")
    store, ids = trained
    assert run_bench.main(["maps", *ids, "--images", "0", "7", "--results", str(store.root)]) == 0
    path = store.report_folder("tiny") / "maps" / f"{ids[0][-12:]}-{ids[1][-12:]}-0-7.png"
    assert capsys.readouterr().out.strip() == str(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    run_bench.main(["report", "tiny", "--results", str(store.root)])
    assert "Grad-CAM++" in (store.report_folder("tiny") / "report.html").read_text()


def test_a_map_is_the_papers_formula(trained):
    """Of one image, by hand: alpha = g^2 / (2 g^2 + g^3 sum A), ReLU of sum over channels of (sum alpha ReLU(g)) A."""
    pytest.importorskip("pytorch_grad_cam")
    import torch

    from bench.measure.gradcam import _images, _network, look

    store, ids = trained
    looks = look([("tiny", ids[0])], [3], store)
    record = store.record("tiny", ids[0])
    dataset, image, target = _images(record.cell, [3], None)
    network = _network(record.cell, dataset, store.weights("tiny", record))
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

    store, ids = trained
    plain, record = Store.record, store.record("tiny", ids[1])

    def trained_on(**changes):
        data = {**record.cell.data, **changes}
        other = record.model_copy(update={"cell": record.cell.model_copy(update={"data": data})})
        monkeypatch.setattr(Store, "record", lambda self, grid, name: other if name == ids[1] else plain(self, grid, name))
        return look([("tiny", name) for name in ids], [0], store)

    assert len(trained_on(name="mine", path="elsewhere").networks) == 2
    with pytest.raises(UserError, match="trained on different data"):
        trained_on(train_images=30)


@pytest.mark.parametrize(("image", "message"), [("400", "no test image 400; there are 0 to 39"), ("-1", "no test image -1")])
def test_an_image_that_is_not_there_is_refused(trained, image, message, capsys):
    pytest.importorskip("pytorch_grad_cam")
    store, ids = trained
    assert run_bench.main(["maps", ids[0], f"--images={image}", "--results", str(store.root)]) == 2
    assert message in capsys.readouterr().err


def test_grad_cam_that_is_missing_is_named(trained, monkeypatch):
    from bench.measure.gradcam import look

    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    store, ids = trained
    with pytest.raises(UserError, match=r"pip install 'distillation-bench\[gradcam\]'"):
        look([("tiny", ids[0])], [0], store)


def test_hostile_titles_and_gray_images_are_drawn(tmp_path):
    images, maps = np.random.default_rng(0).random((2, 4, 4, 3)), np.zeros((2, 4, 4))
    draw(tmp_path / "a.png", images, ["$x$", "</b>"], [("$\\frac{$", ["a", "</b>"], maps)])
    assert (tmp_path / "a.png").stat().st_size > 1000
