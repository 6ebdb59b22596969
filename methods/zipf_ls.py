"""Zipf's label smoothing: positions of the last map vote, and the other classes' targets fall with their rank."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Method, Networks, Output
from methods.parts import check_mean_embedding, divergence, split_target, widened


@torch.no_grad()
def votes_of(feature: Tensor, classifier: nn.Module) -> Tensor:
    """(B, K) how many positions of a map (B, C, H, W), enlarged to (2 H, 2 W), the classifier assigns to each class."""
    enlarged = F.interpolate(widened(feature), scale_factor=2.0, mode="bilinear")
    classes = classifier(enlarged.flatten(2).mT)
    return (classes.argmax(2, keepdim=True) == torch.arange(classes.shape[2], device=feature.device)).sum(1)


def zipf_targets(votes: Tensor, target: Tensor) -> Tensor:
    """(B, K - 1) of classes other than the label: 1 / rank among all classes, over their sum. Ties share the best rank."""
    ascending = votes.sort(dim=1).values
    rank = 1 + votes.shape[1] - torch.searchsorted(ascending, votes, right=True)
    _, weights = split_target(1 / rank, target)
    return weights / weights.sum(1, keepdim=True)


@METHODS.register_module("zipf_ls")
class ZipfLabelSmoothing(Method):
    """Liang et al.: weight * KL(zipf || softmax over the other classes of z) beside CE, mean over the batch.

    The student's classifier is applied at every position of its last map, enlarged twice; each position votes for its best
    class. A class has rank 1 + the number of classes with more votes, and the target of a class other than the label is
    proportional to 1 / rank. No gradient flows through votes. It takes one pass and no memory.

    Args:
        weight: the authors' lambda, 0 or more.

    Raises:
        ValueError: in `setup`, where the classifier does not work on the mean of the last stage, or there are no networks.
    """

    card = Card(
        title="Zipf's label smoothing",
        formula="CE + weight KL(zipf || softmax(z without label)), zipf ~ 1 / rank by the votes of the last map's positions",
        paper="Liang, Li, Bing, Zhao, Tang, Lin, Fan. Efficient One Pass Self-distillation with Zipf's Label Smoothing. "
        "ECCV 2022. arXiv:2207.12980",
        source="megvii-research/zipfls, its PyTorch code",
        deviations="none at that code's published setting, where the last map alone votes; the MegEngine code has three exits",
    )
    needs_hard_labels = True
    needs_maps = True

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = weight

    def setup(self, context: Context) -> None:
        if context.networks is None:
            raise ValueError("zipf_ls applies the student's classifier to its last map; its setup needs the networks")
        check_mean_embedding(context.student, "zipf_ls", "student")

    def loss(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        raise ValueError("zipf_ls applies the student's classifier to its last map: call `step`")

    def step(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        student = networks.student(batch.image)
        targets = zipf_targets(votes_of(student.activated[-1], networks.student.classifier), batch.target)
        others = F.log_softmax(split_target(widened(student.logits), batch.target)[1], dim=1)
        kl = divergence(others, targets.log().to(others.dtype))
        return {"ce": self.cross_entropy(student, batch), "zipf_ls": self.weight * kl}
