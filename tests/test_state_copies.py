"""Methods with a second look at the student, over several epochs, against NumPy: values, statistics, averages and weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy_training import (
    Arrays,
    Bench,
    K,
    Sgd,
    agree,
    check_terms,
    cross_entropy,
    divergence,
    epochs,
    forward,
    move_statistics,
    softmax,
)


def test_cskd_runs_the_partners_after_the_images_through_the_same_batch_norms() -> None:
    """Statistics move twice a step. The partners' logits come from the weights before the step, and get no gradient."""
    bench = Bench({"type": "cskd", "weight": 0.7})
    sgd, names = Sgd(bench.weights()), bench.trained()
    for batch in epochs():
        answer, partners = forward(sgd.weights, batch.image), forward(sgd.weights, batch.partner)

        def loss(weights: Arrays, parts: bool = False, now=batch, guide=partners.logits):
            logits = forward(weights, now.image).logits
            terms = {"ce": cross_entropy(logits, now.target), "cskd": 0.7 * divergence(guide, logits, 4.0)}
            return terms if parts else sum(terms.values())

        check_terms(bench.take(batch), loss(sgd.weights, parts=True))
        sgd.step(loss, names)
        move_statistics(sgd.weights, answer)
        move_statistics(sgd.weights, partners)
        agree(bench.weights(), sgd.weights)


@pytest.mark.parametrize("decay", [0.6, 0.999])
def test_beta_ls_moves_its_average_before_both_forward_passes(decay: float) -> None:
    """average <- k average + (1 - k) student with k = min(1 - 1 / (n + 1), decay); its batch norms use the batch, and keep
    statistics of their own. The surest image, by the average, gets the largest of the batch's draws of Beta(3, 1).
    """
    bench = Bench({"type": "beta_ls", "decay": decay})
    sgd, names = Sgd(bench.weights()), bench.trained()
    assert not [name for name in names if name.startswith("method.")]
    average = "method.average."
    for n, batch in enumerate(epochs()):
        keep = min(1 - 1 / (n + 1), decay)
        for name in names:
            sgd.weights[average + name] = keep * sgd.weights[average + name] + (1 - keep) * sgd.weights[name]
        averaged, answer = forward(sgd.weights, batch.image, prefix=average), forward(sgd.weights, batch.image)
        size = len(batch.index)
        confidence = softmax(averaged.logits)[np.arange(size), batch.target]
        torch.manual_seed(n)
        draws = np.sort(torch.rand(size, dtype=torch.float64).numpy() ** (1 / 3))  # P(b < x) = x^3
        right = np.empty(size)
        right[np.argsort(confidence)] = draws
        target = np.repeat((1 - right)[:, None] / (K - 1), K, axis=1)
        target[np.arange(size), batch.target] = right

        def loss(weights: Arrays, parts: bool = False, now=batch, target=target):
            logits = forward(weights, now.image).logits
            terms = {"ce": 0.4 * cross_entropy(logits, now.target), "beta_ls": 0.6 * cross_entropy(logits, target)}
            return terms if parts else sum(terms.values())

        torch.manual_seed(n)
        found, expected = bench.take(batch), loss(sgd.weights, parts=True)
        assert found == {name: pytest.approx(value, rel=1e-6) for name, value in expected.items()}
        sgd.step(loss, names)
        move_statistics(sgd.weights, averaged, prefix=average)
        move_statistics(sgd.weights, answer)
        agree(bench.weights(), sgd.weights, rel=1e-6)  # the average's share is a number in single precision
