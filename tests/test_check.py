"""What would fail after a training is met before it, with the user's file and line; and nothing else changes."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from small import results, write_grid

from bench import run
from bench.errors import ExitError, Stopped, UserError, no_exit
from bench.jobs import check
from bench.jobs.debug import Debug
from bench.records.folders import ResultsFolder
from bench.records.options import Options
from run_bench import main

HERE = ["--device", "cpu", "--cluster", "debug"]
CPU = Options(device="cpu", threads=1)
SHORT = {"name": "digits", "epochs": 1}
PLUGIN = """
import os, random, signal
import numpy as np
import torch
from torch import nn
from bench.models import MODELS, Network, Stage
from methods import METHODS, Batch, Card, Method, Output

class Draws(Method):
    card = Card("Test", "-", "-")

@METHODS.register_module("typo")
class Typo(Draws):
    def terms(self, student, batch):
        return {"typo": student.logit.mean()}

@METHODS.register_module("vector")
class Vector(Draws):
    def loss(self, student, teacher, batch):
        return {"ce": student.logits.mean(1)}

@METHODS.register_module("four")
class NeedsFourImages(Draws):
    def terms(self, student, batch):
        return {"four": student.embedding.topk(4, dim=0).values.mean()}

@METHODS.register_module("draws")
class DrawsFromEveryGenerator(Draws):
    draws_random = True

    def terms(self, student, batch):
        return {"draws": student.logits.mean() * (random.random() + np.random.rand() + torch.rand(()))}

@METHODS.register_module("deadly")
class Deadly(Draws):
    def terms(self, student, batch):
        os.kill(os.getpid(), signal.SIGKILL)

def three(classes, channels, first, second, kind=Network):
    blocks = [Stage(nn.Sequential(each), nn.ReLU()) for each in (first, second)]
    return kind(nn.Conv2d(channels, 8, 3), blocks, nn.Linear(8, classes), [None, None])

@MODELS.register_module()
def tied(classes: int, channels: int = 3) -> Network:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    return three(classes, channels, shared, shared)

class Tokens(Network):
    def forward(self, image):
        output = super().forward(image)
        return output._replace(stages=tuple(stage[0] for stage in output.stages))

@MODELS.register_module()
def tokens(classes: int, channels: int = 3) -> Network:
    return three(classes, channels, nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), Tokens)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("plugin") / "of_a_user.py"
    file.write_text(PLUGIN)
    return str(file)


def asked(grid: str, tmp_path: Path, plugin: str) -> list[str]:
    return [grid, "--results", str(tmp_path / "results"), "--import", plugin, *HERE]


