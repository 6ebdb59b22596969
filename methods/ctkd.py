"""Curriculum temperature: the temperature of a method on logits is learned against the student."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Method, Output
from methods.composition import ByRow, Composition


class _Scaled(torch.autograd.Function):
    """A tensor as it is, its gradient multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return (gradient * factor).to(gradient.dtype), None


@METHODS.register_module("ctkd")
class CurriculumTemperature(Composition):
    """Li et al.: the terms of `method` at a temperature tau = start + span * sigmoid(theta), beside that method's CE.

    theta is trained with the student, in the opposite direction: its gradient is multiplied by (cos(pi min(e, E) / E) - 1) / 2,
    e the epoch counted from 1 and E = curriculum_epochs, which falls from 0 to -1. The wrapped method gets z / tau for both
    networks, and its term is multiplied by tau^2; tau's gradient flows through all three.

    Args:
        method: the wrapped method at temperature 1, kd or dkd, as `{"type": key, "temperature": 1.0, **arguments}`.
        start: smallest tau, above 0.
        span: tau lies below start + span, above 0.
        theta: before the first step; with the other defaults tau begins at 15.6.
        curriculum_epochs: E, 1 or more.

    Raises:
        ValueError: `method` is another one, or has a temperature of its own.
    """

    card = Card(
        title="Curriculum temperature (CTKD)",
        formula="CE + tau^2 L(z_s / tau, z_t / tau), tau = start + span sigmoid(theta), theta trained to raise L",
        paper="Li, Li, Yang, Zhao, Song, Luo, Li, Yang. Curriculum Temperature for Knowledge Distillation. AAAI 2023. "
        "arXiv:2211.16231",
        source="zhengli97/CTKD",
        deviations="the global temperature, not the one by image. In four public logs of runs with it tau is 2.00 to 2.03 from "
        "epoch 10 on: it soon lies still",
        train_only="theta, one number; those of the wrapped method",
    )
    presets = {
        "kd": {"method": {"type": "kd", "temperature": 1.0}},
        "dkd": {"method": {"type": "dkd", "temperature": 1.0, "beta": 2.0, "ramp_epochs": 0}},
    }
    example = presets["kd"]

    def __init__(
        self, method: dict[str, Any], start: float = 1.0, span: float = 20.0, theta: float = 1.0, curriculum_epochs: int = 10
    ) -> None:
        super().__init__()
        built = METHODS.build(method)
        if method["type"] not in ("kd", "dkd") or not isinstance(built, ByRow):
            raise ValueError(f"ctkd learns the temperature of kd or dkd, not of '{method['type']}'")
        if getattr(built, "temperature", None) != 1.0:
            raise ValueError(f"ctkd learns the temperature: give the wrapped '{method['type']}' temperature: 1")
        self.method: Method = built
        self.start, self.span, self.curriculum_epochs = start, span, curriculum_epochs
        self.theta = nn.Parameter(torch.tensor(theta))
        self.fold_flags()

    @property
    def members(self) -> dict[str, Method]:
        return {"method": self.method}

    def temperature(self, batch: Batch) -> Tensor:
        """tau, 0-dim."""
        reached = torch.as_tensor((batch.epoch + 1) / self.curriculum_epochs, device=self.theta.device).clamp(max=1.0)
        factor = ((reached * math.pi).cos() - 1) / 2
        return self.start + self.span * _Scaled.apply(self.theta, factor).sigmoid()

    def loss(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        if teacher is None:
            raise ValueError("ctkd compares the student with the teacher's output, and none was given")
        assert isinstance(self.method, ByRow)
        tau = self.temperature(batch)
        rows = self.method.by_row(student.logits / tau, teacher.logits.detach() / tau, batch)
        return {"ce": self.method.cross_entropy(student, batch), "ctkd": tau.square() * rows.mean()}
