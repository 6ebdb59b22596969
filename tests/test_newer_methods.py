"""Methods of 2022 and later: values against numpy in float64 from the formulas, and where their gradients go."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import rankdata
from torch import Tensor, nn

from bench.models import MODELS
from methods import METHODS, Batch, Context, Method, Networks, Output
from methods.wkd_l import class_similarity

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


def test_zipf_ls() -> None:
    student = network("resnet8x4", 0)
    image = draw(3, B, 1, 16, 16)
    nets = Networks(student)
    out = student(image)
    method = build({"type": "zipf_ls", "weight": 0.4}, out, networks=nets)
    terms = method.step(nets, batch(image=image))

    last = array(out.stages[-1])  # (B, C, 4, 4)
    at = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)  # where the enlarged map's pixels lie in it
    low = np.minimum(at.astype(int), 2)
    share = at - low
    rows = last[:, :, low] * (1 - share[:, None]) + last[:, :, low + 1] * share[:, None]
    enlarged = rows[..., low] * (1 - share) + rows[..., low + 1] * share
    expected = 0.0
    for row in range(B):
        scores = enlarged[row].reshape(256, 64).T @ array(student.classifier.weight).T + array(student.classifier.bias)
        votes = np.bincount(scores.argmax(1), minlength=K)
        assert votes.sum() == 64
        zipf = np.delete(1 / rankdata(-votes, "min"), LABELS[row])
        zipf /= zipf.sum()
        others = log_softmax(np.delete(array(out.logits)[row], LABELS[row]))
        expected += (zipf * (np.log(zipf) - others)).sum() / B
    assert terms["zipf_ls"].item() == pytest.approx(0.4 * expected, rel=1e-5)  # ranks in single precision


def test_zipf_ls_trains_through_the_logits_alone() -> None:
    nets = Networks(network("resnet8x4", 0))
    out = nets.student(draw(3, B, 1, 16, 16))
    calls = Networks(type("Student", (), {"__call__": lambda self, image: out, "classifier": nets.student.classifier})())
    term = build({"type": "zipf_ls"}, out, networks=nets).step(calls, batch())["zipf_ls"]
    on_logits, on_map = torch.autograd.grad(term, [out.logits, out.stages[-1]], retain_graph=True)
    assert on_logits.any()
    (through_logits,) = torch.autograd.grad(out.logits, out.stages[-1], on_logits)
    assert torch.equal(on_map, through_logits)


# --- Two views: ddgsd ---


def test_ddgsd() -> None:
    student = network("resnet8", 0)
    now = batch(image=draw(3, B, 1, 8, 8), partner=draw(4, B, 1, 8, 8))
    both = network("resnet8", 0)(torch.cat([now.image, now.partner]))
    terms = build({"type": "ddgsd", "weight": 0.7, "feature_weight": 2.0}, both).step(Networks(student), now)
    one, two = array(both.logits[:B]), array(both.logits[B:])
    agrees(terms["kd"], 0.7 * (kl(two, one, 4.0) + kl(one, two, 4.0)).mean())
    agrees(terms["features"], 2.0 * (array(both.embedding[:B]).mean() - array(both.embedding[B:]).mean()) ** 2)
    agrees(terms["ce"], -np.concatenate([log_softmax(z, 1)[ROWS, LABELS] for z in (one, two)]).mean())


def test_ddgsd_stops_the_gradient_of_what_is_imitated() -> None:
    first, second = output(0), output(1)
    term = METHODS.build({"type": "ddgsd", "feature_weight": 0.0}).loss(first, second, batch())["kd"]
    alone = METHODS.build({"type": "kd", "weight": 1.0}).loss(first, second, batch())["kd"]
    found, expected = (torch.autograd.grad(value, first.logits)[0] for value in (term, alone))
    assert torch.allclose(found, expected)


# --- Levels: mlkd ---


@pytest.mark.parametrize("size", [6, 5])
def test_mlkd(size: int) -> None:
    rows = slice(size)
    student, teacher = network("resnet8", 0), network("resnet14", 1).eval()
    now = Batch(draw(3, size, 1, 8, 8), TARGET[rows], torch.arange(size), partner=draw(4, size, 1, 8, 8))
    weak, strong = (array(network("resnet8", 0)(image).logits) for image in (now.image, now.partner))
    weak_t, strong_t = (array(teacher(image).logits) for image in (now.image, now.partner))
    terms = METHODS.build({"type": "mlkd", "weight": 0.5, "ce_weight": 0.2}).step(Networks(student, teacher), now)

    p_t = softmax(weak_t, 1)
    confidence, mass = p_t.max(1), p_t.sum(0)
    mask, class_mask = confidence <= np.percentile(confidence, 50), mass <= np.percentile(mass, 50)
    kd = classes = samples = 0.0
    for t in (2.0, 3.0, 4.0, 5.0, 6.0):
        p, q = softmax(weak / t, 1), softmax(weak_t / t, 1)
        scalar = kl(weak_t, weak, t).mean()
        kd += (scalar * mask).mean() + (scalar if t in (2.0, 6.0) else kl(strong_t, strong, t).mean())
        classes += ((((q.T @ q - p.T @ p) ** 2).sum() / K) * class_mask).mean()
        samples += ((((q @ q.T - p @ p.T) ** 2).sum() / size) * mask).mean()
    agrees(terms["kd"], 0.5 * kd)
    agrees(terms["classes"], 0.5 * classes)
    agrees(terms["samples"], 0.5 * samples)
    labels = LABELS[rows]
    agrees(terms["ce"], -0.2 * sum(log_softmax(z, 1)[np.arange(size), labels].mean() for z in (weak, strong)))


# --- Mixes: mixskd ---


def test_mixskd() -> None:
    student = network("resnet8", 0)
    kept, other = 0.3, torch.tensor([2, 0, 1, 5, 3, 4])
    image = draw(3, B, 1, 8, 8)
    mixed = kept * image + (1 - kept) * image[other]
    now = batch(image=image, partner=mixed, other=other, kept=torch.tensor(kept, dtype=torch.float64))
    both = network("resnet8", 0)(torch.cat([image, mixed]))
    nets = Networks(student)
    weights = {"weight": 2.0, "feature_weight": 3.0, "adversary_weight": 4.0}
    method = build({"type": "mixskd", **weights}, both, networks=nets)
    terms = method.step(nets, now)

    def mix(rows: np.ndarray) -> np.ndarray:
        return kept * rows[:B] + (1 - kept) * rows[:B][other.numpy()]

    def labels(z: np.ndarray, target: np.ndarray = LABELS) -> float:
        return float(-log_softmax(z, 1)[ROWS, target].mean())

    def mixed_labels(z: np.ndarray) -> float:
        return kept * labels(z) + (1 - kept) * labels(z, LABELS[other.numpy()])

    def ensemble(maps: list[np.ndarray]) -> np.ndarray:
        joined = np.concatenate(maps, 1).mean((2, 3)) @ array(method.ensemble.join.weight)[:, :, 0, 0].T
        return joined @ array(method.ensemble.classifier.weight).T + array(method.ensemble.classifier.bias)

    exits = [exit_(stage) for exit_, stage in zip(method.exits, both.stages[:-1], strict=True)]
    maps = [array(last) for last, _ in exits] + [array(both.stages[-1])]
    logits = [array(z) for _, z in exits] + [array(both.logits)]
    of_images, of_mixes = ensemble([mix(m) for m in maps]), ensemble([m[B:] for m in maps])
    agrees(terms["ce"], labels(logits[-1][:B]))
    agrees(
        terms["exits"],
        sum(labels(z[:B]) for z in logits[:-1])
        + sum(mixed_labels(z[B:]) for z in logits)
        + mixed_labels(of_images)
        + mixed_labels(of_mixes),
    )
    divergences = kl(of_mixes, mix(logits[-1]), 3.0).mean() + kl(of_images, logits[-1][B:], 3.0).mean()
    for z in logits[:-1]:
        divergences += kl(z[B:], mix(z), 3.0).mean() + kl(mix(z), z[B:], 3.0).mean()
    agrees(terms["kd"], 2.0 * divergences)
    agrees(terms["features"], 3.0 * sum(((mix(m) - m[B:]) ** 2).mean() for m in maps))
    adversary = 0.0
    for judge, m in zip(method.discriminators, maps, strict=True):
        pooled = np.concatenate([mix(m), m[B:]]).mean((2, 3))
        z = np.maximum(pooled @ array(judge[0].weight).T + array(judge[0].bias), 0) @ array(judge[2].weight).T + array(
            judge[2].bias
        )
        target = np.repeat([[1.0, 0.0], [0.0, 1.0]], B, axis=0)
        p = 1 / (1 + np.exp(-z))
        adversary -= (target * np.log(p) + (1 - target) * np.log(1 - p)).mean()
    agrees(terms["adversary"], 4.0 * adversary)
    assert not any(p.requires_grad for p in method.discriminators.parameters())
    assert [e.numel() for e in (exits[0][0][0], exits[1][0][0])] == [64 * 2 * 2] * 2


# --- Transport: wkd_l ---


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
