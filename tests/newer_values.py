"""What the tests of newer methods share: small outputs, and formulas in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from bench.models import MODELS
from methods import METHODS, Batch, Context, Method, Output

B, K, N = 6, 5, 12
TARGET = torch.tensor([0, 3, 1, 4, 3, 0])
LABELS = TARGET.numpy()
ROWS = np.arange(B)


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def output(seed: int, width: int = 8) -> Output:
    """Leaves in float64 that want gradients: three stages of 4, 6 and `width` channels at 8, 4 and 2 pixels a side."""
    stages = tuple(draw(seed + i, B, c, s, s).relu().requires_grad_() for i, (c, s) in enumerate(((4, 8), (6, 4), (width, 2))))
    embedding = draw(seed + 7, B, width).requires_grad_()
    return Output(2 * draw(seed + 8, B, K).requires_grad_(), embedding, stages, stages, draw(seed + 9, B, 3, 8, 8))


def batch(**fields: Any) -> Batch:
    return Batch(draw(99, B, 1, 8, 8), TARGET, torch.arange(B), epoch=60, epochs=100)._replace(**fields)


def build(spec: dict[str, Any], student: Output, teacher: Output | None = None, **setup: Any) -> Method:
    """As the engine builds it, in float64, with the random numbers of seed 0."""
    torch.manual_seed(0)
    method = METHODS.build(spec)
    context = Context(student, teacher, classes=K, samples=N, batch_size=B, image=(1, 8, 8))
    method.setup(context._replace(**setup))
    return method.double()


def network(model: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS.build({"type": model, "classes": K, "channels": 1}).double()


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def kl(teacher: np.ndarray, student: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """T^2 KL of logits, by row."""
    p, log_q = softmax(teacher / temperature, 1), log_softmax(student / temperature, 1)
    return temperature**2 * (p * (np.log(p) - log_q)).sum(1)


def agrees(term: Tensor, expected: float) -> None:
    assert term.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def without_label(logits: np.ndarray) -> np.ndarray:
    return np.stack([np.delete(row, label) for row, label in zip(logits, LABELS, strict=True)])
