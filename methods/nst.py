"""Neuron selectivity transfer: the student's channels are distributed over the image as the teacher's are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Method, Output
from methods.parts import common_stages, gram, pool_to_smaller, widened


def channel_maps(feature: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, H W), every channel's map of L2 norm 1."""
    return F.normalize(widened(feature).flatten(2), dim=2)


def kernel_mean(first: Tensor, second: Tensor) -> Tensor:
    """Mean of k(x, y) = (x . y)^2 over samples and over pairs of channels."""
    return gram(first, second).square().mean()


@METHODS.register_module("nst")
class NeuronSelectivityTransfer(Method):
    """Huang & Wang: weight * sum over stages of the squared MMD between both networks' channel maps, beside CE.

    MMD^2 = mean k(t, t') + mean k(s, s') - 2 mean k(s, t) with k(x, y) = (x . y)^2 over channel maps of L2 norm 1. Where maps
    differ in size, the larger feature is average-pooled to the smaller. Needs no adapter. Where networks differ in their number
    of stages, the last common ones are compared.

    Args:
        weight: of the sum over stages, 0 or more.
    """

    card = Card(
        title="Neuron selectivity transfer",
        formula="CE + weight sum_i [mean k(t,t') + mean k(s,s') - 2 mean k(s,t)], k(x,y) = (x.y)^2 on normalised channel maps",
        paper="Huang, Wang. Like What You Like: Knowledge Distill via Neuron Selectivity Transfer. 2017. arXiv:1707.01219",
        source="RepDistiller",
    )
    needs = "teacher"

    def __init__(self, weight: float = 50.0) -> None:
        super().__init__()
        self.weight = weight

    def loss(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        terms = []
        for pair in common_stages(student.stages, teacher.stages):
            feature_s, feature_t = pool_to_smaller(*pair)
            maps_s, maps_t = channel_maps(feature_s), channel_maps(feature_t).detach()
            terms.append(kernel_mean(maps_t, maps_t) + kernel_mean(maps_s, maps_s) - 2 * kernel_mean(maps_s, maps_t))
        return {"ce": self.cross_entropy(student, batch), "nst": self.weight * torch.stack(terms).sum()}
