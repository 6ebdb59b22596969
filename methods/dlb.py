"""Self-distillation from the last mini-batch: what was said of an image a step ago is said again of its other view."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import METHODS, Batch, Card, Method, Networks, Output
from methods.parts import softened_kl, widened


@METHODS.register_module("dlb")
class LastMiniBatch(Method):
    """Shen et al.: weight * T^2 * KL(softmax(z'/T) || softmax(z/T)) beside CE, on images that consecutive steps share.

    A step runs the student once, on the previous batch's second views and the present batch's first. z are its logits for
    the former, z' those of the previous step for the same images; no gradient flows through z'. "ce" is the mean over both
    halves. The present batch's second views, labels and logits are then remembered for the next step.

    `loss` is the formula for the shared images: the student's present answer, and the previous one in the teacher's place.

    Where there is nothing to share, at the first step of an epoch or after a batch of another size, the batch's own second
    views stand in and the divergence is left out. So no memory outlives an epoch, and resuming at an epoch's start is exact.

    Args:
        weight: of the divergence, 0 or more.
        temperature: T, above 0.
    """

    card = Card(
        title="Self-distillation from the last mini-batch",
        formula="CE + weight T^2 KL(softmax(z'/T) || softmax(z/T)), z' the previous step's logits of the shared images",
        paper="Shen et al. Self-Distillation from the Last Mini-Batch. CVPR 2022. arXiv:2203.16172",
        source="authors' code",
        deviations="both halves in one forward pass, as the paper says (the code runs two, hence two batch norm statistics); "
        "the pairing starts anew at every epoch; the batch size counts new images: a step sees twice as many",
        train_only="the previous batch",
    )
    partner = "second_view"
    needs_hard_labels = True

    views: Tensor
    labels: Tensor
    logits: Tensor
    epoch: Tensor

    def __init__(self, weight: float = 1.0, temperature: float = 3.0) -> None:
        super().__init__()
        self.weight, self.temperature = weight, temperature
        self.register_buffer("views", torch.empty(0), persistent=False)
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("logits", torch.empty(0), persistent=False)
        self.register_buffer("epoch", torch.tensor(-1), persistent=False)  # when these were remembered; -1: never

    @property
    def changes_cross_entropy(self) -> bool:
        return True

    def step(self, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        assert batch.partner is not None
        if self.views.shape != batch.partner.shape:
            self.views, self.labels = batch.partner.clone(), batch.target.clone()
            self.epoch.fill_(-1)
        shared = self.epoch == batch.epoch  # a tensor, as is all that follows from it: no branch on the epoch
        views = torch.where(shared, self.views, batch.partner)
        labels = torch.where(shared, self.labels, batch.target)

        both = nets.student(torch.cat((views, batch.image)))
        size = len(views)
        again, new = part(both, slice(size)), part(both, slice(size, None))
        if self.logits.shape != new.logits.shape:
            self.logits = torch.zeros_like(widened(new.logits.detach()))
        terms = self.loss(again, new._replace(logits=self.logits), batch._replace(target=labels))

        self.views.copy_(batch.partner)
        self.labels.copy_(batch.target)
        self.logits.copy_(new.logits.detach())
        self.epoch.fill_(batch.epoch)
        return {"ce": (terms["ce"] + self.cross_entropy(new, batch)) / 2, "dlb": shared * terms["dlb"]}

    def loss(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        divergence = softened_kl(student.logits, teacher.logits.detach(), self.temperature)
        return {"ce": self.cross_entropy(student, batch), "dlb": self.weight * divergence}


def part(output: Output, rows: slice) -> Output:
    """An answer's rows."""
    logits, embedding, stages, preact, stem = output
    return Output(
        logits[rows], embedding[rows], tuple(stage[rows] for stage in stages), tuple(x[rows] for x in preact), stem[rows]
    )
