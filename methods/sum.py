"""A composition: several methods at once, with one cross-entropy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Method, Networks, Output


class Remembered:
    """A network that answers the same question once: the parts of one step share its forward passes.

    Questions are the same where the image tensor and whether gradients are wanted are the same.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self.answers: list[tuple[Tensor, bool, Output]] = []

    def __call__(self, image: Tensor) -> Output:
        grad = torch.is_grad_enabled()
        for known, with_grad, output in self.answers:
            if known is image and with_grad == grad:
                return output
        output = self.network(image)
        self.answers.append((image, grad, output))
        return output

    def __getattr__(self, name: str) -> Any:  # blocks, classifier, norms
        return getattr(self.network, name)


@METHODS.register_module("sum")
class Sum(Method):
    """The terms of all parts, with one cross-entropy: that of the part which changes it (kd, ls, ...), else the plain one.

    A term that several parts name alike is prefixed by its part's key: "tfd.tfd", "tfd2.tfd". All else follows from the parts:
    what they need, draw, remember and deploy. Where parts ask for teachers of different length, the shortest serves all.

    Args:
        parts: the methods, each as `{"type": key, **arguments}`; at least one.

    Raises:
        ValueError: no parts, or parts that exclude each other: two that change the cross-entropy or replace the deployed
            network, one that needs a teacher beside one that needs a copy of the student, two kinds of partner images, two
            lengths of preparation.
    """

    card = Card(
        title="Composition",
        formula="one CE + sum over parts of their other terms",
        paper="– (TFD+KD and TFD+CRD: Li et al., IJCNN 2022)",
        train_only="those of the parts",
    )

    def __init__(self, parts: list[dict[str, Any]]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("a sum needs at least one part")
        self.parts = nn.ModuleList(METHODS.build(part) for part in parts)
        keys = [str(part["type"]).rpartition(".")[2] for part in parts]
        self.labels = [key if (n := keys[:i].count(key)) == 0 else f"{key}{n + 1}" for i, key in enumerate(keys)]

        self.changes_at = self._only_one("change the cross-entropy", lambda part: part.changes_cross_entropy)
        self.deploys_at = self._only_one("replace the deployed network", lambda part: overrides(part, "predictor"))
        self.version = 1 + sum(part.version - 1 for part in self._methods())
        self.needs = self._agreed("a run prepares one network beforehand", "needs", "none")
        self.partner = self._agreed("a batch has one kind of partner images", "partner", None)
        self.prepare_epochs = self._agreed("there is one preparation phase", "prepare_epochs", 0)
        self.teacher_epochs_fraction = min(part.teacher_epochs_fraction for part in self._methods())
        self.draws_random = any(part.draws_random for part in self._methods())
        self.memory_by_sample = any(part.memory_by_sample for part in self._methods())
        self.needs_hard_labels = any(part.needs_hard_labels for part in self._methods())

    def _methods(self) -> list[Method]:
        return cast("list[Method]", list(self.parts))

    def _only_one(self, what: str, does: Callable[[Method], bool]) -> int | None:
        """The place of the one part that `does`, if any."""
        places = [i for i, part in enumerate(self._methods()) if does(part)]
        if len(places) > 1:
            raise ValueError(f"only one part of a sum may {what}, but {' and '.join(self.labels[i] for i in places)} do")
        return places[0] if places else None

    def _agreed(self, reason: str, name: str, neutral: Any) -> Any:
        """The one value of an attribute that parts have beside the neutral one, which is the answer where there is none."""
        values = {label: getattr(part, name) for label, part in zip(self.labels, self._methods(), strict=True)}
        asked = {label: value for label, value in values.items() if value != neutral}
        if len(set(asked.values())) > 1:
            raise ValueError(f"{reason}, but of {name} the parts have {', '.join(f'{k}: {v}' for k, v in asked.items())}")
        return next(iter(asked.values()), neutral)

    @property
    def changes_cross_entropy(self) -> bool:
        return self.changes_at is not None

    def setup(self, context: Context) -> None:
        for part in self._methods():
            part.setup(context._replace(teacher=None) if part.needs == "none" else context)

    def loss(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return self._merged(lambda part: part.loss(student, None if part.needs == "none" else teacher, batch))

    def step(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        networks = Networks(Remembered(networks.student), networks.teacher)
        return self._merged(lambda part: part.step(networks, batch))

    def prepare(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        networks = Networks(Remembered(networks.student), networks.teacher)
        return self._merged(lambda part: part.prepare(networks, batch) if part.prepare_epochs else {})

    def predictor(self, student: nn.Module) -> nn.Module:
        return student if self.deploys_at is None else self._methods()[self.deploys_at].predictor(student)

    def _merged(self, terms_of: Callable[[Method], dict[str, Tensor]]) -> dict[str, Tensor]:
        answers = [terms_of(part) for part in self._methods()]
        others = range(len(answers)) if self.changes_at is None else [self.changes_at]
        merged = next(({"ce": answers[i]["ce"]} for i in others if "ce" in answers[i]), {})
        count = Counter(name for terms in answers for name in terms)
        for label, terms in zip(self.labels, answers, strict=True):
            for name, term in terms.items():
                if name != "ce":
                    merged[name if count[name] == 1 else f"{label}.{name}"] = term
        return merged


def overrides(part: Method, name: str) -> bool:
    return getattr(type(part), name) is not getattr(Method, name)
