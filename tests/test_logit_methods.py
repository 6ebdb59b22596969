"""Values of the methods on logits, embeddings and one's own stages, against numpy in float64 from the published formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods import METHODS, Batch, Method, Networks, Output

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
    method.setup(student, teacher, **{"classes": K, "samples": N, "targets": TARGETS, **setup})
    return method.double()


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def pooled(feature: np.ndarray, size: int) -> np.ndarray:
    b, c, h, _ = feature.shape
    return feature.reshape(b, c, size, h // size, size, h // size).mean((3, 5))


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


def test_ls_smooths_hard_and_mixed_targets() -> None:
    student = output(1)
    method = build({"type": "ls", "epsilon": 0.2}, student)
    log_p = np.log(softmax(array(student.logits)))
    expected = -((0.8 * one_hot() + 0.2 / K) * log_p).sum(1).mean()
    assert method.loss(student, None, batch())["ce"].item() == pytest.approx(expected, abs=1e-12)
    soft = np.full((B, K), 0.1) + 0.5 * one_hot()
    expected = -((0.8 * soft + 0.2 / K) * log_p).sum(1).mean()
    assert method.loss(student, None, batch(soft=torch.tensor(soft)))["ce"].item() == pytest.approx(expected, abs=1e-12)


def tfd_by_hand(stages: list[np.ndarray], reduction: Callable[[np.ndarray], float]) -> float:
    terms = []
    for i, shallow in enumerate(stages):
        for deep in stages[i + 1 :]:
            c = min(shallow.shape[1], deep.shape[1])
            terms.append(reduction((pooled(shallow, deep.shape[-1])[:, :c] - deep[:, :c]) ** 2))
    return float(np.mean(terms))


@pytest.mark.parametrize("channels", [(4, 6, 8), (8, 6, 7), (4, 4, 4)])
def test_tfd(channels: tuple[int, ...]) -> None:
    student = output(1, channels)
    stages = [array(feature) for feature in student.stages]
    spec = {"type": "tfd", "weight": 1.0, "ramp_epochs": 0}
    mean = build(spec, student).loss(student, None, batch())["tfd"].item()
    total = build({**spec, "reduction": "sum"}, student).loss(student, None, batch())["tfd"].item()
    two = build({**spec, "stages": [1, 3]}, student).loss(student, None, batch())["tfd"].item()
    assert mean == pytest.approx(tfd_by_hand(stages, np.mean), rel=1e-12)
    assert total == pytest.approx(tfd_by_hand(stages, lambda d: d.sum() / B), rel=1e-12)
    assert two == pytest.approx(tfd_by_hand([stages[0], stages[2]], np.mean), rel=1e-12)


def test_tfd_stops_the_gradient_of_the_guide_and_both_is_their_sum() -> None:
    student = output(1)
    gradients = {}
    for direction, reached in {"top_down": [True, True, False], "bottom_up": [False, True, True], "both": [True] * 3}.items():
        term = build({"type": "tfd", "direction": direction}, student).loss(student, None, batch(epoch=50))["tfd"]
        assert touched(term, student.stages) == reached
        gradients[direction] = torch.autograd.grad(term, student.preact, allow_unused=True, retain_graph=True)
    for down, up, both in zip(*gradients.values(), strict=True):
        assert both is not None
        assert torch.allclose(both, sum(g for g in (down, up) if g is not None))


def test_tfd_ramp_starts_at_one_twentieth() -> None:
    student = output(1)
    method = build({"type": "tfd"}, student)
    first, tenth, last = (method.loss(student, None, batch(epoch=e))["tfd"].item() for e in (0, 9, 200))
    assert first == pytest.approx(last / 20)
    assert tenth == pytest.approx(last / 2)


def test_tfd_names_stages_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="no stage 4; it has 1 to 3"):
        build({"type": "tfd", "stages": [1, 4]}, output(1))
    with pytest.raises(ValueError, match="at least two stages"):
        build({"type": "tfd", "stages": [2]}, output(1))


def test_tffd() -> None:
    student = output(1, (4, 6, 7))
    stages = [array(feature) for feature in student.stages]
    intra = []
    for feature in stages:
        flat = feature.reshape(*feature.shape[:2], -1)
        strength = (flat / np.maximum(np.sqrt((flat**2).sum(2, keepdims=True)), 1e-12)).mean((0, 2))
        order = np.argsort(-strength)
        half = len(order) // 2
        intra.append(((feature[:, order[:half]] - feature[:, order[-half:]]) ** 2).mean())
    terms = build({"type": "tffd", "inter": 1.0, "intra": 1.0, "ramp_epochs": 0}, student).loss(student, None, batch())
    assert terms["inter"].item() == pytest.approx(tfd_by_hand(stages, np.mean), rel=1e-12)
    assert terms["intra"].item() == pytest.approx(np.mean(intra), rel=1e-12)
    assert touched(terms["inter"], student.stages) == [True, True, False]
    assert METHODS.build({"type": "tffd", "preset": "readme"}).intra == 0.0008


def test_sum_has_one_cross_entropy() -> None:
    student, teacher = output(1), output(2)
    tfd = {"type": "tfd", "weight": 1.0}
    plain = build({"type": "sum", "parts": [tfd, {"type": "at"}]}, student, teacher).loss(student, teacher, batch())
    assert plain.keys() == {"ce", "tfd", "at"}
    assert plain["ce"].item() == pytest.approx(cross_entropy(student.logits))
    kd = build({"type": "sum", "parts": [tfd, {"type": "kd"}]}, student, teacher).loss(student, teacher, batch())
    assert kd["ce"].item() == pytest.approx(0.1 * cross_entropy(student.logits))
    assert kd["tfd"].item() == plain["tfd"].item()
    twice = build({"type": "sum", "parts": [tfd, tfd]}, student).loss(student, None, batch())
    assert twice.keys() == {"ce", "tfd.tfd", "tfd2.tfd"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least one part"),
        ([{"type": "kd"}, {"type": "ls"}], "only one part of a sum may change the cross-entropy, but kd and ls do"),
    ],
)
def test_sum_refuses(parts: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHODS.build({"type": "sum", "parts": parts})


def test_sum_asks_each_network_once() -> None:
    student, calls = output(1), []

    def network(image: Tensor) -> Output:
        calls.append(image)
        return student

    method = build({"type": "sum", "parts": [{"type": "tfd"}, {"type": "tffd"}, {"type": "ls"}]}, student)
    method.step(Networks(network), batch())
    assert len(calls) == 1
    assert method.needs == "none"
    assert isinstance(method.predictor(nn.Identity()), nn.Identity)
