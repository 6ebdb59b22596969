"""Parity with the field's own loop: from one start, the engine and a plain trainer arrive at the same weights.

In float64, since in fp32 both drift apart at once by rounding at ReLU's edge. Over 12 steps: 4 epochs, each with a short last
batch, with a drop of the learning rate halfway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from bench.data import Dataset, Split, Stream, evaluation_batches, load
from bench.data.files import generator
from bench.data.stream import Batch
from bench.engine import loop as engine_loop
from bench.engine.capture import StepRunner
from bench.engine.evaluation import evaluate
from bench.engine.loop import Loop
from bench.engine.step import Step
from bench.engine.trainee import NetworkView, Teacher, Trainee
from bench.measure.usual_loop import PilImages, UsualLoop
from bench.models import MODELS, Network
from bench.records.cell import seed_from
from bench.records.recipe import Recipe
from methods import METHODS, Context, Method, Networks

CPU, DOUBLE, SEED = torch.device("cpu"), torch.float64, 3
RECIPE = Recipe(epochs=4, batch_size=16, milestones=(0.5,), crop="none", flip=False, lr=0.002)
BOUND = 1e-12  # of the largest difference of a weight, relative to its tensor's largest or to 1


def spec(key: str) -> dict[str, object]:
    return {"type": key, **METHODS.get(key).example}


def is_plain(key: str) -> bool:
    """Whether a method needs neither a preparation nor partner images, which the plain trainer lacks."""
    method = METHODS.build(spec(key))
    return not method.prepare_epochs and method.partner is None


KEYS = [key for key in sorted(METHODS.module_dict) if is_plain(key)]


@cache
def data() -> Dataset:
    return load({"type": "digits", "train_images": 40, "test_images": 40})


def images_and_labels(split: Split) -> TensorDataset:
    """Images in float64, as the engine normalizes them, their labels, and their positions."""
    [(images, labels)] = evaluation_batches(split, data(), CPU, DOUBLE)
    return TensorDataset(images, labels, torch.arange(len(labels)))


class Orders(Sampler):
    """The documented order of each epoch."""

    def __init__(self, samples: int) -> None:
        self.orders = [torch.randperm(samples, generator=generator("order", SEED, epoch)) for epoch in range(RECIPE.epochs)]
        self.started = 0

    def __len__(self) -> int:
        return len(self.orders[0])

    def __iter__(self) -> Iterator[int]:
        self.started += 1
        return iter(self.orders[self.started - 1].tolist())


def network(model: str, seed: int) -> Network:
    torch.manual_seed(seed)
    return MODELS.build({"type": model, "classes": data().classes, "channels": 1}).double()


def set_up(key: str, student: Network, teacher: Network | None, networks: Networks) -> Method:
    """The same adapters each time."""
    method = METHODS.build(spec(key))
    images, _, _ = images_and_labels(data().test)[:2]
    student.eval()
    with torch.no_grad():
        outputs = student(images), teacher.eval()(images) if teacher else None

    def another(number: int) -> Network:
        return network("resnet8", 5 + number)

    torch.manual_seed(SEED)
    method.setup(Context(*outputs, data().classes, 40, 16, (1, 8, 8), data().train.targets, networks, another))
    return method.double()


def networks_of(key: str) -> tuple[Network, Network | None]:
    teachers = {"none": None, "teacher": "resnet14", "self": "resnet8"}
    teacher = teachers[METHODS.build(spec(key)).needs]
    return network("resnet8", 0), network(teacher, 1) if teacher else None


def plain(key: str) -> UsualLoop:
    """Trained by the plain trainer."""
    student, teacher = networks_of(key)
    if teacher:
        teacher.requires_grad_(False)
    method = set_up(key, student, teacher, Networks(student, teacher))
    train = images_and_labels(data().train)
    # The loader's own generator: it draws a seed for its processes, which must not come from the one that methods draw from.
    loader = DataLoader(train, RECIPE.batch_size, sampler=Orders(len(train)), generator=torch.Generator())
    usual = UsualLoop(student, teacher, method, loader, RECIPE, CPU)
    for epoch in range(RECIPE.epochs):
        torch.manual_seed(seed_from(SEED, epoch))
        usual.train_epoch(epoch)
    return usual


@cache
def plain_kd() -> UsualLoop:
    return plain("kd")


def engine(key: str, alter: Callable[[Step], None] = lambda step: None) -> Trainee:
    """Trained by the engine's loop and step, after `alter`."""
    student, frozen = networks_of(key)
    layout = torch.channels_last
    student.to(memory_format=layout)
    sample = images_and_labels(data().test)[:2][0]
    teacher = Teacher(frozen.to(memory_format=layout), sample, "fp32") if frozen else None  # folded, in float64
    method = set_up(key, student, frozen, Networks(NetworkView(student), teacher))
    trainee = Trainee(student, method.to(memory_format=layout), teacher, RECIPE)
    step = Step({key: trainee}, CPU, "fp32")
    alter(step)
    stream = Stream(data().train, data(), RECIPE, SEED, CPU, DOUBLE, memory_format=layout)
    Loop(StepRunner(step), [stream], RECIPE, prepare_epochs=0, prepare_lr=0.0, seed=SEED).run([])
    return trainee


