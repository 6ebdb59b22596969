"""Data-distortion guided self-distillation: two views of an image are predicted alike."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import METHODS, Batch, Card, Needs, Networks, Output, TeacherMethod
from methods.parts import part, softened_kl


@METHODS.register_module("ddgsd")
class DataDistortionSelfDistillation(TeacherMethod):
    """Xu, Liu: a second view of every image, with logits z' and embedding e'. Beside the mean of both views' CE:

        "kd":       weight * T^2 * ( KL(softmax(z'/T) || softmax(z/T)) + KL(softmax(z/T) || softmax(z'/T)) )
        "features": feature_weight * (mean of e - mean of e')^2

    No gradient flows through the first distribution of either divergence. The means are over batch and numbers. Both views take
    one forward pass, hence share batch norm statistics. In `loss` the output for the second views takes the teacher's place.

    Args:
        weight: factor on the divergences, 0 or more.
        temperature: T, above 0.
        feature_weight: factor on the squared difference, 0 or more.
    """

    card = Card(
        title="Data-distortion guided self-distillation",
        formula="mean CE + weight T^2 (KL(z' || z) + KL(z || z')) + feature_weight (mean e - mean e')^2, two views an image",
        paper="Xu, Liu. Data-Distortion Guided Self-Distillation for Deep Neural Networks. AAAI 2019",
        source="winycg/Self-KD-Lib",
        deviations="the public code's scalar difference of means stands for the paper's maximum mean discrepancy",
    )
    needs: Needs = "none"
    partner = "second_view"
    second_output = "the student's output for the second views"

    def __init__(self, weight: float = 1.0, temperature: float = 4.0, feature_weight: float = 5e-4) -> None:
        super().__init__()
        self.weight, self.temperature, self.feature_weight = weight, temperature, feature_weight

    @property
    def changes_cross_entropy(self) -> bool:
        return True

    def step(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        assert batch.partner is not None
        both, size = networks.student(torch.cat((batch.image, batch.partner))), len(batch.image)
        first, second = part(both, slice(size)), part(both, slice(size, None))
        terms = self.loss(first, second, batch)
        return {**terms, "ce": (terms["ce"] + self.cross_entropy(second, batch)) / 2}

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        kl = softened_kl(student.logits, teacher.logits.detach(), self.temperature)
        back = softened_kl(teacher.logits, student.logits.detach(), self.temperature)
        return {
            "kd": self.weight * (kl + back),
            "features": self.feature_weight * (student.embedding.mean() - teacher.embedding.mean()).square(),
        }
