"""`recipe.compile`: what torch.compile makes of the networks takes the same steps, up to rounding."""

from __future__ import annotations

import pytest
import torch

from bench.engine.assemble import assemble, untrained_teacher
from bench.engine.flops import count_flops
from bench.records.folders import ResultsFolder
from bench.records.options import Options

PAIRS = [{"student": "resnet8", "teacher": "resnet14"}]


def assembly_of(tiny, folder, compiled, methods=("tfd", "kd")):
    recipe = {"name": "digits", "epochs": 2, "batch_size": 16, "compile": compiled}
    grid = tiny(methods=list(methods), pairs=PAIRS, recipe=recipe, precision="fp32")
    cells = [cell for cell in grid.cells if cell.student["type"] == "resnet8"]
    torch.manual_seed(0)  # of the untrained teacher
    return assemble(cells, ResultsFolder(folder).grid("tiny"), Options(device="cpu", threads=1), untrained_teacher)


def terms_of(assembly, steps=3):
    step = assembly.step()
    step.train()
    step.set_lr(0.05)
    [stream] = assembly.all_streams()
    for _, batch in zip(range(steps), stream.epoch(0), strict=False):
        step(batch)
    return {cell.label: terms for cell, terms in zip(assembly.cells, step.mean_terms(steps).values(), strict=True)}


@pytest.fixture
def backend(request, monkeypatch):
    """By default what traces and differentiates as torch.compile does, without waiting for a C++ compiler."""
    name = getattr(request, "param", "aot_eager")
    torch.compiler.reset()
    compiled = []

    def compiling(network, **options):
        compiled.append(network)
        return torchs(network, backend=name, **options)

    torchs = torch.compile
    monkeypatch.setattr("bench.engine.trainee.torch.compile", compiling)
    yield compiled
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("backend", "methods", "networks"),
    [
        ("aot_eager", ["tfd", "kd"], 3),  # two students and the teacher that they share, each once
        pytest.param("inductor", ["tfd"], 1, marks=pytest.mark.slow),
    ],
    indirect=["backend"],
)
def test_compiled_networks_take_the_same_steps(tiny, tmp_path, backend, methods, networks):
    assemblies = {compiled: assembly_of(tiny, tmp_path, compiled, methods) for compiled in (False, True)}
    assert len(backend) == networks
    terms = {compiled: terms_of(assembly) for compiled, assembly in assemblies.items()}
    for label, expected in terms[False].items():
        assert terms[True][label] == pytest.approx(expected, rel=1e-4)


def test_a_duplicate_compiles_its_own_student(tiny, tmp_path, backend):
    assembly = assembly_of(tiny, tmp_path, True)
    trainee = next(iter(assembly.trainees.values()))
    copied = trainee.duplicate()
    assert backend[-1] is copied.student is not trainee.student
    plain = assembly_of(tiny, tmp_path, False)
    assert count_flops(assembly, trainee) == count_flops(plain, next(iter(plain.trainees.values())))


def test_a_compiled_training_is_another_cell(tiny):
    recipe = {"name": "digits", "epochs": 2}
    [plain], [off], [on] = (
        tiny(recipe=recipe | more, pairs=[{"student": "resnet8"}]).cells for more in ({}, {"compile": False}, {"compile": True})
    )
    assert plain.id == off.id != on.id
