"""Values of the feature methods against numpy in float64, written from the published formulas."""

from __future__ import annotations

from math import erf, exp, pi, sqrt

import numpy as np
import pytest
import torch
from feature_values import (
    CLASSES,
    SAMPLES,
    array,
    batch,
    build,
    check,
    convolved,
    networks,
    normed,
    output,
    pair,
    pooled,
    unit,
)

from methods import METHODS


def test_fitnets() -> None:
    student, teacher = pair()
    method = build("fitnets", student, teacher)
    guess = np.maximum(normed(convolved(method.regressor.convolution, array(student.stages[1]))), 0)
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


def test_sp() -> None:
    student, teacher = pair()
    flat = [array(out.stages[-1]).reshape(SAMPLES, -1) for out in (student, teacher)]
    grams = [unit(f @ f.T) for f in flat]
    check(build("sp", student, teacher), "sp", student, teacher, ((grams[0] - grams[1]) ** 2).sum() / SAMPLES**2)


@pytest.mark.parametrize("deepest", [4, 9], ids=["at least as many positions as channels", "fewer"])
def test_nst(deepest: int) -> None:
    student, teacher = output([2, 2, 3, deepest], [8, 8, 4, 2], 1), output([3, 4, 5, deepest + 2], [16, 16, 8, 4], 2)
    alive = (torch.arange(deepest) > 0)[:, None, None]  # all channels of the last stage but one
    student = student._replace(stages=(*student.stages[:-1], student.stages[-1] * alive))
    expected = 0.0
    for feature_s, feature_t in zip(student.stages, teacher.stages, strict=True):
        size = feature_s.shape[-1]
        maps_s, maps_t = array(feature_s), pooled(array(feature_t), size)
        s, t = (unit(f.reshape(SAMPLES, f.shape[1], -1), axis=2) for f in (maps_s, maps_t))

        def kernel(x: np.ndarray, y: np.ndarray) -> float:
            return (np.einsum("bid,bjd->bij", x, y) ** 2).mean()

        expected += kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)
    check(build("nst", student, teacher), "nst", student, teacher, expected)


def test_vid() -> None:
    student, teacher = pair()
    method = build("vid", student, teacher)
    expected = 0.0
    for gaussian, feature_s, feature_t in zip(method.gaussians, student.stages, teacher.stages, strict=True):
        variance = np.log1p(np.exp(array(gaussian.scale))) + 1e-5
        np.testing.assert_allclose(variance, 5, rtol=1e-6)
        first, _, second, _, third = gaussian.mean
        mean = convolved(second, np.maximum(convolved(first, array(feature_s)), 0))
        mean = convolved(third, np.maximum(mean, 0))
        variance = variance[:, None, None]
        expected += (((mean - array(feature_t)) ** 2 / variance + np.log(variance)) / 2).mean()
    check(method, "vid", student, teacher, expected)


def test_ofd() -> None:
    student, teacher = pair([3, 4, 5, 6], [16, 16, 8, 4])
    norms = [torch.nn.BatchNorm2d(c).double() for c in (4, 5, 6)]
    generator = torch.Generator().manual_seed(3)
    for norm in norms:
        torch.nn.init.normal_(norm.weight, generator=generator)
        torch.nn.init.normal_(norm.bias, generator=generator)
    norms[0].bias.data[0], norms[0].weight.data[0] = 8.0, 2.0  # hardly ever negative
    method = build("ofd", student, teacher, networks(student, teacher, norms=norms))

    expected = 0.0
    for i, norm in enumerate(norms):
        margins = []
        for mean, deviation in zip(norm.bias.tolist(), norm.weight.abs().tolist(), strict=True):
            negative = (1 + erf(-mean / deviation / sqrt(2))) / 2
            tail = deviation * exp(-((mean / deviation) ** 2) / 2) / sqrt(2 * pi) / negative if negative > 1e-3 else None
            margins.append(-3 * deviation if tail is None else mean - tail)
        margin = np.array(margins)[:, None, None]
        assert (margin < 0).all()
        guess = normed(convolved(method.connectors[i][0], array(student.preact[i])))
        target = pooled(array(teacher.preact[i]), guess.shape[-1])
        distance = (
            (guess - margin) ** 2 * ((guess > margin) & (target <= margin))
            + (guess - target) ** 2 * ((guess > target) & (target > margin) & (target <= 0))
            + (guess - target) ** 2 * (target > 0)
        )
        expected += distance.sum() / SAMPLES / 2 ** (2 - i)
    check(method, "ofd", student, teacher, expected)


