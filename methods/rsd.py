"""Redundancy suppression: each number of the student's embedding correlates with its counterpart of the teacher's alone."""

from __future__ import annotations

from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Output, TeacherMethod
from methods.parts import gram, widened


def standardized_columns(embedding: Tensor) -> Tensor:
    """(B, D), each number less its mean over the batch, over its (biased) standard deviation there + 1e-5."""
    embedding = widened(embedding)
    return (embedding - embedding.mean(0)) / (embedding.std(0, unbiased=False) + 1e-5)


@METHODS.register_module("rsd")
class RedundancySuppressionDistillation(TeacherMethod):
    """Zhang et al.: weight * ( sum_i (P_ii - 1)^2 + kappa * sum_{i != j} P_ij^2 ) beside CE.

    P (D, D) correlates the teacher's embedding with h(the student's) over the batch. h is a linear layer, batch norm, GELU and
    another linear layer. It is not deployed.

    Args:
        weight: factor on the term, 0 or more. The term is a sum over D^2 entries.
        kappa: share of what lies off the diagonal, 0 or more.
        expansion: width inside h over that of the student's embedding, 1 or more.
    """

    card = Card(
        title="Redundancy suppression distillation",
        formula="CE + weight (sum_i (P_ii - 1)^2 + kappa sum_{i != j} P_ij^2), P correlating e_t and h(e_s)",
        paper="Zhang, Liu, Ran, Ma. Cross-Architecture Distillation Made Simple with Redundancy Suppression. "
        "ICCV 2025. arXiv:2507.21844",
        source="spacewanderx/RSD",
        deviations="none; P depends on the batch size",
        train_only="h: two linear layers and a batch norm",
    )

    def __init__(self, weight: float = 0.1, kappa: float = 0.01, expansion: int = 2) -> None:
        super().__init__()
        self.weight, self.kappa, self.expansion = weight, kappa, expansion

    def setup(self, context: Context) -> None:
        width, teacher_width = context.student.embedding.shape[1], context.require_teacher().embedding.shape[1]
        inner = self.expansion * width
        layers = (nn.Linear(width, inner, bias=False), nn.Linear(inner, teacher_width, bias=False))
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
        self.projector = nn.Sequential(layers[0], nn.BatchNorm1d(inner), nn.GELU(), layers[1])

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        ours = standardized_columns(self.projector(student.embedding))
        theirs = standardized_columns(teacher.embedding.detach())
        correlation = gram(theirs.mT, ours.mT) / len(ours)
        diagonal = correlation.diagonal()
        apart = correlation.square().sum() - diagonal.square().sum()
        return {"rsd": self.weight * ((diagonal - 1).square().sum() + self.kappa * apart)}
