"""How large each loss term's gradient is along a training: a hook that measures it and changes nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from bench.engine.device import autocast, draws_as_found
from bench.engine.distributed import rows_of
from bench.engine.loop import Loop, Row
from bench.engine.step import Member
from bench.engine.trainee import NetworkView, Trainee
from methods.base import Batch

CROSS_ENTROPY = "ce"  # the term that the others are compared with, where a method has it


@HOOKS.register_module()
class GradientShares(Hook):
    """Adds gradients to the curves, as they are when an epoch begins: `run GRID --hook GradientShares`.

    For a loss L = sum of its weighted terms, with gradients over the student's parameters, a row of the curves gains

        gradient           |dL|
        gradient_<term>    |d term|
        cosine_<term>      d term . d ce / (|d term| |d ce|), of terms beside the cross-entropy; empty where one of them is 0

    Each is a mean over the first batches of the training, `batches` at most, with the images, their augmentation and the
    precision of its steps. They are the same batches in every epoch; weights, ramps and memories are those of the epoch.
    A method's `gradients` and clipping come later and do not count. Of a batch that is divided among processes or parts, the
    first part counts.

    The training stays bit for bit what it is without: gradients are taken on a copy, and no random number is used up.
    """

    batches = 8

    def __init__(self) -> None:
        self._fixed: dict[int, list[Batch]] = {}  # by stream
        self._found: dict[str, Row] = {}  # by cell id, of the epoch that runs

    def before_train_epoch(self, runner: Loop) -> None:
        epoch = runner.epoch - runner.prepare_epochs
        if epoch < 0 or not runner.step.team.leads:
            return
        with runner.clock.measure("log_s"), draws_as_found(runner.step.device):
            for cell_id, member in runner.step.members.items():
                if member.stream not in self._fixed:
                    self._fixed[member.stream] = list(islice(runner.streams[member.stream].epoch(0), self.batches))
                batches = [self._as_of(runner, epoch, batch) for batch in self._fixed[member.stream]]
                self._found[cell_id] = self._measure(runner, member, batches)

    def after_train_epoch(self, runner: Loop) -> None:
        for cell_id, found in self._found.items():
            runner.history[cell_id][-1] |= found
        self._found = {}

    def _as_of(self, runner: Loop, epoch: int, batch: Batch) -> Batch:
        """A step's part of a fixed batch, as if this epoch began with it."""
        device = runner.step.device
        part, _ = rows_of(batch, 0, runner.recipe.shares)
        return part._replace(
            epoch=torch.tensor(epoch, device=device),
            progress=torch.tensor(epoch / runner.recipe.epochs, dtype=torch.float64, device=device),
        )

    def _measure(self, runner: Loop, member: Member, batches: list[Batch]) -> Row:
        """The means over the batches."""
        sums: dict[str, list[float]] = {}
        for batch in batches:
            copied = _copy(member.trainee)  # for each, since terms may change a method's memory
            with autocast(runner.step.device, runner.step.precision):
                terms = copied(batch)
            for name, value in _sizes(terms, list(copied.student.parameters())).items():
                sums.setdefault(name, []).append(value)
            for teacher in copied.teachers:
                teacher.forget()
        return {name: sum(values) / len(values) for name, values in sums.items()}


def _copy(trainee: Trainee) -> Trainee:
    """A copy to take gradients of, in training mode. Its forward pass is not compiled: that would take minutes."""
    copied = trainee.duplicate().train()
    copied.networks = replace(copied.networks, student=NetworkView(copied.student))
    return copied


def _sizes(terms: dict[str, Tensor], parameters: list[torch.nn.Parameter]) -> Row:
    """The columns of one batch, but for cosines without a value."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = {name: _gradient(term, parameters) for name, term in terms.items()}
    found = {"gradient": float(torch.stack(list(gradients.values())).sum(0).norm())}
    norms = {name: float(gradient.norm()) for name, gradient in gradients.items()}
    found |= {f"gradient_{name}": norm for name, norm in norms.items()}
    for name, gradient in gradients.items():
        if CROSS_ENTROPY in norms and name != CROSS_ENTROPY and norms[name] * norms[CROSS_ENTROPY]:
            cosine = float(gradient @ gradients[CROSS_ENTROPY]) / (norms[name] * norms[CROSS_ENTROPY])
            found[f"cosine_{name}"] = cosine
    return found


def _gradient(term: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    """(P,) in float64: a term's gradient over all of the parameters; 0 where it does not depend on one."""
    if not term.requires_grad:
        return torch.zeros(sum(map(torch.Tensor.numel, parameters)), dtype=torch.float64, device=term.device)
    found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([each.flatten().double() for each in found])
