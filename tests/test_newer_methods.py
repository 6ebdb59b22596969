"""Methods of 2022 and later: values against numpy in float64 from the formulas, and where their gradients go."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from bench.models import MODELS
from methods import METHODS, Batch, Context, Method, Networks, Output

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


# --- Rows, for wrappers ---


@pytest.mark.parametrize("key", ["kd", "dkd", "nkd"])
def test_the_mean_of_the_rows_is_the_term(key: str) -> None:
    student, teacher = output(0), output(1)
    method = build({"type": key, "temperature": 3.0}, student, teacher)
    rows = method.by_row(student.logits, teacher.logits, batch(epoch=4))
    assert rows.shape == (B,)
    agrees(rows.mean(), method.loss(student, teacher, batch(epoch=4))[key].item())


# --- Teacher matching ---


def test_ttm_and_wttm() -> None:
    student, teacher = output(0), output(1)
    power = softmax(array(teacher.logits), 1) ** 0.3
    sums = power.sum(1)
    p = power / sums[:, None]
    rows = (p * (np.log(p) - log_softmax(array(student.logits), 1))).sum(1)
    ttm, wttm = (
        build({"type": key, "gamma": 0.3, "weight": 7.0}, student, teacher).loss(student, teacher, batch())[key]
        for key in ("ttm", "wttm")
    )
    agrees(ttm, 7.0 * rows.mean())
    agrees(wttm, 7.0 * (sums * rows).mean())
    assert METHODS.build({"type": "ttm", "preset": "vgg13/vgg8"}).weight == 45.0
    with pytest.raises(TypeError, match="gamma"):
        METHODS.build({"type": "wttm"})


# --- Refined logits ---


def test_rld() -> None:
    student, teacher = output(0), output(1)
    z_s, z_t = array(student.logits), array(teacher.logits)
    spec = {"type": "rld", "alpha": 0.7, "beta": 3.0, "temperature": 2.0, "confidence_temperature": 1.5, "weight": 2.0}
    term = build(spec, student, teacher).loss(student, teacher, batch(epoch=4))["rld"]
    p, q = softmax(z_t / 1.5, 1).max(1), softmax(z_s / 1.5, 1)[ROWS, LABELS]
    scd = 1.5**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    mcd = 0.0
    for row, label in enumerate(LABELS):
        below = z_t[row] < z_t[row, label]
        if below.any():
            mcd += kl(z_t[None, row, below], z_s[None, row, below], 2.0)[0] / B
    agrees(term, 2.0 * 5 / 20 * (0.7 * scd + 3.0 * mcd))


def test_rld_leaves_out_an_image_whose_label_the_teacher_ranks_last() -> None:
    logits = draw(0, B, K).float().requires_grad_()
    last = -10 * nn.functional.one_hot(TARGET, K).float()
    method = METHODS.build({"type": "rld", "alpha": 0.0})
    student, teacher = output(0)._replace(logits=logits), output(1)._replace(logits=last)
    term = method.loss(student, teacher, batch())["rld"]
    assert term == 0
    (gradient,) = torch.autograd.grad(term, logits)
    assert not gradient.any()


# --- Curriculum temperature ---


@pytest.mark.parametrize("key", ["kd", "dkd"])
def test_ctkd_and_the_gradient_of_its_temperature(key: str) -> None:
    student, teacher = output(0), output(1)
    arguments = {"beta": 3.0, "ramp_epochs": 0} if key == "dkd" else {}
    method = build({"type": "ctkd", "method": {"type": key, "temperature": 1.0, **arguments}}, student, teacher)

    def by_hand(theta: float) -> float:
        tau = 1 + 20 / (1 + math.exp(-theta))
        return METHODS.build({"type": key, "temperature": tau, **arguments}).loss(student, teacher, batch())[key].item()

    terms = method.loss(student, teacher, batch(epoch=3))
    agrees(terms["ctkd"], by_hand(1.0))
    assert terms["ce"].item() == pytest.approx(
        (0.1 if key == "kd" else 1.0) * -log_softmax(array(student.logits), 1)[ROWS, LABELS].mean()
    )
    slope = (by_hand(1 + 1e-4) - by_hand(1 - 1e-4)) / 2e-4
    for epoch, factor in ((0, (math.cos(0.1 * math.pi) - 1) / 2), (4, -0.5), (9, -1.0), (70, -1.0)):
        (found,) = torch.autograd.grad(method.loss(student, teacher, batch(epoch=epoch))["ctkd"], method.theta)
        assert found.item() == pytest.approx(factor * slope, rel=1e-5)
    assert 15.6 < method.temperature(batch()).item() < 15.7


@pytest.mark.parametrize(
    ("method", "message"),
    [({"type": "kd"}, "give the wrapped 'kd' temperature: 1"), ({"type": "at"}, "of kd or dkd, not of 'at'")],
)
def test_what_ctkd_refuses(method: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHODS.build({"type": "ctkd", "method": method})


# --- Scales ---


@pytest.mark.parametrize(("key", "finest"), [("kd", 2), ("dkd", 4), ("nkd", 2)])
def test_sdd(key: str, finest: int) -> None:
    student, teacher = network("resnet8x4", 0), network("resnet8x4", 1).eval()
    image = draw(3, B, 1, 16, 16)
    out_s, out_t = student(image), teacher(image)
    target = out_t.logits.argmax(1)
    target[::2] = TARGET[::2]  # right about some images and wrong about others
    nets = Networks(student, teacher)
    method = build({"type": "sdd", "method": {"type": key}, "finest": finest}, out_s, out_t, networks=nets)
    terms = method.step(nets, batch(image=image, target=target))

    alone = METHODS.build({"type": key})
    total, cells = (
        0.0,
        [(1, 0, 0)] + [(side, i, j) for side in (2, 4) if side <= finest for i in range(side) for j in range(side)],
    )
    for side, i, j in cells:
        logits = []
        for net, out in ((student, out_s), (teacher, out_t)):
            step = 4 // side  # the last map is 4x4
            cell = array(out.stages[-1])[:, :, i * step : (i + 1) * step, j * step : (j + 1) * step].mean((2, 3))
            logits.append(cell @ array(net.classifier.weight).T + array(net.classifier.bias))
        for row in range(B):
            one = [output(0)._replace(logits=torch.tensor(z[row : row + 1])) for z in logits]
            label = target[row : row + 1]
            value = alone.loss(*one, batch(target=label))[key].item()
            right = logits[1][row].argmax() == label.item(), out_t.logits[row].argmax() == label
            total += value * (2.0 if right[0] != right[1] else 1.0)
    agrees(terms["sdd"], total / (B * len(cells)))
    assert set(terms) == {"ce", "sdd"}


def test_sdd_refuses_a_network_with_a_head() -> None:
    student = network("mobilenetv2", 0).eval()
    out = student(draw(3, B, 1, 32, 32))
    with pytest.raises(ValueError, match="a student whose classifier works on the mean of its last stage"):
        build({"type": "sdd", "method": {"type": "kd"}}, out, output(1), networks=Networks(student, student))
