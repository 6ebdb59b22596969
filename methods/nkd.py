"""Normalized knowledge distillation: the teacher's confidence in the label, and its distribution over the other classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Output
from methods.composition import ByRow
from methods.parts import split_target, widened


@METHODS.register_module("nkd")
class NormalizedKnowledgeDistillation(ByRow):
    """Yang et al., beside CE: the mean over the batch of

        weight * ( -p_t(label) log p_s(label) - gamma T^2 * sum over other classes of q_t log q_s )

    with p the probabilities and q those over the other classes alone, of logits divided by T.

    Args:
        gamma: factor on the other classes' part, at least 0; published 1.5.
        temperature: T, above 0, for the other classes' part alone; published 1.
        weight: factor on both parts, at least 0.
    """

    card = Card(
        title="Normalized knowledge distillation",
        formula="CE + weight (-p_t(y) log p_s(y) - gamma T^2 sum_{i != y} q_t,i log q_s,i)",
        paper="Yang et al. From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss "
        "and Customized Soft Labels. ICCV 2023. arXiv:2303.13005",
        source="yzd-v/cls_KD",
        deviations="none; before October 2023 the public code's mask left the label among the other classes",
    )
    presets = {"cifar100": {"gamma": 3.5, "temperature": 3.0}}
    needs_hard_labels = True

    def __init__(self, gamma: float = 1.5, temperature: float = 1.0, weight: float = 1.0) -> None:
        super().__init__()
        self.gamma, self.temperature, self.weight = gamma, temperature, weight

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        label, others = self._parts(student.logits, teacher.logits.detach(), batch.target)
        nkd = self.weight * (label.mean() + self.gamma * self.temperature**2 * others.mean())
        return {"nkd": nkd}

    def by_row(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        label, others = self._parts(student, teacher, batch.target)
        return self.weight * (label + self.gamma * self.temperature**2 * others)

    def _parts(self, student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The label's part and the other classes', (B,) each."""
        z_s, z_t = widened(student), widened(teacher)
        log_p_s, _ = split_target(F.log_softmax(z_s, dim=1), target)
        p_t, _ = split_target(F.softmax(z_t, dim=1), target)
        log_q_s = F.log_softmax(split_target(z_s, target)[1] / self.temperature, dim=1)
        q_t = F.softmax(split_target(z_t, target)[1] / self.temperature, dim=1)
        return -(p_t * log_p_s).squeeze(1), -(q_t * log_q_s).sum(1)
