"""Neuron selectivity transfer: the student's channels are distributed over the image as the teacher's are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import METHODS, Batch, Card, Output, TeacherMethod
from methods.parts import common_stages, gram, pool_to_smaller, widened

SMALLEST_NORM = 1e-12  # a map is divided by its norm, at least by this; `F.normalize`'s value


def discrepancy(feature_s: Tensor, feature_t: Tensor) -> Tensor:
    """Squared MMD between the channel maps of (B, C_s, H, W) and of (B, C_t, H, W), mean over the batch."""
    maps_s, maps_t = widened(feature_s).flatten(2), widened(feature_t).flatten(2)
    if maps_s.shape[2] < min(maps_s.shape[1], maps_t.shape[1]):
        # With rows of norm 1, the sum of (x . y)^2 over all rows x of X and y of Y is the inner product of X^T X and Y^T Y:
        # where there are fewer positions than channels, these are the smaller matrices.
        return (mean_outer_product(maps_s) - mean_outer_product(maps_t)).square().sum((1, 2)).mean()
    products = gram(maps_s, maps_s), gram(maps_t, maps_t)
    scale_s, scale_t = (each.diagonal(dim1=1, dim2=2).clamp(min=SMALLEST_NORM**2).rsqrt() for each in products)
    return (
        kernel_mean(products[1], scale_t, scale_t)
        + kernel_mean(products[0], scale_s, scale_s)
        - 2 * kernel_mean(gram(maps_s, maps_t), scale_s, scale_t)
    )


def kernel_mean(products: Tensor, scale_rows: Tensor, scale_columns: Tensor) -> Tensor:
    """Mean of (x . y)^2 for inner products (B, N, M) of maps that have yet to be scaled to norm 1, by (B, N) and (B, M)."""
    return (products * scale_rows.unsqueeze(2) * scale_columns.unsqueeze(1)).square().mean()


def mean_outer_product(maps: Tensor) -> Tensor:
    """(B, C, P) to (B, P, P): mean over channels of the outer product of a map of norm 1 with itself."""
    rows = F.normalize(maps, dim=2, eps=SMALLEST_NORM).mT
    return gram(rows, rows) / maps.shape[1]


@METHODS.register_module("nst")
class NeuronSelectivityTransfer(TeacherMethod):
    """Huang & Wang: weight * sum over stages of the squared MMD between both networks' channel maps, beside CE.

    MMD^2 = mean k(t, t') + mean k(s, s') - 2 mean k(s, t) with k(x, y) = (x . y)^2 over channel maps of L2 norm 1. Where maps
    differ in size, the larger feature is average-pooled to the smaller. Needs no adapter. Where networks differ in their number
    of stages, the last common ones are compared.

    Args:
        weight: factor on the sum over stages, 0 or more.
    """

    card = Card(
        title="Neuron selectivity transfer",
        formula="CE + weight sum_i [mean k(t,t') + mean k(s,s') - 2 mean k(s,t)], k(x,y) = (x.y)^2 on normalized channel maps",
        paper="Huang, Wang. Like What You Like: Knowledge Distill via Neuron Selectivity Transfer. 2017. arXiv:1707.01219",
        source="RepDistiller",
    )
    needs_maps = True

    def __init__(self, weight: float = 50.0) -> None:
        super().__init__()
        self.weight = weight

    def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        terms = []
        for pair in common_stages(student.stages, teacher.stages):
            feature_s, feature_t = pool_to_smaller(*pair)
            terms.append(discrepancy(feature_s, feature_t.detach()))
        return {"nst": self.weight * torch.stack(terms).sum()}
