"""What tests of methods on logits and embeddings share: outputs in float64, and NumPy's answers to torch's functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods import METHODS, Batch, Context, Method, Output

B, K, N = 6, 5, 12
TARGET = torch.tensor([0, 3, 1, 4, 3, 0])
TARGETS = torch.arange(N) % K


def output(seed: int, channels: tuple[int, ...] = (4, 6, 8), sizes: tuple[int, ...] = (8, 4, 2), width: int = 7) -> Output:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    preact = tuple(draw(B, c, s, s) for c, s in zip(channels, sizes, strict=True))
    stem = draw(B, 3, sizes[0], sizes[0])
    return Output(draw(B, K), draw(B, width), tuple(feature.relu() for feature in preact), preact, stem)


def batch(**fields: Any) -> Batch:
    return Batch(torch.zeros(B, 3, 8, 8), TARGET, torch.arange(B), **fields)


def build(spec: dict[str, Any], student: Output, teacher: Output | None = None, **setup: Any) -> Method:
    torch.manual_seed(0)
    method = METHODS.build(spec)
    context = Context(student, teacher, classes=K, samples=N, batch_size=B, image=(3, 8, 8), targets=TARGETS)
    method.setup(context._replace(**setup))
    return method.double()


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def pooled(feature: np.ndarray, size: int) -> np.ndarray:
    """Average pooling to size x size; bins overlap where it is not a factor of the height."""
    height = feature.shape[-1]
    bins = [slice(i * height // size, -(-(i + 1) * height // size)) for i in range(size)]
    return np.stack([np.stack([feature[:, :, r, c].mean((2, 3)) for c in bins], -1) for r in bins], -2)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def one_hot() -> np.ndarray:
    return np.eye(K)[TARGET.numpy()]


def cross_entropy(logits: Tensor) -> float:
    return float(-(one_hot() * np.log(softmax(array(logits)))).sum(1).mean())


def touched(loss: Tensor, tensors: tuple[Tensor, ...]) -> list[bool]:
    gradients = torch.autograd.grad(loss, tensors, allow_unused=True, retain_graph=True)
    return [g is not None and bool(g.abs().sum() > 0) for g in gradients]
