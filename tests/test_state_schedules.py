"""Terms whose weight depends on the epoch, through whole schedules, against their published formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy_training import (
    Arrays,
    Bench,
    Sgd,
    agree,
    check_terms,
    cross_entropy,
    divergence,
    epochs,
    forward,
    halved,
    move_statistics,
)

LONG = 10  # epochs


def ramped(epoch: int, over: int) -> float:
    return min(1.0, (epoch + 1) / over) if over else 1.0


RAMPS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "tfd": ({"type": "tfd", "ramp_epochs": 4}, ["tfd"]),
    "tfd without": ({"type": "tfd"}, ["tfd"]),
    "tffd": ({"type": "tffd", "ramp_epochs": 4}, ["inter", "intra"]),
    "dkd": ({"type": "dkd", "ramp_epochs": 4}, ["dkd"]),
    "reviewkd": ({"type": "reviewkd", "ramp_epochs": 4}, ["reviewkd"]),
}


@pytest.mark.parametrize("name", RAMPS)
def test_ramps_count_epochs_from_one(name: str) -> None:
    """Steps of a learning rate of 0 show the ramp alone: the same batch gives the same term, times min(1, (e + 1) / ramp)."""
    spec, terms = RAMPS[name]
    bench = Bench(spec)
    batch = next(epochs())
    full = bench.take(batch._replace(epoch=LONG - 1), lr=0.0, epochs=LONG)
    for epoch in range(LONG):
        found = bench.take(batch._replace(epoch=epoch), lr=0.0, epochs=LONG)
        share = ramped(epoch, spec.get("ramp_epochs", 0))
        for term in terms:
            assert found[term] == pytest.approx(share * full[term], rel=1e-6)
            assert found[term] > 0
        assert found["ce"] == pytest.approx(full["ce"], rel=1e-9)


@pytest.mark.parametrize("total", [7, 10])
def test_cd_decays_at_30_60_and_90_per_cent(total: int) -> None:
    """weight .9^floor(10 e / 3 E), the guided divergence at a constant weight, over a whole training."""
    bench = Bench({"type": "cd"})
    sgd, names = Sgd(bench.weights()), bench.trained()
    teacher = {name: tensor.numpy() for name, tensor in bench.teacher.state_dict().items()}
    seen_right = 0
    for batch in epochs(total):
        guide = forward(teacher, batch.image, running=True)
        right = guide.logits.argmax(1) == batch.target
        seen_right += right.sum()

        def loss(weights: Arrays, parts: bool = False, now=batch, guide=guide, right=right):
            answer = forward(weights, now.image)
            pairs = zip(answer.stages, guide.stages, strict=True)
            distance = sum((((s.mean((2, 3)) - t.mean((2, 3))) ** 2).mean() for s, t in pairs), 0.0)
            kd = divergence(guide.logits[right], answer.logits[right], 1.0) if right.any() else 0.0 * distance
            terms = {
                "ce": cross_entropy(answer.logits, now.target),
                "cd": 6 * 0.9 ** (10 * now.epoch // (3 * total)) * distance,
            }
            terms["kd"] = 0.1 * kd
            return terms if parts else sum(terms.values())

        answer = forward(sgd.weights, batch.image)
        check_terms(bench.take(batch, epochs=total), loss(sgd.weights, parts=True))
        sgd.step(loss, names)
        move_statistics(sgd.weights, answer)
        agree(bench.weights(), sgd.weights)
    assert seen_right


def test_tfd_over_a_training() -> None:
    """The deep stage's first channels guide the shallow one, averaged to its size. There is no ramp."""
    bench = Bench({"type": "tfd", "weight": 0.5})
    sgd, names = Sgd(bench.weights()), bench.trained()
    for batch in epochs():
        guide = forward(sgd.weights, batch.image).stages[1]

        def loss(weights: Arrays, parts: bool = False, now=batch, guide=guide):
            answer = forward(weights, now.image)
            error = halved(answer.stages[0]) - guide[:, : answer.stages[0].shape[1]]
            terms = {"ce": cross_entropy(answer.logits, now.target), "tfd": 0.5 * (error**2).mean()}
            return terms if parts else sum(terms.values())

        answer = forward(sgd.weights, batch.image)
        check_terms(bench.take(batch), loss(sgd.weights, parts=True))
        sgd.step(loss, names)
        move_statistics(sgd.weights, answer)
        agree(bench.weights(), sgd.weights)


def test_eskd_over_a_training() -> None:
    """(.1 CE + .9 KD) in the epochs before the stop, then the cross-entropy alone."""
    bench = Bench({"type": "eskd", "stop": 0.5})
    sgd, names = Sgd(bench.weights()), bench.trained()
    teacher = {name: tensor.numpy() for name, tensor in bench.teacher.state_dict().items()}
    for batch in epochs():
        guide, before = forward(teacher, batch.image, running=True).logits, batch.epoch < 2  # ceil(.5 * 3)

        def loss(weights: Arrays, parts: bool = False, now=batch, guide=guide, before=before):
            logits = forward(weights, now.image).logits
            kd = 0.9 * divergence(guide, logits, 4.0) if before else np.zeros(())
            terms = {"ce": (0.1 if before else 1.0) * cross_entropy(logits, now.target), "eskd": kd}
            return terms if parts else sum(terms.values())

        answer = forward(sgd.weights, batch.image)
        check_terms(bench.take(batch), loss(sgd.weights, parts=True))
        sgd.step(loss, names)
        move_statistics(sgd.weights, answer)
        agree(bench.weights(), sgd.weights)
