"""Methods that remember samples or the batch before, over several epochs, against NumPy: values, memories and weights."""

from __future__ import annotations

import numpy as np
from numpy_training import (
    EPOCHS,
    TARGETS,
    Arrays,
    Bench,
    Images,
    K,
    N,
    Sgd,
    agree,
    check_terms,
    cross_entropy,
    divergence,
    epochs,
    forward,
    move_statistics,
    softmax,
    unit,
)


def test_pskd_teaches_with_the_prediction_of_the_epoch_before() -> None:
    """y' = (1 - a) y + a p, a = .8 e / E. The row of p is read before it is written, and is the image's last prediction."""
    bench = Bench({"type": "pskd"})
    sgd, names = Sgd(bench.weights()), bench.trained()
    past = np.eye(K)[TARGETS]
    left_out = N - 1  # never seen in the first epoch
    for batch in epochs():
        if batch.epoch == 0:
            batch = without(batch, left_out)
        share = 0.8 * batch.epoch / EPOCHS
        target = (1 - share) * np.eye(K)[batch.target] + share * past[batch.index]
        answer = forward(sgd.weights, batch.image)
        check_terms(bench.take(batch), {"ce": cross_entropy(answer.logits, target)})
        past[batch.index] = softmax(answer.logits)
        sgd.step(lambda w, b=batch, t=target: cross_entropy(forward(w, b.image).logits, t), names)
        move_statistics(sgd.weights, answer)
        expected = {name: array for name, array in sgd.weights.items() if name != "method.predictions"}
        agree(bench.weights(), expected | {"method.predictions": past})


def without(batch: Images, index: int) -> Images:
    keep = batch.index != index
    return Images(batch.image[keep], batch.partner[keep], batch.index[keep], batch.target[keep], batch.epoch)


def test_dlb_teaches_with_the_logits_of_the_step_before() -> None:
    """One forward pass of [the former batch's second views, this batch's first]; stored logits are those of the step itself.

    There is no divergence at an epoch's start and after a batch of another size, here the small last one.
    """
    bench = Bench({"type": "dlb", "weight": 0.7})
    sgd, names = Sgd(bench.weights()), bench.trained()
    former: Images | None = None
    stored = np.zeros((0, K))
    for batch in epochs():
        shares = former is not None and former.epoch == batch.epoch and len(former.index) == len(batch.index)
        again = former if shares and former is not None else batch
        size = len(batch.index)

        def loss(weights: Arrays, parts: bool = False, now=batch, again=again, stored=stored, shares=shares, size=size):
            logits = forward(weights, np.concatenate([again.partner, now.image])).logits
            ce = (cross_entropy(logits[:size], again.target) + cross_entropy(logits[size:], now.target)) / 2
            dlb = 0.7 * divergence(stored, logits[:size], 3.0) if shares else 0.0 * ce
            return {"ce": ce, "dlb": dlb} if parts else ce + dlb

        answer = forward(sgd.weights, np.concatenate([again.partner, batch.image]))
        check_terms(bench.take(batch), loss(sgd.weights, parts=True))
        sgd.step(loss, names)
        move_statistics(sgd.weights, answer)
        agree(bench.weights(), sgd.weights)
        former, stored = batch, answer.logits[size:].real
    assert shares is False  # the last step was a small one


def test_crd_scores_both_memories_before_it_moves_them() -> None:
    """Scores against the memories as they were; Z = N mean(exp) of the first step, then fixed; m <- unit(.5 m + .5 v).

    The embeddings of both sides are trained. What was drawn is taken from the method: itself first, then other classes.
    """
    bench = Bench({"type": "crd", "dim": 3, "negatives": 5, "weight": 0.8})
    drawn: list[np.ndarray] = []
    draw = bench.method.draw  # type: ignore[operator]
    bench.method.draw = lambda index: drawn.append(draw(index)) or drawn[-1]  # type: ignore[operator, assignment, func-returns-value]
    sgd, names = Sgd(bench.weights()), bench.trained()
    teacher = {name: tensor.numpy() for name, tensor in bench.teacher.state_dict().items()}
    memory = {side: sgd.weights.pop(f"method.memory_{side}") for side in ("student", "teacher")}
    scale: dict[str, float] = {}

    for batch in epochs():
        terms = bench.take(batch)
        rows = np.asarray(drawn[-1])
        assert (rows[:, 0] == batch.index).all()
        assert (TARGETS[rows[:, 1:]] != batch.target[:, None]).all()
        seen = forward(teacher, batch.image, running=True).embedding

        def embeddings(weights: Arrays, now=batch, seen=seen) -> dict[str, np.ndarray]:
            of = {"student": forward(weights, now.image).embedding, "teacher": seen}
            pairs = {side: (weights[f"method.embed_{side}.weight"], weights[f"method.embed_{side}.bias"]) for side in of}
            return {side: unit(of[side] @ pairs[side][0].T + pairs[side][1]) for side in of}

        def scores(anchor: np.ndarray, other: str, rows=rows) -> np.ndarray:
            return np.exp(np.einsum("bd,bmd->bm", anchor, memory[other][rows]) / 0.07)

        def loss(weights: Arrays, parts: bool = False, now=batch, rows=rows, embeddings=embeddings, scores=scores):
            found = embeddings(weights)
            noise, total = (rows.shape[1] - 1) / N, 0.0
            for side, other in (("student", "teacher"), ("teacher", "student")):
                p = scores(found[side], other) / scale[other]
                total = total - (np.log(p[:, 0] / (p[:, 0] + noise + 1e-7)).sum() / len(rows))
                total = total - (np.log(noise / (p[:, 1:] + noise + 1e-7)).sum() / len(rows))
            ce = cross_entropy(forward(weights, now.image).logits, now.target)
            return {"ce": ce, "crd": 0.8 * total} if parts else ce + 0.8 * total

        found = embeddings(sgd.weights)
        for side, other in (("student", "teacher"), ("teacher", "student")):
            scale.setdefault(other, N * scores(found[side], other).mean())
        check_terms(terms, loss(sgd.weights, parts=True))
        answer = forward(sgd.weights, batch.image)
        sgd.step(loss, names)
        move_statistics(sgd.weights, answer)
        for side in memory:
            memory[side][batch.index] = unit(0.5 * memory[side][batch.index] + 0.5 * found[side])
        expected = {name: array for name, array in sgd.weights.items() if not name.startswith("method.scale")}
        expected |= {f"method.memory_{side}": array for side, array in memory.items()}
        agree(bench.weights(), expected | {f"method.scale_{side}": np.array(value) for side, value in scale.items()})
