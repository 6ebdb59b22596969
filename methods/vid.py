"""Variational information distillation: the student's features predict the teacher's as well as possible."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Output, TeacherMethod
from methods.parts import common_stages, pool_to_smaller, widened

SMALLEST_VARIANCE = 1e-5


class Gaussian(nn.Module):
    """Predicts a teacher feature from a student feature: the mean by three 1x1 convolutions, one variance per channel."""

    def __init__(self, channels_s: int, channels_t: int, variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(channels_s, channels_t, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels_t, channels_t, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels_t, channels_t, 1, bias=False),
        )
        inverse_softplus = math.log(math.expm1(variance - SMALLEST_VARIANCE))
        self.scale = nn.Parameter(torch.full((channels_t,), inverse_softplus))

    def forward(self, feature_s: Tensor, feature_t: Tensor) -> Tensor:
        """Mean negative log-likelihood of the teacher's feature, without its constant."""
        variance = (F.softplus(self.scale) + SMALLEST_VARIANCE)[:, None, None]
        error = widened(self.mean(feature_s)) - widened(feature_t)
        return 0.5 * (error.square() / variance + variance.log()).mean()


@METHODS.register_module("vid")
class VariationalInformation(TeacherMethod):
    """Ahn et al.: weight * sum over stages of the mean of 1/2 [(mu(f_s) - f_t)^2 / var + log var], beside CE.

    mu is three 1x1 convolutions with ReLUs between, var = softplus(parameter) + 1e-5 per channel. Where maps differ in size,
    the larger feature is average-pooled to the smaller. Where networks differ in their number of stages, the last common ones
    are compared.

    Args:
        weight: factor on the sum over stages, 0 or more.
        variance: initial value of var, above 1e-5.
    """

    card = Card(
        title="Variational information distillation",
        formula="CE + weight sum_i mean 1/2 [(mu_i(f_s,i) - f_t,i)^2 / var_i + log var_i]",
        paper="Ahn, Hu, Damianou, Lawrence, Dai. Variational Information Distillation for Knowledge Transfer. CVPR 2019. "
        "arXiv:1904.05835",
        source="RepDistiller",
        train_only="per stage: three 1x1 convolutions and the variances",
    )
    needs_maps = True

    def __init__(self, weight: float = 1.0, variance: float = 5.0) -> None:
        super().__init__()
        self.weight, self.variance = weight, variance

    def setup(self, context: Context) -> None:
        student, teacher = context.student, context.require_teacher()
        pairs = common_stages(student.stages, teacher.stages)
        self.gaussians = nn.ModuleList(Gaussian(s.shape[1], t.shape[1], self.variance) for s, t in pairs)

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        terms = []
        for gaussian, pair in zip(self.gaussians, common_stages(student.stages, teacher.stages), strict=True):
            feature_s, feature_t = pool_to_smaller(*pair)
            terms.append(gaussian(feature_s, feature_t.detach()))
        return {"vid": self.weight * torch.stack(terms).sum()}
