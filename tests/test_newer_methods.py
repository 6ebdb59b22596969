"""Methods of 2022 and later: values against numpy in float64 from the formulas, and where their gradients go."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from newer_values import LABELS, ROWS, TARGET, B, K, agrees, array, batch, build, draw, kl, network, output
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from methods import METHODS, Batch, Networks
from methods.wkd_l import class_similarity

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


# --- Embeddings: srd, rsd ---


def test_srd() -> None:
    student, teacher = output(0, width=6), output(1, width=9)
    method = build({"type": "srd", "weight": 0.5, "kd_weight": 3.0}, student, teacher)
    projected = array(student.embedding) @ array(method.projector.weight).T + array(method.projector.bias)

    def normalized(x: np.ndarray) -> np.ndarray:
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-4)

    difference = normalized(projected) - normalized(array(teacher.embedding))
    terms = method.loss(student, teacher, batch())
    agrees(terms["srd"], 0.5 * np.log((np.abs(difference) ** 4).sum()))
    agrees(terms["kd"], 3.0 * kl(array(teacher.logits), array(student.logits)).mean())
    assert METHODS.build({"type": "srd"}).weight == 2.0
    assert len(list(method.parameters())) == 2


def test_rsd() -> None:
    student, teacher = output(0, width=6), output(1, width=4)
    method = build({"type": "rsd", "weight": 0.5, "kappa": 0.2}, student, teacher)
    first, norm, _, last = method.projector
    hidden = array(student.embedding) @ array(first.weight).T
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + norm.eps)
    projected = hidden * np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in hidden.flat]).reshape(hidden.shape)
    projected = projected @ array(last.weight).T
    p = np.zeros((4, 4))
    for i in range(4):
        for j in range(4):
            t, s = array(teacher.embedding)[:, i], projected[:, j]
            p[i, j] = ((t - t.mean()) * (s - s.mean())).mean() / ((t.std() + 1e-5) * (s.std() + 1e-5))
    expected = sum((p[i, j] - 1) ** 2 if i == j else 0.2 * p[i, j] ** 2 for i in range(4) for j in range(4))
    agrees(method.loss(student, teacher, batch())["rsd"], 0.5 * expected)
    assert hidden.shape == (B, 12)


# --- Exits: ofa ---


@pytest.mark.parametrize("gamma", [1.0, 1.4])
def test_ofa(gamma: float) -> None:
    student, teacher = output(0), output(1, width=10)
    method = build({"type": "ofa", "weight": 0.3, "kd_weight": 2.0, "gamma": gamma}, student, teacher)

    def loss(logits: Tensor, labels: np.ndarray) -> float:
        y = np.eye(K)[labels]
        target = (softmax(array(teacher.logits), 1) + y) ** gamma - y
        return float(-(target * log_softmax(array(logits), 1)).sum(1).mean())

    exits = [exit_(stage) for exit_, stage in zip(method.exits, student.stages, strict=True)]
    terms = method.loss(student, teacher, batch())
    agrees(terms["exits"], 0.3 * sum(loss(logits, LABELS) for logits in exits))
    agrees(terms["kd"], 2.0 * loss(student.logits, LABELS))
    soft = 0.6 * torch.eye(K)[(TARGET + 1) % K] + 0.4 * torch.eye(K)[TARGET]
    agrees(method.loss(student, teacher, batch(soft=soft.double()))["kd"], 2.0 * loss(student.logits, (LABELS + 1) % K))


def test_ofa_exits_have_the_published_parameters() -> None:
    """A separable convolution of C to D: two depthwise 3x3, C to C and C to D, two batch norms."""
    student, teacher = output(0), output(1, width=10)
    method = build({"type": "ofa"}, student, teacher)

    def separable(c: int, d: int) -> int:
        return 9 * c + c * c + 2 * c + 9 * c + c * d + 2 * d

    classifier = 10 * K + K
    expected = [separable(4, 8) + separable(8, 10), separable(6, 10), 8 * 10 + 10]
    assert [sum(p.numel() for p in exit_.parameters()) for exit_ in method.exits] == [n + classifier for n in expected]


# --- Zipf ---


def transport_by_hand(p: np.ndarray, q: np.ndarray, cost: np.ndarray) -> float:
    kernel = np.exp(-cost / 0.05)
    u = np.full(len(p), 1 / len(p))
    for _ in range(10):
        v = q / (kernel.T @ u + 1e-8)
        u = p / (kernel @ v + 1e-8)
    return float((u[:, None] * kernel * v * cost).sum())


def cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    norms = [np.linalg.norm(a.T @ b) for a, b in ((x, y), (x, x), (y, y))]
    return norms[0] ** 2 / (norms[1] * norms[2])


@pytest.mark.parametrize(("epoch", "decay"), [(30, 1.0), (61, 1.0), (79, (1 + math.cos(math.pi * 17.5 / 37.5)) / 2), (99, 0.0)])
def test_wkd_l(epoch: int, decay: float) -> None:
    student, teacher = output(0), output(1)
    samples = 24
    targets = (torch.arange(samples) * 7 % 11) % K  # four to six images a class
    known = draw(5, samples, K)
    method = build({"type": "wkd_l", "weight": 3.0, "target_weight": 0.5}, student, teacher, targets=targets, samples=samples)
    nets = Networks(None, lambda image: teacher._replace(logits=known[image]))
    for index in torch.randperm(samples).split(10):
        method.prepare(nets, Batch(index, targets[index], index))
    terms = method.loss(student, teacher, batch(epoch=epoch, epochs=100))

    fewest = int(torch.bincount(targets).min())
    assert fewest == 4
    rows = {k: [i for i in range(samples) if targets[i] == k][:fewest] for k in range(K)}
    features = [array(known)[rows[k]] for k in range(K)]
    cost = np.array([[1 - math.exp(-(1 - cka(x, y))) for y in features] for x in features]) + 1e-8
    z_s, z_t = array(student.logits), array(teacher.logits)
    distance = 0.0
    for row, label in enumerate(LABELS):
        others = [k for k in range(K) if k != label]
        p, q = (softmax(z[row, others] / 8) for z in (z_s, z_t))
        distance += transport_by_hand(p, q, cost[np.ix_(others, others)]) / B
    assert terms["wkd_l"].item() == pytest.approx(3.0 * decay * distance, rel=1e-5, abs=1e-12)
    expected = -(softmax(z_t, 1)[ROWS, LABELS] * log_softmax(z_s, 1)[ROWS, LABELS]).mean()
    agrees(terms["target"], 0.5 * expected)


def test_class_similarity_of_many_rows_is_the_sum_over_parts() -> None:
    features = draw(0, 3, 40, 4)
    found = class_similarity(features)
    for i in range(3):
        for j in range(3):
            assert found[i, j].item() == pytest.approx(cka(array(features[i]), array(features[j])), rel=1e-6)
