"""Universal self-distillation: soft labels from the student's own target probability and ranking of classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Method, Output
from methods.parts import widened


@METHODS.register_module("uskd")
class UniversalSelfDistillation(Method):
    """Yang et al.: weight * (alpha * L_target + beta * L_rest + mu * L_weak) beside CE.

    With the probabilities S of the student, W of a linear classifier on the pooled last stage but one, and the label t:

        L_target = -mean P log S_t,                    P = S_t^2 + 1 - mean over the batch of S_t^2
        L_rest   = -mean sum_{k != t} Z_k log(S_k / (1 - S_t)),    Z_k ~ 1 / rank of W_k / (1 - W_t) + S_k / (1 - S_t)
        L_weak   = CE of the classifier, labels smoothed by .1

    The largest class has rank 1; the label takes part in the ranking, and Z is normalized over the others. No gradient flows
    through the soft labels P and Z.

    Args:
        alpha, beta, mu: factors on the three losses, 0 or more.
        weight: factor on their sum, 0 or more.
    """

    card = Card(
        title="Universal self-knowledge distillation",
        formula="CE + weight (alpha L_target + beta L_rest + mu L_weak), L_rest to Zipf's law over the ranks",
        paper="Yang et al. From Knowledge Distillation to Self-Knowledge Distillation. ICCV 2023. arXiv:2303.13005",
        source="authors' code (cls_KD), values of its ImageNet and CIFAR-100 configurations",
        deviations="the ranking is by probabilities, as in the paper; the authors' code by mistake adds log-probabilities. "
        "No source has a wide resnet; its bare sum is taken",
        train_only="a linear classifier",
    )
    presets = {"cifar100": {"alpha": 0.1, "beta": 0.1, "mu": 0.1}}
    needs_hard_labels = True

    classifier: nn.Linear

    def __init__(self, alpha: float = 1.0, beta: float = 0.1, mu: float = 0.005, weight: float = 1.0) -> None:
        super().__init__()
        self.alpha, self.beta, self.mu, self.weight = alpha, beta, mu, weight

    def setup(self, context: Context) -> None:
        self.classifier = nn.Linear(last_but_one(context.student).shape[1], context.classes)

    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        strong = widened(student.logits)
        weak = widened(self.classifier(last_but_one(student).mean((2, 3))))
        losses = (
            self.alpha * target_loss(strong, batch.target)
            + self.beta * rest_loss(strong, weak, batch.target)
            + self.mu * F.cross_entropy(weak, batch.target, label_smoothing=0.1)
        )
        return {"uskd": self.weight * losses}


def last_but_one(student: Output) -> Tensor:
    """The feature (B, C, H, W) of the stage before the last."""
    return (student.stem, *student.stages)[-2]


def target_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (B, K), (B,) weighted by the label's squared probability, moved to a mean of 1."""
    log_probability = F.log_softmax(logits, dim=1).gather(1, target[:, None])
    square = log_probability.detach().exp().square()
    return -((square + 1 - square.mean()) * log_probability).mean()


def rest_loss(strong: Tensor, weak: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy among the classes other than the label, to Zipf's law over the ranks by both logits (B, K)."""
    is_target = F.one_hot(target, strong.shape[1]).bool()
    with torch.no_grad():
        score = among_the_rest(strong, target) + among_the_rest(weak, target)
        rank = 1 + score.argsort(dim=1, descending=True).argsort(dim=1)
        zipf = (1 / rank.to(strong.dtype)).masked_fill(is_target, 0.0)
        zipf /= zipf.sum(1, keepdim=True)
    log_rest = F.log_softmax(strong.masked_fill(is_target, float("-inf")), dim=1).masked_fill(is_target, 0.0)
    return -(zipf * log_rest).sum(1).mean()


def among_the_rest(logits: Tensor, target: Tensor) -> Tensor:
    """softmax(z) / (1 - the label's), (B, K); the divisor has a floor, for labels that are almost certain."""
    probability = F.softmax(logits, dim=1)
    return probability / (1 - probability.gather(1, target[:, None])).clamp(min=1e-6)
