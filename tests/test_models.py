"""Every registered network against the contract, and against the field's own numbers."""

from __future__ import annotations

import copy
import importlib.util
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.models import MODELS
from bench.plan import catalogue


def vgg_parameters(*widths: int) -> int:
    """3x3 convolutions with bias and batch norm, then 512 -> 100."""
    return sum(9 * a * b + 3 * b for a, b in zip((3, *widths), widths, strict=False)) + 512 * 100 + 100


# At 100 classes and 3 channels. Six layers more are two convolutions c -> c and their batch norms in each of the three stages.
SIX_LAYERS = sum(2 * (9 * c * c + 2 * c) for c in (16, 32, 64))
PARAMETERS = {
    "resnet8": 278324 - 2 * SIX_LAYERS,
    "resnet14": 278324 - SIX_LAYERS,
    "resnet20": 278324,
    "resnet32": 472756,
    "resnet44": 472756 + 2 * SIX_LAYERS,
    "resnet56": 472756 + 4 * SIX_LAYERS,
    "resnet110": 1736564,
    "resnet8x4": 1233540,
    "resnet32x4": 7433860,
    "resnet18": 11220132,
    "resnet34": 21328292,
    "resnet50": 23705252,
    "preact_resnet18": 11217444,
    "wrn_16_1": 569780 - 4 * SIX_LAYERS,
    "wrn_16_2": 703284,
    "wrn_40_1": 569780,
    "wrn_40_2": 2255156,
    "vgg8": vgg_parameters(64, 128, 256, 512, 512),
    "vgg11": vgg_parameters(64, 128, 256, 256, 512, 512, 512, 512),
    "vgg13": vgg_parameters(64, 64, 128, 128, 256, 256, 512, 512, 512, 512),
    "vgg16": vgg_parameters(64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
    "vgg19": vgg_parameters(64, 64, 128, 128, *[256] * 4, *[512] * 8),
    "mobilenetv1": 3206976 + 1025 * 100,
    "mobilenetv2": 812836,
    "shufflenetv1": 949258,
    "shufflenetv2": 1355528,
}
SMALL = ["resnet8", "wrn_16_1", "wrn_16_2", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"]
STAGES = {  # channels and size at 32x32
    "resnet20": [(16, 32), (32, 16), (64, 8)],
    "resnet32x4": [(64, 32), (128, 16), (256, 8)],
    "resnet18": [(64, 32), (128, 16), (256, 8), (512, 4)],
    "resnet50": [(256, 32), (512, 16), (1024, 8), (2048, 4)],
    "preact_resnet18": [(64, 32), (128, 16), (256, 8), (512, 4)],
    "wrn_40_2": [(32, 32), (64, 16), (128, 8)],
    "vgg13": [(128, 16), (256, 8), (512, 4), (512, 4)],
    "mobilenetv1": [(128, 8), (256, 4), (512, 2), (1024, 1)],
    "mobilenetv2": [(12, 16), (16, 8), (48, 4), (160, 2)],
    "shufflenetv1": [(240, 16), (480, 8), (960, 4)],
    "shufflenetv2": [(116, 16), (232, 8), (464, 4)],
}


def build(key: str, classes: int = 10, seed: int = 0, **arguments):
    torch.manual_seed(seed)
    return MODELS.build({"type": key, "classes": classes, **arguments})


def test_every_network_is_tested():
    assert set(MODELS.module_dict) == {*PARAMETERS, "torchvision", "timm"}
    assert all(what for _, what in zip(*(column.cells for column in catalogue.table("models").columns), strict=True))


@pytest.mark.parametrize("key", PARAMETERS)
def test_network(key):
    network = build(key, classes=100)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[key]
    check_contract(network, torch.randn(2, 3, 32, 32), classes=100, stages=STAGES.get(key))


@pytest.mark.parametrize("key", SMALL)
def test_8x8_with_one_channel(key):
    check_contract(build(key, channels=1), torch.randn(2, 1, 8, 8), classes=10)


def check_contract(network, image, classes, stages=None):
    """Shapes; each part maps one answer to the next; activations and norms are what they claim; gradients reach all."""
    out = network(image)
    assert out.logits.shape == (len(image), classes)
    assert out.embedding.shape == (len(image), network.classifier.in_features)
    assert len(out.stages) == len(out.preact) == len(network.blocks) == len(network.norms)
    if stages:
        assert [tuple(stage.shape[1:]) for stage in out.stages] == [(channels, size, size) for channels, size in stages]
    ends_with_sum = out.rectified is not None
    for preact, activated, block, norm in zip(out.preact, out.activated, network.blocks, network.norms, strict=True):
        # Compared after the forward pass, so that a later operation in place would show.
        linear = isinstance(block.activation, nn.Identity) and not ends_with_sum
        assert torch.equal(activated, preact if linear else preact.relu())
        assert norm is None or (norm.num_features == preact.shape[1] and any(norm is m for m in network.modules()))
    out.logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())

    with torch.no_grad():
        out = network.eval()(image)
        feature = out.stem
        for stage, block in zip(out.stages, network.blocks, strict=True):
            feature = block(feature)
            assert torch.equal(feature, stage)
        assert torch.equal(network.head(feature), out.embedding)
        assert torch.equal(network.classifier(out.embedding), out.logits)


@pytest.mark.parametrize("key", SMALL)
def test_copies_and_state(key):
    first, second, image = build(key), build(key, seed=1), torch.randn(2, 3, 16, 16)
    first(image)  # moves the running statistics
    state = first.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)  # nothing is stored twice
    second.load_state_dict(state)
    clone = copy.deepcopy(first)
    with torch.no_grad():
        logits = first.eval()(image).logits
        assert torch.equal(second.eval()(image).logits, logits)
        assert torch.equal(clone.eval()(image).logits, logits)
    assert all(norm is None or any(norm is m for m in clone.modules()) for norm in clone.norms)


