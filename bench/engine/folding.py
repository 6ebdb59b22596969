"""A frozen network made faster: batch norms become part of convolutions, weights take the precision of the arithmetic."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bench.engine.fusing import fused, on_gpu
from methods.base import Output

TOLERANCE = 1e-3  # in fp32, of the difference of two answers, relative to the largest element


def folded(network: nn.Module, image: Tensor, dtype: torch.dtype) -> nn.Module:
    """A copy in eval mode that answers alike, up to rounding.

    A batch norm is folded where its input is a convolution's output that nothing else uses: tried, and taken back where the
    answers differ. On a GPU so is what `fused` does.

    Args:
        image: (B, C, H, W) sample in fp32.
        dtype: of the copy's weights and answers.
    """
    # On a GPU, convolutions in fp32 take TF32 by default: too coarse for the comparison.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        fast = copy.deepcopy(network).eval()
        answer = fast(image)
        pairs = _pairs(fast, image)
        all_folded = _fold(copy.deepcopy(fast), pairs)
        if _alike(all_folded(image), answer):
            fast = all_folded
        else:
            for pair in pairs:
                attempt = _fold(copy.deepcopy(fast), [pair])
                fast = attempt if _alike(attempt(image), answer) else fast
        if on_gpu(image):
            try:
                attempt = fused(fast)
                if _alike(attempt(image), answer):
                    _final(copy.deepcopy(attempt), dtype)(image.to(dtype))
                    fast = attempt
            except RuntimeError:  # cuDNN has no such kernel for these shapes, or this type
                pass
    return _final(fast, dtype)


def _final(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    return network.to(dtype).to(memory_format=torch.channels_last).requires_grad_(False)


def _fold(network: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    """Replace the named convolutions and batch norms of a network."""
    for convolution, norm in pairs:
        fused = fuse_conv_bn_eval(
            cast(nn.Conv2d, network.get_submodule(convolution)), cast(nn.BatchNorm2d, network.get_submodule(norm))
        )
        network.set_submodule(convolution, fused)
        network.set_submodule(norm, nn.Identity())
    return network


def _alike(answer: Output, expected: Output) -> bool:
    """In everything that a method may read, features included."""
    found, wanted = (
        (
            output.logits,
            output.embedding,
            output.stem,
            *output.stages,
            *output.preact,
            *output.activated,
            *(output.tokens or ()),
        )
        for output in (answer, expected)
    )
    pairs = [(a, b) for a, b in zip(found, wanted, strict=True) if b.numel()]
    return all(bool((a - b).abs().max() <= TOLERANCE * b.abs().max()) for a, b in pairs)


def _pairs(network: nn.Module, image: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that take their outputs, seen in one forward pass."""
    names = {module: name for name, module in network.named_modules()}
    outputs: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, so that ids stay theirs
    pairs: list[tuple[str, str]] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            outputs[id(output)] = names[module], output
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], names[module]))

    handles = [module.register_forward_hook(see) for module in network.modules()]
    network(image)
    for handle in handles:
        handle.remove()
    return pairs
