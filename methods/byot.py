"""Be your own teacher: exits at the shallower stages learn from the deepest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Method, Output
from methods.parts import softened_kl, widened


@METHODS.register_module("byot")
class BeYourOwnTeacher(Method):
    """Zhang et al.: every stage but the last gets an exit, a bottleneck and a classifier of its own. Beside CE, sums over them:

        "exits":    ce_weight * sum_i CE(z_i)
        "kd":       weight * T^2 * sum_i KL(softmax(z/T) || softmax(z_i/T))
        "features": feature_weight * sum_i sum over batch and channels where e_i > 0 or e > 0 of (e_i - e)^2

    z_i, e_i are exit i's logits and embedding, z, e the student's own, to which no gradient flows from "kd" and "features".
    The student is the deepest exit: its own cross-entropy, "ce", carries `ce_weight` too.

    Args:
        weight: factor on the divergences, 0 or more; the authors' alpha.
        temperature: T, above 0.
        feature_weight: factor on the squared distances, 0 or more. They are sums, hence grow with the batch.
        ce_weight: factor on all the cross-entropies, 0 or more; 1 - alpha.

    Raises:
        ValueError: in `setup`, for a student of a single stage.
    """

    card = Card(
        title="Be your own teacher",
        formula="ce_weight (CE(z) + sum_i CE(z_i)) + weight T^2 sum_i KL(z || z_i) + feature_weight sum_i |e_i - e|^2",
        paper="Zhang et al. Be Your Own Teacher. ICCV 2019. arXiv:1905.08094",
        source="luanyunteng/pytorch-be-your-own-teacher",
        deviations="the divergence in place of the source's cross-entropy with soft targets, which differs by a constant; "
        "torch's default initialization. No source has a wide resnet; its bare sums are taken",
        train_only="an exit for each stage but the last: bottleneck and classifier",
    )
    needs_maps = True

    exits: nn.ModuleList

    def __init__(
        self, weight: float = 0.1, temperature: float = 3.0, feature_weight: float = 1e-6, ce_weight: float = 0.9
    ) -> None:
        super().__init__()
        self.weight, self.temperature, self.feature_weight, self.ce_weight = weight, temperature, feature_weight, ce_weight

    def setup(self, context: Context) -> None:
        *shallow, deepest = context.student.stages
        if not shallow:
            raise ValueError("byot needs a student of at least two stages")
        width = context.student.embedding.shape[1]
        self.exits = nn.ModuleList(Exit(stage, deepest, width, context.classes) for stage in shallow)

    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        embedding, logits = widened(student.embedding).detach(), student.logits.detach()
        labels, divergences, distances = [], [], []
        for exit_, stage in zip(self.exits, student.stages[:-1], strict=True):
            exit_embedding, exit_logits = exit_(stage)
            labels.append(self.cross_entropy(student._replace(logits=exit_logits), batch))
            divergences.append(softened_kl(exit_logits, logits, self.temperature))
            distances.append(positive_distance(exit_embedding, embedding))
        return {
            "exits": torch.stack(labels).sum(),
            "kd": self.weight * torch.stack(divergences).sum(),
            "features": self.feature_weight * torch.stack(distances).sum(),
        }


def positive_distance(first: Tensor, second: Tensor) -> Tensor:
    """Sum of the squared differences of two (B, D), where at least one is positive."""
    return ((first - second).square() * ((first > 0) | (second > 0))).sum()


class Exit(nn.Module):
    """Feature (B, C, H, W) to embedding (B, width) and logits (B, K), in single precision at least.

    The bottleneck's middle convolution leaps, without overlap, as far as the deeper stages shrink the map.
    """

    def __init__(self, feature: Tensor, deepest: Tensor, width: int, classes: int) -> None:
        super().__init__()
        narrow = max(1, width // 4)
        (h, w), (h_last, w_last) = feature.shape[-2:], deepest.shape[-2:]
        leap = (max(1, h // h_last), max(1, w // w_last))
        self.bottleneck = nn.Sequential(
            *(nn.Conv2d(feature.shape[1], narrow, 1), nn.BatchNorm2d(narrow), nn.ReLU(inplace=True)),
            *(nn.Conv2d(narrow, narrow, leap, stride=leap), nn.BatchNorm2d(narrow), nn.ReLU(inplace=True)),
            *(nn.Conv2d(narrow, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
        )
        self.classifier = nn.Linear(width, classes)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.bottleneck(feature).mean((2, 3))
        return widened(embedding), widened(self.classifier(embedding))
