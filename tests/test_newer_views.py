"""Newer methods without a teacher, and those that see several views of an image, against independent values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from newer_values import LABELS, ROWS, TARGET, B, K, agrees, array, batch, build, draw, kl, network, output
from scipy.special import log_softmax, softmax
from scipy.stats import rankdata

from methods import METHODS, Batch, Networks


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
