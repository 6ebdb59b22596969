"""Convolution, addition and ReLU in one: the same answers, with cuDNN's two functions stood in for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench.engine import folding, fusing
from bench.models import MODELS

FUSED = {  # (convolutions with a ReLU, residual units with one): counted by hand
    "resnet8": (4, 0),  # the stem, and the first of each unit; the last unit of each stage is read before its ReLU
    "resnet14": (7, 3),
    "resnet50": (33, 12),  # two of each of 16 units, and the stem; all units but four
    "wrn_16_1": (6, 0),  # its units end without a ReLU
    "vgg8": (0, 0),  # every convolution is read before its ReLU
}


@pytest.fixture
def cudnn(monkeypatch):
    """Has the functions compute on a CPU what cuDNN's documentation states, and counts their calls."""
    calls = {"relu": 0, "add_relu": 0}

    def relu(x, weight, bias, stride, padding, dilation, groups):
        calls["relu"] += 1
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups).relu()

    def add_relu(x, weight, z, alpha, bias, stride, padding, dilation, groups):
        calls["add_relu"] += 1
        return (F.conv2d(x, weight, bias, stride, padding, dilation, groups) + alpha * z).relu()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", add_relu)
    for module in (fusing, folding):
        monkeypatch.setattr(module, "on_gpu", lambda x: True)
    return calls


def network_of(name):
    torch.manual_seed(0)
    network = MODELS.build({"type": name, "classes": 5})
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_network_answers_alike(name, cudnn):
    network, image = network_of(name), torch.randn(2, 3, 32, 32)
    fast = folding.folded(network, image, torch.float32)
    for name_ in cudnn:
        cudnn[name_] = 0
    with torch.no_grad():
        answer, expected = fast(image), network(image)
    assert folding._alike(answer, expected)
    assert tuple(cudnn.values()) == FUSED[name]


def test_where_cudnn_has_no_kernel_nothing_is_fused(cudnn, monkeypatch):
    def refuses(*arguments):
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", refuses)
    network, image = network_of("resnet8"), torch.randn(2, 3, 32, 32)
    fast = folding.folded(network, image, torch.float32)
    assert not any(isinstance(module, fusing.ConvolutionReLU) for module in fast.modules())
    assert folding._alike(fast(image), network(image))
