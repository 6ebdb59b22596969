"""Transformed teacher matching: the student, at temperature 1, matches a power of the teacher's probabilities."""

from __future__ import annotations

from torch import Tensor

from methods.base import METHODS, Batch, Card, Output, TeacherMethod
from methods.parts import softened_kl


@METHODS.register_module("ttm")
class TransformedTeacherMatching(TeacherMethod):
    """Zheng, Yang: weight * mean KL(p || softmax(z_s)) beside CE, p = p_t^gamma / sum_k p_t,k^gamma.

    p is the teacher's softmax at temperature 1 / gamma. The student's has temperature 1, and there is no factor T^2.

    Args:
        gamma: exponent of the teacher's probabilities, above 0; below 1 flattens them. Tuned for each pair in the paper.
        weight: factor on the divergence, the paper's beta, 0 or more. Tuned for each pair, too.
    """

    card = Card(
        title="Transformed teacher matching",
        formula="CE + weight KL(p || softmax(z_s)), p = p_t^gamma / sum_k p_t,k^gamma",
        paper="Zheng, Yang. Knowledge Distillation Based on Transformed Teacher Matching. ICLR 2024. arXiv:2402.11148",
        source="zkxufo/TTM",
        deviations="none; gamma and weight have no default there, and its pages give those of one pair alone, see the preset",
    )
    presets = {"vgg13/vgg8": {"gamma": 0.1, "weight": 45.0}}
    example = presets["vgg13/vgg8"]

    def __init__(self, gamma: float, weight: float) -> None:
        super().__init__()
        self.gamma, self.weight = gamma, weight

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        kl = softened_kl(student.logits, self.gamma * teacher.logits.detach(), 1.0)
        return {"ttm": self.weight * kl}
