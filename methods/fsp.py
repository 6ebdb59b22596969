"""Flow of solution procedure: a preparation makes the student's stages relate to each other as the teacher's do."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Context, Networks, Output, TeacherMethod
from methods.parts import gram, pool_to_smaller


def flow_matrices(output: Output) -> list[Tensor]:
    """For each two neighbors among stem and stages: (B, C_i, C_i+1), inner products of channel maps, divided by H W."""
    matrices = []
    for pair in itertools.pairwise((output.stem, *output.stages)):
        first, second = pool_to_smaller(*pair)
        matrices.append(gram(first.flatten(2), second.flatten(2)) / (first.shape[2] * first.shape[3]))
    return matrices


@METHODS.register_module("fsp")
class FlowOfSolutionProcedure(TeacherMethod):
    """Yim et al.: in the preparation phase weight * sum over neighboring stages of mean (G_s - G_t)^2; afterwards CE alone.

    G is the FSP matrix of two neighbors among stem and stages (f0-f1, f1-f2, ...), the larger map average-pooled to the
    smaller. The preparation trains all of the student but its classifier.

    Args:
        weight: factor on the preparation's term, above 0; as it is the only one, it scales the learning rate.
        prepare_epochs: length of the preparation, 1 or more.

    Raises:
        ValueError: in `setup`, where stem and stages of both networks differ in number or channels.
    """

    card = Card(
        title="Flow of solution procedure (FSP)",
        formula="first weight sum_i mean (G_i,s - G_i,t)^2, G_i = f_i f_i+1^T / (H W), stem included; then CE",
        paper="Yim, Joo, Bae, Kim. A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer "
        "Learning. CVPR 2017",
        source="RepDistiller",
        deviations="none but for two networks: in RepDistiller's preparation the last batch norm of a wide resnet is at rest, "
        "and so are the statistics of a ShuffleNetV2's; here both go on",
    )
    needs_maps = True

    def __init__(self, weight: float = 1.0, prepare_epochs: int = 30) -> None:
        super().__init__()
        self.weight, self.prepare_epochs = weight, prepare_epochs

    def setup(self, context: Context) -> None:
        student, teacher = context.student, context.require_teacher()
        channels_s, channels_t = ([f.shape[1] for f in (output.stem, *output.stages)] for output in (student, teacher))
        if channels_s != channels_t:
            raise ValueError(
                f"fsp needs equal channels in stem and stages; the student has {channels_s}, the teacher {channels_t}"
            )

    def prepare(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        student, teacher = networks.student(batch.image), networks.require_teacher()(batch.image)
        matrices = zip(flow_matrices(student), flow_matrices(teacher), strict=True)
        return {"fsp": self.weight * torch.stack([F.mse_loss(s, t.detach()) for s, t in matrices]).sum()}
