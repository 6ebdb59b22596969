"""Methods with a preparation, through both phases, against NumPy: who learns at which rate, and who stays as he is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy_training import (
    CHANNELS,
    EPOCHS,
    LR,
    Answer,
    Arrays,
    Bench,
    Images,
    Sgd,
    agree,
    check_terms,
    cross_entropy,
    epochs,
    forward,
    halved,
    move_statistics,
    normalized,
    pointwise,
    relu,
    unit,
)

from bench.engine.schedule import learning_rate
from bench.engine.step import Step
from bench.engine.train import train
from bench.records.folders import ResultsFolder
from bench.records.options import Options
from methods import METHODS


def teacher_of(bench: Bench) -> Callable[[Images], Answer]:
    weights = {name: tensor.numpy() for name, tensor in bench.teacher.state_dict().items()}
    return lambda batch: forward(weights, batch.image, running=True)


# Factor transfer


def convolved(weights: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    """A 3x3 convolution that keeps the map's size."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    return np.einsum("ocij,bchwij->bohw", weights[f"{name}.weight"], windows) + weights[f"{name}.bias"][:, None, None]


def transposed(weights: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    weight = weights[f"{name}.weight"].swapaxes(0, 1)[:, :, ::-1, ::-1]
    return convolved({"t.weight": weight, "t.bias": weights[f"{name}.bias"]}, "t", x)


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x.real > 0, x, 0.1 * x)


def encoded(weights: Arrays, x: np.ndarray) -> np.ndarray:
    for i in (0, 2, 4):
        x = leaky(convolved(weights, f"method.encoder.{i}", x))
    return x


def decoded(weights: Arrays, x: np.ndarray) -> np.ndarray:
    for i in (0, 2, 4):
        x = leaky(transposed(weights, f"method.decoder.{i}", x))
    return x


def translated(weights: Arrays, x: np.ndarray, moments: dict[str, Any] | None = None) -> np.ndarray:
    for i in (0, 3, 6):
        place = f"method.translator.{i + 1}."
        x = convolved(weights, f"method.translator.{i}", x)
        count = x.size // x.shape[1]
        x, (mean, variance) = normalized(x, weights[f"{place}weight"], weights[f"{place}bias"])
        x = leaky(x)
        if moments is not None:
            moments |= {f"{place}running_mean": mean, f"{place}running_var": variance * count / (count - 1)}
    return x


def absolute(x: np.ndarray) -> np.ndarray:
    return np.where(x.real > 0, x, -x)


def squares(factor: np.ndarray) -> np.ndarray:
    return unit((factor**2).mean(1).reshape(len(factor), -1))


def test_ft_trains_its_paraphraser_alone_and_then_leaves_it_alone() -> None:
    """First SGD at .01 on encoder and decoder, the student at rest; then the student and the translator, with fresh momenta.

    In the second phase the paraphraser keeps its weights to the last bit: neither momenta nor decay move it.
    """
    bench = Bench({"type": "ft"})
    lr = bench.method.prepare_lr
    assert lr == 0.01
    teacher, start = teacher_of(bench), bench.weights()
    sgd = Sgd(bench.weights())
    names = bench.trained()
    paraphraser = [name for name in names if name.startswith(("method.encoder", "method.decoder"))]
    for batch in epochs(1):
        feature = teacher(batch).stages[-1]

        def error(weights: Arrays, feature=feature):
            return ((decoded(weights, encoded(weights, feature)) - feature) ** 2).mean()

        check_terms(bench.take(batch, lr=lr, preparing=True), {"ft": error(sgd.weights)})
        sgd.step(error, paraphraser, lr=lr)
        agree(bench.weights(), sgd.weights)
    prepared = bench.weights()
    assert all(np.array_equal(prepared[name], start[name]) for name in prepared if name not in paraphraser)
    assert not any(np.array_equal(prepared[name], start[name]) for name in paraphraser)

    bench.step.start_phase()
    sgd = Sgd(sgd.weights)
    others = [name for name in names if name not in paraphraser]
    for batch in epochs(2):
        wanted = squares(encoded(sgd.weights, teacher(batch).stages[-1]))

        def loss(weights: Arrays, parts: bool = False, now=batch, wanted=wanted):
            answer = forward(weights, now.image)
            distance = absolute(squares(translated(weights, answer.stages[-1])) - wanted).mean()
            terms = {"ce": cross_entropy(answer.logits, now.target), "ft": 200 * distance}
            return terms if parts else sum(terms.values())

        moments: dict[str, Any] = {}
        answer = forward(sgd.weights, batch.image)
        translated(sgd.weights, answer.stages[-1], moments)
        check_terms(bench.take(batch), loss(sgd.weights, parts=True))
        sgd.step(loss, others)
        move_statistics(sgd.weights, answer)
        for name, value in moments.items():
            sgd.weights[name] = 0.9 * sgd.weights[name] + 0.1 * value
        agree(bench.weights(), sgd.weights, rel=1e-8)
    finished = bench.weights()
    assert all(np.array_equal(finished[name], prepared[name]) for name in paraphraser)


# Activation boundaries, flow of solution procedure