@pytest.mark.parametrize("key", SMALL)
def test_bf16_and_channels_last(key):
    network = build(key).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last))
    assert all(stage.is_contiguous(memory_format=torch.channels_last) for stage in out.stages)
    assert out.logits.dtype == torch.bfloat16
    assert out.logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("key", SMALL)
def test_compiles_in_one_graph(key):
    network, image = build(key).eval(), torch.randn(2, 3, 16, 16)
    out, compiled = network(image), torch.compile(network, backend="aot_eager", fullgraph=True)(image)
    torch.testing.assert_close(compiled, out)


def test_initialization_follows_torch_alone():
    random.seed(1)
    np.random.seed(1)
    first = build("resnet8").state_dict()
    random.seed(2)
    np.random.seed(2)
    second = build("resnet8").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    # He et al.: standard deviation sqrt(2 / (9 * 64)), known here to a few per cent from 36,864 draws.
    assert first["blocks.2.body.0.branch.3.weight"].std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)


def test_dropout_is_between_embedding_and_classifier():
    network, image = build("resnet8"), torch.randn(4, 3, 8, 8)
    plain = network(image)
    network.dropout.p = 1.0
    dropped = network(image)
    assert torch.equal(dropped.embedding, plain.embedding)
    torch.testing.assert_close(dropped.logits, network.classifier.bias.expand(4, -1))


def test_flops_of_resnet20():
    """By hand, multiply-adds: stem 442,368; stages 14,155,776 and twice 13,107,200; classifier 6,400. Together 81.6 MFLOPs."""
    with FlopCounterMode(display=False) as counter:
        build("resnet20", classes=100)(torch.randn(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * (442_368 + 14_155_776 + 2 * 13_107_200 + 6_400)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "shufflenet_v2_x0_5",
        "mobilenet_v3_small",
        "regnet_x_400mf",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("resnet50", "densenet121", "vgg11_bn", "mobilenet_v2", "efficientnet_b0", "convnext_tiny")
        ),
    ],
)
def test_torchvision(name):
    models = pytest.importorskip("torchvision.models")
    image = torch.randn(2, 3, 64, 64)
    torch.manual_seed(0)
    original = models.get_model(name, num_classes=10).eval()
    network = build("torchvision", name=name)
    with torch.no_grad():
        assert torch.equal(network.eval()(image).logits, original(image))
    check_contract(network.train(), image, classes=10)


def test_torchvision_with_one_channel():
    check_contract(build("torchvision", name="resnet18", channels=1), torch.randn(2, 1, 32, 32), classes=10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "nearest: resnet18"),
        ({"name": "squeezenet1_1"}, "is a plain module: name its features"),
        ({"name": "resnet18", "channels": 1, "pretrained": True}, "3 channels"),
    ],
)
def test_torchvision_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        build("torchvision", **arguments)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_timm_is_optional():
    with pytest.raises(ImportError, match=r"distillation-bench\[timm\]"):
        build("timm", name="resnet18")


def test_timm():
    library = pytest.importorskip("timm")
    image = torch.randn(2, 3, 64, 64)
    torch.manual_seed(0)
    original = library.create_model("resnet18", num_classes=10).eval()
    network = build("timm", name="resnet18").eval()
    with torch.no_grad():
        out = network(image)
        assert torch.equal(out.logits, original(image))
    assert [tuple(stage.shape[1:]) for stage in out.stages] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert out.stem.shape == (2, 64, 32, 32)


def test_errors_name_the_mistake():
    with pytest.raises(KeyError, match=r"resnet21.*resnet20"):
        build("resnet21")
    with pytest.raises(TypeError, match="depth"):
        build("resnet20", depth=20)


def test_import_is_cheap():
    """Neither torchvision nor timm is imported before one of their networks is built."""
    code = "import sys, bench.models; sys.exit(any(name in sys.modules for name in ('torchvision', 'timm')))"
    subprocess.run([sys.executable, "-c", code], check=True)
