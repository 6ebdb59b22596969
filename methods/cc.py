"""Correlation congruence: samples of a batch correlate as they do for the teacher."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Output, TeacherMethod
from methods.parts import gram, widened


def gaussian_kernel(embedding: Tensor, gamma: float, order: int) -> Tensor:
    """(B, D) to (B, B): exp(-gamma |x - y|^2) of L2-normalized rows, by its Taylor series in x.y up to x.y^order."""
    unit = F.normalize(widened(embedding), dim=1)
    similarity = gram(unit, unit)
    series = [(2 * gamma) ** power / math.factorial(power) * similarity**power for power in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(series).sum(0)


@METHODS.register_module("cc")
class CorrelationCongruence(TeacherMethod):
    """Peng et al., beside CE, in one of two forms.

    "difference" is what CRD's code has under this name, taken from the authors: weight * mean over i of
    sum_c |d_i,c| |d_i+1,c|, where d = embed_s(p_s) - embed_t(p_t) and the embeddings are linear, both of them trained.

    "kernel" is what the paper writes: weight * mean over pairs of (k(p_s) - k(p_t))^2, k the Gaussian kernel by its Taylor
    series, without any embedding.

    Args:
        weight: factor on the term, at least 0; .02 belongs to "difference".
        form: "difference" or "kernel".
        dim: length of the linear embeddings, 1 or more ("difference").
        gamma: factor in the kernel's exponent, above 0 ("kernel").
        order: order of the Taylor series, in [1, 100] ("kernel").
    """

    card = Card(
        title="Correlation congruence",
        formula="CE + weight mean_i sum_c |d_i||d_{i+1}|, d = embed(p_s) - embed(p_t); or weight mean_ij (k(p_s) - k(p_t))^2",
        paper="Peng et al. Correlation Congruence for Knowledge Distillation. ICCV 2019. arXiv:1904.01802",
        source="RepDistiller; Knowledge-Distillation-Zoo for the kernel",
        deviations="the paper's instance term (KD) is left out, as RepDistiller does: add it with a sum",
        train_only="two linear embeddings, in the form 'difference'",
    )

    def __init__(
        self,
        weight: float = 0.02,
        form: Literal["difference", "kernel"] = "difference",
        dim: int = 128,
        gamma: float = 0.4,
        order: int = 2,
    ) -> None:
        super().__init__()
        self.weight, self.form, self.dim, self.gamma, self.order = weight, form, dim, gamma, order

    def setup(self, context: Context) -> None:
        student, teacher = context.student, context.require_teacher()
        if self.form == "difference":
            self.embed_student = nn.Linear(student.embedding.shape[1], self.dim)
            self.embed_teacher = nn.Linear(teacher.embedding.shape[1], self.dim)

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        p_s, p_t = student.embedding, teacher.embedding.detach()
        if self.form == "difference":
            difference = (widened(self.embed_student(p_s)) - widened(self.embed_teacher(p_t))).abs()
            cc = (difference[:-1] * difference[1:]).sum(1).mean()
        else:
            cc = F.mse_loss(gaussian_kernel(p_s, self.gamma, self.order), gaussian_kernel(p_t, self.gamma, self.order))
        return {"cc": self.weight * cc}
