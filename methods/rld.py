"""Refined logit distillation: the teacher's confidence goes to the label, and what it ranks above the label is left out."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Output, TeacherMethod
from methods.parts import divergence, log_binary, ramp, widened

MASKED = -1e9


@METHODS.register_module("rld")
class RefinedLogitDistillation(TeacherMethod):
    """Sun et al.: ramp * weight * (alpha * SCD + beta * MCD) beside CE.

    Sample confidence distillation: SCD = S^2 KL(a || b) of two-point distributions of logits divided by S. a is the teacher's
    (its top class, all others), whichever class that is; b is the student's (label, all others).

    Masked correlation distillation: MCD = T^2 KL(q_t || q_s) over the classes whose logit by the teacher is below the label's,
    of logits divided by T. Where there is no such class it is 0.

    Args:
        alpha: factor on SCD, 0 or more.
        beta: factor on MCD, 0 or more.
        temperature: T, above 0.
        confidence_temperature: S, above 0.
        weight: factor on both, 0 or more.
        ramp_epochs: epochs over which the weight rises linearly to its value; 0 for none.
    """

    card = Card(
        title="Refined logit distillation",
        formula="CE + ramp weight (alpha S^2 KL((top, rest)_t || (label, rest)_s) + beta T^2 KL(q_t || q_s)), "
        "q over the classes k of z_t,k < z_t,y",
        paper="Sun, Chen, Lyu, Chen, Chen, Wang. Knowledge Distillation with Refined Logits. ICCV 2025. arXiv:2408.07703",
        source="zju-SWJ/RLD",
    )
    needs_hard_labels = True

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        confidence_temperature: float = 1.0,
        weight: float = 1.0,
        ramp_epochs: int = 20,
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.confidence_temperature, self.weight, self.ramp_epochs = confidence_temperature, weight, ramp_epochs

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        z_s, z_t = widened(student.logits), widened(teacher.logits.detach())
        temperature = self.confidence_temperature
        confidence_s = log_binary(F.log_softmax(z_s / temperature, dim=1), batch.target)
        confidence_t = log_binary(F.log_softmax(z_t / temperature, dim=1), z_t.argmax(1))
        scd = temperature**2 * divergence(confidence_s, confidence_t)

        masked = z_t >= z_t.gather(1, batch.target.unsqueeze(1))
        below_s, below_t = ((z / self.temperature).masked_fill(masked, MASKED) for z in (z_s, z_t))
        mcd = self.temperature**2 * divergence(F.log_softmax(below_s, dim=1), F.log_softmax(below_t, dim=1))
        return {"rld": self.weight * (self.alpha * scd + self.beta * mcd) * ramp(batch, self.ramp_epochs)}
