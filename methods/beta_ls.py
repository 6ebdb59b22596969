"""Beta smoothing: labels smoothed by random amounts, less for images of which an averaged student is sure."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Needs, Networks, Output, TeacherMethod
from methods.parts import unwrapped, widened


@METHODS.register_module("beta_ls")
class BetaSmoothing(TeacherMethod):
    """Zhang & Sabuncu: weight * CE(z, b y + (1 - b) (1 - y) / (K - 1)) beside ce_weight * CE(z, y).

    Each image's b is drawn from Beta(beta, 1). The batch's draws are sorted by the probability that a moving average of the
    student gives the label: the surest image gets the largest b. In `loss` the average's output takes
    the teacher's place.

    Before its n-th step (from 0) the average moves to min(1 - 1 / (n + 1), decay) of itself and the student's weights for the
    rest; like the student it normalizes by the batch and keeps running statistics of its own.

    Args:
        weight: factor on the smoothed cross-entropy, 0 or more; the authors' alpha.
        beta: first parameter of the Beta distribution, above 0; its mean is beta / (beta + 1).
        decay: of the moving average, in [0, 1).
        ce_weight: factor on the plain cross-entropy, 0 or more; 1 - alpha.
    """

    card = Card(
        title="Beta smoothing",
        formula="ce_weight CE(z, y) + weight CE(z, b y + (1 - b) (1 - y)/(K - 1)), b ~ Beta(beta, 1) by confidence",
        paper="Zhang, Sabuncu. Self-Distillation as Instance-Specific Label Smoothing. NeurIPS 2020. arXiv:2006.05065",
        source="authors' code (train_smoothing.py)",
        deviations="log p, where the authors take log(p + 1e-8)",
        train_only="an averaged copy of the student, not trained itself",
    )
    needs: Needs = "none"
    second_output = "the averaged student's output"
    draws_random = True
    needs_hard_labels = True

    average: nn.Module | None
    updates: Tensor

    def __init__(self, weight: float = 0.6, beta: float = 3.0, decay: float = 0.999, ce_weight: float = 0.4) -> None:
        super().__init__()
        self.weight, self.beta, self.decay, self.ce_weight = weight, beta, decay, ce_weight
        self.average = None
        self.register_buffer("updates", torch.tensor(0))

    def setup(self, context: Context) -> None:
        if context.networks is not None:
            self.average = copy.deepcopy(unwrapped(context.networks.student)).requires_grad_(False)

    def step(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        assert self.average is not None
        self.follow(unwrapped(networks.student))
        with torch.no_grad():
            average = self.average(batch.image)
        return self.loss(networks.student(batch.image), average, batch)

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """Move the average towards the student."""
        assert self.average is not None
        keep = (1 - 1 / (self.updates + 1)).clamp(max=self.decay)
        for mean, parameter in zip(self.average.parameters(), student.parameters(), strict=True):
            mean.lerp_(parameter, (1 - keep).to(mean.dtype))
        self.updates += 1

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        logits, target = widened(student.logits), batch.target[:, None]
        confidence = F.softmax(widened(teacher.logits).detach(), dim=1).gather(1, target).squeeze(1)
        draws = torch.rand_like(confidence).pow(1 / self.beta).sort().values  # Beta(beta, 1), by its inverse distribution
        right = draws[confidence.argsort().argsort()][:, None]
        wrong = (1 - right) / (logits.shape[1] - 1)
        smoothed = F.cross_entropy(logits, wrong.expand_as(logits).scatter(1, target, right))
        return {"beta_ls": self.weight * smoothed}
