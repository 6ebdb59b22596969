"""A plain module as a network of the bench: its features are tapped at submodules that the grid file names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from typing import Any

from torch import Tensor, nn

from bench.models.base import Network
from methods.base import Output


class Tapped(Network):
    """A module with features by name. It computes what it computes alone; `preact` equals `stages`, and there are no `blocks`.

    A stage of tokens, (B, P + N, C), becomes a grid (B, C, H, W) where N is a square, with its P prefix tokens in
    `Output.tokens`; else it stays (B, N, C).

    Args:
        body: from images (B, C, H, W) to logits (B, K), or to an object that has `logits`.
        stages: dotted names of the submodules whose outputs are the stages, shallow to deep.
        head: that of the last linear layer; what enters it is the embedding.
        stem: that of the submodule whose output is the stem; by default the first stage.
        prefix_tokens: P, how many tokens stand before the patches (class, distillation).

    Raises:
        ValueError: there is no such submodule, or the head is not linear.
    """

    def __init__(self, body: nn.Module, stages: list[str], head: str, stem: str | None = None, prefix_tokens: int = 0) -> None:
        taps = {name: _submodule(body, name) for name in (*stages, head, *([stem] if stem else []))}
        if not stages:
            raise ValueError("stages: name at least one submodule")
        classifier = taps[head]
        if not isinstance(classifier, nn.Linear):
            raise ValueError(f"head: '{head}' is a {type(classifier).__name__}, not a Linear")
        super().__init__(nn.Identity(), [], classifier, [None] * len(stages), nn.Identity())
        del self.classifier  # it stands in the body; a second name would tie its weights
        self.body, self.stage_names, self.head_name = body, tuple(stages), head
        self.stem_name, self.prefix_tokens = stem or stages[0], prefix_tokens
        self.library_names = {f"body.{name}": name for name in body.state_dict()}

    @property
    def classifier(self) -> nn.Linear:  # type: ignore[override]
        found = self.body.get_submodule(self.head_name)
        assert isinstance(found, nn.Linear)
        return found

    def forward(self, image: Tensor) -> Output:
        with self._tapped() as found:
            result = self.body(image)
        logits = result if isinstance(result, Tensor) else result.logits
        features = {name: self._feature(name, found) for name in {*self.stage_names, self.stem_name}}
        stages, tokens = zip(*(features[name] for name in self.stage_names), strict=True)
        prefixed = all(each is not None for each in tokens)
        stem = features[self.stem_name][0]
        return Output(logits, found[self.head_name], stages, stages, stem, tokens=tokens if prefixed else None)

    @contextmanager
    def _tapped(self) -> Iterator[dict[str, Any]]:
        """What the named submodules give, and the head takes, during a call. Hooks stay no longer: a copy would share them."""
        found: dict[str, Any] = {}
        handles = [
            self.body.get_submodule(name).register_forward_hook(partial(_keep_output, found, name))
            for name in dict.fromkeys((*self.stage_names, self.stem_name))
        ]
        handles.append(self.classifier.register_forward_pre_hook(partial(self._enter_head, found)))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def _enter_head(self, found: dict[str, Any], _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found[self.head_name] = inputs[0]
        return (self.dropout(inputs[0]),) if self.dropout.p else inputs

    def _feature(self, name: str, found: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """(the stage, its prefix tokens or None where it is a map)."""
        feature = found.get(name)
        if not isinstance(feature, Tensor):
            what = "was not called" if name not in found else f"returns a {type(feature).__name__}, not a tensor"
            raise ValueError(f"stages: '{name}' {what}")
        if feature.dim() != 3:
            return feature, None
        special, patches = feature[:, : self.prefix_tokens], feature[:, self.prefix_tokens :]
        side = math.isqrt(patches.shape[1])
        if side * side == patches.shape[1]:
            patches = patches.transpose(1, 2).unflatten(2, (side, side))
        return patches, special


def tap(body: object, taps: Mapping[str, Any], name: str) -> Network:
    """What a model's constructor returns as a `Network`.

    Args:
        taps: the arguments of `Tapped`, where the spec gives them.

    Raises:
        ValueError: a plain module without taps, a network of the bench with them, or something else.
    """
    if isinstance(body, Network):
        if taps:
            raise ValueError(f"{name} has features of its own: leave out {', '.join(taps)}")
        return body
    if not isinstance(body, nn.Module):
        raise ValueError(f"{name} is a {type(body).__name__}, not a torch.nn.Module")
    if not {"stages", "head"} <= taps.keys():
        parts = ", ".join(name for name, _ in body.named_children())
        how = "name its features, as in {stages: [layer1, layer2], head: fc}"
        raise ValueError(f"{name} is a plain module: {how}; it has: {parts}")
    return Tapped(body, **taps)


def _submodule(body: nn.Module, name: str) -> nn.Module:
    names = [each for each, _ in body.named_modules() if each]
    if name not in names:
        close = get_close_matches(name, names, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else f"; it has: {', '.join(names[:12])}"
        raise ValueError(f"there is no submodule '{name}'{hint}")
    return body.get_submodule(name)


def _keep_output(found: dict[str, Any], name: str, _: nn.Module, inputs: object, output: object) -> None:
    found[name] = output
