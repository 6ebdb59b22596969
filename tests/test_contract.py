"""What every method owes the engine. A new method is tested by being registered."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.engine.trainee import NetworkView, Teacher
from bench.models import MODELS, Network
from methods import METHODS, Batch, Context, Method, Networks

KEYS = sorted(METHODS.module_dict)
PAIRS = {"same family": ("resnet8", "resnet14"), "cross family": ("wrn_16_1", "vgg8"), "wide": ("wrn_16_2", "wrn_40_2")}
REQUIRED = {"sum": {"parts": [{"type": "tfd"}, {"type": "kd"}]}, "logit_std": {"method": {"type": "kd"}}}
B, K, N = 10, 10, 40  # a batch has every class, so that no teacher is wrong about all of it
TARGETS = torch.arange(N) % K


@cache
def network(model: str, seed: int) -> Network:
    torch.manual_seed(seed)
    return MODELS.build({"type": model, "classes": K, "channels": 1})


def batches() -> list[Batch]:
    """Steps late in the training, when ramps are done. The first fill what remembers a sample or the batch before."""
    torch.manual_seed(2)
    index = torch.arange(B)
    image, partner = torch.randn(3, B, 1, 8, 8), torch.randn(3, B, 1, 8, 8)
    return [
        Batch(image[i], TARGETS[index], index, epoch=epoch, epochs=100, progress=epoch / 100, partner=partner[i])
        for i, epoch in enumerate((58, 59, 59))
    ]


@dataclass
class Case:
    method: Method
    nets: Networks
    set_up: Callable[[Method], None]

    def step(self, batch: Batch, precision: str = "fp32") -> dict[str, Tensor]:
        if not self.method.partner:
            batch = batch._replace(partner=None)
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            return self.method.step(self.nets, batch)

    @property
    def student_parameters(self) -> list[Tensor]:
        return list(self.nets.student.network.parameters())

    @property
    def adapters(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.method.named_parameters() if p.requires_grad}


def build(key: str, pair: str, **arguments: Any) -> Case:
    """A method after `setup`, with networks as the engine wraps them; skipped where the method refuses the pair."""
    models = PAIRS[pair]
    student = network(models[0], 0)
    method = METHODS.build({"type": key, **REQUIRED.get(key, {}), **arguments})
    source = {"none": None, "teacher": (models[1], 1), "self": (models[0], 1)}[method.needs]
    nets = Networks(NetworkView(student), Teacher(copy.deepcopy(network(*source)), None, "fp32") if source else None)

    def set_up(method: Method) -> None:
        with torch.no_grad():
            image = batches()[0].image
            teacher = nets.teacher(image) if nets.teacher else None
            method.setup(Context(nets.student(image), teacher, K, N, B, (1, 8, 8), TARGETS, nets))

    torch.manual_seed(4)
    try:
        set_up(method)
    except ValueError as refusal:
        if pair == "same family":
            raise
        pytest.skip(str(refusal))
    return Case(method, nets, set_up)


def gradients(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("key", KEYS)
def test_terms_and_gradients(key: str, pair: str) -> None:
    case = build(key, pair)
    prepared = [case.method.prepare(case.nets, batches()[0])] if case.method.prepare_epochs else []
    answers = prepared + [case.step(batch) for batch in batches()]
    for terms in answers:
        for name, term in terms.items():
            assert term.shape == (), name
            assert term.isfinite(), name
    others = answers[-1].keys() - {"ce"}
    assert others == {key} or len(others) != 1, "a single term beside ce has the method's key for its name"

    for name, term in answers[-1].items():
        if name == "ce" and case.method.ce_weight == 0:
            continue
        reached = gradients(term, [*case.student_parameters, *case.adapters.values()])
        assert any(g.any() for g in reached), f"{name} trains nothing"
    assert any(g.any() for g in gradients(total(answers[-1]), case.student_parameters))
    for name, adapter in case.adapters.items():
        assert any(gradients(total(terms), [adapter])[0].any() for terms in answers), f"{name} is never trained"
    if case.nets.teacher:
        assert not any(p.requires_grad for p in case.nets.teacher.network.parameters())


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("key", KEYS)
def test_bf16_is_close_to_fp32(key: str, pair: str) -> None:
    terms = {}
    for precision in ("fp32", "bf16"):
        case = build(key, pair)
        terms[precision] = [case.step(batch, precision) for batch in batches()][-1]
    for name, term in terms["fp32"].items():
        assert terms["bf16"][name].dtype == torch.float32, name
        assert terms["bf16"][name].item() == pytest.approx(term.item(), rel=0.1, abs=0.01), name


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("key", KEYS)
def test_state_round_trip(key: str, pair: str) -> None:
    case = build(key, pair)
    first, second, _ = batches()
    case.step(first)
    state = copy.deepcopy(case.method.state_dict())
    expected = case.step(second)
    resumed = METHODS.build({"type": key, **REQUIRED.get(key, {})})
    torch.manual_seed(5)
    case.set_up(resumed)
    resumed.load_state_dict(state)
    again = Case(resumed, case.nets, case.set_up).step(second)
    assert {name: term.item() for name, term in again.items()} == {name: term.item() for name, term in expected.items()}


def arguments(key: str) -> dict[str, inspect.Parameter]:
    method = METHODS.get(key)
    return {} if method.__init__ is Method.__init__ else dict(inspect.signature(method, eval_str=True).parameters)


@pytest.mark.parametrize("key", [key for key in KEYS if "weight" in arguments(key)])
def test_weight_zero_is_plain_training(key: str) -> None:
    """Where all that a method adds has a weight, and the cross-entropy is the plain one."""
    weights = {name: float(name == "ce_weight") for name in arguments(key) if name.endswith("weight")}
    inner = {"method": {"type": "kd", "ce_weight": 1.0}} if key == "logit_std" else {}
    case, none = build(key, "same family", **weights, **inner), build("none", "same family")
    terms = [case.step(batch) for batch in batches()][-1]
    if case.method.changes_cross_entropy or any(term != 0 for name, term in terms.items() if name != "ce"):
        pytest.skip("has terms of the labels beside the cross-entropy")
    expected = gradients(total(none.step(batches()[-1])), none.student_parameters)
    for ours, theirs in zip(gradients(total(terms), case.student_parameters), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("key", KEYS)
def test_double_precision_without_networks(key: str) -> None:
    """What an independent check of values asks for."""
    with torch.no_grad():
        student, teacher = (
            copy.deepcopy(network(*of)).double()(batches()[0].image.double()) for of in (("resnet8", 0), ("resnet14", 1))
        )
    method = METHODS.build({"type": key, **REQUIRED.get(key, {})})
    try:
        method.setup(Context(student, teacher, K, N, B, (1, 8, 8)))
    except ValueError as refusal:
        if "networks" not in str(refusal):
            raise
        pytest.skip(str(refusal))
    for term in method.double().loss(student, teacher, batches()[0]).values():
        assert term.dtype == torch.float64
        assert term.isfinite()


@pytest.mark.parametrize("key", KEYS)
def test_predictor_answers(key: str) -> None:
    case = build(key, "same family")
    predictor = case.method.predictor(case.nets.student.network).eval()
    with torch.no_grad():
        assert predictor(batches()[0].image).logits.shape == (B, K)
    case.nets.student.network.train()


@pytest.mark.parametrize("key", KEYS)
def test_card_and_arguments(key: str) -> None:
    method = METHODS.get(key)
    card, about = method.card, inspect.getdoc(method) or ""
    assert all((card.title, card.formula, card.paper, card.deviations, card.train_only))
    assert about
    for name, argument in arguments(key).items():
        assert argument.annotation is not inspect.Parameter.empty, name
        assert f"{name}:" in about or f"{name}," in about, f"{name} is not documented"
        if argument.default is inspect.Parameter.empty:
            assert name in REQUIRED[key]
        else:
            assert json.loads(json.dumps(argument.default)) == argument.default, name
    for name, preset in method.presets.items():
        assert preset.keys() <= arguments(key).keys(), name
        assert METHODS.build({"type": key, **REQUIRED.get(key, {}), "preset": name})
