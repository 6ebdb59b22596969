"""Layers that count batches and cast weights at once, against torch's own, which do it one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from capturing import Unchanged
from torch import Tensor, nn

from bench.engine.device import autocast, has_bf16
from bench.engine.layers import Layers

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
needs_bf16 = pytest.mark.skipif(not has_bf16(CPU), reason="this CPU has no bf16")


class Network(nn.Module):
    """Layers that are run twice, not at all, in eval mode, without gradient, and as functions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.again, self.cumulative = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, momentum=None)
        self.still, self.bare, self.unused = nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 4, 1)
        self.bare_now = nn.BatchNorm2d(4)
        self.bare_now.track_running_stats = False
        self.frozen, self.flat, self.classifier = nn.Conv2d(4, 4, 1).requires_grad_(False), nn.BatchNorm1d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.still.eval()
        x = self.norm(self.convolution(x))
        x = self.cumulative(self.norm(self.again(self.again(x))))
        with torch.no_grad():
            self.again(x)
            self.norm(x)
        x = self.frozen(self.bare_now(self.bare(self.still(x))))
        with torch.autocast(x.device.type, enabled=False):
            x = self.again(x.float())
        return self.classifier(self.flat(x.mean((2, 3)))) + self.classifier.weight.sum()


def trained(precision: str, at_once: bool, device: torch.device, steps: int = 2) -> dict[str, Tensor | None]:
    """State and last gradients."""
    network = Network().to(device)
    layers, parameters = Layers(network.modules(), precision == "bf16") if at_once else None, dict(network.named_parameters())
    for step in range(steps):
        network.zero_grad()
        x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(step)).to(device)
        with Unchanged(), autocast(device, precision):
            if layers:
                with layers.at_once():
                    out = network(x)
            else:
                out = network(x)
        out.float().square().mean().backward()
        for parameter in parameters.values():
            if parameter.grad is not None:
                parameter.data -= 0.1 * parameter.grad
    return network.state_dict() | {f"gradient of {name}": value.grad for name, value in parameters.items()}


@pytest.mark.parametrize(
    ("precision", "device"),
    [
        ("fp32", "cpu"),
        pytest.param("bf16", "cpu", marks=needs_bf16),
        *(pytest.param(precision, "cuda", marks=needs_cuda) for precision in ("fp32", "bf16")),
    ],
)
def test_state_and_gradients_are_those_of_torch_s_layers(precision, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    ours, theirs = (trained(precision, at_once, torch.device(device)) for at_once in (True, False))
    assert ours["norm.num_batches_tracked"] == 6
    assert ours["cumulative.num_batches_tracked"] == 2
    assert ours["still.num_batches_tracked"] == 0
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name] is None) == (value is None), name
        assert value is None or torch.equal(ours[name], value), name


def test_outside_of_a_pass_and_in_copies_layers_are_torch_s():
    network = Network()
    layers = Layers(network.modules(), casts=False)
    assert isinstance(network.norm, nn.BatchNorm2d)
    with layers.at_once():
        copied = copy.deepcopy(network)
    for each in (network, copied):
        each(torch.randn(8, 3, 6, 6))
        assert each.norm.num_batches_tracked == 3


def test_after_an_error_counts_are_torch_s_again():
    network = Network()
    with pytest.raises(RuntimeError, match="Expected"), Layers(network.modules(), casts=False).at_once():
        network(torch.randn(3))
    network(torch.randn(8, 3, 6, 6))
    assert network.norm.num_batches_tracked == 3


@needs_bf16
def test_a_gradient_of_gradients_goes_through_casts():
    grown = []
    for at_once in (True, False):
        torch.manual_seed(1)
        layer, x = nn.Linear(3, 2), torch.randn(4, 3)
        layers = Layers([layer] * at_once, casts=True)
        with autocast(CPU, "bf16"), layers.at_once():
            out = layer(x)
        [gradient] = torch.autograd.grad(out.float().square().sum(), [layer.weight], create_graph=True)
        gradient.square().sum().backward()
        grown.append(layer.weight.grad)
    assert torch.equal(*grown)
