"""`run --together`: cells in lock-step give what they give alone, whoever of them fails."""

from __future__ import annotations

import pytest
import small
import torch
from capturing import FakeGraphs

import run_bench
from bench.engine import hooks
from bench.engine import train as engine
from bench.engine.assemble import assemble, untrained_teacher
from bench.engine.capture import StepRunner
from bench.engine.lockstep import alone_because, draws, may_join
from bench.errors import SplitError
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
    assert sorted(groups, reverse=True)[:3] == [5, 5, 1]  # of each seed all but cskd, whose batches have partners; crd draws
    assert small.results(tmp_path / "together/results") == small.results(tmp_path / "apart/results")


def test_one_that_fails_does_not_stop_its_companions(tmp_path, groups):
    bad = {"tfd": {"weight": 1e9, "ramp_epochs": 0}}
    assert run(tmp_path, "--together", "--set", f"methods=[none, kd, {bad}]") == 1
    assert groups == [1, 3, 2, 1] * 2 or sorted(groups) == [1, 1, 1, 2, 2, 3, 3]  # those that did not diverge stay together
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


def test_which_cells_may_train_in_lock_step(tiny):
    grid = tiny(methods=["none", "ls", "cskd", "crd", {"ft": {"prepare_epochs": 1}}], seeds=[0, 1])
    first = next(cell for cell in grid.cells if cell.label == "none" and cell.seed == 0)
    students = [cell for cell in grid.cells if cell.seed < 1000]  # those of teachers

    def joined(cell, several_streams):
        group = [cell]
        for other in students:
            if may_join(group, other, several_streams):
                group.append(other)
        return {(cell.label, cell.seed) for cell in group}

    assert joined(first, False) == {("none", 0), ("ls", 0), ("crd", 0)}
    everyone = {(label, seed) for label in ("none", "ls", "cskd") for seed in (0, 1)}
    assert joined(first, True) == everyone | {("crd", 0)}  # a second one that draws would change what the first draws
    assert {alone_because(cell) for cell in grid.cells if cell.label.startswith("ft")} == {"its method has a preparation phase"}
    [dropped, *_] = tiny(recipe={"name": "digits", "epochs": 2, "dropout": 0.1}).cells
    assert draws(dropped)


@pytest.mark.parametrize("path", ["eager", "graph"])
def test_several_seeds_in_one_step_are_what_each_is_alone(tmp_path, tiny, path, monkeypatch):
    """As on a GPU, where cells with other seeds and partners train along, and one of them may draw."""

    def fake(step, dataset, team, eager):
        return StepRunner(step, FakeGraphs() if path == "graph" else None)

    monkeypatch.setattr(engine, "runner", fake)
    recipe = {"name": "digits", "epochs": 2, "batch_size": 16}
    grid = tiny(methods=["none", "kd", "cskd", {"crd": {"negatives": 16}}], seeds=[0, 1], recipe=recipe)
    teacher = next(cell for cell in grid.cells if cell.id in {other.teacher.cell for other in grid.cells if other.teacher})
    students = [cell for cell in grid.cells if cell.id != teacher.id and (cell.method["type"], cell.seed) != ("crd", 0)]
    options = Options(device="cpu", threads=1)
    digests = []
    for groups in ([[cell] for cell in students], [[*students[1:], students[0]]]):
        folder = ResultsFolder(tmp_path / str(len(groups))).grid("tiny")
        engine.train([teacher], folder, options)
        records = [record for group in groups for record in engine.train(group, folder, options)]
        digests.append({record.id: (record.weights_sha256, record.accuracies.last.top1) for record in records})
    assert digests[0] == digests[1]
    assert len(digests[0]) == 7


def test_those_that_stopped_at_another_epoch_go_on_by_themselves(tmp_path, tiny):
    grid = tiny(methods=["none", "ls", "tfd"], pairs=[{"student": "resnet8"}], recipe={"name": "digits", "epochs": 3})
    folder, options = ResultsFolder(tmp_path).grid("tiny"), Options(device="cpu", threads=1, checkpoint_s=0.0)
    first, *others = grid.cells

    class StopError(Exception):
        pass

    def stop_after(epoch):
        save = hooks.CheckpointHook.after_train_epoch

        def after(self, runner):
            save(self, runner)
            if runner.epoch == epoch:
                raise StopError

        return after

    for group, epoch in (([first], 1), (others, 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hooks.CheckpointHook, "after_train_epoch", stop_after(epoch))
            with pytest.raises(StopError):
                engine.train(group, folder, options)
    with pytest.raises(SplitError) as caught:
        engine.train(grid.cells, folder, options)
    assert caught.value.parts == [[first.id], [cell.id for cell in others]]
    assert [[cell.id for cell in part] for part in worker._parts(grid.cells, caught.value)] == caught.value.parts


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
    reason = "4 cells in lock-step failed (OutOfMemoryError: CUDA out of memory); now in groups of 2, 2"
    assert any(reason in text for text in logs)


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
