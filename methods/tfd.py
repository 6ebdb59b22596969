"""Teacher-free distillation: the deep stages of a network guide its shallow ones."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Context, Method, Output
from methods.parts import ramp, squared_error, stage_pairs, widened


def normalized(feature: Tensor, how: Literal["layer", "unit"]) -> Tensor:
    """(B, C, H, W) with the channels of each position at mean 0 and variance 1, or at length 1."""
    if how == "unit":
        return F.normalize(feature, dim=1)
    mean = feature.mean(1, keepdim=True)
    return (feature - mean) / (feature.var(1, keepdim=True, correction=0) + 1e-6).sqrt()


@METHODS.register_module("tfd")
class TeacherFreeDistillation(Method):
    """Li et al.: for features f_1 ... f_L and their m = L (L - 1) / 2 pairs,

        weight / m * sum over i < j of |pool(f_i) - stopgrad(crop(f_j))|^2

    where `pool` averages the shallow map to the deep map's height and width, and both keep their first min(C_i, C_j)
    channels. There are no parameters, and the deployed network is the plain student.

    Public code is that of the sister paper (`tffd`) alone. It takes the mean over elements, in every version; a sum, as the
    equation may be read, is an ablation: the paper's own source still sees a gain at ten times the weight, where a sum
    prevents learning.

    Args:
        weight: factor on the term, at least 0; published .005.
        ramp_epochs: epochs over which the weight rises linearly to its value; 0 for none. The paper names none; the public
            code has 20: preset `code`.
        reduction: what is taken of the squared differences: their mean, or, an ablation, their sum per sample, averaged over
            the batch.
        direction: which side has its gradient stopped: the deep one ("top_down", the method), the shallow one ("bottom_up") or
            neither ("both", whose gradient is the sum of the other two). The last two are the paper's ablations.
        stages: the stages that take part, counted from 1; None for all.
        before_activation: compare the stages before their last activation; published: after it.
        normalize: first bring each position's channels to mean 0 and variance 1 ("layer") or to length 1 ("unit"). This is
            how it runs on a transformer, where nobody published it: the norm of its tokens grows with depth.

    Raises:
        ValueError: in `setup`, where `stages` names one that the network does not have, or leaves fewer than two.
    """

    card = Card(
        title="Teacher-free distillation",
        formula="CE + weight / m sum_{i<j} |pool(f_i) - stopgrad(crop(f_j))|^2, m = L(L-1)/2",
        paper="Li, Liang, Yang, Jin. Teacher-free Distillation via Regularizing Intermediate Representation. IJCNN 2022. "
        "doi:10.1109/IJCNN55064.2022.9892575",
        source="lliai/Teacher-free-Distillation, the code of the sister paper (tffd); none of this paper is public",
        deviations="The equation's square is read as a mean over elements, as in all versions of that code. The text names a "
        "second weight, beta = .0004, which its equation lacks: it weighs the code's term within stages, and the tables are "
        "without that term. The paper has no ramp; preset `code` has that code's 20 epochs. With KD it has KD's own weights "
        "(.1 and .9, as CRD's code); the code has 1 and 1: `tfd+kd: {kd: {weight: 1, ce_weight: 1}}`. `both` is one undetached "
        "term per pair. Where the shallow map has more channels, it is cropped. On a wide resnet nobody knows which features "
        "are meant: the bare sums are taken, `taps: rectified` is an ablation. At the start its gradient is .004 of the "
        "cross-entropy's (resnet20, CIFAR-100, batches of 64; 6e-4 on images of noise): see results/reference. `normalize` is "
        "ours: on tokens, where the paper has nothing, an ablation. Its ancestor, "
        "Self-Feature Regularization, was withdrawn by its authors for errors in its experimental data.",
    )
    presets = {"code": {"ramp_epochs": 20}}
    added_later = ("before_activation", "normalize")

    def __init__(
        self,
        weight: float = 0.005,
        ramp_epochs: int = 0,
        reduction: Literal["mean", "sum"] = "mean",
        direction: Literal["top_down", "bottom_up", "both"] = "top_down",
        stages: list[int] | None = None,
        before_activation: bool = False,
        normalize: Literal["none", "layer", "unit"] = "none",
    ) -> None:
        super().__init__()
        self.weight, self.ramp_epochs, self.reduction, self.direction = weight, ramp_epochs, reduction, direction
        self.stages = None if stages is None else sorted(set(stages))
        self.before_activation, self.normalize = before_activation, normalize
        self.needs_maps = normalize == "none"

    def setup(self, context: Context) -> None:
        count = len(context.student.stages)
        missing = [stage for stage in self.stages or [] if not 1 <= stage <= count]
        if missing:
            raise ValueError(f"tfd: the network has no stage {', '.join(map(str, missing))}; it has 1 to {count}")
        if any(stage.dim() != 4 for stage in context.student.stages):
            raise ValueError("tfd needs stages with height and width, (B, C, H, W)")
        if len(self.stages or range(count)) < 2:
            raise ValueError(f"tfd needs at least two stages to pair, not {self.stages or list(range(1, count + 1))}")

    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        tapped = student.preact if self.before_activation else student.stages
        features = [tapped[stage - 1] for stage in self.stages] if self.stages else tapped
        if self.normalize != "none":
            features = [normalized(widened(feature), self.normalize) for feature in features]
        terms = []
        for shallow, deep in stage_pairs(features):
            if self.direction == "top_down":
                deep = deep.detach()
            elif self.direction == "bottom_up":
                shallow = shallow.detach()
            terms.append(squared_error(shallow, deep, self.reduction))
        scale = self.weight / len(terms) / (len(student.logits) if self.reduction == "sum" else 1)
        tfd = scale * torch.stack(terms).sum() * ramp(batch, self.ramp_epochs)
        return {"tfd": tfd}
