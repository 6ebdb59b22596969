"""DIST: the student's probabilities need only correlate with the teacher's, within images and within classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Output, TeacherMethod
from methods.parts import widened


def row_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Mean over rows of Pearson's correlation of two matrices (N, M), with the published 1e-8 added below the line."""
    first, second = first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)
    return ((first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1) + 1e-8)).mean()


@METHODS.register_module("dist")
class DistillationFromAStrongerTeacher(TeacherMethod):
    """Huang et al.: weight * T^2 * (beta * (1 - mean correlation of rows) + gamma * (1 - that of columns)) beside CE.

    The matrices are the softened probabilities (B, K) of student and teacher: a row is an image, a column a class.

    Args:
        beta: factor on the relation between classes, at least 0.
        gamma: factor on the relation within a class, between images, at least 0.
        temperature: T, above 0; 4 on CIFAR, 1 on ImageNet.
        weight: factor on both; 2 stands for the paper's beta = gamma = 2.
    """

    card = Card(
        title="DIST: distillation from a stronger teacher",
        formula="CE + weight T^2 (beta (1 - rho_rows(p_s, p_t)) + gamma (1 - rho_columns(p_s, p_t)))",
        paper="Huang, You, Wang, Qian, Xu. Knowledge Distillation from A Stronger Teacher. NeurIPS 2022. arXiv:2205.10536",
        source="hunto/DIST_KD, and the factor T^2 from hunto/image_classification_sota",
    )
    presets = {"imagenet": {"temperature": 1.0}}

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 4.0, weight: float = 2.0) -> None:
        super().__init__()
        self.beta, self.gamma, self.temperature, self.weight = beta, gamma, temperature, weight

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        p_s = F.softmax(widened(student.logits) / self.temperature, dim=1)
        p_t = F.softmax(widened(teacher.logits).detach() / self.temperature, dim=1)
        between, within = 1 - row_correlation(p_s, p_t), 1 - row_correlation(p_s.T, p_t.T)
        dist = self.weight * self.temperature**2 * (self.beta * between + self.gamma * within)
        return {"dist": dist}
