"""Scale decoupled distillation: a method on logits, at every cell of grids on the last map too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Method, Networks, Output
from methods.composition import ByRow, Composition
from methods.parts import check_mean_embedding, pool_to, widened


def cell_logits(output: Output, classifier: nn.Module, sides: list[int]) -> Tensor:
    """(R, K) logits: those of the images, then by the classifier at each cell of grids of these sides, cell by cell."""
    rows = [output.logits]
    for side in sides:
        pooled = pool_to(output.activated[-1], (side, side))
        rows.append(classifier(pooled.flatten(2).permute(2, 0, 1).flatten(0, 1)))
    return torch.cat([widened(logits) for logits in rows])


@METHODS.register_module("sdd")
class ScaleDecoupledDistillation(Composition):
    """Wei, Luo, Luo: the terms of `method` on the images and on each cell of grids 2x2, 4x4 ... of the last map.

    The map is average-pooled to each grid, and the network's own classifier gives logits for each cell; the student's gets
    gradient from all. The result is the mean over images and cells, where those cells weigh `disagreement` whose prediction by
    the teacher is right while its prediction for the image is wrong, or the reverse; all others weigh 1.

    Args:
        method: the wrapped method, kd, dkd or nkd, as `{"type": key, **arguments}`.
        finest: side of the finest grid, a power of 2; published 2 within a family, 4 across families.
        disagreement: weight of cells that disagree with their image, 0 or more.

    Raises:
        ValueError: another method; in `setup`, no networks, or one whose classifier does not work on the mean of its last
            stage.
    """

    card = Card(
        title="Scale decoupled distillation",
        formula="CE + mean over images and cells of w L(z_s, z_t), w = disagreement where the teacher is right about one of "
        "cell and image, else 1",
        paper="Wei, Luo, Luo. Scaled Decoupled Distillation. CVPR 2024. arXiv:2403.13512",
        source="shicaiwei123/SDD-CVPR2024",
        deviations="networks with a convolution behind the last stage (MobileNetV2, ShuffleNetV2) are refused: that map is not "
        "among a network's outputs. The paper states two accuracies for KD on resnet32x4/resnet8x4, 76.63 and 75.63",
        train_only="those of the wrapped method",
    )
    presets = {
        "kd": {"method": {"type": "kd"}},
        "dkd": {"method": {"type": "dkd", "ramp_epochs": 30}},
        "cross_family": {"method": {"type": "kd"}, "finest": 4},
    }
    example = presets["kd"]

    def __init__(self, method: dict[str, Any], finest: int = 2, disagreement: float = 2.0) -> None:
        super().__init__()
        built = METHODS.build(method)
        if not isinstance(built, ByRow):
            raise ValueError(f"sdd weights the rows of kd, dkd or nkd, not those of '{method['type']}'")
        if finest < 1 or finest & (finest - 1):
            raise ValueError(f"sdd's finest: {finest}; allowed: a power of 2")
        self.method: Method = built
        self.sides = [2**i for i in range(1, finest.bit_length())]
        self.disagreement = disagreement
        self.fold_flags()
        self.needs_maps = True
        self.needs_hard_labels = True

    @property
    def members(self) -> dict[str, Method]:
        return {"method": self.method}

    def setup(self, context: Context) -> None:
        if context.networks is None:
            raise ValueError("sdd applies the classifiers of both networks; its setup needs the networks")
        check_mean_embedding(context.student, "sdd", "student")
        check_mean_embedding(context.require_teacher(), "sdd", "teacher")
        super().setup(context)

    def loss(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        raise ValueError("sdd applies the classifiers of both networks: call `step`")

    def step(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(self.method, ByRow)
        student, teacher = networks.student(batch.image), networks.require_teacher()(batch.image)
        rows_s = cell_logits(student, networks.student.classifier, self.sides)
        with torch.no_grad():
            rows_t = cell_logits(teacher, networks.require_teacher().classifier, self.sides)
        target = batch.target.repeat(len(rows_t) // len(batch.target))
        right = rows_t.argmax(1) == target
        differs = right != right[: len(batch.target)].repeat(len(rows_t) // len(batch.target))
        rows = self.method.by_row(rows_s, rows_t, batch._replace(target=target))
        weighted = torch.where(differs, self.disagreement * rows, rows)
        return {"ce": self.method.cross_entropy(student, batch), "sdd": weighted.mean()}
