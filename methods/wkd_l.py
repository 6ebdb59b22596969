"""Wasserstein distillation of logits: moving probability between classes that the teacher finds alike costs little."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Context, Networks, Output, TeacherMethod
from methods.parts import split_target, widened

EPSILON = 1e-8
ROWS_AT_ONCE = 16


def class_similarity(features: Tensor) -> Tensor:
    """(K, K) linear centered kernel alignment of classes with features (K, n, D): |X_i^T X_j|^2 / (|X_i^T X_i| |X_j^T X_j|).

    Row r of one class belongs to row r of any other. A class whose rows are all equal is similar to none.
    """
    centered = features - features.mean(1, keepdim=True)
    products = centered.new_zeros(len(features), len(features))
    for rows in centered.split(ROWS_AT_ONCE, dim=1):
        part = (rows @ centered.mT).flatten(1)
        products += part @ part.mT
    norms = products.diagonal().sqrt()
    return products / (norms[:, None] * norms + EPSILON)


def transport(first: Tensor, second: Tensor, cost: Tensor, regularization: float, rounds: int) -> Tensor:
    """(B,) cost of moving each distribution of `first` (B, K) to that of `second`, by Sinkhorn's rounds, cost (K, K).

    Classes of probability 0 on both sides take no part.
    """
    kernel = torch.exp(-cost / regularization)
    there = (first > 0).to(first.dtype)
    u = there / there.sum(1, keepdim=True)
    for _ in range(rounds):
        v = second / (u @ kernel + EPSILON)
        u = first / (v @ kernel.mT + EPSILON)
    return ((u @ (kernel * cost)) * v).sum(1)


@METHODS.register_module("wkd_l")
class WassersteinLogitDistillation(TeacherMethod):
    """Lv et al., beside CE:

        "target": target_weight * mean of -p_t(y) log p_s(y)
        "wkd_l":  weight * decay * mean of W(q_s, q_t)

    q are the probabilities, softened by T, of the classes other than the label y. W is the cost of the entropic transport
    between them: sum of flow * c, c_ij = 1 - exp(-(1 - CKA_ij)), CKA the alignment of the teacher's logits for two classes.

    The preparation shows the teacher every training image once and keeps its logits, 4 N K bytes. The costs follow from them in
    the first step of the training. After a share `decay_start` of the epochs `decay` falls from 1 to 0 as a cosine.

    Args:
        weight: factor on the transport, 0 or more; 800 was published for resnet32x4/resnet8x4.
        target_weight: factor on the label's part, 0 or more; it is not decayed.
        temperature: T, above 0.
        regularization: of the transport, above 0.
        rounds: of Sinkhorn's algorithm, 1 or more.
        decay_start: share of the epochs, in (0, 1]; 1 for no decay.
        prepare_epochs: length of the preparation, 1 or more; one shows the teacher every image.
    """

    card = Card(
        title="Wasserstein distillation of logits (WKD-L)",
        formula="CE - target_weight p_t(y) log p_s(y) + weight decay W(q_s, q_t), costs 1 - exp(-(1 - CKA of classes))",
        paper="Lv, Yang, Li. Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation. NeurIPS 2024. "
        "arXiv:2412.08139",
        source="forks of JiamingLv/WKD",
        deviations="the teacher sees the training's augmented images, not those of the test transform; where classes differ in "
        "size, the first images of each, as many as the smallest has",
        train_only="a table of N x K logits; K x K costs",
    )
    memory_by_sample = True
    needs_hard_labels = True

    logits: Tensor  # (N, K) of the teacher
    rows: Tensor  # (K, n) images of each class, in the order of the training set

    def __init__(
        self,
        weight: float = 800.0,
        target_weight: float = 1.0,
        temperature: float = 8.0,
        regularization: float = 0.05,
        rounds: int = 10,
        decay_start: float = 0.625,
        prepare_epochs: int = 1,
    ) -> None:
        super().__init__()
        self.weight, self.target_weight, self.temperature = weight, target_weight, temperature
        self.regularization, self.rounds, self.decay_start = regularization, rounds, decay_start
        self.prepare_epochs = prepare_epochs
        self._cost: Tensor | None = None  # (K, K), not saved: a resumed training gets the same from the same logits

    def setup(self, context: Context) -> None:
        classes, targets = context.classes, context.targets
        if targets is None:
            targets = torch.arange(classes)
        order = targets.argsort(stable=True)
        sizes = torch.bincount(targets, minlength=classes)
        first = (sizes.cumsum(0) - sizes).unsqueeze(1)
        rows = order[first + torch.arange(int(sizes.min()), device=targets.device)]
        self.register_buffer("logits", torch.zeros(context.samples, classes))
        self.register_buffer("rows", rows, persistent=False)

    def prepare(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        teacher = networks.require_teacher()(batch.image)
        self.logits[batch.index] = teacher.logits.to(self.logits.dtype)
        return {"wkd_l": torch.zeros((), device=teacher.logits.device, requires_grad=True) * 0}  # there is nothing to train

    @property
    def cost(self) -> Tensor:
        """(K, K), from the teacher's logits; the same ones after the first call."""
        if self._cost is None:
            with torch.no_grad():
                apart = 1 - class_similarity(self.logits[self.rows])
                self._cost = F.relu(1 - torch.exp(-apart)) + EPSILON
        return self._cost

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        z_s, z_t = widened(student.logits), widened(teacher.logits.detach())
        log_p_s, _ = split_target(F.log_softmax(z_s, dim=1), batch.target)
        p_t, _ = split_target(F.softmax(z_t, dim=1), batch.target)
        label = F.one_hot(batch.target, z_s.shape[1]).bool()
        with torch.autocast(z_s.device.type, enabled=False):
            q_s, q_t = (F.softmax((z / self.temperature).masked_fill(label, -math.inf), dim=1) for z in (z_s, z_t))
            distance = transport(q_s, q_t, self.cost.to(q_s.dtype), self.regularization, self.rounds).mean()
        return {
            "target": self.target_weight * -(p_t * log_p_s).mean(),
            "wkd_l": self.weight * distance * self.decay(batch),
        }

    def decay(self, batch: Batch) -> Tensor | float:
        """1 up to `decay_start` of the epochs, which are counted from 1, then a cosine to 0."""
        if self.decay_start == 1:
            return 1.0
        start = self.decay_start * batch.epochs
        reached = torch.as_tensor((batch.epoch + 1 - start) / (batch.epochs - start)).clamp(0.0, 1.0)
        return (1 + (math.pi * reached).cos()) / 2
