"""Values of the methods on logits and on one's own stages, against numpy in float64 from the published formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from logit_values import TARGET, B, K, array, batch, build, cross_entropy, one_hot, output, pooled, softmax, touched
from torch import Tensor, nn

from methods import METHODS, Networks, Output


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
@pytest.mark.parametrize("sizes", [(8, 4, 2), (8, 4, 4), (9, 6, 3)])
def test_tfd(channels: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    student = output(1, channels, sizes)
    stages = [array(feature) for feature in student.stages]
    spec = {"type": "tfd", "weight": 1.0, "ramp_epochs": 0}
    mean = build(spec, student).loss(student, None, batch())["tfd"].item()
    total = build({**spec, "reduction": "sum"}, student).loss(student, None, batch())["tfd"].item()
    two = build({**spec, "stages": [1, 3]}, student).loss(student, None, batch())["tfd"].item()
    before = build({**spec, "before_activation": True}, student).loss(student, None, batch())["tfd"].item()
    assert mean == pytest.approx(tfd_by_hand(stages, np.mean), rel=1e-12)
    assert total == pytest.approx(tfd_by_hand(stages, lambda d: d.sum() / B), rel=1e-12)
    assert two == pytest.approx(tfd_by_hand([stages[0], stages[2]], np.mean), rel=1e-12)
    assert before == pytest.approx(tfd_by_hand([array(feature) for feature in student.preact], np.mean), rel=1e-12)


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


def test_tfd_has_no_ramp_and_that_of_the_public_code_starts_at_one_twentieth() -> None:
    student = output(1)
    method = build({"type": "tfd"}, student)
    assert len({method.loss(student, None, batch(epoch=e))["tfd"].item() for e in (0, 9, 200)}) == 1
    method = build({"type": "tfd", "preset": "code"}, student)
    first, tenth, last = (method.loss(student, None, batch(epoch=e))["tfd"].item() for e in (0, 9, 200))
    assert first == pytest.approx(last / 20)
    assert tenth == pytest.approx(last / 2)


@pytest.mark.parametrize(("key", "weight"), [("tfd", "weight"), ("tffd", "inter"), ("dkd", "weight"), ("eskd", "weight")])
def test_a_ramp_at_its_end_costs_no_digits(key: str, weight: str) -> None:
    student, teacher = output(1), output(2)
    term = weight if key == "tffd" else key
    plain, weighted = (
        build({"type": key, weight: w}, student, teacher).loss(student, teacher, batch(epoch=50, epochs=100))[term].item()
        for w in (1.0, 0.005)
    )
    assert weighted == pytest.approx(0.005 * plain, rel=1e-14)


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
        ([{"type": "at"}, {"type": "tfkd_self", "ce_weight": 1.0}], "needs the parts have at: teacher, tfkd_self: self"),
        ([{"type": "cskd"}, {"type": "dlb"}], "partner the parts have cskd: same_class, dlb: second_view"),
        ([{"type": "ab"}, {"type": "ft", "prepare_epochs": 2}], "prepare_epochs the parts have ab: 30, ft: 2"),
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
    method = build({"type": "sum", "parts": [{"type": "tfd"}, {"type": "cskd"}]}, student)
    calls.clear()
    method.step(Networks(network), batch(partner=torch.zeros(B, 3, 8, 8)))
    assert len(calls) == 2  # the images and their partners
    assert method.partner == "same_class"
    assert isinstance(method.predictor(nn.Identity()), nn.Identity)


@pytest.mark.parametrize("key", ["kd", "dkd", "nkd", "dist", "eskd", "rkd", "pkt", "cc", "crd"])
def test_no_gradient_reaches_the_teacher(key: str) -> None:
    student, teacher = output(1), output(2)
    terms = build({"type": key}, student, teacher).loss(student, teacher, batch())
    assert touched(torch.stack(list(terms.values())).sum(), (teacher.logits, teacher.embedding)) == [False, False]


def others(logits: np.ndarray) -> np.ndarray:
    return np.array([np.delete(row, label) for row, label in zip(logits, TARGET.numpy(), strict=True)])


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum(1).mean())


def test_dkd() -> None:
    student, teacher = output(1), output(2)
    z_s, z_t, temperature = array(student.logits), array(teacher.logits), 4.0

    def binary(z: np.ndarray) -> np.ndarray:
        label = (softmax(z / temperature) * one_hot()).sum(1)
        return np.stack([label, 1 - label], axis=1)

    tckd = temperature**2 * kl(binary(z_t), binary(z_s))
    nckd = temperature**2 * kl(softmax(others(z_t) / temperature), softmax(others(z_s) / temperature))
    dkd = build({"type": "dkd", "ramp_epochs": 0}, student, teacher).loss(student, teacher, batch())["dkd"]
    assert dkd.item() == pytest.approx(tckd + 8 * nckd, rel=1e-10)
    assert touched(dkd, (student.logits, teacher.logits)) == [True, False]
    preset = build({"type": "dkd", "preset": "resnet56/resnet20"}, student, teacher).loss(student, teacher, batch(epoch=4))[
        "dkd"
    ]
    assert preset.item() == pytest.approx((tckd + 2 * nckd) * 5 / 20, rel=1e-10)


def test_nkd() -> None:
    student, teacher = output(1), output(2)
    z_s, z_t = array(student.logits), array(teacher.logits)
    label = -((softmax(z_t) * np.log(softmax(z_s))) * one_hot()).sum(1).mean()
    for temperature in (1.0, 2.0):
        q_s, q_t = softmax(others(z_s) / temperature), softmax(others(z_t) / temperature)
        expected = label - 1.5 * temperature**2 * (q_t * np.log(q_s)).sum(1).mean()
        method = build({"type": "nkd", "temperature": temperature}, student, teacher)
        assert method.loss(student, teacher, batch())["nkd"].item() == pytest.approx(expected, rel=1e-10)


def test_dist() -> None:
    student, teacher = output(1), output(2)
    p_s, p_t = softmax(array(student.logits) / 4), softmax(array(teacher.logits) / 4)

    def correlation(first: np.ndarray, second: np.ndarray) -> float:
        a, b = first - first.mean(1, keepdims=True), second - second.mean(1, keepdims=True)
        return float(np.mean([x @ y / (np.sqrt(x @ x * (y @ y)) + 1e-8) for x, y in zip(a, b, strict=True)]))

    rows, columns = correlation(p_s, p_t), correlation(p_s.T, p_t.T)
    spec = {"type": "dist", "weight": 1.0, "beta": 2.0, "gamma": 3.0}
    dist = build(spec, student, teacher).loss(student, teacher, batch())["dist"].item()
    assert dist == pytest.approx(16 * (2 * (1 - rows) + 3 * (1 - columns)), rel=1e-10)


def test_logit_std_leaves_the_cross_entropy_alone() -> None:
    student, teacher = output(1), output(2)

    def z_score(z: np.ndarray) -> np.ndarray:
        return (z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True)

    z_s, z_t = z_score(array(student.logits)), z_score(array(teacher.logits))
    for preset, temperature, weight, ce_weight in (
        ("kd", 2, 9, 0.1),
        ("vgg13/vgg8", 3, 9, 0.1),
        ("resnet50/mobilenetv2", 3, 1, 0.1),
        ("resnet34/resnet18", 2, 9, 1.0),
    ):
        terms = build({"type": "logit_std", "preset": preset}, student, teacher).loss(student, teacher, batch())
        expected = weight * temperature**2 * kl(softmax(z_t / temperature), softmax(z_s / temperature))
        assert terms["ce"].item() == pytest.approx(ce_weight * cross_entropy(student.logits))
        assert terms["logit_std"].item() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="'sum' is not"):
        METHODS.build({"type": "logit_std", "method": {"type": "sum", "parts": [{"type": "kd"}]}})


def test_eskd_stops() -> None:
    student, teacher = output(1), output(2)
    method = build({"type": "eskd", "stop": 0.5, "weight": 1.0}, student, teacher)
    expected = 16 * kl(softmax(array(teacher.logits) / 4), softmax(array(student.logits) / 4))
    for epoch, on in ((0, 1), (4, 1), (5, 0), (9, 0)):
        for clock in (int, torch.tensor):
            terms = method.loss(student, teacher, batch(epoch=clock(epoch), epochs=10))
            assert terms["eskd"].item() == pytest.approx(on * expected)
            weight = 0.1 if on else 1.0  # the cross-entropy alone after the stop, not a tenth of it
            assert terms["ce"].item() == pytest.approx(weight * cross_entropy(student.logits), rel=1e-14)
            summed = build({"type": "sum", "parts": [{"type": "tfd"}, {"type": "eskd", "stop": 0.5}]}, student, teacher)
            found = summed.loss(student, teacher, batch(epoch=clock(epoch), epochs=10))
            assert found["ce"].item() == terms["ce"].item()
    assert METHODS.build({"type": "eskd", "preset": "early_teacher"}).teacher_epochs_fraction < 1
