"""What tests of feature methods share: a student's and a teacher's output in float64, and NumPy's answers to torch's layers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from methods import METHODS, Batch, Context, Method, Networks, Output

CLASSES, SAMPLES = 5, 4


def output(channels: list[int], sizes: list[int], seed: int) -> Output:
    """An Output of `SAMPLES` images; `channels` and `sizes` are those of the stem and the stages."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(SAMPLES, *shape, generator=generator, dtype=torch.float64)

    stem, *preact = [draw(c, s, s) for c, s in zip(channels, sizes, strict=True)]
    leaves = [draw(CLASSES), stem.relu(), *preact]
    for leaf in leaves:
        leaf.requires_grad_()
    stages = [feature.relu() for feature in preact]
    return Output(leaves[0], stages[-1].mean((2, 3)), tuple(stages), tuple(preact), leaves[1])


def pair(teacher_channels: list[int] | None = None, teacher_sizes: list[int] | None = None) -> tuple[Output, Output]:
    """A student and a teacher: without arguments of equal sizes and different channels."""
    return output([2, 2, 3, 4], [8, 8, 4, 2], 1), output(teacher_channels or [3, 4, 5, 6], teacher_sizes or [8, 8, 4, 2], 2)


def gradients(out: Output) -> list[Tensor]:
    return [leaf.grad for leaf in (out.logits, out.stem, *out.preact) if leaf.grad is not None]


def batch(**fields: object) -> Batch:
    return Batch(torch.zeros(SAMPLES, 3, 8, 8), torch.tensor([0, 3, 1, 4]), torch.arange(SAMPLES), **fields)  # type: ignore[arg-type]


def build(key: str, student: Output, teacher: Output, networks: Networks | None = None, **arguments: object) -> Method:
    torch.manual_seed(0)
    method = METHODS.build({"type": key, "weight": 1.0, **arguments})
    method.setup(Context(student, teacher, CLASSES, SAMPLES, SAMPLES, (3, 8, 8), networks=networks))
    return method.double()


def networks(student: Output, teacher: Output, **parts: object) -> Networks:
    """Networks that return these outputs for any image; `parts` are the teacher's."""

    class Answer(SimpleNamespace):
        def __call__(self, image: Tensor) -> Output:
            return self.output

    return Networks(Answer(output=student), Answer(output=teacher, **parts))


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def pooled(feature: np.ndarray, size: int) -> np.ndarray:
    b, c, h, w = feature.shape
    return feature.reshape(b, c, size, h // size, size, w // size).mean((3, 5))


def unit(rows: np.ndarray, axis: int = 1) -> np.ndarray:
    """Of L2 norm 1; a row of zeros, as a dead channel gives, stays one."""
    return rows / np.maximum(np.sqrt((rows**2).sum(axis, keepdims=True)), 1e-12)


def convolved(layer: torch.nn.Module, feature: np.ndarray) -> np.ndarray:
    """A convolution of stride 1, or a transposed one, that keeps the map's size."""
    weight = array(layer.weight)
    if isinstance(layer, torch.nn.ConvTranspose2d):
        weight = weight.swapaxes(0, 1)[:, :, ::-1, ::-1]
    size = weight.shape[-1]
    pad = size // 2
    padded = np.pad(feature, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (2, 3))
    out = np.einsum("ocij,bchwij->bohw", weight, windows)
    return out if layer.bias is None else out + array(layer.bias)[:, None, None]


def normed(feature: np.ndarray) -> np.ndarray:
    """A fresh batch norm in training."""
    return (feature - feature.mean((0, 2, 3), keepdims=True)) / np.sqrt(feature.var((0, 2, 3), keepdims=True) + 1e-5)


def check(
    method: Method,
    key: str,
    student: Output,
    teacher: Output,
    expected: float,
    trained: set[str] | None = None,
    **fields: object,
) -> None:
    """The term has this value, doubles with the weight, and moves the student, the method's parts and nothing else.

    `trained` names the parts that it moves, where these are not all of them.
    """
    terms = method.loss(student, teacher, batch(**fields))
    assert set(terms) == {"ce", key}
    assert terms[key].item() == pytest.approx(expected, rel=1e-9)
    terms[key].backward(retain_graph=True)
    moved = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.isfinite().all()}
    assert {name.split(".")[0] for name in moved} == trained if trained else len(moved) == len(list(method.parameters()))
    assert gradients(student)
    assert not gradients(teacher)
    method.weight = 2.0  # type: ignore[assignment]
    assert method.loss(student, teacher, batch(**fields))[key].item() == pytest.approx(2 * expected, rel=1e-9)
