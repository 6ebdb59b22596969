"""Progressive self-distillation: the student's own predictions of the last epoch refine the targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Context, Method, Output
from methods.parts import widened


@METHODS.register_module("pskd")
class ProgressiveSelfDistillation(Method):
    """Kim et al.: the cross-entropy with the targets (1 - a_t) y + a_t p, p the student's prediction of the last epoch.

    a_t = weight * t / epochs at epoch t, counted from 0: the first epoch knows no predictions and uses none. Predictions are
    kept as probabilities for every training image, 4 N K bytes: 20 MB for CIFAR-100, 5 GB for ImageNet. An image that an epoch
    left out keeps its older prediction.

    Args:
        weight: what a_t rises to, in [0, 1].
    """

    card = Card(
        title="Self-knowledge distillation with progressive refinement of targets",
        formula="CE(z, (1 - a_t) y + a_t p_{t-1}), a_t = weight t / epochs",
        paper="Kim et al. Self-Knowledge Distillation with Progressive Refinement of Targets. ICCV 2021. arXiv:2006.12000",
        source="authors' code",
        deviations="t is counted from 0; the authors' code counts from 1 and puts y for the missing predictions of its first "
        "epoch, so that its a_t is weight / epochs larger from the second epoch on",
        train_only="a table of N x K past predictions",
    )
    memory_by_sample = True
    needs_hard_labels = True

    predictions: Tensor

    def __init__(self, weight: float = 0.8) -> None:
        super().__init__()
        self.weight = weight

    @property
    def changes_cross_entropy(self) -> bool:
        return self.weight != 0.0

    def setup(self, context: Context) -> None:
        # What stands here at first is used only for an image that the first epoch leaves out.
        classes, targets = context.classes, context.targets
        start = torch.full((context.samples, classes), 1 / classes) if targets is None else F.one_hot(targets, classes).float()
        self.register_buffer("predictions", start)

    def cross_entropy(self, student: Output, batch: Batch) -> Tensor:
        logits = widened(student.logits)
        share = self.weight * torch.as_tensor(batch.epoch, dtype=torch.float64) / batch.epochs  # as exact as Python's
        past = self.predictions[batch.index].to(logits.dtype)
        target = (1 - share) * F.one_hot(batch.target, logits.shape[1]).to(logits.dtype) + share * past
        self.predictions[batch.index] = F.softmax(logits.detach(), dim=1).to(self.predictions.dtype)
        return F.cross_entropy(logits, target)