def boundaries(weights: Arrays, batch: Images, guide: Answer, moments: dict[str, Any] | None = None) -> Any:
    """.003 sum over stages of sum max(0, 1 -+ x)^2 / B / 2^(L - i); the first stage behind its connector."""
    first, second = forward(weights, batch.image).preact
    place = "method.connectors.0."
    first = pointwise(weights[f"{place}convolution.weight"], first) + weights[f"{place}convolution.bias"][:, None, None]
    count = first.size // first.shape[1]
    first, (mean, variance) = normalized(first, weights[f"{place}norm.weight"], weights[f"{place}norm.bias"])
    if moments is not None:
        moments |= {f"{place}norm.running_mean": mean, f"{place}norm.running_var": variance * count / (count - 1)}
    total: Any = 0.0
    for x, t, share in ((first, guide.preact[0], 0.5), (second, guide.preact[1], 1.0)):
        short = np.where(t > 0, relu(1 - x), relu(1 + x))
        total = total + share * (short**2).sum() / len(batch.index)
    return 3e-3 * total


def flows(answer: Answer) -> list[np.ndarray]:
    """Inner products of the channels of neighbours, over H W; the larger map halved."""
    stem, (first, second) = answer.stem, answer.stages
    pairs = ((stem, first), (halved(first), second))
    return [np.einsum("bihw,bjhw->bij", a, b) / (a.shape[2] * a.shape[3]) for a, b in pairs]


def flow_error(weights: Arrays, batch: Images, guide: Answer, moments: dict[str, Any] | None = None) -> Any:
    pairs = zip(flows(forward(weights, batch.image)), flows(guide), strict=True)
    return sum((((s - t) ** 2).mean() for s, t in pairs), 0.0)


@pytest.mark.parametrize(("key", "term", "channels"), [("ab", boundaries, (3, 3, 6, 5)), ("fsp", flow_error, CHANNELS)])
def test_a_student_is_prepared_without_its_classifier_and_then_trained_plainly(key: str, term: Any, channels: Any) -> None:
    """First all but the classifier; then the cross-entropy alone, with fresh momenta, the connectors at rest."""
    bench = Bench({"type": key}, channels)
    teacher, start = teacher_of(bench), bench.weights()
    sgd, names = Sgd(bench.weights()), bench.trained()
    body = [name for name in names if not name.startswith("classifier")]
    for batch in epochs(2):
        guide, moments = teacher(batch), {}
        expected = {key: term(sgd.weights, batch, guide, moments)}
        answer = forward(sgd.weights, batch.image)
        check_terms(bench.take(batch, preparing=True), expected)
        sgd.step(lambda weights, b=batch, g=guide: term(weights, b, g), body)
        move_statistics(sgd.weights, answer)
        for name, value in moments.items():
            sgd.weights[name] = 0.9 * sgd.weights[name] + 0.1 * value
        agree(bench.weights(), sgd.weights)
    prepared = bench.weights()
    assert all(np.array_equal(prepared[name], start[name]) for name in start if name.startswith("classifier"))

    bench.step.start_phase()
    sgd = Sgd(sgd.weights)
    student = [name for name in names if not name.startswith("method.")]
    for batch in epochs():
        answer = forward(sgd.weights, batch.image)
        check_terms(bench.take(batch), {"ce": cross_entropy(answer.logits, batch.target)})
        sgd.step(lambda weights, b=batch: cross_entropy(forward(weights, b.image).logits, b.target), student)
        move_statistics(sgd.weights, answer)
        agree(bench.weights(), sgd.weights, rel=1e-8)
    finished = bench.weights()
    assert all(np.array_equal(finished[name], prepared[name]) for name in prepared if name.startswith("method."))


@pytest.mark.parametrize(
    ("method", "rate"),
    [
        ({"ft": {"prepare_epochs": 2}}, 0.01),
        ({"ft": {"prepare_epochs": 2, "prepare_lr": None}}, LR),
        ({"ab": {"prepare_epochs": 2}}, LR),
    ],
)
def test_a_training_prepares_at_the_methods_rate_or_the_recipes(method, rate, tiny, tmp_path, monkeypatch) -> None:
    """Constant, whatever the schedule; then the schedule from its start."""
    rates: list[float] = []
    set_lr = Step.set_lr
    monkeypatch.setattr(Step, "set_lr", lambda step, lr: (rates.append(lr), set_lr(step, lr)))
    recipe = {"epochs": EPOCHS, "lr": LR}
    grid = tiny(methods=[method], recipe=recipe, pairs=[{"student": "resnet8", "teacher": "resnet14"}])
    folder = ResultsFolder(tmp_path).grid(grid.name)
    for cell in grid.cells:
        rates.clear()
        train([cell], folder, Options(device="cpu", threads=1))
    steps = len(rates) // (2 + EPOCHS)
    assert rates[: 2 * steps] == [rate] * (2 * steps)
    assert rates[2 * steps :] == [learning_rate(cell.recipe, step, steps) for step in range(EPOCHS * steps)]
    assert METHODS.build(cell.method).prepare_epochs == 2
