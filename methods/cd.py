"""Channel distillation: the student weighs its channels as the teacher weighs its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Output, TeacherMethod
from methods.parts import common_stages, widened


def guided_kl(student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student), averaged over the samples that the teacher classifies correctly; 0 where there are none."""
    log_student = F.log_softmax(widened(student_logits) / temperature, dim=1)
    log_teacher = F.log_softmax(widened(teacher_logits) / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)
    right = teacher_logits.argmax(1) == target
    return temperature**2 * (divergence * right).sum() / right.sum().clamp_min(1)


@METHODS.register_module("cd")
class ChannelDistillation(TeacherMethod):
    """Zhou et al.: weight * decay^k * sum over stages of mean (a(f_s) - f_t)^2 of space-averaged features, and guided KD.

    Both sides are averaged over space; a is a 1x1 convolution where channels differ, else nothing. k counts which of 30, 60 and
    90 % of the training are over (early decay of the teacher). Guided KD is kd_weight * T^2 * KL(p_t || p_s), averaged over the
    samples that the teacher classifies correctly. Beside CE. Where networks differ in their number of stages, the last common
    ones are compared.

    Args:
        weight: factor on the sum over stages, 0 or more.
        guided: whether guided KD is added, as the term "kd"; it needs hard labels.
        kd_weight: of guided KD, 0.1 on CIFAR, 1 on ImageNet.
        temperature: T of guided KD, above 0.
        decay: factor on `weight` at each step, in (0, 1]; 1 is no decay.
    """

    card = Card(
        title="Channel distillation",
        formula="CE + weight decay^k sum_i mean (GAP(f_s,i) - GAP(f_t,i))^2 + kd_weight T^2 KL where the teacher is right",
        paper="Zhou, Zhuge, Guan, Liu. Channel Distillation: Channel-Wise Attention for Knowledge Distillation. 2020. "
        "arXiv:2006.01683",
        source="zhouzaida/channel-distillation",
        deviations="in the source the student passes through convolution, batch norm and ReLU at equal channels too; the "
        "decay comes at epochs 30, 60, 90 of 100 on ImageNet, 60 and 160 of 200 on CIFAR, here always at 30, 60, 90 %; CE and "
        "KD are left out for the first 30 %, here never; and a batch without a correct teacher divides by 0, here it adds 0. "
        "No source has a wide resnet; its bare sums are taken",
        train_only="per stage with differing channels: 1x1 convolution",
    )
    presets = {"imagenet": {"kd_weight": 1.0}}
    needs_maps = True

    def __init__(
        self,
        weight: float = 6.0,
        guided: bool = True,
        kd_weight: float = 0.1,
        temperature: float = 1.0,
        decay: float = 0.9,
    ) -> None:
        super().__init__()
        self.weight, self.guided, self.kd_weight = weight, guided, kd_weight
        self.temperature, self.decay = temperature, decay
        self.needs_hard_labels = guided

    def setup(self, context: Context) -> None:
        student, teacher = context.student, context.require_teacher()
        channels = [(s.shape[1], t.shape[1]) for s, t in common_stages(student.stages, teacher.stages)]
        self.adapters = nn.ModuleList(nn.Identity() if s == t else nn.Conv2d(s, t, 1, bias=False) for s, t in channels)

    def decayed_weight(self, batch: Batch) -> Tensor:
        """weight * decay^k: one of the values that Python computes, since a power in single precision differs."""
        decayed = torch.full((), self.weight, dtype=torch.float64, device=batch.target.device)
        for step in (1, 2, 3):
            over = torch.as_tensor(10 * batch.epoch >= 3 * step * batch.epochs, device=batch.target.device)
            decayed = torch.where(over, self.weight * self.decay**step, decayed)
        return decayed

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        terms = []
        for adapter, (feature_s, feature_t) in zip(self.adapters, common_stages(student.stages, teacher.stages), strict=True):
            means_s = adapter(
                widened(feature_s).mean((2, 3), keepdim=True)
            )  # the convolution is linear: pooling first is cheaper
            means_t = widened(feature_t).mean((2, 3), keepdim=True).detach()
            terms.append(F.mse_loss(widened(means_s), means_t))
        distance = torch.stack(terms).sum()
        losses = {"cd": self.decayed_weight(batch).to(distance.dtype) * distance}
        if self.guided:
            losses["kd"] = self.kd_weight * guided_kl(student.logits, teacher.logits.detach(), batch.target, self.temperature)
        return losses
