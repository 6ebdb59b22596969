"""What the bench asks of a network: an `Output` for every batch, and its parts by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import Registry
from torch import Tensor, nn

from methods.base import Output


def build_model(cfg: Mapping[str, Any], registry: Registry, **_: Any) -> Network:
    """Build from `{"type": key or dotted path, "classes": K, **arguments}`; arguments it does not know are a TypeError."""
    arguments = dict(cfg)
    key = arguments.pop("type")
    model = registry.get(key)
    if model is None:
        raise KeyError(f"unknown model '{key}'; known: {', '.join(sorted(registry.module_dict))}")
    return model(**arguments)


MODELS = Registry("model", build_func=build_model, locations=["bench.models"])


class Stage(nn.Module):
    """A stage of a network: `activation(body(x))`.

    Args:
        body: all up to the last activation; its answer is what `Output.preact` holds.
        activation: the last activation, never in place; identity where the stage ends without one.
    """

    body: nn.Sequential
    activation: nn.Module

    def __init__(self, body: nn.Sequential, activation: nn.Module) -> None:
        super().__init__()
        self.body, self.activation = body, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x))


class Network(nn.Module):
    """stem -> blocks -> head -> dropout -> classifier, answering with every intermediate result.

    `stages[0] = blocks[0](stem)`, `stages[i] = blocks[i](stages[i - 1])`, `embedding = head(stages[-1])`; a method may copy any
    of these parts. All weights are drawn from torch's global generator.

    Args:
        stem: image (B, channels, H, W) to feature map.
        blocks: the stages, shallow to deep.
        classifier: from the embedding (B, D) to logits (B, K).
        norms: for each stage, the last batch norm before `preact`, or None where no single one covers its channels.
        head: last stage to embedding (B, D); by default the mean over positions.

    Attributes:
        dropout: on the embedding, before the classifier; `dropout.p` is 0 until a recipe sets it.
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Sequence[Stage],
        classifier: nn.Linear,
        norms: Sequence[nn.Module | None],
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.head = head or global_pool()
        self.dropout = nn.Dropout(0.0)
        self.classifier = classifier
        self.norms = list(norms)  # a plain list: these modules are registered in their blocks

    def forward(self, image: Tensor) -> Output:
        x = stem = self.stem(image)
        stages, preact = [], []
        for block in self.blocks:
            assert isinstance(block, Stage)
            preact.append(block.body(x))
            x = block.activation(preact[-1])
            stages.append(x)
        embedding = self.head(x)
        logits = self.classifier(self.dropout(embedding))
        return Output(logits, embedding, tuple(stages), tuple(preact), stem)


def conv_norm(in_channels: int, channels: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias that keeps height and width up to its stride, and batch norm."""
    return [
        nn.Conv2d(in_channels, channels, size, stride=stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
    ]


def global_pool() -> nn.Sequential:
    """(B, C, H, W) to (B, C): the mean over positions."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def relu_between(units: Sequence[nn.Module]) -> nn.Sequential:
    """Units that end before their activation, with a ReLU after each but the last."""
    layers: list[nn.Module] = []
    for unit in units:
        layers += [unit, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def kaiming_convolutions(network: nn.Module) -> None:
    """He et al.'s normal initialisation, by fan-out, of every convolution's weight; its bias, if any, to 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
