"""Folding changes no answer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.engine.folding import folded
from bench.models import MODELS

ALL_OF_THEM = {"resnet8": 0, "vgg8": 0, "mobilenetv2": 0, "shufflenetv2": 0}
# WRN norms stand before the activation: one a block, and the last, are left. A method may read the sums and the stem.
NORMS_LEFT = {**ALL_OF_THEM, "wrn_16_1": 7, "wrn_16_2": 7}


@pytest.mark.parametrize("name", NORMS_LEFT)
def test_folded_networks_answer_alike(name):
    torch.manual_seed(0)
    network = MODELS.build({"type": name, "classes": 10}).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
    fast = folded(network, torch.randn(2, 3, 32, 32), torch.float32)
    image = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected, found = network(image), fast(image)
    first, second = ((*x.stages, *x.preact, *x.activated, x.stem, x.embedding, x.logits) for x in (expected, found))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fast.modules()) == NORMS_LEFT[name]
