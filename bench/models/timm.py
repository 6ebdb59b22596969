"""timm's networks, through its own interface to intermediate features. Needs the optional package timm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bench.models.base import MODELS, Network, names_of, renamed
from methods.base import Output


class TimmNetwork(Network):
    """A timm network, not split into parts: it has no `blocks`, its `norms` are None, and `preact` equals `stages`.

    Stages are the last four features that timm lists, and a fifth is the stem. Where it lists more, as for transformers, the
    stages are four evenly spaced ones. Where it lists no fifth, `stem` is the first stage.

    Args:
        body: a timm network that implements `forward_intermediates`, without its classifier.
        classifier: its classifier.
    """

    def __init__(self, body: Any, classifier: nn.Linear) -> None:
        names = len(body.feature_info)
        taps = list(range(names)) if names <= 5 else [names * (i + 1) // 4 - 1 for i in range(4)]
        super().__init__(nn.Identity(), [], classifier, norms=[None] * min(len(taps), 4), head=nn.Identity())
        self.body, self.taps = body, taps

    def forward(self, image: Tensor) -> Output:
        last, features = self.body.forward_intermediates(image, indices=self.taps)
        embedding = self.body.forward_head(last)
        stages = tuple(features[-4:])
        return Output(self.classifier(self.dropout(embedding)), embedding, stages, stages, features[0])


@MODELS.register_module()
def timm(classes: int, name: str, channels: int = 3, pretrained: bool = False) -> Network:
    """A network of timm by its `name` there.

    Args:
        pretrained: with timm's weights of that name, from its cache or the network.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such network, it gives no intermediate features, or its classifier is not one linear layer.
    """
    try:
        import timm as library
    except ImportError as error:
        raise ImportError(f"model 'timm' ({name}) needs the package timm: pip install 'distillation-bench[timm]'") from error
    if not library.is_model(name):
        raise ValueError(f"timm has no network '{name}'")
    body = library.create_model(name, pretrained=pretrained, num_classes=classes, in_chans=channels)
    classifier = body.get_classifier()
    if not hasattr(body, "forward_intermediates") or not isinstance(classifier, nn.Linear):
        raise ValueError(
            f"timm's '{name}' cannot be used: it gives no intermediate features, or has no single linear classifier"
        )
    names = names_of(body)
    body.reset_classifier(0)
    network = TimmNetwork(body, classifier)
    network.library_names = renamed(network, names)
    return network
