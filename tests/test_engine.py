"""The engine: what it trains, what it writes, and that an interruption leaves no trace in the result."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import platform
import subprocess
import sys
import threading

import pytest
import safetensors.torch
import torch
from small import write_grid
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import run_bench
from bench.data import Stream
from bench.engine.assemble import assemble
from bench.engine.device import machine
from bench.engine.hooks import VisualizeHook
from bench.engine.schedule import learning_rate
from bench.engine.step import DivergedError
from bench.engine.train import train
from bench.plan.specs import arguments_of
from bench.records.cell_folder import CellFolder
from bench.records.folders import ResultsFolder
from bench.records.options import Options
from bench.records.recipe import Recipe
from methods import METHODS

CPU = Options(device="cpu", threads=1, checkpoint_s=0)
TODAY = {
    "optimizer": "adamw",
    "decay_all": False,
    "schedule": "timm_cosine",
    "min_lr": 1e-5,
    "warmup_epochs": 1,
    "warmup_lr": 0.01,
    "accumulate": 2,
    "drop_path": 0.3,
    "augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.5,
    "repeats": 2,
}
SHORT = {"prepare_epochs": 1}  # of methods that have a preparation phase


class InterruptedTrainingError(Exception):
    pass


@contextlib.contextmanager
def dying_after(checkpoints):
    """A training ends right after so many checkpoints."""
    write, lives = CellFolder.write_checkpoint, checkpoints

    def fragile(self, raw):
        nonlocal lives
        write(self, raw)
        lives -= 1
        if lives == 0:
            raise InterruptedTrainingError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CellFolder, "write_checkpoint", fragile)
        yield


def spec(key):
    """The method with every default, its preparation shortened; compositions with parts."""
    method = METHODS.get(key)
    short = {name: value for name, value in SHORT.items() if name in arguments_of(method)}
    return {"type": key, **method.example, **short}


def folder_of(grid, root):
    return ResultsFolder(root).grid(grid.name)


def train_all(grid, root, options=CPU):
    """Teachers first, as a worker does it."""
    return [record for cell in grid.cells for record in train([cell], folder_of(grid, root), options)]


@pytest.mark.parametrize("key", sorted(METHODS.module_dict))
def test_interrupted_and_resumed_equals_undisturbed(key, tiny, tmp_path, monkeypatch):
    grid = tiny(methods=[spec(key)], recipe={"name": "digits", "epochs": 3, "batch_size": 16, "validation": 0.2})
    *_, expected = train_all(grid, tmp_path / "a")

    folder = folder_of(grid, tmp_path / "b")
    for cell in grid.cells[:-1]:
        train([cell], folder, CPU)
    monkeypatch.setattr("bench.engine.loop.DRAW_AHEAD_ON", ("cpu",))  # as beside a GPU
    drawn, draw = [], Stream._draw
    monkeypatch.setattr(Stream, "_draw", lambda self, epoch: (drawn.append(threading.current_thread()), draw(self, epoch))[1])
    with dying_after(checkpoints=2), pytest.raises(InterruptedTrainingError):
        train(grid.cells[-1:], folder, CPU)
    torch.rand(7)  # whatever happens in between must not matter
    [found] = train(grid.cells[-1:], folder, CPU)
    assert drawn.count(threading.main_thread()) == 4  # in each part, to count FLOPs and for its first epoch

    assert found.weights_sha256 == expected.weights_sha256
    assert found.accuracies == expected.accuracies
    assert found.earlier_machines is None
    assert folder.cell(found.id).read_checkpoint() is None


def test_each_attempt_visualizes_into_a_new_folder(tiny, tmp_path, monkeypatch):
    grid, folders = tiny(), []
    place = folder_of(grid, tmp_path).cell(grid.cells[0].id)
    monkeypatch.setattr("bench.engine.hooks.Visualizer", lambda vis_backends, save_dir: folders.append(save_dir))
    for _ in range(3):  # within a second
        VisualizeHook(("TensorboardVisBackend",), place)
    assert len(set(folders)) == 3


def test_a_record_names_all_machines_that_trained_it(tiny, tmp_path, monkeypatch):
    grid = tiny(recipe={"name": "digits", "epochs": 3, "batch_size": 16})
    [cell], folder, here = grid.cells, folder_of(grid, tmp_path), machine(torch.device("cpu"))
    others = [here.model_copy(update={"host": "twin"}), here.model_copy(update={"device": "NVIDIA H200"})]
    for other in others:
        monkeypatch.setattr("bench.engine.train.machine", lambda _, other=other: other)
        with dying_after(checkpoints=1), pytest.raises(InterruptedTrainingError):
            train([cell], folder, dataclasses.replace(CPU, threads=2))
    monkeypatch.undo()
    [record] = train([cell], folder, CPU)
    assert record.machine == here
    assert record.earlier_machines == tuple(others)
    assert record.hardware == f"{here.hardware}, then NVIDIA H200 / {here.hardware}, then {here.hardware}"
    assert record.ran == "cpu, after NVIDIA H200"
    assert record.threads == 1  # on another machine their number is not kept
    assert folder.cell(cell.id).record() == record


def test_record_is_complete_and_true(tiny, tmp_path):
    grid = tiny(methods=["fitnets"], recipe={"name": "digits", "epochs": 2, "batch_size": 16, "validation": 0.25})
    teacher, record = train_all(grid, tmp_path)
    place = folder_of(grid, tmp_path).cell(record.id)
    assert record.train_samples == 30
    assert record.steps == 2 * math.ceil(30 / 16)
    assert record.accuracies.last.epoch == 2
    assert record.accuracies.chosen is not None
    assert record.accuracies.best_test.top1 >= record.accuracies.last.top1
    # resnet8 with one input channel and ten classes, by hand
    convolutions = 9 * 16 * 1 + 2 * 9 * 16 * 16 + 9 * 16 * 32 + 9 * 32 * 32 + 16 * 32 + 9 * 32 * 64 + 9 * 64 * 64 + 32 * 64
    norms = 2 * (16 * 3 + 32 * 3 + 64 * 3)
    assert record.parameters.deployed == convolutions + norms + 64 * 10 + 10
    assert record.parameters.train_only == 32 * 32 + 32 + 2 * 32  # 1x1 convolution with bias, and its norm
    assert record.flops.step > 3 * record.flops.teacher_forward > 0
    assert record.flops.teacher_forward == 16 * teacher.flops.inference
    assert place.record() == record
    rows = place.curves(record).splitlines()
    assert rows[0].startswith("epoch,lr,test_top1,test_top5,val_top1,val_top5,train_s,evaluate_s,loss_ce,loss_fitnets")
    assert len(rows) == 3
    weights = safetensors.torch.load(place.weights(record))
    assert (
        sum(w.numel() for name, w in weights.items() if "running" not in name and "tracked" not in name)
        == record.parameters.deployed
    )


def test_weight_zero_trains_as_none_does(tiny, tmp_path):
    grid = tiny(methods=["none", {"tfd": {"weight": 0.0}}])
    plain, zero = train_all(grid, tmp_path)
    assert plain.weights_sha256 == zero.weights_sha256


def test_methods_of_one_seed_start_alike_and_see_the_same_images(tiny, tmp_path):
    grid = tiny(methods=["none", "fitnets"], seeds=[0, 1])
    folder = folder_of(grid, tmp_path)
    train(grid.cells[:1], folder, CPU)
    cells = {(cell.label, cell.seed): cell for cell in grid.cells}
    first, other, third = (assemble([cells[key]], folder, CPU) for key in (("none", 0), ("fitnets", 0), ("none", 1)))
    states = [next(iter(bench.trainees.values())).student.state_dict() for bench in (first, other, third)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    streams = [bench.stream(next(iter(bench.trainees.values()))) for bench in (first, other, third)]
    batches = [next(iter(stream.epoch(1))) for stream in streams]
    assert torch.equal(batches[0].image, batches[1].image)
    assert not torch.equal(batches[0].index, batches[2].index)


def test_divergence_is_an_error_and_leaves_no_record(tiny, tmp_path):
    grid = tiny(recipe={"name": "digits", "epochs": 2, "lr": 1e6, "schedule": "step"})
    with pytest.raises(DivergedError, match=r"ce is (nan|inf)"):
        train_all(grid, tmp_path)
    assert folder_of(grid, tmp_path).records() == ([], [])


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(epochs=240), {0: 0.05, 149: 0.05, 150: 0.005, 180: 0.0005, 239: 0.00005}),
        (Recipe(epochs=100, lr=0.1, milestones=(0.3, 0.6, 0.9)), {29: 0.1, 30: 0.01, 60: 0.001, 90: 0.0001}),
        (Recipe(epochs=10, schedule="cosine", lr=1.0), {0: 1.0, 5: 0.5}),
        (Recipe(epochs=10, warmup_epochs=2, lr=1.0), {0: 0.1, 1: 0.6, 2: 1.0}),  # of 5 steps an epoch: (step + 1) / 10
        (Recipe(epochs=10, schedule="one_cycle", lr=1.0), {0: 0.04, 3: 1.0}),
    ],
)
def test_learning_rates_are_those_of_the_protocol(recipe, expected):
    for epoch, rate in expected.items():
        assert learning_rate(recipe, epoch * 5, 5) == pytest.approx(rate)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "extra", [{"ema": 0.9}, {"clip_grad_norm": 0.1}, {"dropout": 0.5}, {"mixup": 0.2}, {"nesterov": True}, TODAY]
)
def test_recipe_options_train_and_resume(extra, precision, tiny, tmp_path):
    from bench.engine.device import has_bf16

    if precision == "bf16" and not has_bf16(torch.device("cpu")):
        pytest.skip("this CPU has no bf16")
    recipe = {"name": "digits", "epochs": 2, "batch_size": 16, **extra}
    grid = tiny(recipe=recipe, precision=precision)
    [expected] = train_all(grid, tmp_path / "a")
    with dying_after(checkpoints=1), pytest.raises(InterruptedTrainingError):
        train_all(grid, tmp_path / "b")
    [found] = train_all(grid, tmp_path / "b")
    assert found.weights_sha256 == expected.weights_sha256
    usual = {name: Recipe.model_fields[name].default for name in extra}
    plain = train_all(tiny(recipe={**recipe, **usual}, precision=precision), tmp_path / "c")
    assert plain[0].weights_sha256 != expected.weights_sha256  # the option does something


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
def test_a_step_takes_the_memory_that_the_last_one_freed():
    code = """
