"""Multi-level logit distillation: predictions, classes and samples are compared at several temperatures, on two views."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Networks, Output, TeacherMethod
from methods.parts import gram, softened_kl, widened

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)
WEAK_ALWAYS = (2.0, 6.0)  # at these temperatures the public code's strong term takes the weak view


def median(values: Tensor) -> Tensor:
    """Of (N,), 0-dim; the mean of the middle two where N is even, as NumPy has it and torch has not."""
    ordered = values.sort().values
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2


def share_below(values: Tensor) -> Tensor:
    """Share of (N,) that is not above the median: 1/2 where N is even and no two are equal."""
    return (values <= median(values)).to(values.dtype).mean()


def gram_distance(first: Tensor, second: Tensor) -> Tensor:
    """Squared distance of the rows' inner products, over the number of rows; both (N, M)."""
    return (gram(first, first) - gram(second, second)).square().sum() / len(first)


@METHODS.register_module("mlkd")
class MultiLevelLogitDistillation(TeacherMethod):
    """Jin, Wang, Lin, beside ce_weight * (CE on the image + CE on its strong view), sums over T = 2, 3, 4, 5, 6:

        "kd":      weight * sum_T (a KL_T(weak) + KL_T(strong)), at T = 2 and 6 KL_T(weak) in place of KL_T(strong)
        "classes": weight * c * sum_T |P_t^T P_t - P_s^T P_s|^2 / K
        "samples": weight * a * sum_T |P_t P_t^T - P_s P_s^T|^2 / B

    KL_T has the factor T^2. P (B, K) are probabilities softened by T of the weak view, the image itself. a is the share of
    images whose confidence by the teacher is not above the median, c that of classes by their summed probability: about 1/2.

    Both networks see both views, so a step costs twice that of kd; the authors train for 240 epochs, a later public code for
    480, as in the recipes `mlkd_240` and `mlkd_480`.

    `loss` is that of the weak view alone; `step` adds the strong one.

    Args:
        weight: factor on all three, 0 or more.
        ce_weight: factor on both cross-entropies, 0 or more.
    """

    card = Card(
        title="Multi-level logit distillation",
        formula="ce_weight (CE + CE') + weight sum_T (a KL_T + KL'_T + c |P_t^T P_t - P_s^T P_s|^2 / K + "
        "a |P_t P_t^T - P_s P_s^T|^2 / B), ' on a strong view",
        paper="Jin, Wang, Lin. Multi-Level Logit Distillation. CVPR 2023",
        source="Jin-Ying/Multi-Level-Logit-Distillation",
        deviations="as the public code, not the paper: masks multiply means, hence are the factors a and c; the strong term "
        "takes the weak view at T = 2 and 6; matrices have no T^2 and see the weak view alone",
    )
    partner = "strong_view"
    needs_hard_labels = True

    def __init__(self, weight: float = 0.9, ce_weight: float = 0.1) -> None:
        super().__init__()
        self.weight, self.ce_weight = weight, ce_weight

    @property
    def changes_cross_entropy(self) -> bool:
        return True

    def step(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        assert batch.partner is not None
        weak_t, strong_t = networks.require_teacher()(batch.image), networks.require_teacher()(batch.partner)
        weak, strong = networks.student(batch.image), networks.student(batch.partner)
        terms = self.loss(weak, weak_t, batch)
        z_s, z_t = strong.logits, strong_t.logits.detach()
        kd = [softened_kl(z_s, z_t, temperature) for temperature in TEMPERATURES if temperature not in WEAK_ALWAYS]
        return {
            **terms,
            "ce": terms["ce"] + self.cross_entropy(strong, batch),
            "kd": terms["kd"] + self.weight * torch.stack(kd).sum(),
        }

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        z_s, z_t = widened(student.logits), widened(teacher.logits.detach())
        p_t = F.softmax(z_t, dim=1)
        images, classes_below = share_below(p_t.amax(1)), share_below(p_t.sum(0))
        kd, classes, samples = [], [], []
        for temperature in TEMPERATURES:
            soft_s, soft_t = F.softmax(z_s / temperature, dim=1), F.softmax(z_t / temperature, dim=1)
            kd.append((images + 1 if temperature in WEAK_ALWAYS else images) * softened_kl(z_s, z_t, temperature))
            classes.append(gram_distance(soft_s.mT, soft_t.mT))
            samples.append(gram_distance(soft_s, soft_t))
        return {
            "kd": self.weight * torch.stack(kd).sum(),
            "classes": self.weight * classes_below * torch.stack(classes).sum(),
            "samples": self.weight * images * torch.stack(samples).sum(),
        }
