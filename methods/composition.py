"""What methods made of methods share (`sum`, `logit_std`): what their parts need, remember and deploy is folded here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Batch, Context, Method, NetworkLike, Output, TeacherMethod
from methods.parts import Wrapped


class ByRow(TeacherMethod):
    """A method on logits whose term is a mean over the rows of a batch, so that another can weight the rows."""

    @abstractmethod
    def by_row(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The term of each row, weighted as in `distill`, which has its mean. No gradient is stopped here.

        Args:
            student, teacher: (R, K) logits.
            batch: its targets belong to the rows.

        Returns:
            (R,).
        """
        raise NotImplementedError


class Composition(Method):
    """A method made of others, its members. A subclass builds them as submodules, names them, and calls `fold_flags`."""

    @property
    @abstractmethod
    def members(self) -> dict[str, Method]:
        """The parts, by the names that errors and terms use."""
        raise NotImplementedError

    def fold_flags(self) -> None:
        """Take every flag of the contract from the members.

        Raises:
            ValueError: members exclude each other: two change the cross-entropy, replace the deployed network or group the
                parameters; one needs a teacher and one a copy of the student; two kinds of partner images; two lengths of
                preparation.
        """
        members = self.members.values()
        self._changes = self._only_one("change the cross-entropy", lambda member: member.changes_cross_entropy)
        self._deploys = self._only_one("replace the deployed network", lambda member: overrides(member, "predictor"))
        self._groups = self._only_one("group the parameters", lambda member: overrides(member, "parameter_groups"))
        self.version = 1 + sum(member.version - 1 for member in members)
        self.needs = self._agreed("a run prepares one network beforehand", "needs", "none")
        self.partner = self._agreed("a batch has one kind of partner images", "partner", None)
        self.prepare_epochs = self._agreed("there is one preparation phase", "prepare_epochs", 0)
        self.prepare_lr = self._agreed("the preparation has one learning rate", "prepare_lr", None)
        self.teacher_epochs_fraction = min(member.teacher_epochs_fraction for member in members)  # the shortest serves all
        self.draws_random = any(member.draws_random for member in members)
        self.memory_by_sample = any(member.memory_by_sample for member in members)
        self.needs_hard_labels = any(member.needs_hard_labels for member in members)
        self.needs_maps = any(member.needs_maps for member in members)
        taught = [member for member in members if member.needs == "teacher"]
        self.several_teachers = bool(taught) and all(member.several_teachers for member in taught)

    def _only_one(self, what: str, does: Callable[[Method], bool]) -> str | None:
        """The name of the one member that `does`, if any."""
        names = [name for name, member in self.members.items() if does(member)]
        if len(names) > 1:
            raise ValueError(f"only one part of a {_key(self)} may {what}, but {' and '.join(names)} do")
        return names[0] if names else None

    def _agreed(self, reason: str, flag: str, neutral: Any) -> Any:
        """The one value of a flag beside the neutral one that members have; the neutral one where there is none."""
        values = {name: getattr(member, flag) for name, member in self.members.items()}
        asked = {name: value for name, value in values.items() if value != neutral}
        if len(set(asked.values())) > 1:
            raise ValueError(f"{reason}, but of {flag} the parts have {', '.join(f'{k}: {v}' for k, v in asked.items())}")
        return next(iter(asked.values()), neutral)

    @property
    def changes_cross_entropy(self) -> bool:
        return self._changes is not None

    def setup(self, context: Context) -> None:
        for member in self.members.values():
            member.setup(context._replace(teacher=None) if member.needs == "none" else context)

    def predictor(self, student: nn.Module) -> nn.Module:
        return self.members[self._deploys].predictor(student) if self._deploys else student

    def gradients(self, student: nn.Module) -> None:
        for member in self.members.values():
            member.gradients(student)

    def after_step(self, student: nn.Module) -> None:
        for member in self.members.values():
            member.after_step(student)

    def parameter_groups(self, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        if self._groups:
            return self.members[self._groups].parameter_groups(parameters)
        return super().parameter_groups(parameters)


class RunsOnce(Wrapped):
    """A network that runs once for all parts of a step.

    Outputs are kept for each image tensor, with and without gradients.
    """

    def __init__(self, network: NetworkLike) -> None:
        super().__init__(network)
        self.outputs: list[tuple[Tensor, bool, Output]] = []

    def __call__(self, image: Tensor) -> Output:
        grad = torch.is_grad_enabled()
        for known, with_grad, output in self.outputs:
            if known is image and with_grad == grad:
                return output
        output = super().__call__(image)
        self.outputs.append((image, grad, output))
        return output


def overrides(method: Method, name: str) -> bool:
    """Whether a method's class defines this part of the contract itself.

    A composition does where a member does.
    """
    if isinstance(method, Composition) and name in ("predictor", "parameter_groups"):
        return any(overrides(member, name) for member in method.members.values())
    return getattr(type(method), name) is not getattr(Method, name)


def adds_terms(method: Method) -> bool:
    """Whether a method has a term beside the cross-entropy: `ls` changes that one, and `ab` only prepares."""
    kind = type(method)
    if kind.loss not in (Method.loss, TeacherMethod.loss):
        return True
    return kind.distill is not TeacherMethod.distill if issubclass(kind, TeacherMethod) else kind.terms is not Method.terms


def _key(method: Method) -> str:
    return type(method).__module__.rpartition(".")[2]
