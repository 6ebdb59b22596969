"""One for all: exits turn every stage into logits, which a loss with an enhanced target compares with the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Output, TeacherMethod
from methods.parts import widened


def separable(channels_in: int, channels: int) -> nn.Sequential:
    """Two separable 3x3 convolutions, each with batch norm and ReLU; the first halves height and width."""
    layers: list[nn.Module] = []
    for channels_out, stride in ((channels_in, 2), (channels, 1)):
        layers += [
            nn.Conv2d(channels_in, channels_in, 3, stride=stride, padding=1, groups=channels_in, bias=False),
            nn.Conv2d(channels_in, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def exit_of(channels: int, deeper: int, width: int, classes: int) -> nn.Sequential:
    """From a stage of `channels` with `deeper` stages behind it to logits (B, K), through a map of `width` channels."""
    layers: list[nn.Module] = []
    for i in range(deeper):
        layers.append(separable(channels, width if i == deeper - 1 else 2 * channels))
        channels *= 2
    if not deeper:
        layers.append(nn.Conv2d(channels, width, 1))
    exit_ = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    for module in exit_.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return exit_


def enhanced(logits_s: Tensor, logits_t: Tensor, target: Tensor, gamma: float, temperature: float) -> Tensor:
    """-sum_k [(p_t + y)^gamma - y] log p_s, mean over the batch, y one-hot and p softened by the temperature."""
    y = F.one_hot(target, logits_t.shape[1])
    p_t = F.softmax(widened(logits_t) / temperature, dim=1)
    log_p_s = F.log_softmax(widened(logits_s) / temperature, dim=1)
    return -(((p_t + y) ** gamma - y) * log_p_s).sum(1).mean()


@METHODS.register_module("ofa")
class OneForAll(TeacherMethod):
    """Hao et al.: every stage of the student gets an exit to logits z_i. With L the loss of the enhanced target, beside CE:

        "exits": weight * sum_i L(z_i, z_t)
        "kd":    kd_weight * L(z_s, z_t)
        L = mean of -sum_k [(p_t,k + y_k)^gamma - y_k] log p_k

    y is one-hot; under mixup it is the class of the larger share.

    Args:
        weight: factor on the exits' sum, 0 or more.
        kd_weight: factor on the loss of the student's own logits, 0 or more.
        gamma: exponent, above 0; 1 to 1.5 in the paper. At 1 the target is the teacher's softmax.
        temperature: of both softmaxes, above 0; no factor T^2.
    """

    card = Card(
        title="One for all",
        formula="CE + weight sum_i L(z_i, z_t) + kd_weight L(z_s, z_t), L = -sum_k [(p_t + y)^gamma - y] log p",
        paper="Hao, Guo, Han, Tang, Hu, Wang, Xu. One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge "
        "Distillation. NeurIPS 2023. arXiv:2310.19444",
        source="Hao840/OFAKD",
        deviations="a CNN's exits also on a transformer's grid of patches, where the authors merge patches and add blocks; as "
        "many exits as the student has stages, four there",
        train_only="an exit for each stage: separable convolutions and a classifier; up to 2.9 times the student's parameters",
    )
    presets = {"authors": {"weight": 0.1}}

    exits: nn.ModuleList

    def __init__(self, weight: float = 1.0, kd_weight: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.weight, self.kd_weight, self.gamma, self.temperature = weight, kd_weight, gamma, temperature

    def setup(self, context: Context) -> None:
        student, teacher = context.student, context.require_teacher()
        width = max(student.embedding.shape[1], teacher.embedding.shape[1])
        stages = student.activated
        self.exits = nn.ModuleList(
            exit_of(stage.shape[1], len(stages) - 1 - i, width, context.classes) for i, stage in enumerate(stages)
        )

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        target = batch.target if batch.soft is None else batch.soft.argmax(1)

        def loss(logits: Tensor) -> Tensor:
            return enhanced(logits, teacher.logits.detach(), target, self.gamma, self.temperature)

        exits = [loss(exit_(stage)) for exit_, stage in zip(self.exits, student.activated, strict=True)]
        return {"exits": self.weight * torch.stack(exits).sum(), "kd": self.kd_weight * loss(student.logits)}
