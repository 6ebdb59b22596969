"""Steps of every method, and of recipes that change what a step does, for tests of how steps are run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from bench.engine.assemble import Assembly, assemble, untrained_teacher
from bench.plan.specs import arguments_of
from bench.records.folders import ResultsFolder
from bench.records.options import Options
from methods import METHODS

FAST = {"crd": {"negatives": 16}}
OTHER_FAMILY = [{"student": "wrn_16_1", "teacher": "resnet8x4"}]


@dataclass(frozen=True)
class Case:
    """What is recorded."""

    methods: tuple[Any, ...]
    preparing: bool = False
    recipe: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)  # of the grid


def spec(key: str) -> dict[str, Any]:
    method = METHODS.get(key)
    short = {"prepare_epochs": 1} if "prepare_epochs" in arguments_of(method) else {}
    return {key: {**method.example, **FAST.get(key, {}), **short}}


def prepares(key: str) -> bool:
    ((_, arguments),) = spec(key).items()
    return METHODS.build({"type": key, **arguments}).prepare_epochs > 0


CASES = {key: Case((spec(key),)) for key in sorted(METHODS.module_dict)}
CASES |= {f"{key}, preparation": Case((spec(key),), preparing=True) for key in CASES if prepares(key)}
CASES |= {
    "tfd+crd": Case(({"sum": {"parts": [{"type": "tfd"}, {"type": "crd", "negatives": 16}]}},)),
    "tfd+ls": Case(("tfd+ls",)),
    "logit_std around dkd": Case(({"logit_std": {"preset": "dkd"}},)),
    "kd, another family": Case(("kd",), changes={"pairs": OTHER_FAMILY}),
    "at, another family": Case(("at",), changes={"pairs": OTHER_FAMILY}),
    "dropout": Case(("none",), recipe={"dropout": 0.3}),
    "nesterov": Case(("none",), recipe={"nesterov": True}),
    "adamw": Case(("tfd",), recipe={"optimizer": "adamw", "decay_all": False, "clip_grad_norm": 1.0}),
    "parts of a batch": Case(("kd", "tfd"), recipe={"accumulate": 2}),
    "drop path": Case(("tfd",), recipe={"drop_path": 0.3}),
    "momentum 0": Case(("none",), recipe={"momentum": 0.0}),
    "mixup": Case(("tfd",), recipe={"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1}),
    "ema, dropout, clipping": Case(("tfd",), recipe={"ema": 0.9, "dropout": 0.2, "clip_grad_norm": 1.0}),
    "kd in bf16": Case(("kd",), changes={"precision": "bf16"}),
    "tfd in bf16": Case(("tfd",), changes={"precision": "bf16"}),
    "one teacher for four": Case(("none", "kd", "at", "tfd")),
}


def assembled(case: Case, tiny: Any, folder: Any, device: str = "cpu") -> Assembly:
    """The students of a case; equal at each call."""
    changes = {"pairs": [{"student": "resnet8", "teacher": "resnet14"}], "precision": "fp32", **case.changes}
    recipe = {"name": "digits", "epochs": 10, "batch_size": 16, **case.recipe}
    ((pair),) = changes["pairs"]
    grid = tiny(methods=[*case.methods], recipe=recipe, **changes)
    teachers = {cell.teacher.cell for cell in grid.cells if cell.teacher}
    cells = [cell for cell in grid.cells if cell.student["type"] == pair["student"] and cell.id not in teachers]
    torch.manual_seed(0)  # of the untrained teacher
    return assemble(cells, ResultsFolder(folder).grid("tiny"), Options(device=device, threads=1), untrained_teacher)