def test_ofd_says_which_stage_has_no_batch_norm() -> None:
    student, teacher = pair()
    norms = [torch.nn.BatchNorm2d(4), None, torch.nn.BatchNorm2d(6)]
    with pytest.raises(ValueError, match="its stage 2 has none"):
        build("ofd", student, teacher, networks(student, teacher, norms=norms))


def test_cd_decays_early_and_guides_only_where_the_teacher_is_right() -> None:
    student, teacher = pair([2, 2, 5, 4])  # only the second stage needs a convolution
    with torch.no_grad():  # right on the first two samples alone
        teacher.logits[range(SAMPLES), [0, 3, 2, 2]] = 9.0
    method = build("cd", student, teacher, kd_weight=1.0, temperature=2.0)
    assert [type(a).__name__ for a in method.adapters] == ["Identity", "Conv2d", "Identity"]
    expected = 0.0
    for i, (feature_s, feature_t) in enumerate(zip(student.stages, teacher.stages, strict=True)):
        means = array(feature_s).mean((2, 3))
        if i == 1:
            means = means @ array(method.adapters[1].weight)[:, :, 0, 0].T
        expected += ((means - array(feature_t).mean((2, 3))) ** 2).mean()

    p_s, p_t = (np.exp(array(out.logits) / 2) for out in (student, teacher))
    p_s, p_t = p_s / p_s.sum(1, keepdims=True), p_t / p_t.sum(1, keepdims=True)
    divergence = (p_t * np.log(p_t / p_s)).sum(1)

    terms = method.loss(student, teacher, batch())
    assert set(terms) == {"ce", "cd", "kd"}
    assert terms["kd"].item() == pytest.approx(4 * divergence[:2].mean(), rel=1e-9)
    for epoch, steps in [(0, 0), (71, 0), (72, 1), (144, 2), (216, 3), (239, 3)]:
        terms = method.loss(student, teacher, batch(epoch=epoch, epochs=240))
        assert terms["cd"].item() == pytest.approx(0.9**steps * expected, rel=1e-9)

    with torch.no_grad():
        teacher.logits[:, 2] = 99.0  # never right
    assert method.loss(student, teacher, batch())["kd"].item() == 0
    assert method.needs_hard_labels
    plain = build("cd", student, teacher, guided=False)
    assert not plain.needs_hard_labels
    plain.load_state_dict(method.state_dict())
    check(plain, "cd", student, teacher, expected)


def nearest(feature: np.ndarray, size: int) -> np.ndarray:
    index = np.arange(size) * feature.shape[-1] // size
    return feature[:, :, index][:, :, :, index]


