"""Decoupled knowledge distillation: the label's probability and the others' among themselves, weighted apart."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Output
from methods.composition import ByRow
from methods.parts import divergence, log_binary, ramp, softened_kl, split_target, widened


def target_class_kl(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float, by_row: bool = False
) -> Tensor:
    """T^2 KL between the softened (label, not label) distributions: mean over the batch or, `by_row`, all (B,)."""
    log_student, log_teacher = (
        log_binary(F.log_softmax(widened(logits) / temperature, dim=1), target) for logits in (student_logits, teacher_logits)
    )
    return temperature**2 * divergence(log_student, log_teacher, by_row)


@METHODS.register_module("dkd")
class DecoupledKnowledgeDistillation(ByRow):
    """Zhao et al.: ramp * weight * (alpha * TCKD + beta * NCKD) beside CE.

    TCKD is T^2 KL(b_t || b_s) with b the softened probabilities of (label, any other class); NCKD is
    T^2 KL(q_t || q_s) with q the softened distribution over the classes that are not the label.

    Args:
        alpha: factor on the label's part, at least 0.
        beta: factor on the other classes' part, at least 0; published for each pair, see the presets.
        temperature: T, above 0; 4 on CIFAR, 1 on ImageNet.
        weight: factor on both, at least 0.
        ramp_epochs: epochs over which the weight rises linearly to its value; published 20, 0 for none.
    """

    card = Card(
        title="Decoupled knowledge distillation",
        formula="CE + ramp weight (alpha TCKD + beta NCKD)",
        paper="Zhao, Cui, Song, Qiu, Liang. Decoupled Knowledge Distillation. CVPR 2022. arXiv:2203.08679",
        source="mdistiller",
    )
    presets = {
        "imagenet": {"beta": 0.5, "temperature": 1.0, "ramp_epochs": 1},  # published for resnet34/resnet18
        "resnet50/mobilenetv1": {"beta": 2.0, "temperature": 1.0, "ramp_epochs": 1},
        "resnet56/resnet20": {"beta": 2.0},
        "resnet110/resnet32": {"beta": 2.0},
        "resnet32x4/resnet8x4": {"beta": 8.0},
        "wrn_40_2/wrn_16_2": {"beta": 6.0},
        "wrn_40_2/wrn_40_1": {"beta": 6.0},
        "vgg13/vgg8": {"beta": 6.0},
        "vgg13/mobilenetv2": {"beta": 6.0},
        "resnet50/mobilenetv2": {"beta": 8.0},
        "resnet32x4/shufflenetv1": {"beta": 8.0},
        "resnet32x4/shufflenetv2": {"beta": 8.0},
        "wrn_40_2/shufflenetv1": {"beta": 8.0},
    }
    needs_hard_labels = True

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, weight: float = 1.0, ramp_epochs: int = 20
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.weight, self.ramp_epochs = weight, ramp_epochs

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return {"dkd": self._weighted(student.logits, teacher.logits.detach(), batch, by_row=False)}

    def by_row(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return self._weighted(student, teacher, batch, by_row=True)

    def _weighted(self, student: Tensor, teacher: Tensor, batch: Batch, by_row: bool) -> Tensor:
        tckd = target_class_kl(student, teacher, batch.target, self.temperature, by_row)
        others_s, others_t = split_target(student, batch.target)[1], split_target(teacher, batch.target)[1]
        nckd = softened_kl(others_s, others_t, self.temperature, by_row)
        return self.weight * (self.alpha * tckd + self.beta * nckd) * ramp(batch, self.ramp_epochs)
