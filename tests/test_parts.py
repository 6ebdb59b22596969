"""Gradients that `methods/parts.py` writes itself, against torch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.parts import attention, pool_to, widened


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pooling_and_widening_have_torchs_gradients_in_the_features_layout(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    feature = torch.randn(2, 5, 12, 6, generator=torch.manual_seed(0)).to(dtype).to(memory_format=layout).requires_grad_()
    upstream = torch.randn(2, 5, 4, 3, generator=torch.manual_seed(1)).to(memory_format=torch.contiguous_format)
    ours = widened(pool_to(widened(feature), (4, 3)))
    theirs = F.avg_pool2d(feature.double(), (3, 2))
    assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(ours.double(), theirs, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(ours, feature, upstream.to(ours.dtype))
    (expected,) = torch.autograd.grad(theirs, feature, upstream.double())
    assert gradient.dtype == dtype
    assert gradient.is_contiguous(memory_format=layout)
    assert torch.allclose(gradient, expected, rtol=0.01 if dtype == torch.bfloat16 else 1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_attention_has_torchs_gradient_in_the_features_layout(dtype: torch.dtype, layout: torch.memory_format) -> None:
    feature = torch.randn(2, 5, 4, 3, generator=torch.manual_seed(0)).to(dtype).to(memory_format=layout).requires_grad_()
    ours, theirs = attention(feature), F.normalize(feature.double().square().mean(1).flatten(1), dim=1)
    assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(ours.double(), theirs, rtol=1e-6, atol=1e-6)
    upstream = torch.randn(2, 12, generator=torch.manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(ours, feature, upstream.to(ours.dtype))
    (expected,) = torch.autograd.grad(theirs, feature, upstream)
    assert gradient.dtype == dtype
    assert gradient.is_contiguous(memory_format=layout)
    assert torch.allclose(gradient, expected, rtol=0.01 if dtype == torch.bfloat16 else 1e-12)


@pytest.mark.parametrize("function", [lambda x: pool_to(widened(x), (2, 2)).square(), attention], ids=["pooling", "attention"])
def test_second_derivatives_pass_through(function: Callable[[Tensor], Tensor]) -> None:
    feature = torch.randn(1, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(function, feature)
