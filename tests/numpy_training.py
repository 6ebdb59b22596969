"""A small network twice, in torch and in NumPy, and its training with SGD twice, each from the other's formulas apart.

NumPy's gradients are complex-step derivatives of the loss, exact to the last digits; torch's backward pass has no part in them.
A reference of a method keeps its own state. After every step its weights are compared with those of the bench.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.engine.step import Step
from bench.engine.trainee import Trainee
from bench.records.recipe import Recipe
from methods import METHODS, Batch, Context, Method, Networks, Output

K, N, SIZE, EPOCHS = 4, 10, 4, 3  # classes, images, batch size, epochs; an epoch's last batch is of 2
LR, MOMENTUM, DECAY = 0.1, 0.9, 0.01
CHANNELS = (3, 3, 4, 5)  # of image, stem and stages
TARGETS = np.arange(N) % K

Arrays = dict[str, np.ndarray]


class Net(nn.Module):
    """1x1 convolutions: a bare stem, a stage on 4x4, one on 2x2, the mean over positions, a classifier."""

    def __init__(self, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        image, stem, first, second = channels
        self.stem = nn.Conv2d(image, stem, 1, bias=False)
        self.blocks = nn.ModuleList()
        for narrow, wide in ((stem, first), (first, second)):
            self.blocks.append(nn.Sequential(nn.Conv2d(narrow, wide, 1, bias=False), nn.BatchNorm2d(wide)))
        self.classifier = nn.Linear(second, K)
        self.norms = [block[1] for block in self.blocks]

    def forward(self, image: Tensor) -> Output:
        x = stem = self.stem(image)
        stages, preact = [], []
        for i, block in enumerate(self.blocks):
            preact.append(block(x if i == 0 else nn.functional.avg_pool2d(x, 2)))
            x = preact[-1].relu()
            stages.append(x)
        embedding = x.mean((2, 3))
        return Output(self.classifier(embedding), embedding, tuple(stages), tuple(preact), stem)


class Answer(NamedTuple):
    """What the network makes of images, in NumPy, and (mean, variance) of its batch norms."""

    logits: np.ndarray
    embedding: np.ndarray
    stages: list[np.ndarray]
    preact: list[np.ndarray]
    stem: np.ndarray
    moments: list[tuple[np.ndarray, np.ndarray]]


# Functions that are analytic where nothing switches, so that a complex step differentiates them


def relu(x: np.ndarray) -> np.ndarray:
    return np.where(x.real > 0, x, 0)


def pointwise(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.einsum("oc,bchw->bohw", weight[:, :, 0, 0], x)


def halved(x: np.ndarray) -> np.ndarray:
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))


def normalized(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """A batch norm in training: its output, and the batch's mean and (biased) variance."""
    mean = x.mean((0, 2, 3))
    variance = ((x - mean[:, None, None]) ** 2).mean((0, 2, 3))
    scale = weight / np.sqrt(variance + 1e-5)
    return (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None], (mean, variance)


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.real.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(z))


def cross_entropy(z: np.ndarray, target: np.ndarray) -> Any:
    """With labels (B,) or distributions (B, K)."""
    target = np.eye(z.shape[1])[target] if target.ndim == 1 else target
    return -(target * log_softmax(z)).sum(1).mean()


def divergence(teacher: np.ndarray, student: np.ndarray, temperature: float) -> Any:
    """T^2 KL of softened logits, mean over the batch."""
    p = softmax(teacher / temperature)
    return temperature**2 * (p * (np.log(p) - log_softmax(student / temperature))).sum(1).mean()


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows**2).sum(1, keepdims=True))


def forward(weights: Arrays, images: np.ndarray, prefix: str = "", running: bool = False) -> Answer:
    """The network's answer, by the batch's statistics or by the running ones."""
    x = stem = pointwise(weights[f"{prefix}stem.weight"], images)
    stages, preact, moments = [], [], []
    for i in range(2):
        place = f"{prefix}blocks.{i}."
        x = pointwise(weights[f"{place}0.weight"], x if i == 0 else halved(x))
        scale, shift = weights[f"{place}1.weight"], weights[f"{place}1.bias"]
        if running:
            scale = scale / np.sqrt(weights[f"{place}1.running_var"] + 1e-5)
            x = (x - weights[f"{place}1.running_mean"][:, None, None]) * scale[:, None, None] + shift[:, None, None]
        else:
            x, found = normalized(x, scale, shift)
            count = x.size // x.shape[1]
            moments.append((found[0], found[1] * count / (count - 1)))  # running variances are unbiased
        preact.append(x)
        x = relu(x)
        stages.append(x)
    embedding = x.mean((2, 3))
    logits = embedding @ weights[f"{prefix}classifier.weight"].T + weights[f"{prefix}classifier.bias"]
    return Answer(logits, embedding, stages, preact, stem, moments)


def move_statistics(weights: Arrays, answer: Answer, prefix: str = "") -> None:
    """As a forward pass in training does: running statistics move by a tenth."""
    for i, moments in enumerate(answer.moments):
        for name, value in zip(("running_mean", "running_var"), moments, strict=True):
            key = f"{prefix}blocks.{i}.1.{name}"
            weights[key] = 0.9 * weights[key] + 0.1 * value.real


