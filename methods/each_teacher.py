"""A composition for several teachers: a method learns from each, and its terms are averaged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from methods.base import METHODS, Batch, Card, Context, Method, Networks, Output
from methods.composition import Composition, RunsOnce, overrides


@METHODS.register_module("each_teacher")
class EachTeacher(Composition):
    """The mean over a pair's teachers of the terms of `method`, which learns from each of them.

    With kd this is distillation by the mean of their softened predictions, but for a constant: KL(p || q) is linear in p, apart
    from p's entropy. What the method creates for its features, such as adapters, it has once for each teacher.

    Args:
        method: the method, as `{"type": key, **arguments}`.

    Raises:
        ValueError: `method` needs no teacher, has a preparation, or deploys another network than the student.
    """

    card = Card(
        title="Mean over several teachers",
        formula="mean over teachers t of L(s, t), L the loss of the wrapped method",
        paper="You, Xu, Xu, Tao. Learning from Multiple Teacher Networks. KDD 2017. doi:10.1145/3097983.3098135",
        deviations="the mean alone, for any method; that paper adds a term of relative dissimilarities at intermediate layers",
        train_only="those of the wrapped method, once for each teacher",
    )
    example = {"method": {"type": "kd"}}
    copies: nn.ModuleList

    def __init__(self, method: dict[str, Any]) -> None:
        super().__init__()
        self.spec = method
        self.copies = nn.ModuleList([METHODS.build(method)])
        [member] = self.members.values()
        key = method["type"]
        if member.needs != "teacher":
            raise ValueError(f"each_teacher repeats a method for each teacher, and '{key}' needs none")
        if member.prepare_epochs or any(overrides(member, name) for name in ("predictor", "parameter_groups")):
            raise ValueError(
                f"each_teacher cannot repeat '{key}': it has a preparation, or changes what is deployed or trained"
            )
        self.fold_flags()
        self.several_teachers = True

    @property
    def members(self) -> dict[str, Method]:
        return {f"teacher{number}": copy for number, copy in enumerate(cast("Iterable[Method]", self.copies), 1)}

    @property
    def changes_cross_entropy(self) -> bool:
        return next(iter(self.members.values())).changes_cross_entropy

    def setup(self, context: Context) -> None:
        outputs = (context.require_teacher(), *context.others)
        self.copies.extend(METHODS.build(self.spec) for _ in outputs[1:])
        for number, (copy, output) in enumerate(zip(self.members.values(), outputs, strict=True)):
            networks = context.networks and _alone(context.networks, number)
            copy.setup(context._replace(teacher=output, others=(), networks=networks))

    def cross_entropy(self, student: Output, batch: Batch) -> Tensor:
        return next(iter(self.members.values())).cross_entropy(student, batch)

    def loss(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        """All terms, where there is one teacher: of several `step` takes the mean."""
        if len(self.copies) > 1:
            raise ValueError(f"each_teacher learns from {len(self.copies)} teachers, whose outputs `step` asks for")
        return _named(next(iter(self.members.values())).loss(student, teacher, batch))

    def step(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        networks = replace(networks, student=RunsOnce(networks.student))
        found: dict[str, list[Tensor]] = defaultdict(list)
        for number, copy in enumerate(self.members.values()):
            for name, term in copy.step(_alone(networks, number), batch).items():
                found[name].append(term)
        return _named({name: torch.stack(terms).mean() for name, terms in found.items()})


def _named(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """A single term beside the cross-entropy by this method's key."""
    own = [name for name in terms if name != "ce"]
    return {"each_teacher" if own == [name] else name: term for name, term in terms.items()}


def _alone(networks: Networks, number: int) -> Networks:
    """With one of the teachers."""
    return replace(networks, teacher=networks.teachers[number], others=())
