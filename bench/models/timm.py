"""timm's networks, through its own interface to intermediate features. Needs the optional package timm."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.models.base import MODELS, Network, names_of, renamed
from methods.base import Output


class TimmNetwork(Network):
    """A timm network, not split into parts: it has no `blocks`, its `norms` are None, and `preact` equals `stages`.

    Stages are the last four features that timm lists, and a fifth is the stem. Where it lists more, as for transformers, the
    stages are four evenly spaced ones. Where it lists no fifth, `stem` is the first stage. The stages of a network that embeds
    patches are tokens, laid out as grids: `Output.tokens` holds the others, if timm gives them.

    Args:
        body: a timm network that implements `forward_intermediates`, without its classifier.
        classifier: its classifier.
        again: builds one like it, with more arguments.
    """

    def __init__(self, body: Any, classifier: nn.Linear, again: Callable[..., nn.Module]) -> None:
        names = len(body.feature_info)
        taps = list(range(names)) if names <= 5 else [names * (i + 1) // 4 - 1 for i in range(4)]
        super().__init__(nn.Identity(), [], classifier, norms=[None] * min(len(taps), 4), head=nn.Identity())
        self.body, self.taps, self.again = body, taps, again
        if hasattr(body, "no_weight_decay"):
            self.undecayed = frozenset(f"body.{name}" for name in body.no_weight_decay())
        self.has_tokens = embeds_patches(body)
        takes = inspect.signature(body.forward_intermediates).parameters
        prefixed = getattr(body, "num_prefix_tokens", 0) and "return_prefix_tokens" in takes
        self.asked = {"return_prefix_tokens": True} if prefixed else {}

    def drop_paths(self, rate: float) -> None:
        """As timm does it for this network, in place of the rate that it may have by default."""
        try:
            with torch.random.fork_rng(devices=[]):  # its weights are drawn, and not used
                like = self.again(drop_path_rate=rate)
        except TypeError as error:
            raise ValueError(f"it takes no drop_path_rate ({error})") from None
        paths = {name: module for name, module in like.named_modules() if type(module).__name__ == "DropPath"}
        if not paths:
            raise ValueError("it has no residual branches that could be dropped")
        for name, module in paths.items():
            parent, _, last = name.rpartition(".")
            setattr(self.body.get_submodule(parent), last, module)

    def forward(self, image: Tensor) -> Output:
        last, features = self.body.forward_intermediates(image, indices=self.taps, **self.asked)
        embedding = self.body.forward_head(last)
        tokens = None
        if self.has_tokens:
            if not self.asked:
                features = [(grid, grid.new_empty(len(grid), 0, grid.shape[1])) for grid in features]
            features, tokens = zip(*features, strict=True)
        stages = tuple(features[-4:])
        logits = self.classifier(self.dropout(embedding))
        return Output(logits, embedding, stages, stages, features[0], tokens=tokens and tokens[-4:])


def embeds_patches(body: nn.Module) -> bool:
    """Whether a timm network works on tokens: it begins with an embedding of patches, as transformers and mixers do."""
    return hasattr(body, "patch_embed") or type(getattr(body, "stem", None)).__name__ == "PatchEmbed"


@MODELS.register_module()
def timm(
    classes: int, name: str, channels: int = 3, pretrained: bool = False, arguments: dict[str, Any] | None = None
) -> Network:
    """A network of timm by its `name` there.

    Of the field's four tiny transformers it has DeiT-Ti, `deit_tiny_patch16_224`, and PiT-Ti, `pit_ti_224`. It lacks PVT-Ti and
    T2T-7: its `pvt_v2` is another network.

    Args:
        pretrained: with timm's weights of that name, from its cache or the network.
        arguments: more of the network's own, such as `img_size` and `patch_size` of a vision transformer.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such network or the network no such argument, it gives no intermediate features, or its
            classifier is not one linear layer.
    """
    try:
        import timm as library
    except ImportError as error:
        raise ImportError(f"model 'timm' ({name}) needs the package timm: pip install 'distillation-bench[timm]'") from error
    if not library.is_model(name):
        raise ValueError(f"timm has no network '{name}'")
    again = partial(library.create_model, name, num_classes=classes, in_chans=channels, **(arguments or {}))
    try:
        body = again(pretrained=pretrained)
    except TypeError as error:
        raise ValueError(f"timm's '{name}' does not take {arguments} ({error})") from error
    classifier = body.get_classifier()
    if not hasattr(body, "forward_intermediates") or not isinstance(classifier, nn.Linear):
        raise ValueError(
            f"timm's '{name}' cannot be used: it gives no intermediate features, or has no single linear classifier"
        )
    names = names_of(body)
    body.reset_classifier(0)
    network = TimmNetwork(body, classifier, again)
    network.library_names = renamed(network, names)
    return network


timm.added_later = ("arguments",)  # type: ignore[attr-defined]
