"""Knowledge review: the student's deep stages help its shallow ones to imitate the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Output, TeacherMethod
from methods.parts import common_stages, pool_to, ramp, squared_error, widened

PYRAMID = (4, 2, 1)  # sizes that the hierarchical context loss pools to


def convolution(channels_in: int, channels: int, size: int) -> nn.Sequential:
    """A convolution that keeps the map's size, drawn from the uniform distribution of variance 1 / fan-in, and batch norm."""
    layer = nn.Conv2d(channels_in, channels, size, padding=size // 2, bias=False)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    return nn.Sequential(layer, nn.BatchNorm2d(channels))


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of a student's stage with what came from the deeper ones.

    Args:
        channels_s: of the student's feature.
        channels: in which stages are fused.
        channels_t: of the teacher's feature.
        deepest: whether there is nothing deeper to fuse with.
    """

    def __init__(self, channels_s: int, channels: int, channels_t: int, deepest: bool) -> None:
        super().__init__()
        self.enter = convolution(channels_s, channels, 1)
        self.attention = None if deepest else nn.Sequential(nn.Conv2d(2 * channels, 2, 1), nn.Sigmoid())
        self.leave = convolution(channels, channels_t, 3)

    def forward(self, feature: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """A guess of the teacher's feature, of that size, and the fused feature for the shallower stage."""
        fused = self.enter(feature)
        if self.attention is not None:
            assert deeper is not None
            deeper = resize(deeper, fused.shape[-2:])
            shares = self.attention(torch.cat([fused, deeper], 1))
            fused = fused * shares[:, :1] + deeper * shares[:, 1:]
        fused = resize(fused, size)
        return self.leave(fused), fused


def resize(feature: Tensor, size: torch.Size) -> Tensor:
    """Nearest neighbor; the same tensor where it has that size already."""
    return feature if feature.shape[-2:] == size else F.interpolate(feature, size, mode="nearest")


def context_loss(feature_s: Tensor, feature_t: Tensor) -> Tensor:
    """Hierarchical context loss (HCL): squared error of the maps and of the maps pooled to 4x4, 2x2 and 1x1, averaged.

    The weights are 1 for the maps themselves and 1/2, 1/4, 1/8 for those poolings that make them smaller.
    """
    feature_s, feature_t = widened(feature_s), widened(feature_t)
    total, weight, weights = squared_error(feature_s, feature_t), 1.0, 1.0
    for side in PYRAMID:
        if side < feature_s.shape[-2]:
            weight /= 2
            weights += weight
            total = total + weight * squared_error(pool_to(feature_s, (side, side)), pool_to(feature_t, (side, side)))
    return total / weights


def levels(stages: tuple[Tensor, ...], embedding: Tensor) -> list[Tensor]:
    """The features that take part in the review: the stages and, as a 1x1 map, the embedding."""
    return [*stages, embedding[:, :, None, None]]


@METHODS.register_module("reviewkd")
class KnowledgeReview(TeacherMethod):
    """Chen et al.: weight * ramp * sum over stages and embedding of HCL(ABF(f_s), p_t), beside CE.

    From deep to shallow, attention-based fusion (ABF) joins the student's stage with what the deeper ones have become, enlarges
    it to the teacher's size and predicts the teacher's feature before its activation, p_t, on which the hierarchical context
    loss (HCL) is taken. The embedding is the deepest level, a 1x1 map. Where networks differ in their number of stages, the
    last common ones take part.

    Args:
        weight: factor on the review, 0 or more; published per pair, see the presets (0.6 to 8).
        ramp_epochs: epochs over which it rises linearly to `weight`; 0 for none.
        before_activation: whether the student's stages are taken before their activation too, as published for ImageNet.
        width: channels in which stages are fused; None: those of the embedding, at most 512.
    """

    card = Card(
        title="Knowledge review",
        formula="CE + weight ramp sum_i HCL(ABF(f_s,i ... f_s,L), p_t,i), deep to shallow, embedding included",
        paper="Chen, Liu, Zhao, Jia. Distilling Knowledge via Knowledge Review. CVPR 2021. arXiv:2104.09044",
        source="dvlab-research/ReviewKD, mdistiller",
        deviations="the ramp counts epochs from 1, as in mdistiller, not from 0. The weights were published for the authors' "
        "recipe: batch 128, learning rate .1 (.02 for MobileNet and ShuffleNet), Nesterov's momentum. For MobileNetV1 "
        "mdistiller fuses in 512 channels, the authors in 256",
        train_only="per level: convolutions 1x1 and 3x3 with batch norm, attention 1x1",
    )
    presets = {
        "resnet56/resnet20": {"weight": 0.6},
        "resnet110/resnet32": {"weight": 1.0},
        "resnet32x4/resnet8x4": {"weight": 5.0},
        "wrn_40_2/wrn_16_2": {"weight": 5.0},
        "wrn_40_2/wrn_40_1": {"weight": 5.0},
        "wrn_40_2/shufflenetv1": {"weight": 5.0},
        "resnet32x4/shufflenetv1": {"weight": 5.0},
        "resnet32x4/shufflenetv2": {"weight": 8.0},
        "resnet34/resnet18": {"weight": 1.0, "ramp_epochs": 1, "before_activation": True},
        "resnet50/mobilenetv1": {"weight": 8.0, "ramp_epochs": 1, "before_activation": True, "width": 256},
    }
    added_later = ("before_activation", "width")
    needs_maps = True

    def __init__(
        self, weight: float = 1.0, ramp_epochs: int = 20, before_activation: bool = False, width: int | None = None
    ) -> None:
        super().__init__()
        self.weight, self.ramp_epochs, self.before_activation, self.width = weight, ramp_epochs, before_activation, width

    def setup(self, context: Context) -> None:
        pairs = self._levels(context.student, context.require_teacher())
        channels = self.width or min(512, context.student.embedding.shape[1])
        self.fusions = nn.ModuleList(
            Fusion(s.shape[1], channels, t.shape[1], deepest=i == len(pairs) - 1) for i, (s, t) in enumerate(pairs)
        )

    def _levels(self, student: Output, teacher: Output) -> list[tuple[Tensor, Tensor]]:
        """What is compared: pairs of the student's and the teacher's features, shallow to deep."""
        features = student.preact if self.before_activation else student.stages
        return common_stages(levels(features, student.embedding), levels(teacher.preact, teacher.embedding))

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        pairs, terms, deeper = self._levels(student, teacher), [], None
        for fusion, (feature_s, feature_t) in reversed(list(zip(self.fusions, pairs, strict=True))):
            guess, deeper = fusion(feature_s, deeper, feature_t.shape[-2:])
            terms.append(context_loss(guess, feature_t.detach()))
        reviewkd = self.weight * torch.stack(terms).sum() * ramp(batch, self.ramp_epochs)
        return {"reviewkd": reviewkd}
