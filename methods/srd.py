"""A simple recipe: a linear projector, batch norm on both embeddings, and the logarithm of their distance."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Output, TeacherMethod
from methods.parts import softened_kl, widened

EPSILON = 1e-4


def whitened(embedding: Tensor) -> Tensor:
    """(B, D), each number less its mean over the batch, over its standard deviation there: batch norm without weights."""
    return F.batch_norm(widened(embedding), None, None, training=True, eps=EPSILON)


@METHODS.register_module("srd")
class SimpleRecipeDistillation(TeacherMethod):
    """Miles, Mikolajczyk, beside CE:

        "srd": weight * log of the sum over batch and numbers of |BN(W e_s + b) - BN(e_t)|^exponent
        "kd":  kd_weight * KL(softmax(z_t) || softmax(z_s))

    e are the embeddings; W e + b is a linear projector, trained. Both batch norms use the batch's statistics and no weights.

    Args:
        weight: factor on the logarithm, 0 or more.
        kd_weight: factor on the divergence of the logits, 0 or more.
        exponent: above 0.
    """

    card = Card(
        title="Simple recipe distillation",
        formula="CE + weight log sum |BN(W e_s + b) - BN(e_t)|^exponent + kd_weight KL(softmax(z_t) || softmax(z_s))",
        paper="Miles, Mikolajczyk. Understanding the Role of the Projector in Knowledge Distillation. AAAI 2024. "
        "arXiv:2303.11098",
        source="roymiles/Simple-Recipe-Distillation, torchdistill",
        deviations="the form of torchdistill; the projector is not orthogonal: that is the authors' next method, VkD",
        train_only="one linear layer",
    )

    def __init__(self, weight: float = 2.0, kd_weight: float = 1.0, exponent: float = 4.0) -> None:
        super().__init__()
        self.weight, self.kd_weight, self.exponent = weight, kd_weight, exponent

    def setup(self, context: Context) -> None:
        teacher = context.require_teacher()
        self.projector = nn.Linear(context.student.embedding.shape[1], teacher.embedding.shape[1])

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        difference = whitened(self.projector(student.embedding)) - whitened(teacher.embedding.detach())
        return {
            "srd": self.weight * difference.abs().pow(self.exponent).sum().log(),
            "kd": self.kd_weight * softened_kl(student.logits, teacher.logits.detach(), 1.0),
        }
