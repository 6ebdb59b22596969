"""Activation boundaries: a preparation makes the student's neurons fire where the teacher's do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Networks, TeacherMethod
from methods.parts import Regressor, common_stages, widened

SCALE = 3e-3  # of the sum over elements, in the public code


def boundary_distance(feature_s: Tensor, feature_t: Tensor, margin: float) -> Tensor:
    """Sum per sample, averaged over the batch, of squared distances to `margin` on the teacher's side of zero."""
    feature_s = widened(feature_s)
    short_of = torch.where(feature_t > 0, margin - feature_s, margin + feature_s).relu()
    return short_of.square().flatten(1).sum(1).mean()


@METHODS.register_module("ab")
class ActivationBoundaries(TeacherMethod):
    """Heo et al.: first weight * 0.003 * sum over stages i = 1 ... L of d(r(p_s,i), p_t,i) / 2^(L-i), then CE alone.

    p is a stage's output before its activation; d is max(0, m - x)^2 where the teacher's is above 0 and max(0, m + x)^2
    elsewhere, summed over a sample's elements and averaged over the batch; r is a convolution with batch norm, or nothing where
    shapes are equal. The preparation trains r and all of the student but its classifier. Where networks differ in their number
    of stages, the last common ones are compared.

    Args:
        weight: factor on the preparation's term, above 0; as it is the only one, it scales the learning rate.
        margin: m, above 0.
        prepare_epochs: length of the preparation, 1 or more.

    Raises:
        ValueError: in `setup`, where no regressor leads from one map's size to the other's.
    """

    card = Card(
        title="Activation boundaries (AB)",
        formula="first weight 0.003 sum_i d(r_i(p_s,i), p_t,i) / 2^(L-i), d = max(0, m - x)^2 where p_t > 0, else "
        "max(0, m + x)^2; then CE",
        paper="Heo, Lee, Yun, Choi. Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons. "
        "AAAI 2019. arXiv:1811.03233",
        source="RepDistiller",
        deviations="none but for two networks: in RepDistiller's preparation a wide resnet's last batch norm is not trained "
        "and does not normalize, and the statistics of a ShuffleNetV2's last one stay; here all learn. MobileNetV2's last "
        "batch norm is left out there too. Public code runs a wide resnet's batch norms twice a step (momentum .19), here once",
        train_only="per stage with differing shapes: convolution and batch norm",
    )
    needs_maps = True

    def __init__(self, weight: float = 1.0, margin: float = 1.0, prepare_epochs: int = 30) -> None:
        super().__init__()
        self.weight, self.margin, self.prepare_epochs = weight, margin, prepare_epochs

    def setup(self, context: Context) -> None:
        student, teacher = context.student, context.require_teacher()
        self.connectors = nn.ModuleList(
            nn.Identity() if s.shape[1:] == t.shape[1:] else Regressor(s, t, activation=False)
            for s, t in common_stages(student.preact, teacher.preact)
        )

    def prepare(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        pairs = common_stages(networks.student(batch.image).preact, networks.require_teacher()(batch.image).preact)
        terms = [
            boundary_distance(connector(feature_s), feature_t.detach(), self.margin) / 2 ** (len(pairs) - i - 1)
            for i, (connector, (feature_s, feature_t)) in enumerate(zip(self.connectors, pairs, strict=True))
        ]
        return {"ab": self.weight * SCALE * torch.stack(terms).sum()}