import resource, torch
from bench.engine.device import hand_back_freed_memory, keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
default = [faults() for _ in range(20)][-1]
keep_freed_memory()
kept = [faults() for _ in range(20)][-1]
hand_back_freed_memory()
print(default, kept, faults())
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    default, kept, handed_back = map(int, printed.split())
    if default < 1000:
        pytest.skip("this system hands out huge pages, or keeps what is freed by itself")
    assert kept < default / 100
    assert handed_back > default / 2


def test_the_moving_average_is_torchs(tiny, tmp_path):
    grid = tiny(recipe={"name": "digits", "ema": 0.9})
    [trainee] = assemble(grid.cells, folder_of(grid, tmp_path), CPU).trainees.values()
    theirs = AveragedModel(trainee.core, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(3):
        with torch.no_grad():
            for tensor in trainee.core.state_dict().values():
                tensor += 1 if tensor.dtype == torch.int64 else torch.rand_like(tensor)
        trainee.move_average()
        theirs.update_parameters(trainee.core)
    ours = trainee.average.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.state_dict().items())


def test_the_moving_average_leaves_out_what_a_method_keeps_for_its_next_step(tiny, tmp_path):
    [record] = train_all(tiny(methods=["dlb"], recipe={"name": "digits", "epochs": 1, "ema": 0.9}), tmp_path)
    assert record.accuracies.last.top1 > 0


