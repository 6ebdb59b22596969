"""Methods with a preparation phase (FT, FSP, AB): values against numpy in float64, and what is trained when."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from feature_values import (
    SAMPLES,
    array,
    batch,
    build,
    check,
    convolved,
    gradients,
    networks,
    normed,
    pair,
    pooled,
    unit,
)

from methods import METHODS, Method, Output


def leaky(feature: np.ndarray) -> np.ndarray:
    return np.where(feature > 0, feature, 0.1 * feature)


FORMS = {  # weight, length and learning rate of the preparation
    "squares": ({}, (200.0, 30, 0.01)),
    "whole": ({"preset": "authors"}, (500.0, 6, 0.1)),
}


@pytest.mark.parametrize("form", FORMS)
def test_ft_prepares_the_paraphraser_and_then_lets_it_rest(form: str) -> None:
    """RepDistiller's form and weight by default; the authors' whole factors have their own weight, loss and no batch norm."""
    arguments, published = FORMS[form]
    method = METHODS.build({"type": "ft", **arguments})
    assert (method.weight, method.prepare_epochs, method.prepare_lr) == published
    student, teacher = pair([3, 4, 5, 6], [16, 16, 8, 4])
    method = build("ft", student, teacher, **arguments)

    factor_t = array(teacher.stages[-1])
    for layer in method.encoder[::2]:
        factor_t = leaky(convolved(layer, factor_t))
    assert factor_t.shape[1] == 3
    restored = factor_t
    for layer in method.decoder[::2]:
        restored = leaky(convolved(layer, restored))
    terms = method.prepare(networks(student, teacher), batch())
    error = restored - array(teacher.stages[-1])
    assert terms["ft"].item() == pytest.approx((error**2).mean() if form == "squares" else np.abs(error).mean(), rel=1e-9)
    terms["ft"].backward()
    assert {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None} == {"encoder", "decoder"}
    assert not gradients(student) + gradients(teacher)

    method.zero_grad()
    factor_s = array(student.stages[-1])
    for layer in (layer for layer in method.translator if isinstance(layer, torch.nn.Conv2d)):
        factor_s = convolved(layer, factor_s)
        factor_s = leaky(normed(factor_s) if form == "squares" else factor_s)
    factors = (factor_s, pooled(factor_t, 2))
    flat = [unit(((f**2).mean(1) if form == "squares" else f).reshape(SAMPLES, -1)) for f in factors]
    check(method, "ft", student, teacher, np.abs(flat[0] - flat[1]).mean(), trained={"translator"})


def check_preparation(method: Method, key: str, student: Output, teacher: Output, expected: float) -> None:
    """All of the work is in the preparation, which moves student and method, but no classifier and no teacher."""
    assert method.prepare_epochs == 30
    assert set(method.loss(student, teacher, batch())) == {"ce"}
    terms = method.prepare(networks(student, teacher), batch())
    assert set(terms) == {key}
    assert terms[key].item() == pytest.approx(expected, rel=1e-9)
    terms[key].backward()
    assert all(p.grad is not None for p in method.parameters())
    assert all(feature.grad is not None for feature in student.preact)
    assert student.logits.grad is None
    assert not gradients(teacher)


def test_fsp_is_a_preparation() -> None:
    student, teacher = pair([2, 2, 3, 4], [16, 16, 8, 4])
    matrices = []
    for out in (student, teacher):
        features = [array(f) for f in (out.stem, *out.stages)]
        flows = []
        for first, second in itertools.pairwise(features):
            size = second.shape[-1]
            flows.append(np.einsum("bihw,bjhw->bij", pooled(first, size), second) / size**2)
        matrices.append(flows)
    expected = sum(((s - t) ** 2).mean() for s, t in zip(*matrices, strict=True))
    check_preparation(build("fsp", student, teacher), "fsp", student, teacher, expected)


def test_fsp_refuses_networks_of_different_channels() -> None:
    with pytest.raises(ValueError, match=r"\[2, 2, 3, 4\], the teacher \[3, 4, 5, 6\]"):
        build("fsp", *pair())


def test_ab_is_a_preparation() -> None:
    student, teacher = pair([2, 2, 5, 6])  # the first stage needs no connector
    method = build("ab", student, teacher)
    expected = 0.0
    for i, (connector, s, t) in enumerate(zip(method.connectors, student.preact, teacher.preact, strict=True)):
        guess, target = array(s), array(t)
        if i > 0:
            guess = normed(convolved(connector.convolution, guess))
        distance = (guess + 1) ** 2 * ((guess > -1) & (target <= 0)) + (guess - 1) ** 2 * ((guess <= 1) & (target > 0))
        expected += distance.sum() / SAMPLES / 1000 * 3 * 2.0 ** (i - 2)
    check_preparation(method, "ab", student, teacher, expected)


def test_ab_refuses_maps_that_no_regressor_leads_to() -> None:
    with pytest.raises(ValueError, match="no regressor from the student's 8x8 map to the teacher's 32x32"):
        build("ab", *pair([3, 4, 5, 6], [32, 32, 16, 8]))