# Training


class Images(NamedTuple):
    """A batch in NumPy."""

    image: np.ndarray
    partner: np.ndarray
    index: np.ndarray
    target: np.ndarray
    epoch: int


def epochs(count: int = EPOCHS, size: int = SIZE) -> Iterator[Images]:
    """Batches in another order every epoch, of views that change with it; an epoch's last batch is small."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(N, CHANNELS[0], 4, 4))
    for epoch in range(count):
        order = rng.permutation(N)
        for start in range(0, N, size):
            index = order[start : start + size]
            views = [base[index] + 0.3 * rng.normal(size=(len(index), CHANNELS[0], 4, 4)) for _ in range(2)]
            yield Images(*views, index, TARGETS[index], epoch)


def torch_batch(batch: Images, epochs: int = EPOCHS) -> Batch:
    image, partner, index, target = map(torch.from_numpy, batch[:4])
    return Batch(image, target, index, batch.epoch, epochs, batch.epoch / epochs, partner)


def networks(teacher_channels: tuple[int, ...] = CHANNELS) -> tuple[Net, Net]:
    """A student in training, and a teacher at rest with statistics of its own."""
    torch.manual_seed(0)
    student, teacher = Net().double(), Net(teacher_channels).double()
    teacher(torch.randn(32, CHANNELS[0], 4, 4, dtype=torch.float64))
    return student, teacher.eval().requires_grad_(False)


class Bench:
    """A method that trains a student by the engine's own step, in float64."""

    def __init__(self, spec: dict[str, Any], teacher_channels: tuple[int, ...] = CHANNELS) -> None:
        self.student, self.teacher = networks(teacher_channels)
        self.method: Method = METHODS.build(spec)
        sample = torch.randn(2, CHANNELS[0], 4, 4, dtype=torch.float64)
        with torch.no_grad():
            outputs = copy.deepcopy(self.student)(sample), self.teacher(sample)
        nets = Networks(self.student, self.teacher)
        shape, targets = (CHANNELS[0], 4, 4), torch.from_numpy(TARGETS)
        self.method.setup(Context(outputs[0], outputs[1], K, N, SIZE, shape, targets, nets))
        self.method.double()
        recipe = Recipe(batch_size=SIZE, epochs=EPOCHS, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
        trainee = Trainee(self.student, self.method, None, recipe)  # type: ignore[arg-type]
        self.step = Step({"cell": trainee}, torch.device("cpu"), "fp32")
        trainee.networks = nets  # without casts to single precision

    def weights(self) -> Arrays:
        """Of student and method ("method." before their names), a copy."""
        state = {**self.student.state_dict(), **{f"method.{name}": x for name, x in self.method.state_dict().items()}}
        return {name: tensor.numpy().copy() for name, tensor in state.items() if tensor.is_floating_point()}

    def trained(self) -> list[str]:
        named = [*self.student.named_parameters(), *((f"method.{name}", p) for name, p in self.method.named_parameters())]
        return [name for name, parameter in named if parameter.requires_grad]

    def take(self, batch: Images, lr: float = LR, preparing: bool = False, epochs: int = EPOCHS) -> dict[str, float]:
        """One step of the engine; its terms."""
        self.step.train()
        self.teacher.eval()
        self.step.set_lr(lr)
        self.step(torch_batch(batch, epochs), preparing=preparing)
        return self.step.mean_terms(1, preparing)["cell"]


class Sgd:
    """SGD with momentum and decay on some weights; those without a gradient stay as they are."""

    def __init__(self, weights: Arrays) -> None:
        self.weights = weights
        self.momenta: Arrays = {}

    def step(self, loss: Callable[[Arrays], Any], names: list[str], lr: float = LR) -> None:
        for name, gradient in gradients(loss, self.weights, names).items():
            decayed = gradient + DECAY * self.weights[name]
            self.momenta[name] = MOMENTUM * self.momenta.get(name, 0) + decayed
            self.weights[name] = self.weights[name] - lr * self.momenta[name]


def gradients(loss: Callable[[Arrays], Any], weights: Arrays, names: list[str]) -> Arrays:
    """Complex-step derivatives: Im f(x + ih) / h."""
    found = {}
    for name in names:
        gradient = np.empty(weights[name].size)
        for i in range(gradient.size):
            moved = weights[name].astype(complex)
            moved.flat[i] += 1e-30j
            gradient[i] = np.imag(loss({**weights, name: moved})) / 1e-30
        found[name] = gradient.reshape(weights[name].shape)
    return found


def check_terms(found: dict[str, float], expected: dict[str, Any]) -> None:
    assert found == {name: pytest.approx(float(np.real(value)), rel=1e-9, abs=1e-12) for name, value in expected.items()}


def agree(found: Arrays, expected: Arrays, rel: float = 1e-9) -> None:
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=rel, atol=rel, err_msg=name)
