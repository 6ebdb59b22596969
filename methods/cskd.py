"""Class-wise self-distillation: the student predicts images of one class alike."""

import torch
from torch import Tensor

from methods.base import METHODS, Batch, Card, Needs, Networks, Output, TeacherMethod
from methods.parts import softened_kl


@METHODS.register_module("cskd")
class ClassWiseSelfDistillation(TeacherMethod):
    """Yun et al.: weight * T^2 * KL(softmax(z'/T) || softmax(z/T)) beside CE, z' the logits of another image of the class.

    No gradient flows through z'. The partner images add a forward pass, not a backward one. In `loss` the student's output for
    the partners takes the teacher's place.

    Args:
        weight: factor on the divergence, 0 or more.
        temperature: T, above 0.
    """

    card = Card(
        title="Class-wise self-knowledge distillation",
        formula="CE + weight T^2 KL(softmax(z'/T) || softmax(z/T)), z' for another image of the same class",
        paper="Yun et al. Regularizing Class-wise Predictions via Self-knowledge Distillation. CVPR 2020. arXiv:2003.13964",
        source="authors' code",
        deviations="none in the loss. A partner is never the image itself; the authors' may be, once in 500 on CIFAR-100",
    )
    needs: Needs = "none"
    partner = "same_class"
    second_output = "the student's output for the partner images"
    needs_hard_labels = True

    def __init__(self, weight: float = 1.0, temperature: float = 4.0) -> None:
        super().__init__()
        self.weight, self.temperature = weight, temperature

    def step(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        assert batch.partner is not None
        student = networks.student(batch.image)
        with torch.no_grad():
            partner = networks.student(batch.partner)
        return self.loss(student, partner, batch)

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        divergence = softened_kl(student.logits, teacher.logits.detach(), self.temperature)
        return {"cskd": self.weight * divergence}
