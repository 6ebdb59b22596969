"""Weighted transformed teacher matching: as `ttm`, images on which the teacher is uncertain counting more."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Output, TeacherMethod
from methods.parts import divergence, widened


@METHODS.register_module("wttm")
class WeightedTransformedTeacherMatching(TeacherMethod):
    """Zheng, Yang: weight * mean of U KL(p || softmax(z_s)) beside CE, p = p_t^gamma / U, U = sum_k p_t,k^gamma.

    U is 1 where the teacher is certain and K^(1 - gamma) where it knows nothing.

    Args:
        gamma: exponent of the teacher's probabilities, in (0, 1). Tuned for each pair in the paper.
        weight: factor on the mean, the paper's beta, 0 or more. Tuned for each pair, too.
    """

    card = Card(
        title="Weighted transformed teacher matching",
        formula="CE + weight mean U KL(p || softmax(z_s)), p = p_t^gamma / U, U = sum_k p_t,k^gamma",
        paper="Zheng, Yang. Knowledge Distillation Based on Transformed Teacher Matching. ICLR 2024. arXiv:2402.11148",
        source="zkxufo/TTM",
        deviations="none; gamma and weight have no default there. Its pages give them only for vgg13/vgg8 beside CRD: .2 and 4",
    )
    example = {"gamma": 0.2, "weight": 4.0}

    def __init__(self, gamma: float, weight: float) -> None:
        super().__init__()
        self.gamma, self.weight = gamma, weight

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        log_power = self.gamma * F.log_softmax(widened(teacher.logits.detach()), dim=1)
        log_sum = log_power.logsumexp(1, keepdim=True)
        kl = divergence(F.log_softmax(widened(student.logits), dim=1), log_power - log_sum, by_row=True)
        return {"wttm": self.weight * (log_sum.exp().squeeze(1) * kl).mean()}
