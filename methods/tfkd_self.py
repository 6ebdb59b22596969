"""Tf-KD by self-training: a trained copy of the student's own architecture is the teacher."""

from torch import Tensor

from methods.base import METHODS, Batch, Card, Needs, Output, TeacherMethod
from methods.parts import softened_kl


@METHODS.register_module("tfkd_self")
class TeacherFreeSelfTraining(TeacherMethod):
    """Yuan et al.: weight * T^2 * mean over batch and classes of q log(q / softmax(z_s / T)) beside ce_weight * CE.

    q = softmax(z_t / T) comes from a trained copy of the student. The authors' code takes the mean over classes too, which
    is 1 / K of the usual divergence, and has a multiplier for it; `weight` is that multiplier times their a.

    Args:
        weight: factor on the mean over batch and classes, 0 or more; ResNet-18 on CIFAR-100: a = .95 times 50.
        temperature: T, above 0.
        ce_weight: factor on the cross-entropy, 0 or more; 1 - a.
    """

    card = Card(
        title="Teacher-free knowledge distillation by self-training",
        formula="ce_weight CE + weight T^2 mean KL(softmax(z_t/T) || softmax(z_s/T)), the mean over batch and classes",
        paper="Yuan et al. Revisiting Knowledge Distillation via Label Smoothing Regularization. CVPR 2020. arXiv:1909.11723",
        source="authors' code (my_loss_function.py), values of its ResNet-18",
        deviations="the teacher is trained from another seed (the student's + 1000), so that the two share neither their "
        "initialization nor their batches; the authors' code gives both one seed. Its training is on the bill",
    )
    presets = {
        "mobilenetv2": {"weight": 0.95, "temperature": 20.0, "ce_weight": 0.05},
        "shufflenetv2": {"weight": 0.95, "temperature": 20.0, "ce_weight": 0.05},
    }
    needs: Needs = "self"

    def __init__(self, weight: float = 47.5, temperature: float = 6.0, ce_weight: float = 0.05) -> None:
        super().__init__()
        self.weight, self.temperature, self.ce_weight = weight, temperature, ce_weight

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        classes = student.logits.shape[1]
        mean = softened_kl(student.logits, teacher.logits.detach(), self.temperature) / classes
        return {"tfkd_self": self.weight * mean}
