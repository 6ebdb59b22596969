"""Factor transfer: the student's translator imitates a compressed form of the teacher's last feature."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Networks, Output, TeacherMethod
from methods.parts import attention, pool_to_smaller, squared_error, widened

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
    """Kim et al.: weight * mean |u(T(f_s)) - u(E(f_t))| on the last stage, beside CE.

    u is, in the form "squares", the mean over channels of the squares, flattened and of L2 norm 1; in the form "whole", the
    whole factor, flattened and of L2 norm 1. Form and weight belong together.

    In the preparation phase the paraphraser, an encoder E and a decoder D, learns to reconstruct the teacher's last feature:
    mean (D(E(f_t)) - f_t)^2, or mean |D(E(f_t)) - f_t|. The student rests. Afterwards E is used without gradient. The
    translator T has E's layers. Where maps differ in size, the larger factor is average-pooled to the smaller.

    Args:
        weight: of the factor term, 0 or more; published 200 with squares, 500 with whole factors.
        paraphrase_rate: the paper's k, factors per channel of the teacher's feature, above 0.
        prepare_epochs: length of the paraphraser's training; 0 leaves it untrained.
        prepare_lr: its learning rate, above 0, constant; None: the recipe's. RepDistiller has .01 for the students resnet and
            wrn, else the student's own.
        form: of what is compared.
        prepare_loss: by which the paraphraser learns, the mean squared error or the mean absolute one.
        norm: whether the translator has batch norm.

    Raises:
        ValueError: in `setup`, for squares of maps that meet at a single position, where all of norm 1 are equal.
    """

    card = Card(
        title="Factor transfer",
        formula="first mean (D(E(f3_t)) - f3_t)^2; then CE + weight mean |u(T(f3_s)) - u(E(f3_t))|, u(x) = v / ||v||_2, "
        "v the mean over channels of x^2",
        paper="Kim, Park, Kwak. Paraphrasing Complex Network: Network Compression via Factor Transfer. NeurIPS 2018. "
        "arXiv:1802.04977",
        source="RepDistiller; preset `authors`: Jangho-Kim/Factor-Transfer-pytorch",
        deviations="none from RepDistiller, which averages the squares of factors over channels. The paper compares whole "
        "factors: preset `authors`. For VGG students RepDistiller prepares at the student's learning rate: `prepare_lr: null`",
        train_only="paraphraser and translator: nine 3x3 convolutions",
    )
    presets = {
        "authors": {
            "weight": 500.0,
            "form": "whole",
            "prepare_epochs": 6,
            "prepare_lr": 0.1,
            "prepare_loss": "absolute",
            "norm": False,
        }
    }
    version = 2  # squares with their weight, the preparation's learning rate
    needs_maps = True

    def __init__(
        self,
        weight: float = 200.0,
        paraphrase_rate: float = 0.5,
        prepare_epochs: int = 30,
        prepare_lr: float | None = 0.01,
        form: Literal["squares", "whole"] = "squares",
        prepare_loss: Literal["squared", "absolute"] = "squared",
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.weight, self.paraphrase_rate, self.form, self.norm = weight, paraphrase_rate, form, norm
        self.prepare_epochs, self.prepare_lr, self.prepare_loss = prepare_epochs, prepare_lr, prepare_loss

    def setup(self, context: Context) -> None:
        student, teacher = context.student, context.require_teacher()
        feature_s, feature_t = pool_to_smaller(student.stages[-1], teacher.stages[-1])
        if self.form == "squares" and feature_t.shape[-2:] == (1, 1):
            raise ValueError("ft compares positions, and the last stages meet at a single one; see preset authors")
        channels_s, channels_t = feature_s.shape[1], feature_t.shape[1]
        factors = max(1, int(channels_t * self.paraphrase_rate))
        self.encoder, self.decoder = encoder(channels_t, factors, norm=False), decoder(channels_t, factors)
        self.translator = encoder(channels_s, factors, norm=self.norm)

    def prepare(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        feature = networks.require_teacher()(batch.image).stages[-1].detach()
        restored, wanted = widened(self.decoder(self.encoder(feature))), widened(feature)
        distance = squared_error(restored, wanted) if self.prepare_loss == "squared" else F.l1_loss(restored, wanted)
        return {"ft": distance}

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            factor_t = self.encoder(teacher.stages[-1])
        factor_s, factor_t = pool_to_smaller(self.translator(student.stages[-1]), factor_t)
        compared = attention if self.form == "squares" else unit
        return {"ft": self.weight * F.l1_loss(compared(factor_s), compared(factor_t))}
