"""A frozen, folded network made faster on a GPU: convolution, bias, addition and ReLU in one of cuDNN's kernels.

On a CPU oneDNN needs no help: what is here then computes the same operations one by one.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.resnet import Residual


class ConvolutionReLU(nn.Module):
    """relu(convolution(x))."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        c = self.convolution
        if not on_gpu(x):
            return F.relu(c(x))
        assert isinstance(c.padding, tuple)
        return torch.cudnn_convolution_relu(x, c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups)


class ResidualReLU(nn.Module):
    """relu(convolution(before(x)) + shortcut(x))."""

    def __init__(self, before: nn.Module, convolution: nn.Conv2d, shortcut: nn.Module) -> None:
        super().__init__()
        self.before, self.convolution, self.shortcut = before, convolution, shortcut

    def forward(self, x: Tensor) -> Tensor:
        c, added, x = self.convolution, self.shortcut(x), self.before(x)
        if not on_gpu(x):
            return F.relu(c(x) + added)
        assert isinstance(c.padding, tuple)
        return torch.cudnn_convolution_add_relu(x, c.weight, added, 1.0, c.bias, c.stride, c.padding, c.dilation, c.groups)


def on_gpu(x: Tensor) -> bool:
    """Whether cuDNN computes it."""
    return x.is_cuda and torch.version.hip is None


def fused(network: nn.Module) -> nn.Module:
    """A copy in which a ReLU that follows a convolution or a residual unit in a sequence is part of it.

    Within a sequence nobody else reads what lies between. `network` is in eval mode and folded: its convolutions have a bias
    where a batch norm followed, and an identity stands in the batch norm's place.
    """
    network = copy.deepcopy(network)
    for sequence in reversed([module for module in network.modules() if isinstance(module, nn.Sequential)]):  # inner ones first
        places = [place for place, child in enumerate(sequence) if not isinstance(child, nn.Identity)]
        for place, following in pairwise(places):
            unit = _with_relu(sequence[place]) if isinstance(sequence[following], nn.ReLU) else None
            if unit is not None:
                sequence[place], sequence[following] = unit, nn.Identity()
    return network


def _with_relu(unit: nn.Module) -> nn.Module | None:
    """A module with a ReLU behind it in one; None where cuDNN has nothing for it."""
    if _suits(unit):
        return ConvolutionReLU(unit)
    if type(unit) is not Residual:
        return None
    branch = [child for child in unit.branch if not isinstance(child, nn.Identity)]
    return ResidualReLU(nn.Sequential(*branch[:-1]), branch[-1], unit.shortcut) if _suits(branch[-1]) else None


def _suits(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and isinstance(module.padding, tuple)
