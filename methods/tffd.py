"""Teacher-free feature distillation: deep stages guide shallow ones, and strong channels of a stage its weak ones."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import METHODS, Batch, Card, Context, Method, Output
from methods.parts import ramp, squared_error, stage_pairs, widened


def channel_halves(feature: Tensor) -> tuple[Tensor, Tensor]:
    """The C // 2 strongest and the C // 2 weakest channels of (B, C, H, W), each in falling order of strength.

    Strength is the mean over batch and positions of the feature divided, per image and channel, by its L2 norm over positions.
    """
    channels = feature.shape[1]
    maps = widened(feature.detach()).flatten(2)
    strength = (maps.mean(2) / maps.norm(dim=2).clamp_min(1e-12)).mean(0)
    order = strength.argsort(descending=True)
    ends = torch.cat([order[: channels // 2], order[channels - channels // 2 :]])
    strong, weak = feature.index_select(1, ends).chunk(2, dim=1)
    return strong, weak


@METHODS.register_module("tffd")
class TeacherFreeFeatureDistillation(Method):
    """Li: over pairs of stages i < j and over stages i, beside CE,

        inter * mean over pairs of MSE(pool(f_i), stopgrad(crop(f_j)))
        + intra * mean over stages of MSE(stronger half of the channels of f_i, weaker half)

    Pairs are pooled and cropped as in `tfd`. The intra term stops no gradient, as published. Terms: "inter" and "intra".

    Args:
        inter: weight between stages, at least 0.
        intra: weight within stages, at least 0.
        ramp_epochs: epochs over which both weights rise linearly to their values; published 20, 0 for none.

    Raises:
        ValueError: in `setup`, where the network has fewer than two stages.
    """

    card = Card(
        title="Teacher-free feature distillation",
        formula="CE + inter mean_{i<j} MSE(pool(f_i), stopgrad(crop(f_j))) + intra mean_i MSE(strong half of f_i, weak half)",
        paper="Li. Self-Regulated Feature Learning via Teacher-free Feature Distillation. ECCV 2022",
        source="lliai/Teacher-free-Distillation",
        deviations="of an odd number of channels the middle one is left out of intra; all pairs of stages, not only of three. "
        "No source has a wide resnet; its bare sums are taken, `taps: rectified` offers the others",
    )
    presets = {"cli": {"inter": 0.005, "intra": 0.0004}, "readme": {"inter": 0.0005, "intra": 0.0008}}
    needs_maps = True

    def __init__(self, inter: float = 0.005, intra: float = 0.0004, ramp_epochs: int = 20) -> None:
        super().__init__()
        self.inter, self.intra, self.ramp_epochs = inter, intra, ramp_epochs

    def setup(self, context: Context) -> None:
        count = len(context.student.stages)
        if count < 2:
            raise ValueError(f"tffd needs at least two stages to pair, the network has {count}")

    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        scale = ramp(batch, self.ramp_epochs)
        inter = [squared_error(shallow, deep.detach()) for shallow, deep in stage_pairs(student.stages)]
        intra = [squared_error(*channel_halves(widened(feature))) for feature in student.stages]
        return {
            "inter": self.inter * torch.stack(inter).mean() * scale,
            "intra": self.intra * torch.stack(intra).mean() * scale,
        }
