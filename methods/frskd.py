"""Feature refinement: a small pyramid network on the student's own stages is trained beside it and teaches it."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Method, Output
from methods.parts import attention, pool_to, softened_kl, widened


@METHODS.register_module("frskd")
class FeatureRefinement(Method):
    """Ji et al.: a self-teacher makes logits z' and features f'_i of the student's stages f_i. Beside CE:

        "teacher": ce_weight * CE(z')
        "kd":      weight * T^2 * KL(softmax(z'/T) || softmax(z/T))
        "at":      attention_weight * sum over stages of the mean of (q(f_i) - q(f'_i))^2

    q is the L2-normalized, flattened mean over channels of the squares. No gradient flows from "kd" and "at" into the
    self-teacher; its own cross-entropy trains the student's stages too.

    Args:
        weight: factor on the divergence, 0 or more.
        temperature: T, above 0.
        attention_weight: factor on the attention term, 0 or more.
        ce_weight: factor on both cross-entropies, 0 or more.
        width: channels of the self-teacher over those of the student's stages, 1 or more.

    Raises:
        ValueError: in `setup`, for a student of a single stage.
    """

    card = Card(
        title="Feature refinement via self-knowledge distillation",
        formula="CE(z) + CE(z') + weight T^2 KL(z'/T || z/T) + attention_weight sum_i mean (q(f_i) - q(f'_i))^2",
        paper="Ji et al. Refine Myself by Teaching Myself. CVPR 2021. arXiv:2103.08273",
        source="authors' code (BiFPNc, one layer, depth 2)",
        deviations="stages of any ratio of sizes: nearest neighbors up, 3x3 max pooling with that stride down",
        train_only="the self-teacher: a bidirectional feature pyramid and its classifier",
    )

    version = 2  # pools over the windows of the source
    needs_maps = True

    self_teacher: SelfTeacher

    def __init__(
        self,
        weight: float = 2.0,
        temperature: float = 4.0,
        attention_weight: float = 100.0,
        ce_weight: float = 1.0,
        width: int = 2,
    ) -> None:
        super().__init__()
        self.weight, self.temperature, self.attention_weight = weight, temperature, attention_weight
        self.ce_weight, self.width = ce_weight, width

    def setup(self, context: Context) -> None:
        stages = context.student.activated
        if len(stages) < 2:
            raise ValueError("frskd needs a student of at least two stages")
        self.self_teacher = SelfTeacher([stage.shape[1] for stage in stages], self.width, context.classes)

    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        features = student.activated
        refined, logits = self.self_teacher(features)
        distances = [
            F.mse_loss(attention(own), attention(better).detach()) for own, better in zip(features, refined, strict=True)
        ]
        return {
            "teacher": self.cross_entropy(student._replace(logits=logits), batch),
            "kd": self.weight * softened_kl(student.logits, logits.detach(), self.temperature),
            "at": self.attention_weight * torch.stack(distances).sum(),
        }


class SelfTeacher(nn.Module):
    """Stages (B, C_i, H_i, W_i) to refined features (B, width C_i, H_i, W_i) and logits (B, K).

    One layer of a bidirectional feature pyramid (BiFPN): top-down from the deepest stage, then bottom-up, each node a weighted
    mean of its inputs, then separable convolutions.

    Args:
        channels: C_i, shallow to deep, two stages or more.
        width: factor on all of them.
        classes: K.
    """

    def __init__(self, channels: list[int], width: int, classes: int) -> None:
        super().__init__()
        wide = [width * c for c in channels]
        steps = list(itertools.pairwise(wide))
        self.lateral = nn.ModuleList(pointwise(c, w) for c, w in zip(channels, wide, strict=True))
        self.skip = nn.ModuleList(pointwise(c, w) for c, w in zip(channels[1:], wide[1:], strict=True))
        self.up = nn.ModuleList(pointwise(deep, shallow) for shallow, deep in steps)
        self.down = nn.ModuleList(pointwise(shallow, deep) for shallow, deep in steps)
        self.join_up = nn.ModuleList(Join(w, inputs=2) for w in wide[:-1])
        self.join_down = nn.ModuleList([*(Join(w, inputs=3) for w in wide[1:-1]), Join(wide[-1], inputs=2)])
        self.classifier = nn.Linear(wide[-1], classes)

    def forward(self, stages: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        rising = [lateral(stage) for lateral, stage in zip(self.lateral, stages, strict=True)]
        for i in reversed(range(len(stages) - 1)):
            # The 1x1 convolution goes first: the result is the source's, at the price of the smaller map.
            above = F.interpolate(self.up[i](rising[i + 1]), size=stages[i].shape[-2:], mode="nearest")
            rising[i] = self.join_up[i](rising[i], above)

        refined = rising[:1]
        for i, stage in enumerate(stages[1:]):
            between = rising[i + 1 : i + 2] if i < len(stages) - 2 else []  # the deepest stage has no node in between
            below = self.down[i](max_pool_to(refined[-1], stage.shape[-2:]))
            refined.append(self.join_down[i](self.skip[i](stage), *between, below))
        return refined, widened(self.classifier(refined[-1].mean((2, 3))))


class Join(nn.Module):
    """Weighted mean of `inputs` features of one shape (B, C, H, W), two separable convolutions, ReLU.

    Weights are learned, at least 0, and divided by their sum.
    """

    def __init__(self, channels: int, inputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.convolutions = nn.Sequential(*separable(channels), *separable(channels))

    def forward(self, *features: Tensor) -> Tensor:
        weights = self.weights.relu()
        weights = weights / (weights.sum() + 1e-6)
        return self.convolutions(sum(w * feature for w, feature in zip(weights, features, strict=True)))


def pointwise(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())


def separable(channels: int) -> list[nn.Module]:
    """3x3 in each channel, 1x1 across channels, batch norm, ReLU."""
    return [
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        *pointwise(channels, channels),
    ]


def max_pool_to(feature: Tensor, size: torch.Size) -> Tensor:
    """Maxima of 3x3 windows as far apart as leads to (B, C, *size); the same tensor where it has that size already.

    The feature, 0 or more, is padded with zeros as the source pads it: where one side gets more, it is the right and the lower.
    So from an even side, windows with a stride of 2 begin at pixels 0, 2, 4 ...
    """
    if feature.shape[-2:] == size:
        return feature
    strides = [-(-now // then) for now, then in zip(feature.shape[-2:], size, strict=True)]
    (top, bottom), (left, right) = (same_padding(*side) for side in zip(feature.shape[-2:], strides, strict=True))
    return pool_to(F.max_pool2d(F.pad(feature, (left, right, top, bottom)), 3, stride=strides), size)


def same_padding(side: int, stride: int) -> tuple[int, int]:
    """Pixels before and after a side, so that windows of 3 pixels, `stride` apart, are as many as side / stride, rounded up."""
    missing = max(0, (-(-side // stride) - 1) * stride - side + 3)
    return missing // 2, missing - missing // 2
