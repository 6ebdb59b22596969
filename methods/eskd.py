"""Early-stopped knowledge distillation: by a teacher stopped early, or only for the first part of the training."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Output, TeacherMethod
from methods.parts import softened_kl


@METHODS.register_module("eskd")
class EarlyStoppedKnowledgeDistillation(TeacherMethod):
    """Cho & Hariharan: kd (weight * T^2 * KL(softmax(z_t / T) || softmax(z_s / T)) beside ce_weight * CE), stopped early.

    Two readings, one preset each: the teacher is stopped early (`early_teacher`), or the distillation is (`early_stop`, the
    default). From then on the student is trained with the cross-entropy alone, at weight 1.

    Args:
        temperature: T, above 0.
        weight: factor on the distillation term.
        ce_weight: factor on the cross-entropy until the stop.
        teacher_epochs_fraction: share of its schedule that the teacher is trained for, in (0, 1].
        stop: share of the student's epochs that have the distillation term, in (0, 1].
    """

    card = Card(
        title="Early-stopped knowledge distillation",
        formula="ce_weight CE + weight T^2 KL(softmax(z_t/T) || softmax(z_s/T)) while epoch < stop epochs, then CE",
        paper="Cho, Hariharan. On the Efficacy of Knowledge Distillation. ICCV 2019. arXiv:1910.01348",
        deviations="the paper's stopping epochs vary by network and data set; the shares here are ours. The teacher still "
        "runs after the stop, so that a step costs the same throughout.",
    )
    presets = {
        "early_teacher": {"teacher_epochs_fraction": 0.35, "stop": 1.0},
        "early_stop": {"teacher_epochs_fraction": 1.0, "stop": 0.65},
    }

    version = 2  # the cross-entropy has weight 1 after the stop

    def __init__(
        self,
        temperature: float = 4.0,
        weight: float = 0.9,
        ce_weight: float = 0.1,
        teacher_epochs_fraction: float = 1.0,
        stop: float = 0.65,
    ) -> None:
        super().__init__()
        self.temperature, self.weight, self.ce_weight = temperature, weight, ce_weight
        self.teacher_epochs_fraction, self.stop = teacher_epochs_fraction, stop

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        kd = softened_kl(student.logits, teacher.logits.detach(), self.temperature)
        return {"eskd": self.weight * kd * self._distills(batch)}

    def cross_entropy(self, student: Output, batch: Batch) -> Tensor:
        cross_entropy = F.cross_entropy(student.logits, batch.target if batch.soft is None else batch.soft)
        distills = self._distills(batch)
        return self.ce_weight * cross_entropy * distills + cross_entropy * ~distills

    def _distills(self, batch: Batch) -> Tensor:
        """Whether the stop is still to come."""
        return torch.as_tensor(batch.epoch < math.ceil(self.stop * batch.epochs))  # two integers: exact, also as a tensor
