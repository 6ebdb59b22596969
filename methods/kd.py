"""Knowledge distillation: the student imitates the teacher's softened class probabilities."""

from torch import Tensor

from methods.base import METHODS, Batch, Card, Output
from methods.composition import ByRow
from methods.parts import softened_kl


@METHODS.register_module("kd")
class KnowledgeDistillation(ByRow):
    """Hinton et al.: weight * T^2 * KL(softmax(z_t / T) || softmax(z_s / T)) beside ce_weight * CE.

    Args:
        temperature: T, above 0; 4 on CIFAR, 1 on ImageNet.
        weight: factor on the distillation term, 0.9 on CIFAR, 0.5 on ImageNet.
        ce_weight: factor on the cross-entropy, 0.1 on CIFAR, 0.5 on ImageNet.
    """

    card = Card(
        title="Knowledge distillation",
        formula="ce_weight CE + weight T^2 KL(softmax(z_t/T) || softmax(z_s/T))",
        paper="Hinton, Vinyals, Dean. Distilling the Knowledge in a Neural Network. 2015. arXiv:1503.02531",
        source="RepDistiller, mdistiller",
    )
    presets = {"imagenet": {"temperature": 1.0, "weight": 0.5, "ce_weight": 0.5}}

    def __init__(self, temperature: float = 4.0, weight: float = 0.9, ce_weight: float = 0.1) -> None:
        super().__init__()
        self.temperature, self.weight, self.ce_weight = temperature, weight, ce_weight

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        kd = softened_kl(student.logits, teacher.logits.detach(), self.temperature)
        return {"kd": self.weight * kd}

    def by_row(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return self.weight * softened_kl(student, teacher, self.temperature, by_row=True)
