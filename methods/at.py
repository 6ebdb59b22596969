"""Attention transfer: the student looks where the teacher looks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Output, TeacherMethod
from methods.parts import attention, common_stages, pool_to_smaller


@METHODS.register_module("at")
class AttentionTransfer(TeacherMethod):
    """Zagoruyko & Komodakis: weight * sum over stages of the mean of (q(f_s) - q(f_t))^2, q the attention map, beside CE.

    The mean is over batch and positions. Where maps differ in size, the larger feature is average-pooled to the smaller.
    Needs no adapter. Where networks differ in their number of stages, the last common ones are compared.

    Args:
        weight: factor on the sum over stages, 0 or more.
    """

    card = Card(
        title="Attention transfer",
        formula="CE + weight sum_i mean (q(f_s,i) - q(f_t,i))^2, q(f) = normalize(flatten(mean over channels of f^2))",
        paper="Zagoruyko, Komodakis. Paying More Attention to Attention. ICLR 2017. arXiv:1612.03928",
        source="RepDistiller",
        deviations="the mean of squares in place of the paper's norm, as in the authors' and RepDistiller's code",
    )
    needs_maps = True

    def __init__(self, weight: float = 1000.0) -> None:
        super().__init__()
        self.weight = weight

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        terms = []
        for pair in common_stages(student.stages, teacher.stages):
            feature_s, feature_t = pool_to_smaller(*pair)
            terms.append(F.mse_loss(attention(feature_s), attention(feature_t).detach()))
        return {"at": self.weight * torch.stack(terms).sum()}
