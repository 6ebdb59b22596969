"""What every method must do for the engine. A new method is tested as soon as it is registered."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.engine.trainee import NetworkView, Teacher
from bench.models import MODELS, Network
from bench.plugins import import_plugin
from methods import METHODS, Batch, Card, Context, Method, Networks, Output, TeacherMethod

KEYS = sorted(METHODS.module_dict)
PAIRS = {"same family": ("resnet8", "resnet14"), "cross family": ("wrn_16_1", "vgg8"), "wide": ("wrn_16_2", "wrn_40_2")}

# The methods that may do less than the contract asks, each with its reason. All others must keep all of it.
REFUSES_A_PAIR = {
    ("fsp", "cross family"): "fsp needs equal channels",
    ("ft", "cross family"): "the last stages meet at a single one",
}
NEEDS_NETWORKS = {
    "dml": "builds networks of the student's kind",
    "mixskd": "mixskd copies the student's later stages",
    "one": "one copies the student's last stage",
    "sdd": "sdd applies the classifiers of both networks",
    "zipf_ls": "zipf_ls applies the student's classifier to its last map",
}
TRAINS_OTHERWISE = {  # with all weights at 0
    "byot": "the exits have a cross-entropy each",
    "ddgsd": "the cross-entropy is the mean over two views",
    "dlb": "the cross-entropy is the mean over two batches",
    "logit_std": "the wrapped kd has a tenth of the cross-entropy",
    "frskd": "the self-teacher has a cross-entropy",
    "mixskd": "the exits have cross-entropies, on mixes too",
    "mlkd": "the cross-entropy is the sum over two views",
    "one": "the branches have a cross-entropy each",
    "simkd": "there is no cross-entropy",
}
CASES = [(key, pair) for key in KEYS for pair in PAIRS if (key, pair) not in REFUSES_A_PAIR]

B, K, N = 10, 10, 40  # a batch has every class, so that no teacher is wrong about all of it
TARGETS = torch.arange(N) % K
OTHER = torch.tensor([1, 0, 2, 4, 3, 6, 5, 8, 7, 9])  # stays a permutation in the first half of a batch


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
        Batch(image[i], TARGETS[index], index, epoch, 100, epoch / 100, partner[i], other=OTHER, kept=torch.tensor(0.7))
        for i, epoch in enumerate((58, 59, 59))
    ]


def arguments(key: str) -> dict[str, inspect.Parameter]:
    method = METHODS.get(key)
    return {} if method.__init__ is Method.__init__ else dict(inspect.signature(method, eval_str=True).parameters)


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


def spec(key: str, **arguments: Any) -> dict[str, Any]:
    return {"type": key, **METHODS.get(key).example, **arguments}


def build(key: str, pair: str = "same family", **arguments: Any) -> Case:
    """A method after `setup`, with networks as the engine wraps them."""
    models = PAIRS[pair]
    student = network(models[0], 0)
    method = METHODS.build(spec(key, **arguments))
    source = {"none": None, "teacher": (models[1], 1), "self": (models[0], 1)}[method.needs]
    nets = Networks(NetworkView(student), Teacher(copy.deepcopy(network(*source)), None, "fp32") if source else None)

    def another(number: int) -> Network:
        return copy.deepcopy(network(models[0], 5 + number)).train()

    def set_up(method: Method) -> None:
        with torch.no_grad():
            image = batches()[0].image
            teacher = nets.teacher(image) if nets.teacher else None
            method.setup(Context(nets.student(image), teacher, K, N, B, (1, 8, 8), TARGETS, nets, another))

    torch.manual_seed(4)
    set_up(method)
    return Case(method, nets, set_up)


@pytest.mark.parametrize(("key", "pair"), REFUSES_A_PAIR)
def test_what_may_refuse_does(key: str, pair: str) -> None:
    with pytest.raises(ValueError, match=REFUSES_A_PAIR[key, pair]):
        build(key, pair)


def prepared(case: Case) -> dict[str, Tensor]:
    """The terms of a step of the preparation, if there is one."""
    return case.method.prepare(case.nets, batches()[0]) if case.method.prepare_epochs else {}


def gradients(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize(("key", "pair"), CASES)
def test_terms_and_gradients(key: str, pair: str) -> None:
    case = build(key, pair)
    steps = [terms for terms in (prepared(case), *(case.step(batch) for batch in batches())) if terms]
    for terms in steps:
        for name, term in terms.items():
            assert term.shape == (), name
            assert term.isfinite(), name
    others = steps[-1].keys() - {"ce"}
    assert others == {key} or len(others) != 1, "a single term beside ce has the method's key for its name"

    for name, term in steps[-1].items():
        if name == "ce" and case.method.ce_weight == 0:
            continue
        reached = gradients(term, [*case.student_parameters, *case.adapters.values()])
        assert any(g.any() for g in reached), f"{name} trains nothing"
    assert any(g.any() for g in gradients(total(steps[-1]), case.student_parameters))
    for name, adapter in case.adapters.items():
        assert any(gradients(total(terms), [adapter])[0].any() for terms in steps), f"{name} is never trained"
    if case.nets.teacher:
        assert not any(p.requires_grad for p in case.nets.teacher.network.parameters())


@pytest.mark.parametrize(("key", "pair"), CASES)
def test_bf16_is_close_to_fp32(key: str, pair: str) -> None:
    terms = {}
    for precision in ("fp32", "bf16"):
        case = build(key, pair)
        terms[precision] = [case.step(batch, precision) for batch in batches()][-1]
    for name, term in terms["fp32"].items():
        assert terms["bf16"][name].dtype == torch.float32, name
        assert terms["bf16"][name].item() == pytest.approx(term.item(), rel=0.1, abs=0.01), name


@pytest.mark.parametrize(("key", "pair"), CASES)
def test_state_round_trip(key: str, pair: str) -> None:
    case = build(key, pair)
    first, second, _ = batches()
    case.step(first)
    state = copy.deepcopy(case.method.state_dict())
    expected = case.step(second)
    resumed = METHODS.build(spec(key))
    torch.manual_seed(5)
    case.set_up(resumed)
    resumed.load_state_dict(state)
    again = Case(resumed, case.nets, case.set_up).step(second)
    assert {name: term.item() for name, term in again.items()} == {name: term.item() for name, term in expected.items()}


def weights_of(key: str) -> list[str]:
    return [name for name in arguments(key) if name.endswith("weight")]


def all_terms(case: Case) -> dict[str, float]:
    """Those of the preparation and of every step, as numbers."""
    terms = {f"prepare {name}": term for name, term in prepared(case).items()}
    for i, batch in enumerate(batches()):
        terms |= {f"{i} {name}": term for name, term in case.step(batch).items()}
    return {name: term.item() for name, term in terms.items()}


@pytest.mark.parametrize("key", [key for key in KEYS if "weight" in arguments(key) and key not in TRAINS_OTHERWISE])
def test_weight_zero_is_plain_training(key: str) -> None:
    weights = {name: float(name == "ce_weight") for name in weights_of(key)}
    case, none = build(key, **weights), build("none")
    terms = [case.step(batch) for batch in batches()][-1]
    expected = gradients(total(none.step(batches()[-1])), none.student_parameters)
    for ours, theirs in zip(gradients(total(terms), case.student_parameters), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(("key", "name"), [(key, name) for key in KEYS for name in weights_of(key)])
def test_every_weight_counts(key: str, name: str) -> None:
    default = spec(key).get(name, arguments(key)[name].default)
    assert all_terms(build(key, **{name: default / 2})) != all_terms(build(key))


@pytest.mark.parametrize("key", KEYS)
def test_the_epoch_may_be_a_tensor(key: str) -> None:
    """In training it is one, so that a recorded step can be replayed; terms are the same as with Python's numbers."""

    def terms(number: Callable[..., Any]) -> list[dict[str, float]]:
        case = build(key)
        found = []
        for epoch in (0, 1, 19, 30, 64, 65, 90, 99):
            batch = batches()[0]._replace(epoch=number(epoch), progress=number(epoch / 100))
            found.append({name: term.item() for name, term in case.step(batch).items()})
        return found

    assert terms(torch.tensor) == terms(lambda value: value)


