"""What torch has each layer do by itself, done for all layers of a trainee at once: on a GPU each would be a kernel.

* A batch norm counts the batches that it trained on. Weights files hold the counts; training reads none of them.
* Under autocast a convolution or linear layer casts its weights to bf16, and their gradient back.

Values are torch's, bit for bit. One case is apart: where a method itself computes in bf16 with the weight of a layer that runs,
too, the gradients of both uses are added in fp32, not in bf16.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Pass:
    """A forward pass under way.

    Attributes:
        counters: of batch norms, one entry for each time that one trains.
        casts: bf16 copies of weights, by the weight.
    """

    def __init__(self, casts: dict[Tensor, Tensor]) -> None:
        self.counters: list[Tensor] = []
        self.casts = casts


_now: _Pass | None = None


def _normalized(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor | None:
    """A batch norm's forward pass with its count left for later; None where torch's own is due."""
    if _now is None or not (norm.training and norm.track_running_stats) or norm.num_batches_tracked is None:
        return None
    if norm.momentum is None:
        return None  # it averages over all batches, and reads its count
    norm._check_input_dim(x)
    _now.counters.append(norm.num_batches_tracked)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, norm.momentum, norm.eps)


class BatchNorm1d(nn.BatchNorm1d):
    """torch's, counted with others."""

    def forward(self, input: Tensor) -> Tensor:
        result = _normalized(self, input)
        return super().forward(input) if result is None else result


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, counted with others."""

    def forward(self, input: Tensor) -> Tensor:
        result = _normalized(self, input)
        return super().forward(input) if result is None else result


def _cast(layer: nn.Conv2d | nn.Linear, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A layer's weight and bias, in bf16 where autocast would cast them."""
    weight, bias = layer.weight, layer.bias
    if _now is None or not _now.casts or not torch.is_autocast_enabled(x.device.type):
        return weight, bias
    return _now.casts.get(weight, weight), None if bias is None else _now.casts.get(bias, bias)


class Conv2d(nn.Conv2d):
    """torch's, with weights that were cast with others."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, *_cast(self, input))


class Linear(nn.Linear):
    """torch's, with weights that were cast with others."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, *_cast(self, input))


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.Conv2d: Conv2d,
    nn.Linear: Linear,
}


class _Cast(torch.autograd.Function):
    """Tensors in bf16; gradients in fp32. A tensor that is not used gets none, as under autocast."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(_copied(values, torch.bfloat16))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # gradients of gradients are wanted
            return tuple(None if each is None else each.float() for each in gradients)
        copies = iter(_copied([each for each in gradients if each is not None], torch.float32))
        return tuple(None if each is None else next(copies) for each in gradients)


def _copied(values: Any, dtype: torch.dtype) -> list[Tensor]:
    copies = [torch.empty_like(value, dtype=dtype) for value in values]
    torch._foreach_copy_(copies, values)
    return copies


class Layers:
    """Layers of a trainee that do such work at once. Others, of subclasses and of other kinds, do theirs as ever.

    Args:
        modules: of the trainee. Layers among them become the kinds of this file, in place.
        casts: whether weights are cast, as autocast to bf16 would.
    """

    def __init__(self, modules: Iterable[nn.Module], casts: bool) -> None:
        weights: dict[Tensor, None] = {}
        for module in modules:
            module.__class__ = KINDS.get(type(module), type(module))
            if casts and type(module) in (Conv2d, Linear):
                weights |= dict.fromkeys(each for each in (module.weight, module.bias) if isinstance(each, nn.Parameter))
        self._weights = [each for each in weights if each.dtype is torch.float32]

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """For one forward pass: casts come first, counts last."""
        global _now
        weights = [each for each in self._weights if each.requires_grad]  # autocast keeps copies of these alone
        casts = dict(zip(weights, _Cast.apply(*weights), strict=True)) if weights else {}
        before, _now = _now, _Pass(casts)
        try:
            yield
            if counts := Counter(_now.counters):
                torch._foreach_add_(list(counts), list(counts.values()))
        finally:
            _now = before
