"""`run --together`: cells in lock-step give what they give alone, whoever of them fails."""

from __future__ import annotations

import pytest
import small
import torch

import run_bench
from bench.engine import train as engine
from bench.engine.assemble import assemble, untrained_teacher
from bench.engine.lockstep import alone_because, companions
from bench.jobs import worker
from bench.records.folders import ResultsFolder
from bench.records.options import Options

METHODS = ["none", "kd", "at", "tfd", {"cskd": {}}, {"crd": {}}]


def run(folder, *arguments, **changes):
    grid = small.write_grid(folder, methods=METHODS, seeds=[0, 1], **changes)
    common = ["--device", "cpu", "--threads", "1", "--no-cost", "--no-report", "--cluster", "debug"]
    return run_bench.main(["run", grid, "--results", str(folder / "results"), *common, *arguments])


@pytest.fixture
def groups(monkeypatch):
    """Sizes of the groups that were trained."""
    sizes = []
    train = engine.train

    def counting(cells, *rest):
        sizes.append(len(cells))
        return train(cells, *rest)

    monkeypatch.setattr(engine, "train", counting)
    return sizes


def test_together_equals_apart(tmp_path, groups, capsys):
    for name in ("apart", "together"):
        (tmp_path / name).mkdir()
    assert run(tmp_path / "apart") == 0
    assert set(groups) == {1}
    groups.clear()
    assert run(tmp_path / "together", "--together") == 0
    assert sorted(groups, reverse=True)[:2] == [4, 4]  # none, kd, at and tfd of each seed
    assert "alone: crd: its method draws random numbers" in capsys.readouterr().out
    assert small.results(tmp_path / "together/results") == small.results(tmp_path / "apart/results")


def test_one_that_fails_does_not_stop_its_companions(tmp_path, groups):
    bad = {"tfd": {"weight": 1e30, "ramp_epochs": 0}}
    assert run(tmp_path, "--together", "--set", f"methods=[none, kd, {bad}]") == 1
    assert 3 in groups
    root = tmp_path / "results"
    assert sorted(record.cell.label for record in ResultsFolder(root).grid("small").records()[0]) == [
        "kd",
        "kd",
        "none",
        "none",
        "none",
    ]
    failed = [path.parent.name for path in (root / "small").glob("*/failure.json")]
    assert len(failed) == 2
    assert all("-tfd-" in name for name in failed)


def test_only_cells_of_one_stream_are_companions(tiny):
    grid = tiny(methods=["none", "ls", "cskd", "dlb", {"ft": {"prepare_epochs": 1}}], seeds=[0, 1])
    first = next(cell for cell in grid.cells if cell.label == "none" and cell.seed == 0)
    assert {(cell.label, cell.seed) for cell in companions(first, grid.cells)} == {("ls", 0)}
    assert {alone_because(cell) for cell in grid.cells if cell.label.startswith("ft")} == {"its method has a preparation phase"}
    [*dropped] = tiny(recipe={"name": "digits", "epochs": 2, "dropout": 0.1}).cells
    assert "dropout" in alone_because(dropped[0])


def test_where_memory_is_short_fewer_train_together(tmp_path, monkeypatch, capsys):
    sizes = []
    train = engine.train

    def short(cells, *rest):
        sizes.append(len(cells))
        if len(cells) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(cells, *rest)

    monkeypatch.setattr(engine, "train", short)
    assert run(tmp_path, "--together", "--set", "seeds=[0]", "--set", "methods=[none, kd, at, tfd]") == 0
    assert sizes == [1, 4, 2, 2]  # the teacher, then the students
    logs = [path.read_text() for path in (tmp_path / "results/small").glob("*/log.txt")]
    assert any("4 cells in lock-step failed (OutOfMemoryError: CUDA out of memory); now 2 at a time" in log for log in logs)


@pytest.mark.parametrize(
    ("device", "options", "most"),
    [
        ("cpu", Options(), 1),
        ("cpu", Options(together=True), 40),
        ("cuda", Options(), 16),
        ("cuda", Options(neighbours=3), 10),  # four workers
        ("cuda", Options(neighbours=3, together=True), 16),
        ("cuda", Options(apart=True), 1),
    ],
)
def test_on_a_gpu_cells_train_together_by_default(device, options, most, monkeypatch):
    monkeypatch.setattr("bench.engine.device.resolve_device", lambda name: torch.device(device))
    assert worker._most_together([None] * 40, options) == most


def test_a_teacher_that_serves_branches_keeps_every_answer(tiny, tmp_path):
    cells = [cell for cell in tiny(methods=["kd"], pairs=[{"student": "resnet8", "teacher": "resnet14"}]).cells if cell.teacher]
    options = Options(device="cpu", threads=1)
    [trainee] = assemble(cells, ResultsFolder(tmp_path).grid("tiny"), options, untrained_teacher).trainees.values()
    teacher, images = trainee.networks.teacher, torch.randn(2, 3, 1, 8, 8)
    for keeps_all in (False, True):
        teacher.keeps_all = keeps_all
        teacher.forget()
        view = images[0]
        first, second = teacher(view), teacher(images[1])
        assert (teacher(view) is first) == keeps_all
        assert second.logits.shape == first.logits.shape
