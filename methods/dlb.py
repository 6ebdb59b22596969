"""Self-distillation from the last mini-batch: the student repeats for a second view what it predicted a step ago."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import METHODS, Batch, Card, Context, Needs, Networks, Output, TeacherMethod
from methods.parts import part, softened_kl


@METHODS.register_module("dlb")
class LastMiniBatch(TeacherMethod):
    """Shen et al.: weight * T^2 * KL(softmax(z'/T) || softmax(z/T)) beside CE, on images that consecutive steps share.

    A step runs the student once, on the previous batch's second views and the present batch's first. z are its logits for
    the former, z' those of the previous step for the same images; no gradient flows through z'. "ce" is the mean over both
    halves. The present batch's second views, labels and logits are then remembered for the next step.

    `loss` is the formula for the shared images: the student's present output, and the previous one in the teacher's place.

    Where there is nothing to share, at the first step of an epoch or after a batch of another size, the batch's own second
    views stand in and the divergence is left out. So no memory outlives an epoch, and resuming at an epoch's start is exact.

    Args:
        weight: factor on the divergence, 0 or more.
        temperature: T, above 0.
    """

    card = Card(
        title="Self-distillation from the last mini-batch",
        formula="CE + weight T^2 KL(softmax(z'/T) || softmax(z/T)), z' the previous step's logits of the shared images",
        paper="Shen et al. Self-Distillation from the Last Mini-Batch. CVPR 2022. arXiv:2203.16172",
        source="authors' code",
        deviations="both halves in one forward pass, as the paper says (the code runs two, hence two batch norm statistics); "
        "the pairing starts anew at every epoch. A step sees twice as many images as the batch size says, as in the code; the "
        "paper counts all of them. The authors' default weights are not in their code",
        train_only="the previous batch",
    )
    needs: Needs = "none"
    partner = "second_view"
    second_output = "the former step's output for the same images"
    needs_hard_labels = True

    views: Tensor
    labels: Tensor
    logits: Tensor
    rows: Tensor  # how many of these are remembered: a short batch fills only the first
    epoch: Tensor  # in which they were remembered; -1: never

    def __init__(self, weight: float = 1.0, temperature: float = 3.0) -> None:
        super().__init__()
        self.weight, self.temperature = weight, temperature

    @property
    def changes_cross_entropy(self) -> bool:
        return True

    def setup(self, context: Context) -> None:
        size, classes = context.batch_size, context.classes
        self.register_buffer("views", torch.zeros(size, *context.image), persistent=False)
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64), persistent=False)
        self.register_buffer("logits", torch.zeros(size, classes), persistent=False)
        self.register_buffer("rows", torch.tensor(0), persistent=False)
        self.register_buffer("epoch", torch.tensor(-1), persistent=False)

    def step(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        assert batch.partner is not None
        size = len(batch.partner)
        remembered_views, remembered_labels, remembered_logits = self.views[:size], self.labels[:size], self.logits[:size]
        # A tensor, as is all that follows from it: no branch on the epoch. Nothing is shared with a batch of another size.
        shared = (self.epoch == batch.epoch) & (self.rows == size)
        views = torch.where(shared, remembered_views, batch.partner)
        labels = torch.where(shared, remembered_labels, batch.target)

        both = networks.student(torch.cat((views, batch.image)))
        again, new = part(both, slice(size)), part(both, slice(size, None))
        # A copy, since the memory is overwritten before the backward pass.
        terms = self.loss(again, new._replace(logits=remembered_logits.clone()), batch._replace(target=labels))

        remembered_views.copy_(batch.partner)
        remembered_labels.copy_(batch.target)
        remembered_logits.copy_(new.logits.detach())
        self.rows.fill_(size)
        self.epoch.fill_(batch.epoch)
        return {"ce": (terms["ce"] + self.cross_entropy(new, batch)) / 2, "dlb": shared * terms["dlb"]}

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        divergence = softened_kl(student.logits, teacher.logits.detach(), self.temperature)
        return {"dlb": self.weight * divergence}
