"""Overhaul of feature distillation: features before the ReLU, without the teacher's irrelevant negative part."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Output, TeacherMethod
from methods.parts import common_stages, pool_to_smaller, widened


def margin(mean: Tensor, deviation: Tensor) -> Tensor:
    """Expected value of a normal variable where it is negative, per channel; -3 deviations where it hardly ever is."""
    mean = mean.double()
    deviation = deviation.double().abs().clamp_min(torch.finfo(torch.float64).tiny)
    ratio = mean / deviation
    negative = torch.special.ndtr(-ratio)  # probability
    expected = mean - deviation * torch.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi) / negative.clamp_min(1e-3)
    return torch.where(negative > 1e-3, expected, -3 * deviation)


def partial_distance(feature_s: Tensor, feature_t: Tensor, margins: Tensor) -> Tensor:
    """Sum per sample, averaged over the batch, of squared differences; none where the student is below a negative target."""
    target = torch.maximum(widened(feature_t), margins[:, None, None])
    error = widened(feature_s) - target
    return torch.where((target > 0) | (error > 0), error.square(), 0).flatten(1).sum(1).mean()


@METHODS.register_module("ofd")
class OverhaulOfFeatureDistillation(TeacherMethod):
    """Heo et al.: weight * sum over stages i = 1 ... L of d(BN(conv(p_s,i)), max(p_t,i, m_i)) / 2^(L-i), beside CE.

    p is a stage's output before its activation, conv is 1x1, and d the partial L2 distance: summed over a sample's elements,
    averaged over the batch, nothing where the target is negative and the student below it. The margin m_i < 0 is, per channel,
    the expected value of the negative responses, from scale and shift of the teacher's last batch norm before p_t,i. Where maps
    differ in size, the larger feature is average-pooled to the smaller. Where networks differ in their number of stages, the
    last common ones are compared.

    Args:
        weight: factor on the sum over stages, 0 or more.

    Raises:
        ValueError: in `setup`, where a compared stage of the teacher has no batch norm to take margins from.
    """

    card = Card(
        title="Overhaul of feature distillation",
        formula="CE + weight sum_i d(BN(conv(p_s,i)), max(p_t,i, m_i)) / 2^(L-i), d partial L2, summed per sample",
        paper="Heo, Kim, Yun, Park, Kwak, Choi. A Comprehensive Overhaul of Feature Distillation. ICCV 2019. arXiv:1904.01866",
        source="clovaai/overhaul-distillation, mdistiller",
        deviations="a larger student map is pooled, where mdistiller enlarges the teacher's; without networks (values on given "
        "tensors) margins are those of an untrained batch norm. On a wide resnet public code runs the batch norms of the "
        "features twice a step, so that their momentum is .19; here once",
        train_only="per stage: 1x1 convolution and batch norm",
    )
    presets = {"resnet50/mobilenetv1": {"weight": 1e-4}}  # on ImageNet, with batch 128 and learning rate .05
    needs_maps = True

    def __init__(self, weight: float = 1e-3) -> None:
        super().__init__()
        self.weight = weight

    def setup(self, context: Context) -> None:
        student, teacher = context.student, context.require_teacher()
        pairs = common_stages(student.preact, teacher.preact)
        if context.networks is None:
            norms: list[nn.Module | None] = [nn.BatchNorm2d(t.shape[1]) for _, t in pairs]
        else:
            norms = context.networks.require_teacher().norms[-len(pairs) :]
        self.connectors = nn.ModuleList()
        for i, ((feature_s, feature_t), norm) in enumerate(zip(pairs, norms, strict=True)):
            channels = feature_t.shape[1]
            if norm is None:
                stage = len(teacher.preact) - len(pairs) + i + 1
                raise ValueError(
                    f"ofd takes margins from the teacher's batch norms, and its stage {stage} has none before its end"
                )
            convolution = nn.Conv2d(feature_s.shape[1], channels, 1, bias=False)
            nn.init.normal_(convolution.weight, std=math.sqrt(2 / channels))
            self.connectors.append(nn.Sequential(convolution, nn.BatchNorm2d(channels)))
            assert isinstance(norm, nn.BatchNorm2d)
            margins = margin(norm.bias.detach(), norm.weight.detach())
            self.register_buffer(f"margins_{i}", margins.to(widened(feature_t).dtype))

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        terms = []
        pairs = common_stages(student.preact, teacher.preact)
        for i, (connector, pair) in enumerate(zip(self.connectors, pairs, strict=True)):
            feature_s, feature_t = pool_to_smaller(*pair)
            distance = partial_distance(connector(feature_s), feature_t.detach(), self.get_buffer(f"margins_{i}"))
            terms.append(distance / 2 ** (len(pairs) - i - 1))
        return {"ofd": self.weight * torch.stack(terms).sum()}