def at(plugin: str, text: str, place: int = 1) -> str:
    """'file:line' of the first, or a later, line of the plug-in that contains a text."""
    lines = [number for number, line in enumerate(PLUGIN.splitlines(), 1) if text in line]
    return f"{plugin}:{lines[place - 1]}"


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_check_names_what_fails_with_file_and_line(tmp_path: Path, plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [{"student": "resnet8", "teacher": "resnet8x4"}, {"student": "tied"}]
    grid = write_grid(tmp_path, pairs=pairs, methods=["none", "kd", "typo", "vector", "four"], recipe=SHORT, seeds=[0, 1])
    assert main(["check", *asked(grid, tmp_path, plugin)]) == 1
    found = printed(capsys)
    assert "failed typo on resnet8: step: AttributeError: 'Output' object has no attribute 'logit'" in found
    assert f"({at(plugin, 'student.logit.mean')})" in found
    assert "vector on resnet8: step: a method returns a dict of its terms by name, each a real tensor of shape ()" in found
    assert "none on tied: weights: blocks.0.body.0.weight and blocks.1.body.0.weight are one tensor (tied weights)" in found
    assert f"({at(plugin, '@MODELS')})" in found
    assert "four on resnet8:" not in found  # tried again on a batch of the recipe's size
    assert "10 of 10 tried out" in found  # once for both seeds, the teacher among them
    assert not list((tmp_path / "results").glob("small/*/"))  # nothing was trained, nothing counts as failed

    assert main(["check", *asked(grid, tmp_path, plugin)]) == 1
    assert "4 have results, or passed before" in printed(capsys)


def test_a_plan_names_outputs_of_another_shape(tmp_path: Path, plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path, pairs=[{"student": "tokens"}], methods=["none"])
    assert main(["check", *asked(grid, tmp_path, plugin)]) == 2
    error = capsys.readouterr().err
    assert "pairs[0].student: stages[0]: a tensor of shape (8, 4, 4)" in error
    assert f"({at(plugin, '@MODELS', 2)})" in error


def test_run_trains_what_passes_and_names_the_rest_at_once(
    tmp_path: Path, plugin: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = write_grid(tmp_path, methods=["none", "typo"], recipe=SHORT)
    assert main(["run", *asked(grid, tmp_path, plugin), "--no-cost", "--no-report"]) == 1
    found = printed(capsys)
    assert (
        f"check: step: AttributeError: 'Output' object has no attribute 'logit' ({at(plugin, 'student.logit.mean')})" in found
    )
    assert "1 of 2 done, 1 failed" in found
    assert main(["logs", "typo", "--results", str(tmp_path / "results")]) == 0
    assert "in terms" in capsys.readouterr().out

    def never(*_: object) -> None:
        raise AssertionError("tried again")

    monkeypatch.setattr("bench.engine.trial.Trials.try_out", never)  # what has a record is not tried
    assert (
        main(
            [
                "run",
                *asked(grid, tmp_path, plugin),
                "--no-cost",
                "--no-report",
                "--set",
                "seeds=[0, 1]",
                "--set",
                "methods=[none]",
            ]
        )
        == 0
    )


def test_weights_are_the_same_with_and_without_it(tmp_path: Path, plugin: str) -> None:
    grid = write_grid(tmp_path, methods=["kd", "crd", "draws"], recipe=SHORT)
    found = []
    for name, options in (("with", CPU), ("without", Options(device="cpu", threads=1, check=False))):
        import random

        import numpy as np

        random.seed(1)
        np.random.seed(1)
        options = Options.of(vars(options) | {"imports": (plugin,)})
        assert run.run(grid, tmp_path / name, options=options, backend=Debug(threads=1), costs=False).complete
        found.append({key: record["weights_sha256"] for key, record in results(tmp_path / name).items()})
    assert len(found[0]) == 4
    assert found[0] == found[1]


def test_it_is_bounded(tmp_path: Path) -> None:
    grid, folder = run.plan(write_grid(tmp_path), tmp_path / "results", options=CPU)
    assert check.check(grid.cells, folder, CPU, budget_s=0) == {}
    assert len(check.check(grid.cells, folder, CPU, budget_s=60)) == len(grid.cells)


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_missing_visualizer_is_met_before_anything_is_trained(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ImportError("Please install tensorboard")

    monkeypatch.setattr("mmengine.visualization.vis_backend.TensorboardVisBackend._init_env", fails)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    options = Options(device="cpu", threads=1, visualize=(name,))
    with pytest.raises(UserError, match=rf"--visualize {name}: "):
        run.run(write_grid(tmp_path), tmp_path / "results", options=options, backend=Debug(), costs=False)
    assert ResultsFolder(tmp_path / "results").grids() == []


@pytest.mark.slow
def test_a_method_that_kills_its_worker_is_named(tmp_path: Path, plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path, methods=["none", "deadly"])
    arguments = [grid, "--results", str(tmp_path / "results"), "--import", plugin, "--device", "cpu"]
    assert main(["check", *arguments]) == 1  # in a worker of its own
    assert "deadly on resnet8: its process died" in printed(capsys)


@pytest.mark.slow
def test_a_worker_that_cannot_start_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "at_home.py").write_text(
        "import sys\nif 'submitit' in sys.argv[0]:\n    raise OSError('works at home alone')\n"
    )
    arguments = [write_grid(tmp_path, methods=["none"]), "--results", str(tmp_path / "results"), "--device", "cpu"]
    assert main(["check", *arguments, "--import", str(tmp_path / "at_home.py")]) == 2
    assert "no worker could be started: " in (error := capsys.readouterr().err)
    assert "works at home alone" in error


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit(0)", "ExitError: it calls sys.exit(0)"),
        ("raise ValueError('a\\nb')", "ValueError: a b ("),
        ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E", "plug.py: E ("),
    ],
)
def test_a_plug_in_that_ends_everything_is_named_in_a_line(tmp_path, capsys, code, message):
    (tmp_path / "plug.py").write_text(code)
    assert main(["list", "methods", "--import", str(tmp_path / "plug.py")]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_a_plug_in_is_a_regular_file(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.py")
    assert main(["list", "methods", "--import", str(tmp_path / "pipe.py")]) == 2
    assert "pipe.py: not a regular file" in capsys.readouterr().err


def test_a_method_that_exits_is_a_finding():
    with pytest.raises(ExitError, match=r"it calls sys\.exit\(3\)"), no_exit():
        sys.exit(3)
    with pytest.raises(Stopped), no_exit():
        raise Stopped(143)
