"""Values of the feature methods against numpy in float64, written from the published formulas."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import erf, exp, pi, sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods import METHODS, Batch, Context, Method, Networks, Output
from methods.parts import attention, pool_to, widened

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


# Gradients of our own


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pooling_and_widening_have_torchs_gradients_in_the_features_layout(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    feature = torch.randn(2, 5, 12, 6, generator=torch.manual_seed(0)).to(dtype).to(memory_format=layout).requires_grad_()
    upstream = torch.randn(2, 5, 4, 3, generator=torch.manual_seed(1)).to(memory_format=torch.contiguous_format)
    ours = widened(pool_to(widened(feature), (4, 3)))
    theirs = F.avg_pool2d(feature.double(), (3, 2))
    assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(ours.double(), theirs, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(ours, feature, upstream.to(ours.dtype))
    (expected,) = torch.autograd.grad(theirs, feature, upstream.double())
    assert gradient.dtype == dtype
    assert gradient.is_contiguous(memory_format=layout)
    assert torch.allclose(gradient, expected, rtol=0.01 if dtype == torch.bfloat16 else 1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_attention_has_torchs_gradient_in_the_features_layout(dtype: torch.dtype, layout: torch.memory_format) -> None:
    feature = torch.randn(2, 5, 4, 3, generator=torch.manual_seed(0)).to(dtype).to(memory_format=layout).requires_grad_()
    ours, theirs = attention(feature), F.normalize(feature.double().square().mean(1).flatten(1), dim=1)
    assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(ours.double(), theirs, rtol=1e-6, atol=1e-6)
    upstream = torch.randn(2, 12, generator=torch.manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(ours, feature, upstream.to(ours.dtype))
    (expected,) = torch.autograd.grad(theirs, feature, upstream)
    assert gradient.dtype == dtype
    assert gradient.is_contiguous(memory_format=layout)
    assert torch.allclose(gradient, expected, rtol=0.01 if dtype == torch.bfloat16 else 1e-12)


@pytest.mark.parametrize("function", [lambda x: pool_to(widened(x), (2, 2)).square(), attention], ids=["pooling", "attention"])
def test_second_derivatives_pass_through(function: Callable[[Tensor], Tensor]) -> None:
    feature = torch.randn(1, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(function, feature)
