"""Factor transfer: the student imitates a compressed form of the teacher's last feature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Networks, Output, TeacherMethod
from methods.parts import pool_to_smaller, squared_error, widened

SLOPE = 0.1  # leaky ReLU below 0


def encoder(channels: int, factors: int, norm: bool) -> nn.Sequential:
    """Three 3x3 convolutions, from `channels` to `factors`, each with batch norm if wanted and a leaky ReLU."""
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((channels, channels), (channels, factors), (factors, factors)):
        layers.append(nn.Conv2d(channels_in, channels_out, 3, padding=1))
        if norm:
            layers.append(nn.BatchNorm2d(channels_out))
        layers.append(nn.LeakyReLU(SLOPE, inplace=True))
    return nn.Sequential(*layers)


def decoder(channels: int, factors: int) -> nn.Sequential:
    """Three transposed 3x3 convolutions, from `factors` to `channels`, each with a leaky ReLU."""
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((factors, factors), (factors, channels), (channels, channels)):
        layers += [nn.ConvTranspose2d(channels_in, channels_out, 3, padding=1), nn.LeakyReLU(SLOPE, inplace=True)]
    return nn.Sequential(*layers)


def unit(factor: Tensor) -> Tensor:
    """(B, F, H, W) to (B, F H W), of L2 norm 1."""
    return F.normalize(widened(factor).flatten(1), dim=1)


@METHODS.register_module("ft")
class FactorTransfer(TeacherMethod):
    """Kim et al.: weight * mean |u(T(f_s)) - u(E(f_t))| on the last stage, u flattening and L2-normalizing, beside CE.

    In the preparation phase the paraphraser, an encoder E and a decoder D, learns to reconstruct the teacher's last feature,
    prepare_weight * mean (D(E(f_t)) - f_t)^2, and the student stays as it is; afterwards E is used without gradient. The
    translator T has E's form. Where maps differ in size, the larger factor is average-pooled to the smaller.

    Args:
        weight: factor on the factor term, 0 or more.
        paraphrase_rate: the paper's k, factors per channel of the teacher's feature, above 0.
        prepare_epochs: length of the paraphraser's training; 0 leaves it untrained.
        prepare_weight: factor on the reconstruction, above 0; as the only term, it scales the learning rate. Without batch norm
            the paraphraser diverges at .05, so that the public code trains it at .01: 0.2 does the same.
    """

    card = Card(
        title="Factor transfer",
        formula="first mean (D(E(f3_t)) - f3_t)^2; then CE + weight mean |u(T(f3_s)) - u(E(f3_t))|, u(x) = x / ||x||_2",
        paper="Kim, Park, Kwak. Paraphrasing Complex Network: Network Compression via Factor Transfer. NeurIPS 2018. "
        "arXiv:1802.04977",
        source="RepDistiller",
        deviations="whole factors are compared, as in the paper; RepDistiller first averages their squares over channels. A "
        "weight of .2 on the preparation's term stands for its learning rate .01 in place of .05",
        train_only="paraphraser and translator: nine 3x3 convolutions",
    )

    def __init__(
        self, weight: float = 200.0, paraphrase_rate: float = 0.5, prepare_epochs: int = 30, prepare_weight: float = 0.2
    ) -> None:
        super().__init__()
        self.weight, self.paraphrase_rate = weight, paraphrase_rate
        self.prepare_epochs, self.prepare_weight = prepare_epochs, prepare_weight

    def setup(self, context: Context) -> None:
        student, teacher = context.student, context.require_teacher()
        channels_s, channels_t = student.stages[-1].shape[1], teacher.stages[-1].shape[1]
        factors = max(1, int(channels_t * self.paraphrase_rate))
        self.encoder, self.decoder = encoder(channels_t, factors, norm=False), decoder(channels_t, factors)
        self.translator = encoder(channels_s, factors, norm=True)

    def prepare(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        feature = networks.teacher(batch.image).stages[-1].detach()
        restored = self.decoder(self.encoder(feature))
        return {"ft": self.prepare_weight * squared_error(widened(restored), widened(feature))}

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            factor_t = self.encoder(teacher.stages[-1])
        factor_s, factor_t = pool_to_smaller(self.translator(student.stages[-1]), factor_t)
        return {"ft": self.weight * F.l1_loss(unit(factor_s), unit(factor_t))}
