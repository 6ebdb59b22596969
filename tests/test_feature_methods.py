"""Values of the feature methods against numpy in float64, written from the published formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from methods import METHODS, Batch, Method, Output

CLASSES, SAMPLES = 5, 4


def output(channels: list[int], sizes: list[int], seed: int, trainable: bool = False) -> Output:
    """An Output of `SAMPLES` images; `channels` and `sizes` are those of the stem and the stages."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(SAMPLES, *shape, generator=generator, dtype=torch.float64)

    preact = [draw(c, s, s) for c, s in zip(channels, sizes, strict=True)]
    for tensor in preact:
        tensor.requires_grad_(trainable)
    stem, *stages = [tensor.relu() for tensor in preact]
    logits = draw(CLASSES).requires_grad_(trainable)
    return Output(logits, stages[-1].mean((2, 3)), tuple(stages), tuple(preact[1:]), stem)


def pair(teacher_channels: list[int] | None = None, teacher_sizes: list[int] | None = None) -> tuple[Output, Output]:
    student = output([2, 2, 3, 4], [8, 8, 4, 2], 1, trainable=True)
    return student, output(teacher_channels or [3, 4, 5, 6], teacher_sizes or [8, 8, 4, 2], 2)


def batch(**fields: object) -> Batch:
    return Batch(torch.zeros(SAMPLES, 3, 8, 8), torch.tensor([0, 3, 1, 4]), torch.arange(SAMPLES), **fields)  # type: ignore[arg-type]


def build(key: str, student: Output, teacher: Output, **arguments: object) -> Method:
    torch.manual_seed(0)
    method = METHODS.build({"type": key, "weight": 1.0, **arguments})
    method.setup(student, teacher, classes=CLASSES, samples=SAMPLES)
    return method.double()


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def pooled(feature: np.ndarray, size: int) -> np.ndarray:
    b, c, h, w = feature.shape
    return feature.reshape(b, c, size, h // size, size, w // size).mean((3, 5))


def unit(rows: np.ndarray, axis: int = 1) -> np.ndarray:
    return rows / np.sqrt((rows**2).sum(axis, keepdims=True))


def pointwise(conv: torch.nn.Module, feature: np.ndarray) -> np.ndarray:
    """A 1x1 convolution."""
    out = np.einsum("oc,bchw->bohw", array(conv.weight)[:, :, 0, 0], feature)
    return out if conv.bias is None else out + array(conv.bias)[:, None, None]


def normed(feature: np.ndarray) -> np.ndarray:
    """A fresh batch norm in training."""
    return (feature - feature.mean((0, 2, 3), keepdims=True)) / np.sqrt(feature.var((0, 2, 3), keepdims=True) + 1e-5)


def check(method: Method, key: str, student: Output, teacher: Output, expected: float, **fields: object) -> None:
    """The term has this value, doubles with the weight, and moves the student and all of the method's parameters."""
    terms = method.loss(student, teacher, batch(**fields))
    assert set(terms) == {"ce", key}
    assert terms[key].item() == pytest.approx(expected, rel=1e-9)
    terms[key].backward(retain_graph=True)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)
    method.weight = 2.0  # type: ignore[assignment]
    assert method.loss(student, teacher, batch(**fields))[key].item() == pytest.approx(2 * expected, rel=1e-9)


def test_fitnets() -> None:
    student, teacher = pair()
    method = build("fitnets", student, teacher)
    guess = np.maximum(normed(pointwise(method.regressor.convolution, array(student.stages[1]))), 0)
    check(method, "fitnets", student, teacher, ((guess - array(teacher.stages[1])) ** 2).mean())


def test_fitnets_names_a_missing_stage() -> None:
    with pytest.raises(ValueError, match=r"no stage 4 .* 0 \(the stem\) to 3"):
        build("fitnets", *pair(), stage=4)


def attention_distance(feature_s: np.ndarray, feature_t: np.ndarray) -> float:
    maps = [unit((f**2).mean(1).reshape(SAMPLES, -1)) for f in (feature_s, feature_t)]
    return float(((maps[0] - maps[1]) ** 2).mean())


def test_at() -> None:
    student, teacher = pair()
    expected = sum(attention_distance(array(s), array(t)) for s, t in zip(student.stages, teacher.stages, strict=True))
    check(build("at", student, teacher), "at", student, teacher, expected)


def test_at_of_networks_that_differ_in_sizes_and_number_of_stages() -> None:
    student, teacher = pair([3, 4, 5, 6, 7], [16, 16, 8, 4, 4])
    features_t = [array(teacher.stages[1]), array(teacher.stages[2]), pooled(array(teacher.stages[3]), 2)]
    expected = sum(attention_distance(array(s), t) for s, t in zip(student.stages, features_t, strict=True))
    check(build("at", student, teacher), "at", student, teacher, expected)