def test_a_teacher_given_to_a_teacher_free_method_is_not_even_loaded(tiny, tmp_path):
    grid = tiny(methods=["tfd"])
    bench = assemble(grid.cells, folder_of(grid, tmp_path), CPU)
    assert [cell.teacher for cell in grid.cells] == [None]
    assert next(iter(bench.trainees.values())).networks.teacher is None


def test_lock_step_equals_separate_trainings(tiny, tmp_path):
    grid = tiny(methods=["none", "kd", "at", "fitnets", "tfd", "simkd"], pairs=[{"student": "resnet8", "teacher": "resnet14"}])
    apart = {record.id: record for record in train_all(grid, tmp_path / "a")}
    folder = folder_of(grid, tmp_path / "b")
    train(grid.cells[:1], folder, CPU)
    together = train(grid.cells[1:], folder, CPU)
    assert len(together) == 6
    assert all(record.weights_sha256 == apart[record.id].weights_sha256 for record in together)
    assert all(record.accuracies == apart[record.id].accuracies for record in together)


HOOK = """
from mmengine.hooks import Hook

class Notes(Hook):
    def note(self, runner, stage):
        [rows] = runner.history.values()
        with open("notes.txt", "a") as file:
            print(stage, runner.epoch, runner.max_epochs, runner.iter, runner.max_iters, len(rows), file=file)

    def before_train(self, runner):
        assert sum(p.numel() for p in runner.model.parameters()) > 0
        self.note(runner, "before_train")

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        assert len(data_batch.target) > 0 and batch_idx == runner.iter - 1
        self.note(runner, "after_train_iter")

    def after_train_epoch(self, runner):
        self.note(runner, "after_train_epoch")
"""


def test_a_users_hook_is_called_by_the_loop(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(HOOK)
    changes = {
        "methods": ["none"],
        "pairs": [{"student": "resnet8"}],
        "recipe": {"name": "digits", "epochs": 1, "batch_size": 16},
    }
    grid = write_grid(tmp_path, **changes)
    run = ["run", grid, "--device", "cpu", "--no-cost", "--no-report", "--cluster", "debug", "--import", "mine.py"]
    assert run_bench.main([*run, "--hook", "mine.Notes"]) == 0
    assert (tmp_path / "notes.txt").read_text().splitlines() == [
        "before_train 0 1 0 4 0",
        *(f"after_train_iter 0 1 {step} 4 0" for step in (1, 2, 3, 4)),
        "after_train_epoch 1 1 4 4 1",  # the row of this epoch is there
    ]
    assert run_bench.main([*run, "--hook", "mine.Nobody"]) == 2
    assert "--hook mine.Nobody: there is no such class" in capsys.readouterr().err
