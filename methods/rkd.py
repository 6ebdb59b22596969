"""Relational knowledge distillation: distances and angles among the samples of a batch are those of the teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Output, TeacherMethod
from methods.parts import gram, widened


def relative_distances(embedding: Tensor) -> Tensor:
    """(B, D) to (B, B): Euclidean distances over the mean of those that are not 0."""
    norms = embedding.square().sum(1)
    squared = norms[:, None] + norms[None, :] - 2 * gram(embedding, embedding)
    # the square root has no gradient at 0: keep away from it, and leave a sample's distance to itself out
    distances = squared.clamp(min=1e-12).sqrt() * ~torch.eye(len(embedding), dtype=torch.bool, device=embedding.device)
    return distances * (distances > 0).sum() / distances.sum()


def angles(embedding: Tensor) -> Tensor:
    """(B, D) to (B, B, B): entry i, j, k is the cosine of the angle at e_i between e_j and e_k; 0 where two coincide."""
    directions = F.normalize(embedding[None, :] - embedding[:, None], dim=2)
    return gram(directions, directions)


@METHODS.register_module("rkd")
class RelationalKnowledgeDistillation(TeacherMethod):
    """Park et al., on the pooled embeddings p, beside CE:

        weight * (distance_weight * smoothL1(distances of p_s, of p_t) + angle_weight * smoothL1(angles of p_s, of p_t))

    with distances relative to their mean. The losses are means over all pairs and triplets of the batch, those of a sample with
    itself included. Needs no adapter.

    Args:
        weight: factor on both parts, at least 0.
        distance_weight: published 25.
        angle_weight: published 50.
    """

    card = Card(
        title="Relational knowledge distillation",
        formula="CE + weight (25 smoothL1(distances / their mean) + 50 smoothL1(angles)), on p",
        paper="Park, Kim, Lu, Cho. Relational Knowledge Distillation. CVPR 2019. arXiv:1904.05068",
        source="RepDistiller",
    )

    def __init__(self, weight: float = 1.0, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        self.weight, self.distance_weight, self.angle_weight = weight, distance_weight, angle_weight

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        p_s, p_t = widened(student.embedding), widened(teacher.embedding).detach()
        distance = F.smooth_l1_loss(relative_distances(p_s), relative_distances(p_t))
        angle = F.smooth_l1_loss(angles(p_s), angles(p_t))
        rkd = self.weight * (self.distance_weight * distance + self.angle_weight * angle)
        return {"rkd": rkd}
