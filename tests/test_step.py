"""One training step: who calls it, in which order it does what, and that its state stays in place."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import run_bench
from bench.engine.assemble import assemble, untrained_teacher
from bench.engine.flops import count_flops
from bench.engine.optimizer import Optimizer
from bench.engine.step import Step
from bench.engine.train import train
from bench.engine.trainee import Trainee
from bench.measure import probe, speed
from bench.records.folders import ResultsFolder
from bench.records.options import Options

CPU = Options(device="cpu", threads=1)
PAIRS = [{"student": "resnet8", "teacher": "resnet14"}]


@pytest.fixture
def steps(monkeypatch):
    """Counts steps by whether they prepare; a trainee's forward pass outside of a step fails."""
    counts = {False: 0, True: 0}
    inside = []
    step, forward = Step.__call__, Trainee.forward

    def counting(self, *batches, preparing=False):
        counts[preparing] += 1
        inside.append(self)
        step(self, *batches, preparing=preparing)
        inside.pop()

    def guarded(self, batch, preparing=False):
        assert inside, "a trainee's forward pass outside of a step"
        return forward(self, batch, preparing)

    monkeypatch.setattr(Step, "__call__", counting)
    monkeypatch.setattr(Trainee, "forward", guarded)
    return counts


def of_student(tiny, **changes):
    return [cell for cell in tiny(pairs=PAIRS, **changes).cells if cell.student["type"] == "resnet8"]


def test_training_takes_steps(steps, tiny, tmp_path):
    grid = tiny(methods=[{"ab": {"prepare_epochs": 1}}])
    for cell in grid.cells:
        train([cell], ResultsFolder(tmp_path).grid(grid.name), CPU)
    # 40 images in batches of 16 are 3 steps an epoch: teacher and student 2 epochs each, 1 of preparation
    counted = {False: 2, True: 1}  # of the FLOP counter
    assert steps == {False: 2 * 2 * 3 + counted[False], True: 3 + counted[True]}


def test_the_flop_counter_counts_steps(steps, tiny, tmp_path):
    cells = of_student(tiny, methods=[{"ab": {"prepare_epochs": 1}}])
    assembly = assemble(cells, ResultsFolder(tmp_path).grid("tiny"), CPU, untrained_teacher)
    for trainee in assembly.trainees.values():
        count_flops(assembly, trainee)
    assert steps == {False: 1, True: 1}


def test_the_probe_times_steps(steps, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "TURNS", 2)
    cells = of_student(tiny, methods=[{"ab": {"prepare_epochs": 1}}])
    assembly = assemble(cells, ResultsFolder(tmp_path).grid("tiny"), CPU, untrained_teacher)
    probed = probe.Probe(cells[0], assembly)
    probed.steps_a_span = 5
    for action, expected in (
        (probed.time_steps, {False: 5, True: 5}),
        (probed.time_parts, {False: 1, True: 0}),
        (probed.peak_mib, {False: 1, True: 0}),
    ):
        steps.update({False: 0, True: 0})
        action()
        assert steps == expected
    assert probed.spans["student"][0] > 0
    assert probed.spans["optimizer"][0] > 0


def test_speed_measures_steps(steps, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "TURNS", 2)
    monkeypatch.setattr(speed, "SPAN_S", 0.001)
    monkeypatch.setattr(speed, "measure_limits", lambda device: speed.Limits({"fp32": 100.0, "bf16": 200.0}, 10.0))
    monkeypatch.chdir(tmp_path)
    pairs = "pairs=[{student: resnet8, teacher: resnet14}]"
    changes = ("data={type: digits, train_images: 100}", "recipe.batch_size=16", "precision=fp32", pairs)
    small = [word for change in changes for word in ("--set", change)]
    assert run_bench.main(["speed", *small, "--device", "cpu", "--threads", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]
    assert steps[False] > 0  # and no forward pass of a trainee outside


def test_the_order_of_a_step_is_fixed(tiny, tmp_path, monkeypatch):
    cells = tiny(recipe={"name": "digits", "epochs": 2, "batch_size": 16, "ema": 0.9, "clip_grad_norm": 0.5}).cells
    assembly = assemble(cells, ResultsFolder(tmp_path).grid("tiny"), CPU)
    [trainee] = assembly.trainees.values()
    step, method = assembly.step(), trainee.method
    happened: list[str] = []

    def note(owner, name):
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, **named: (happened.append(name), plain(*given, **named))[1])

    [member] = step.members.values()
    for name in ("loss", "gradients", "after_step"):
        note(method, name)
    note(member.optimizer, "clip")
    note(member.optimizer, "step")
    note(trainee, "move_average")
    note(Tensor, "backward")
    step(next(iter(assembly.stream(trainee).epoch(0))))
    assert happened == ["loss", "backward", "gradients", "clip", "step", "after_step", "move_average"]


def test_learning_rates_and_momenta_stay_in_place_within_a_phase(tiny, tmp_path):
    assembly = assemble(tiny().cells, ResultsFolder(tmp_path).grid("tiny"), CPU)
    [trainee] = assembly.trainees.values()
    trainee.method.parameter_groups = lambda parameters: [
        {"params": parameters[:1], "lr_factor": 0.1, "weight_decay": 0.0},
        {"params": parameters[1:]},
    ]
    step = assembly.step()
    [member] = step.members.values()
    groups = member.optimizer.inner.param_groups
    rates = [rate.data_ptr() for rate in member.optimizer.rates]
    places = [momentum.data_ptr() for momentum in member.optimizer.momenta()]
    for lr, batch in zip((0.05, 0.01), assembly.stream(trainee).epoch(0), strict=False):
        step.set_lr(lr)
        step(batch)
        assert [group["lr"].item() for group in groups] == [0.1 * lr, lr]
        assert {group["lr"].dtype for group in groups} == {torch.float64}
    assert any(momentum.any() for momentum in member.optimizer.momenta())
    assert [momentum.data_ptr() for momentum in member.optimizer.momenta()] == places
    step.start_phase()
    assert not any(momentum.any() for momentum in member.optimizer.momenta())
    assert [group["lr"].data_ptr() for group in member.optimizer.inner.param_groups] == rates
    assert [group["lr"].item() for group in member.optimizer.inner.param_groups] == [0.1 * 0.01, 0.01]


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.0}])
def test_the_optimizer_is_torchs(options, tiny, tmp_path):
    recipe = {"name": "digits", "epochs": 2, "batch_size": 16, **options}
    ours, theirs = (assemble(tiny(recipe=recipe).cells, ResultsFolder(tmp_path).grid("tiny"), CPU) for _ in range(2))
    [trainee], [reference] = ours.trainees.values(), theirs.trainees.values()
    optimizer = Optimizer(trainee, ours.device)
    plain = torch.optim.SGD(reference.trained_parameters(), weight_decay=trainee.recipe.weight_decay, fused=True, **options)
    for lr, batch in zip((0.05, 0.013, 0.013), ours.stream(trainee).epoch(0), strict=False):
        optimizer.set_lr(lr)
        plain.param_groups[0]["lr"] = lr
        sum(trainee(batch).values()).backward()
        sum(reference(batch).values()).backward()
        optimizer.step()
        plain.step()
        plain.zero_grad()
    states = trainee.core.state_dict(), reference.core.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    saved = optimizer.state_dict()
    assert json.dumps(saved["param_groups"]) == json.dumps(plain.state_dict()["param_groups"])
