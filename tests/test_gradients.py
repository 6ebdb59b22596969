"""Gradients along a training: what the hook measures is true, and the training stays what it is without."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from test_engine import CPU, InterruptedTrainingError, dying_after, folder_of, train_all
from torch import Tensor, nn

from bench.engine.assemble import Assembly, assemble
from bench.engine.gradients import GradientShares, _sizes
from bench.engine.train import train
from bench.records.folders import GridFolder
from bench.records.record import Record
from methods.base import Batch

HOOKED = replace(CPU, hooks=(GradientShares.__name__,))
RECIPE = {"name": "digits", "epochs": 3, "batch_size": 16}  # 40 images: batches of 16, 16 and 8
TOGETHER = ["tfd", {"crd": {"negatives": 16}}]  # crd draws random numbers, and keeps a memory


def rows_of(folder: GridFolder, cell_id: str) -> pd.DataFrame:
    """What the curves hold of gradients."""
    cell = folder.cell(cell_id)
    curves = pd.read_csv(io.StringIO(cell.curves(cell.finished_record())))
    return curves.filter(regex="^(gradient|cosine)")


def test_norms_and_angles_by_hand() -> None:
    weights = [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)]
    x, y, frozen = weights
    terms = {"ce": 3 * x + 4 * y + frozen, "along": 6 * x + 8 * y, "across": 4 * x - 3 * y, "constant": torch.zeros(())}
    found = _sizes({name: term.sum() for name, term in terms.items()}, weights)
    assert found == {
        "gradient": pytest.approx(250**0.5),  # of (3 + 6 + 4, 4 + 8 - 3)
        **{"gradient_ce": 5, "gradient_along": 10, "gradient_across": 5, "gradient_constant": 0},
        **{"cosine_along": 1, "cosine_across": 0},
    }


class FromScratch:
    """Terms of `tfd+kd` as their papers write them, in float64, on networks and images that a training begins with."""

    def __init__(self, assembly: Assembly) -> None:
        [trainee] = assembly.trainees.values()
        assert trainee.teacher is not None
        self.student = copy.deepcopy(trainee.student).double().train()
        self.teacher = copy.deepcopy(trainee.teacher.network).double().eval()
        self.batches = list(assembly.stream(trainee).epoch(0))

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        image = batch.image.double()
        output = self.student(image)
        with torch.no_grad():
            taught = F.softmax(self.teacher(image).logits / 4, dim=1)
        log_p = F.log_softmax(output.logits / 4, dim=1)
        terms = {
            "ce": 0.1 * F.cross_entropy(output.logits, batch.target),
            "kd": 0.9 * 16 * (taught * (taught.log() - log_p)).sum(dim=1).mean(),
            "tfd": torch.zeros((), dtype=torch.float64),
        }
        first, second, third = output.stages
        for shallow, deep in ((first, second), (first, third), (second, third)):
            pooled = F.avg_pool2d(shallow, shallow.shape[2] // deep.shape[2])
            terms["tfd"] = terms["tfd"] + 0.005 / 3 * (pooled - deep[:, : pooled.shape[1]].detach()).square().mean()
        parameters, options = list(self.student.parameters()), {"retain_graph": True, "allow_unused": True}
        found = {name: torch.autograd.grad(term, parameters, materialize_grads=True, **options) for name, term in terms.items()}
        return {name: torch.cat([part.flatten() for part in parts]) for name, parts in found.items()}


def test_the_first_row_is_what_the_formulas_give(tiny, tmp_path: Path) -> None:
    grid = tiny(methods=["tfd+kd"], recipe=RECIPE, pairs=[{"student": "resnet14", "teacher": "resnet8"}], precision="fp32")
    *_, record = train_all(grid, tmp_path, HOOKED)
    scratch = FromScratch(assemble([record.cell], folder_of(grid, tmp_path), CPU))
    expected: dict[str, list[Tensor]] = {}
    for batch in scratch.batches:
        parts = scratch.gradients(batch)
        values = {"gradient": sum(parts.values(), torch.zeros(())).norm()}
        values |= {f"gradient_{name}": part.norm() for name, part in parts.items()}
        values |= {f"cosine_{name}": F.cosine_similarity(parts[name], parts["ce"], dim=0) for name in ("kd", "tfd")}
        for name, value in values.items():
            expected.setdefault(name, []).append(value)
    found = rows_of(folder_of(grid, tmp_path), record.id).iloc[0].to_dict()
    assert found == pytest.approx({name: float(torch.stack(values).mean()) for name, values in expected.items()}, rel=1e-4)


def what_came_out(record: Record) -> tuple[object, ...]:
    return record.weights_sha256, record.correct_sha256, record.accuracies


@pytest.mark.parametrize("method", ["dlb", {"crd": {"negatives": 16}}, {"fsp": {"prepare_epochs": 1}}])
def test_the_training_stays_what_it_is(method: object, tiny, tmp_path: Path) -> None:
    grid = tiny(methods=[method], recipe=RECIPE | {"dropout": 0.2, "ema": 0.9, "accumulate": 2})
    without, hooked = (train_all(grid, tmp_path / name, options) for name, options in (("a", CPU), ("b", HOOKED)))
    assert [what_came_out(record) for record in hooked] == [what_came_out(record) for record in without]
    assert rows_of(folder_of(grid, tmp_path / "a"), without[-1].id).empty
    assert rows_of(folder_of(grid, tmp_path / "b"), hooked[-1].id)["gradient_ce"].gt(0).sum() == 3


def test_a_resumed_training_and_one_in_lock_step_give_the_same_rows(tiny, tmp_path: Path) -> None:
    grid = tiny(methods=TOGETHER, recipe=RECIPE)
    [alone, broken, together] = (folder_of(grid, tmp_path / name) for name in ("alone", "broken", "together"))
    train_all(grid, tmp_path / "alone", HOOKED)
    students = [cell for cell in grid.cells if cell.id not in grid.cells[-1].waits_for]
    for folder in (broken, together):
        train(grid.cells[:1], folder, HOOKED)
    with dying_after(checkpoints=2), pytest.raises(InterruptedTrainingError):
        train(students[-1:], broken, HOOKED)
    train(students[-1:], broken, HOOKED)
    train(students, together, HOOKED)
    pd.testing.assert_frame_equal(rows_of(broken, students[-1].id), rows_of(alone, students[-1].id))
    for cell in students:
        pd.testing.assert_frame_equal(rows_of(together, cell.id), rows_of(alone, cell.id))
