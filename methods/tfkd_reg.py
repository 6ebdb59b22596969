"""Tf-KD by regularization: a designed teacher gives the label .99 and all other classes the same."""

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Method, Output
from methods.parts import widened


@METHODS.register_module("tfkd_reg")
class TeacherFreeRegularization(Method):
    """Yuan et al.: weight * mean over batch and classes of q log(q / softmax(z)) beside ce_weight * CE.

    The teacher is q = softmax(p_d / T), where p_d is `correct` for the label and (1 - correct) / (K - 1) for every other class.
    The student's side is not softened. Times K, the mean over classes is the usual divergence, averaged over the batch.

    Args:
        weight: factor on the mean over batch and classes, 0 or more.
        temperature: T, above 0.
        correct: the teacher's probability of the label, in (0, 1]; more than 1 / K.
        ce_weight: factor on the cross-entropy, 0 or more.
    """

    card = Card(
        title="Teacher-free knowledge distillation by regularization",
        formula="ce_weight CE + weight mean KL(softmax(p_d/T) || softmax(z)), the mean over batch and classes",
        paper="Yuan et al. Revisiting Knowledge Distillation via Label Smoothing Regularization. CVPR 2020. arXiv:1909.11723",
        source="authors' code (my_loss_function.py)",
        deviations="`weight` is the code's a = .1 times its multiplier, for ResNet-18 100. The paper has .1 times the sum over "
        "classes, which is the same at K = 100. Preset `plain` is the multiplier alone",
    )
    presets = {
        "code": {"weight": 10.0},
        "plain": {"weight": 100.0},
        "mobilenetv2": {"weight": 0.95, "temperature": 40.0, "ce_weight": 0.05},
        "shufflenetv2": {"weight": 0.95, "temperature": 10.0, "ce_weight": 0.05},
    }
    needs_hard_labels = True

    def __init__(self, weight: float = 10.0, temperature: float = 20.0, correct: float = 0.99, ce_weight: float = 0.9) -> None:
        super().__init__()
        self.weight, self.temperature, self.correct, self.ce_weight = weight, temperature, correct, ce_weight

    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        log_student = F.log_softmax(widened(student.logits), dim=1)
        wrong = (1 - self.correct) / (log_student.shape[1] - 1)
        designed = torch.full_like(log_student, wrong).scatter(1, batch.target[:, None], self.correct)
        divergence = F.kl_div(log_student, F.softmax(designed / self.temperature, dim=1), reduction="none").mean()
        return {"tfkd_reg": self.weight * divergence}
