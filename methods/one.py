"""Native ensemble: branches with a shared trunk teach each other through their weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Method, Output
from methods.parts import ramp, shuffled, softened_kl, unwrapped, widened


@METHODS.register_module("one")
class NativeEnsemble(Method):
    """Lan et al.: branches z_1 (the student), z_2, ... of last stage and classifier; z_e = sum_i g_i z_i. Beside CE(z_1):

        "branches": ce_weight * sum_{i > 1} CE(z_i)
        "ensemble": ce_weight * CE(z_e)
        "kd":       ramp * weight * T^2 * sum_i KL(softmax(z_e/T) || softmax(z_i/T)), no gradient through z_e

    The gate g = softmax(ReLU(BN(linear(f)))) sees the shared trunk's feature f, the last stage but one, pooled. The plain
    student is deployed.

    Args:
        branches: their number, the student's own included, in [2, 64].
        temperature: T, above 0.
        weight: factor on the divergences, 0 or more.
        ce_weight: factor on all the cross-entropies, 0 or more.
        ramp_epochs: epochs over which `weight` grows from 0; 0 for none.

    Raises:
        ValueError: in `setup`, without the networks.
    """

    card = Card(
        title="On-the-fly native ensemble",
        formula="sum_i CE(z_i) + CE(z_e) + weight T^2 sum_i KL(softmax(z_e/T) || softmax(z_i/T)), z_e = sum_i g_i z_i",
        paper="Lan, Zhu, Gong. Knowledge Distillation by On-the-Fly Native Ensemble. NeurIPS 2018. arXiv:1806.04606",
        source="authors' code (ONE_NeurIPS2018)",
        deviations="no ramp by default, as in the paper, and a linear one (the code: a sigmoid one of 80 epochs); "
        "recipe dropout acts on the student's own branch alone. No source has a wide resnet; the gate sees its bare sum",
        train_only="the other branches (last stage, head, classifier) and the gate",
    )
    needs_maps = True

    branches: nn.ModuleList
    gate: nn.Sequential

    def __init__(
        self,
        branches: int = 3,
        temperature: float = 3.0,
        weight: float = 1.0,
        ce_weight: float = 1.0,
        ramp_epochs: int = 0,
    ) -> None:
        super().__init__()
        self.count, self.temperature, self.weight = branches, temperature, weight
        self.ce_weight, self.ramp_epochs = ce_weight, ramp_epochs

    def setup(self, context: Context) -> None:
        networks = context.networks
        if networks is None:
            raise ValueError("one copies the student's last stage; its setup needs the networks")
        if len(networks.student.blocks) != len(context.student.stages):
            raise ValueError("one copies the student's stages, and this network has no modules that are its stages")
        network = unwrapped(networks.student)
        head = getattr(network, "head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        own = nn.Sequential(networks.student.blocks[-1], head, networks.student.classifier)
        self.branches = nn.ModuleList(shuffled(own) for _ in range(self.count - 1))
        self.gate = nn.Sequential(
            nn.Linear(trunk(context.student).shape[1], self.count), nn.BatchNorm1d(self.count), nn.ReLU(), nn.Softmax(dim=1)
        )

    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        feature = trunk(student)
        logits = [widened(student.logits), *(widened(branch(feature)) for branch in self.branches)]
        gate = widened(self.gate(feature.mean((2, 3))))
        ensemble = (gate[:, :, None] * torch.stack(logits, dim=1)).sum(1)

        labels = [self.cross_entropy(student._replace(logits=z), batch) for z in logits]
        divergences = [softened_kl(z, ensemble.detach(), self.temperature) for z in logits]
        return {
            "ce": labels[0],
            "branches": torch.stack(labels[1:]).sum(),
            "ensemble": self.cross_entropy(student._replace(logits=ensemble), batch),
            "kd": self.weight * torch.stack(divergences).sum() * ramp(batch, self.ramp_epochs),
        }


def trunk(student: Output) -> Tensor:
    """The feature (B, C, H, W) from which the last stage starts."""
    return (student.stem, *student.stages)[-2]