@pytest.mark.parametrize("key", KEYS)
def test_memories_keep_their_place_and_shape(key: str) -> None:
    """Also over a shorter batch, as an epoch ends with: a replayed step reads and writes where the first one did."""
    case = build(key)
    before = {name: (buffer.data_ptr(), buffer.shape) for name, buffer in case.method.named_buffers()}
    first, second, third = batches()
    short = second._replace(
        **{name: getattr(second, name)[: B // 2] for name in ("image", "target", "index", "partner", "other")}
    )
    for batch in (first, short, third):
        case.step(batch)
    assert {name: (buffer.data_ptr(), buffer.shape) for name, buffer in case.method.named_buffers()} == before


@pytest.mark.parametrize("key", KEYS)
def test_double_precision_without_networks(key: str) -> None:
    """What an independent check of values asks for."""
    with torch.no_grad():
        student, teacher = (
            copy.deepcopy(network(*of)).double()(batches()[0].image.double()) for of in (("resnet8", 0), ("resnet14", 1))
        )
    method, context = METHODS.build(spec(key)), Context(student, teacher, K, N, B, (1, 8, 8))
    if key in NEEDS_NETWORKS:
        with pytest.raises(ValueError, match=NEEDS_NETWORKS[key]):
            method.setup(context)
        return
    method.setup(context)
    for term in method.double().loss(student, teacher, batches()[0]).values():
        assert term.dtype == torch.float64
        assert term.isfinite()


@pytest.mark.parametrize("key", KEYS)
def test_predictor_gives_logits(key: str) -> None:
    case = build(key)
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
            assert name in method.example
        else:
            assert json.loads(json.dumps(argument.default)) == argument.default, name
    for name, preset in method.presets.items():
        assert preset.keys() <= arguments(key).keys(), name
        assert METHODS.build(spec(key, preset=name))


# The contract itself


def blocks(page: str) -> dict[str, str]:
    """The named Python blocks of a page, by file name."""
    fence = re.compile(r"^```python ([\w.]+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return dict(fence.findall((Path(__file__).parent.parent / page).read_text(encoding="utf-8")))


def keep_contract(key: str) -> None:
    """Everything above, for a method that is not registered when the tests are collected."""
    for pair in PAIRS:
        test_terms_and_gradients(key, pair)
        test_bf16_is_close_to_fp32(key, pair)
        test_state_round_trip(key, pair)
    for name in weights_of(key):
        test_every_weight_counts(key, name)
    test_weight_zero_is_plain_training(key)
    test_the_epoch_may_be_a_tensor(key)
    test_memories_keep_their_place_and_shape(key)
    test_double_precision_without_networks(key)
    test_predictor_gives_logits(key)
    test_card_and_arguments(key)


@pytest.fixture
def registered() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(METHODS.module_dict)
    yield
    METHODS.module_dict.clear()
    METHODS.module_dict.update(before)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("page", "file", "key"), [("CONTRIBUTING.md", "mine.py", "mine"), ("README.md", "confidence_penalty.py", "cp")]
)
def test_methods_on_our_pages_keep_the_contract(page: str, file: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_text(blocks(page)[file])
    METHODS.module_dict.pop(key, None)  # of a reader who copied it into `methods/`, as the page asks
    import_plugin(str(path))
    method = METHODS.get(key)
    own = vars(method)
    assert "loss" not in own, "it writes only what it adds"
    assert ("distill" in own) == issubclass(method, TeacherMethod)
    keep_contract(key)


class IgnoresItsWeight(Method):
    """A planted fault.

    Args:
        weight: ignored.
    """

    card = Card("Planted", "CE + entropy", "-")

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()

    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        return {"planted": student.logits.square().mean()}


class BranchesOnTheEpoch(IgnoresItsWeight):
    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        share = 0.1 * batch.epoch / batch.epochs if isinstance(batch.epoch, int) else 0.0
        return {"planted": share * student.logits.square().mean()}


class ReplacesItsMemory(IgnoresItsWeight):
    def setup(self, context: Context) -> None:
        self.register_buffer("memory", torch.zeros(1))

    def terms(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        self.memory = student.logits.detach()
        return {"planted": student.logits.square().mean()}


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("method", "check"),
    [
        (IgnoresItsWeight, test_weight_zero_is_plain_training),
        (IgnoresItsWeight, lambda key: test_every_weight_counts(key, "weight")),
        (BranchesOnTheEpoch, test_the_epoch_may_be_a_tensor),
        (ReplacesItsMemory, test_memories_keep_their_place_and_shape),
    ],
)
def test_planted_faults_fail(method: type[Method], check: Callable[[str], None]) -> None:
    METHODS.register_module("planted", module=method)
    with pytest.raises(AssertionError):
        check("planted")
