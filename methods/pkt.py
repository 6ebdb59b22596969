"""Probabilistic knowledge transfer: samples of a batch are close to each other as they are for the teacher."""

from __future__ import annotations

from torch import Tensor

from methods.base import METHODS, Batch, Card, Output, TeacherMethod
from methods.parts import gram, widened

EPSILON = 1e-7


def neighbors(embedding: Tensor) -> Tensor:
    """(B, D) to (B, B): cosine similarities mapped to [0, 1], each row divided by its sum."""
    embedding = widened(embedding)
    unit = embedding / (embedding.norm(dim=1, keepdim=True) + EPSILON)
    similarities = (gram(unit, unit) + 1) / 2
    return similarities / similarities.sum(1, keepdim=True)


@METHODS.register_module("pkt")
class ProbabilisticKnowledgeTransfer(TeacherMethod):
    """Passalis & Tefas: weight * mean over pairs of P_t log(P_t / P_s), P the row-normalized similarities of the pooled
    embeddings, beside CE. Needs no adapter.

    Args:
        weight: factor on the term, at least 0.
    """

    card = Card(
        title="Probabilistic knowledge transfer",
        formula="CE + weight mean_ij P_t log((P_t + eps) / (P_s + eps)), P = row-normalized (cos(p_i, p_j) + 1) / 2, eps 1e-7",
        paper="Passalis, Tefas. Learning Deep Representations with Probabilistic Knowledge Transfer. ECCV 2018. "
        "arXiv:1803.10837",
        source="RepDistiller",
    )

    def __init__(self, weight: float = 30000.0) -> None:
        super().__init__()
        self.weight = weight

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        p_s, p_t = neighbors(student.embedding), neighbors(teacher.embedding).detach()
        pkt = (p_t * ((p_t + EPSILON) / (p_s + EPSILON)).log()).mean()
        return {"pkt": self.weight * pkt}