@pytest.mark.parametrize("sizes", [[8, 8, 4, 2], [16, 16, 8, 4]])
@pytest.mark.parametrize(("before", "width"), [(False, None), (True, None), (True, 3)])
def test_reviewkd(sizes: list[int], before: bool, width: int | None) -> None:
    """On CIFAR the student's features are activated, on ImageNet they are not."""
    student, teacher = pair([3, 4, 5, 6], sizes)
    method = build("reviewkd", student, teacher, ramp_epochs=20, before_activation=before, width=width)
    assert {fusion.enter[0].out_channels for fusion in method.fusions} == {width or student.embedding.shape[1]}
    features_s = [*map(array, student.preact if before else student.stages), array(student.embedding)[:, :, None, None]]
    features_t = [*map(array, teacher.preact), array(teacher.embedding)[:, :, None, None]]
    expected, deeper = 0.0, None
    for fusion, feature_s, feature_t in reversed(list(zip(method.fusions, features_s, features_t, strict=True))):
        fused = normed(convolved(fusion.enter[0], feature_s))
        if deeper is not None:
            deeper = nearest(deeper, fused.shape[-1])
            logit = convolved(fusion.attention[0], np.concatenate([fused, deeper], 1))
            share = 1 / (1 + np.exp(-logit))
            fused = fused * share[:, [0]] + deeper * share[:, [1]]
        side = feature_t.shape[-1]
        deeper = nearest(fused, side)
        guess = normed(convolved(fusion.leave[0], deeper))
        errors = [((guess - feature_t) ** 2).mean()]
        errors += [((pooled(guess, n) - pooled(feature_t, n)) ** 2).mean() for n in (4, 2, 1) if n < side]
        expected += np.average(errors, weights=[1, 0.5, 0.25, 0.125][: len(errors)])
    check(method, "reviewkd", student, teacher, expected, epoch=49, epochs=240)
    method.weight = 1.0
    ramped = method.loss(student, teacher, batch(epoch=4, epochs=240))["reviewkd"]
    assert ramped.item() == pytest.approx(expected / 4, rel=1e-9)


def test_reviewkd_presets_name_their_pairs() -> None:
    method = METHODS.build({"type": "reviewkd", "preset": "resnet56/resnet20"})
    assert (method.weight, method.ramp_epochs) == (0.6, 20)
    for name, expected in {"resnet34/resnet18": (1.0, 1, True, None), "resnet50/mobilenetv1": (8.0, 1, True, 256)}.items():
        method = METHODS.build({"type": "reviewkd", "preset": name})  # as published for ImageNet
        assert (method.weight, method.ramp_epochs, method.before_activation, method.width) == expected
    with pytest.raises(ValueError, match="resnet32x4/resnet8x4"):
        METHODS.build({"type": "reviewkd", "preset": "resnet20/resnet56"})


def test_simkd_trains_the_projector_and_deploys_the_teachers_classifier() -> None:
    student, teacher = pair([3, 4, 5, 6], [16, 16, 8, 4])
    classifier = torch.nn.Linear(6, CLASSES).double()
    method = build("simkd", student, teacher, networks(student, teacher, classifier=classifier))
    guess = array(student.stages[-1])
    for layer in method.projector:
        if isinstance(layer, torch.nn.Conv2d):
            guess = np.maximum(normed(convolved(layer, guess)), 0)
    expected = ((guess - pooled(array(teacher.stages[-1]), 2)) ** 2).mean()
    check(method, "simkd", student, teacher, expected, trained={"projector"})
    assert method.loss(student, teacher, batch())["ce"].item() == 0

    deployed = method.predictor(networks(student, teacher).student)
    found = deployed(torch.zeros(SAMPLES, 3, 8, 8))
    logits = guess.mean((2, 3)) @ array(classifier.weight).T + array(classifier.bias)
    np.testing.assert_allclose(array(found.logits), logits, rtol=1e-9)
    torch.nn.init.zeros_(classifier.weight)  # a copy is deployed, and it rests
    assert not any(p.requires_grad for p in deployed.classifier.parameters())
    np.testing.assert_allclose(array(deployed(torch.zeros(1)).logits), logits, rtol=1e-9)


def test_simkd_refuses_a_teacher_with_layers_behind_its_last_stage() -> None:
    student, teacher = pair()
    with pytest.raises(ValueError, match="6 channels, its classifier 9 inputs"):
        build("simkd", student, teacher._replace(embedding=torch.zeros(SAMPLES, 9)))
