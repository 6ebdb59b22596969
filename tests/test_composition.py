"""Methods made of methods, and what the contract refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.models import MODELS
from methods import METHODS, Batch, Card, Context, Method, Networks, Output, TeacherMethod
from methods.composition import Composition

K, N, B = 5, 12, 6
COMPOSITIONS = {
    "sum": lambda part: {"type": "sum", "parts": [{"type": "tfd"}, part]},
    "logit_std": lambda part: {"type": "logit_std", "method": part},
}


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS.build({"type": "resnet8", "classes": K, "channels": 1})


@pytest.fixture
def flagged():
    """A registered method that has every flag of the contract."""

    @METHODS.register_module("flagged", force=True)
    class Flagged(TeacherMethod):
        card = Card("", "", "")
        version = 3
        needs = "self"
        partner = "second_view"
        teacher_epochs_fraction = 0.5
        draws_random = True
        memory_by_sample = True
        needs_hard_labels = True
        needs_maps = True
        ce_weight = 0.5
        done: tuple[str, ...] = ()

        def distill(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
            return {"flagged": student.logits.mean()}

        def gradients(self, student: nn.Module) -> None:
            self.done += ("gradients",)

        def after_step(self, student: nn.Module) -> None:
            self.done += ("after_step",)

        def parameter_groups(self, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
            return [{"params": parameters, "lr_factor": 2.0}]

    yield Flagged
    METHODS.module_dict.pop("flagged")


@pytest.mark.parametrize("kind", COMPOSITIONS)
def test_every_flag_is_folded(kind: str, flagged: type[Method]) -> None:
    composed, alone = METHODS.build(COMPOSITIONS[kind]({"type": "flagged"})), flagged()
    assert isinstance(composed, Composition)
    flags = [
        name
        for name in Method.__annotations__
        if not name.isupper() and name not in ("card", "presets", "added_later", "example")
    ]
    assert "needs_hard_labels" in flags
    for name in [*flags, "changes_cross_entropy"]:
        if name != "ce_weight":  # of the part that weighs it
            assert getattr(composed, name) == getattr(alone, name), name
    composed.gradients(nn.Identity())
    composed.after_step(nn.Identity())
    *_, part = composed.members.values()
    assert part.done == ("gradients", "after_step")
    assert composed.parameter_groups([])[0]["lr_factor"] == 2.0


@pytest.mark.parametrize("kind", COMPOSITIONS)
def test_what_a_part_deploys_is_deployed(kind: str) -> None:
    """SimKD replaces the network that is evaluated; a composition that forgot it would evaluate an untrained classifier."""
    student, teacher, image = network(0).eval(), network(1).eval(), torch.randn(B, 1, 8, 8)
    context = Context(student(image), teacher(image), K, N, B, (1, 8, 8), networks=Networks(student, teacher))
    methods = [METHODS.build(spec) for spec in ({"type": "simkd"}, COMPOSITIONS[kind]({"type": "simkd"}))]
    for method in methods:
        torch.manual_seed(2)
        method.setup(context)
    with torch.no_grad():
        alone, composed = (method.eval().predictor(student)(image).logits for method in methods)
    assert torch.equal(alone, composed)
    assert not torch.equal(alone, student(image).logits)


def test_parts_of_one_key_have_names_of_their_own() -> None:
    parts = [{"type": "tfd", "weight": float(i)} for i in range(3)]
    assert list(METHODS.build({"type": "sum", "parts": parts}).members) == ["tfd", "tfd2", "tfd3"]


@pytest.mark.parametrize("key", ["none", "ls", "pskd"])
def test_logit_std_needs_terms(key: str) -> None:
    with pytest.raises(ValueError, match=f"beside the cross-entropy, and '{key}' has none"):
        METHODS.build({"type": "logit_std", "method": {"type": key}})


# The contract


def test_a_setup_of_six_arguments_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(
        TypeError, match=r"Old\.setup .* `def setup\(self, context: Context\) -> None`, .* \.networks"
    ) as refusal:

        class Old(Method):
            def setup(self, student, teacher, classes, samples, networks=None, targets=None):
                pass

    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("key", "missing"), [("kd", "the teacher's output"), ("cskd", "for the partner images")])
def test_a_loss_without_the_second_output_names_it(key: str, missing: str) -> None:
    output = network(0)(torch.randn(B, 1, 8, 8))
    with pytest.raises(ValueError, match=missing):
        METHODS.build({"type": key}).loss(output, None, Batch(torch.zeros(B), torch.zeros(B).long(), torch.arange(B)))


def test_a_plug_in_may_override_loss() -> None:
    class Own(Method):
        card = Card("", "", "")

        def loss(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
            return {"ce": self.cross_entropy(student, batch), "own": student.logits.mean()}

    model = network(0)
    batch = Batch(torch.randn(B, 1, 8, 8), torch.arange(B) % K, torch.arange(B))
    assert set(Own().step(Networks(copy.deepcopy(model)), batch)) == {"ce", "own"}
