"""Values of the methods on embeddings, against numpy in float64 from the published formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from logit_values import B, N, array, batch, build, output, touched
from torch import Tensor


def huber(difference: np.ndarray) -> float:
    size = np.abs(difference)
    return float(np.where(size < 1, 0.5 * size**2, size - 0.5).mean())


def test_rkd() -> None:
    student, teacher = output(1), output(2, width=9)

    def relations(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        d = np.array([[np.linalg.norm(x - y) for y in p] for x in p])
        e = p[None] - p[:, None]
        e = e / np.maximum(np.linalg.norm(e, axis=2, keepdims=True), 1e-12)
        return d / d[d > 0].mean(), np.einsum("ijd,ikd->ijk", e, e)

    (d_s, a_s), (d_t, a_t) = relations(array(student.embedding)), relations(array(teacher.embedding))
    rkd = build({"type": "rkd"}, student, teacher).loss(student, teacher, batch())["rkd"]
    assert rkd.item() == pytest.approx(25 * huber(d_s - d_t) + 50 * huber(a_s - a_t), abs=1e-8)
    assert touched(rkd, (student.embedding, teacher.embedding)) == [True, False]


def test_pkt() -> None:
    student, teacher = output(1), output(2, width=9)

    def probabilities(p: np.ndarray) -> np.ndarray:
        u = p / np.linalg.norm(p, axis=1, keepdims=True)
        similarity = (u @ u.T + 1) / 2
        return similarity / similarity.sum(1, keepdims=True)

    q_s, q_t = probabilities(array(student.embedding)), probabilities(array(teacher.embedding))
    expected = (q_t * np.log((q_t + 1e-7) / (q_s + 1e-7))).mean()
    pkt = build({"type": "pkt", "weight": 1.0}, student, teacher).loss(student, teacher, batch())["pkt"]
    assert pkt.item() == pytest.approx(expected, abs=1e-8)
    assert touched(pkt, (student.embedding, teacher.embedding)) == [True, False]


def test_cc_compares_neighbors_in_the_batch() -> None:
    student, teacher = output(1), output(2, width=9)
    method = build({"type": "cc", "weight": 1.0}, student, teacher)

    def embed(side: str, p: Tensor) -> np.ndarray:
        linear = getattr(method, f"embed_{side}")
        return array(p) @ array(linear.weight).T + array(linear.bias)

    d = np.abs(embed("student", student.embedding) - embed("teacher", teacher.embedding))
    assert d.shape == (B, 128)
    cc = method.loss(student, teacher, batch())["cc"]
    assert cc.item() == pytest.approx(np.mean([d[i] @ d[i + 1] for i in range(B - 1)]), rel=1e-10)


def test_cc_kernel_is_the_gaussian_to_second_order() -> None:
    student, teacher = output(1), output(2, width=9)

    def kernel(p: np.ndarray) -> np.ndarray:
        u = p / np.linalg.norm(p, axis=1, keepdims=True)
        x = 2 * 0.4 * (u @ u.T)
        return np.exp(-2 * 0.4) * (1 + x + x**2 / 2)

    spec = {"type": "cc", "weight": 1.0, "form": "kernel"}
    cc = build(spec, student, teacher).loss(student, teacher, batch())["cc"].item()
    assert cc == pytest.approx(((kernel(array(student.embedding)) - kernel(array(teacher.embedding))) ** 2).mean(), rel=1e-10)


def test_crd_draws_other_classes_only() -> None:
    targets = torch.tensor([2, 0, 2, 1, 0, 2, 2, 1, 0, 2, 0, 2])
    method = build({"type": "crd", "dim": 4}, output(1), output(2), targets=targets, classes=3)
    drawn = method.draw(torch.arange(B))
    assert drawn.shape == (B, 1 + N - 6)  # the largest class has 6 images
    assert drawn[:, 0].tolist() == list(range(B))
    assert not (targets[drawn[:, 1:]] == targets[:B, None]).any()
    seen = {i: set() for i in range(B)}
    for _ in range(40):
        for row in method.draw(torch.arange(B)).tolist():
            seen[row[0]] |= set(row[1:])
    assert all(seen[i] == {j for j in range(N) if targets[j] != targets[i]} for i in range(B))
    with pytest.raises(ValueError, match="one class"):
        build({"type": "crd"}, output(1), output(2), targets=torch.zeros(N, dtype=torch.int64))


def test_crd_scores_two_memories_and_updates_them(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = output(1), output(2, width=9)
    method = build({"type": "crd", "weight": 1.0, "dim": 4}, student, teacher)
    drawn = method.draw(torch.arange(B))
    monkeypatch.setattr(method, "draw", lambda index: drawn)
    memory = {side: array(getattr(method, f"memory_{side}")).copy() for side in ("student", "teacher")}

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed(side: str, p: Tensor) -> np.ndarray:
        linear = getattr(method, f"embed_{side}")
        return unit(array(p) @ array(linear.weight).T + array(linear.bias))

    def nce(v: np.ndarray, bank: np.ndarray, z: float | None) -> tuple[float, float]:
        score = np.exp(np.einsum("bd,bmd->bm", v, bank[drawn.numpy()]) / 0.07)
        z = score.mean() * N if z is None else z
        p, noise = score / z, (drawn.shape[1] - 1) / N
        log_d1 = np.log(p[:, 0] / (p[:, 0] + noise + 1e-7))
        log_d0 = np.log(noise / (p[:, 1:] + noise + 1e-7))
        return float(-(log_d1.sum() + log_d0.sum()) / B), z

    v_s, v_t = embed("student", student.embedding), embed("teacher", teacher.embedding)
    z_s = z_t = None
    for _ in range(2):
        loss_s, z_s = nce(v_s, memory["teacher"], z_s)
        loss_t, z_t = nce(v_t, memory["student"], z_t)
        crd = method.loss(student, teacher, batch())["crd"]
        assert crd.item() == pytest.approx(loss_s + loss_t, rel=1e-6)
        crd.backward()  # the memories' update must not disturb it
        for side, v in (("student", v_s), ("teacher", v_t)):
            memory[side][:B] = unit(0.5 * memory[side][:B] + 0.5 * v)
            assert np.allclose(array(getattr(method, f"memory_{side}")), memory[side])
