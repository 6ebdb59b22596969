"""A composition: several methods at once, with one cross-entropy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Method, Networks, Output
from methods.composition import Composition, RunsOnce


@METHODS.register_module("sum")
class Sum(Composition):
    """The terms of all parts, with one cross-entropy: the part that changes it (kd, ls, ...) gives it, else it is plain.

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

    example = {"parts": [{"type": "tfd"}, {"type": "kd"}]}

    def __init__(self, parts: list[dict[str, Any]]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("a sum needs at least one part")
        self.parts = nn.ModuleList(METHODS.build(part) for part in parts)
        self.names: list[str] = []
        for part in parts:
            key = name = str(part["type"]).rpartition(".")[2]
            while name in self.names:
                name = f"{key}{int(name.removeprefix(key) or 1) + 1}"
            self.names.append(name)
        self.fold_flags()

    @property
    def members(self) -> dict[str, Method]:
        return dict(zip(self.names, cast("Iterable[Method]", self.parts), strict=True))

    def loss(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return self._merged(lambda part: part.loss(student, None if part.needs == "none" else teacher, batch))

    def step(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        networks = replace(networks, student=RunsOnce(networks.student))
        return self._merged(lambda part: part.step(networks, batch))

    def prepare(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        networks = replace(networks, student=RunsOnce(networks.student))
        return self._merged(lambda part: part.prepare(networks, batch) if part.prepare_epochs else {})

    def _merged(self, terms_of: Callable[[Method], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The terms of all parts; "ce" from the part that changes it, else from the first that has it."""
        found = {name: terms_of(part) for name, part in self.members.items()}
        candidates = list(found.values()) if self._changes is None else [found[self._changes]]
        merged = next(({"ce": terms["ce"]} for terms in candidates if "ce" in terms), {})
        count = Counter(term for terms in found.values() for term in terms)
        for name, terms in found.items():
            for term, value in terms.items():
                if term != "ce":
                    merged[term if count[term] == 1 else f"{name}.{term}"] = value
        return merged