def difference(usual: UsualLoop, trainee: Trainee) -> float:
    """The largest one of a weight, a statistic of a batch norm or a memory."""
    theirs = {**prefixed("student", usual.student.state_dict()), **prefixed("method", usual.method.state_dict())}
    ours = trainee.core.state_dict()
    assert ours.keys() == theirs.keys()
    return max(float((ours[n].double() - theirs[n].double()).abs().max() / max(1.0, theirs[n].abs().max())) for n in ours)


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in state.items()}


@pytest.mark.parametrize("key", KEYS)
def test_the_engine_trains_as_the_plain_trainer_does(key: str) -> None:
    usual, trainee = plain(key), engine(key)
    assert difference(usual, trainee) <= BOUND
    test = images_and_labels(data().test)
    accuracy = evaluate(trainee.predictor(), [test[:20][:2], test[20:][:2]], "fp32", CPU).top1
    assert usual.evaluate(DataLoader(test, 7)) == pytest.approx(accuracy)


def no_weight_decay(monkeypatch: pytest.MonkeyPatch, step: Step) -> None:
    start_phase = step.start_phase

    def start() -> None:
        start_phase()
        for group in step.members["kd"].optimizer.inner.param_groups:
            group["weight_decay"] = 0.0

    monkeypatch.setattr(step, "start_phase", start)


def wrong_batch_order(monkeypatch: pytest.MonkeyPatch, step: Step) -> None:
    right = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda count, **named: right(count, **named).flip(0))


def no_short_last_batch(monkeypatch: pytest.MonkeyPatch, step: Step) -> None:
    right = Stream.epoch

    def full_batches(self: Stream, epoch: int, following: int | None = None) -> Iterator[Batch]:
        return (batch for batch in right(self, epoch, following) if len(batch.target) == RECIPE.batch_size)

    monkeypatch.setattr(Stream, "epoch", full_batches)


def learning_rate_drops_a_step_late(monkeypatch: pytest.MonkeyPatch, step: Step) -> None:
    right = engine_loop.learning_rate
    monkeypatch.setattr(engine_loop, "learning_rate", lambda recipe, index, steps: right(recipe, max(0, index - 1), steps))


FAULTS = [no_weight_decay, wrong_batch_order, no_short_last_batch, learning_rate_drops_a_step_late]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_shows(fault: Callable[[pytest.MonkeyPatch, Step], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone; without one they agree, as the test above shows."""
    assert difference(plain_kd(), engine("kd", lambda step: fault(monkeypatch, step))) > 1e3 * BOUND


def test_the_plain_trainer_reads_the_engines_images() -> None:
    """Without augmentation its PIL pipeline gives the same images, up to fp32's rounding."""
    found = [image for image, _, _ in PilImages(data().train, data(), RECIPE, augment=False)]
    assert torch.allclose(torch.stack(found).double(), images_and_labels(data().train)[:][0], atol=1e-6)


def test_the_plain_trainer_learns() -> None:
    recipe = Recipe(epochs=4, batch_size=16, milestones=(0.5,), lr=0.05)
    train = DataLoader(images_and_labels(data().train), recipe.batch_size)
    student = network("resnet8", 0)
    usual = UsualLoop(student, None, METHODS.build({"type": "none"}), train, recipe, CPU)
    usual.step()
    first = usual.loss
    assert len(usual.train(train)) == recipe.epochs
    assert usual.loss < first
    with pytest.raises(ValueError, match="schedule"):
        UsualLoop(student, None, usual.method, train, Recipe(schedule="cosine"), CPU).train(train)
