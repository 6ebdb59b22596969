"""Similarity-preserving distillation: images that are alike for the teacher are alike for the student."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Output, TeacherMethod
from methods.parts import gram


def similarities(feature: Tensor) -> Tensor:
    """(B, C, H, W) to (B, B): inner products between the samples' flattened features, each row of L2 norm 1."""
    flat = feature.flatten(1)
    return F.normalize(gram(flat, flat), dim=1)


@METHODS.register_module("sp")
class SimilarityPreserving(TeacherMethod):
    """Tung & Mori: weight * ||G_s - G_t||_F^2 / B^2, G the row-normalized f f^T of the last stage, beside CE.

    Needs no adapter: G is B x B whatever the features' shapes.

    Args:
        weight: factor on the similarity term, 0 or more.
    """

    card = Card(
        title="Similarity-preserving knowledge distillation",
        formula="CE + weight ||G_s - G_t||_F^2 / B^2, G = row-normalized f3 f3^T",
        paper="Tung, Mori. Similarity-Preserving Knowledge Distillation. ICCV 2019. arXiv:1907.09682",
        source="RepDistiller",
    )

    def __init__(self, weight: float = 3000.0) -> None:
        super().__init__()
        self.weight = weight

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        sp = F.mse_loss(similarities(student.stages[-1]), similarities(teacher.stages[-1]).detach())
        return {"sp": self.weight * sp}
