"""One optimization step: what training runs, the cost probe times, the FLOP counter counts, and `speed` measures.

Nothing in a step waits for the device, and no method's name appears in it. All that changes from step to step is a tensor in
memory that stays the same: learning rates, epoch, progress, momenta, sums of loss terms. So a step can be recorded once and
replayed, which `tests/test_capture.py` shows for every method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import add

import torch
from torch import Tensor, nn

from bench.engine.branches import Streams
from bench.engine.clock import SILENT, Clock, SilentClock
from bench.engine.device import autocast
from bench.engine.distributed import ALONE, Team, rows_of
from bench.engine.layers import Layers
from bench.engine.optimizer import Optimizer
from bench.engine.trainee import Teacher, Trainee
from methods.base import Batch


class DivergedError(ArithmeticError):
    """A loss became NaN or infinite, in these cells."""

    def __init__(self, reason: str, cells: list[str]) -> None:
        super().__init__(reason)
        self.cells = cells


def total(terms: dict[str, Tensor]) -> Tensor:
    """The loss. Python's `sum` would begin with an addition to 0."""
    return reduce(add, terms.values())


@dataclass
class Member:
    """One trainee of a step."""

    trainee: Trainee
    module: nn.Module  # the trainee itself, or what averages its gradients over processes
    optimizer: Optimizer
    layers: Layers
    stream: int = 0  # which of a step's batches it sees
    sums: dict[bool, dict[str, Tensor]] = field(default_factory=lambda: {False: {}, True: {}})  # of terms; key: preparing


class Step:
    """One optimization step of a group of trainees, on one batch or, of trainees that see different ones, on several.

    The order is fixed: teachers forget, then for each trainee forward, backward (which averages gradients over processes), the
    method's `gradients`, clipping, optimizer, the method's `after_step`, moving average. In a preparation phase a method's
    `prepare` replaces its `step`; `gradients`, `after_step` and the average belong to the main phase alone. Where the recipe
    divides a batch (`accumulate`), all up to the backward is done for each part in turn, and their gradients add up.

    Args:
        trainees: by cell id; a teacher that they share is asked once for each batch. On a GPU each trainee has a CUDA stream
            of its own, so that their kernels overlap.
        precision: "fp32" or "bf16".
        team: the processes that share each batch.
        sees: by cell id, which of a step's batches a trainee sees; by default the first.

    Attributes:
        members: by cell id.
        clock: silent in training. The probe puts in one that times the parts "forward", "backward" and "optimizer".
        epoch, progress: of the last batch that had them as numbers; 0-dim tensors that stay in place.
    """

    def __init__(
        self,
        trainees: dict[str, Trainee],
        device: torch.device,
        precision: str,
        team: Team = ALONE,
        sees: Mapping[str, int] | None = None,
    ) -> None:
        self.device, self.precision, self.team = device, precision, team
        self.members = {cell_id: self._member(trainee, (sees or {}).get(cell_id, 0)) for cell_id, trainee in trainees.items()}
        self._parts = next(iter(trainees.values())).recipe.accumulate  # all have one recipe
        self.clock: Clock | SilentClock = SILENT
        self._teachers: list[Teacher] = []
        for trainee in trainees.values():
            self._teachers += [each for each in trainee.teachers if not any(each is known for known in self._teachers)]
        on_streams = device.type == "cuda" and len(trainees) > 1
        self._branches = Streams(device, len(trainees)) if on_streams else None
        for teacher in self._teachers:
            teacher.keeps_all = on_streams or len(set((sees or {}).values())) > 1
        self.epoch = torch.zeros((), dtype=torch.int64, device=device)
        self.progress = torch.zeros((), dtype=torch.float64, device=device)
        self._filled: object = 0  # the epoch that `epoch` holds, so that it is written only when it changes

    def _member(self, trainee: Trainee, stream: int) -> Member:
        modules = [] if trainee.recipe.compile else trainee.core.modules()  # a compiler puts such work together itself
        casts = self.precision == "bf16" and self.team.size == 1  # else gradients are exchanged as they come, one by one
        layers = Layers(modules, casts)
        return Member(trainee, self.team.wrap(trainee, self.device), Optimizer(trainee, self.device), layers, stream)

    def __call__(self, *batches: Batch, preparing: bool = False) -> None:
        """Take the step.

        Args:
            batches: all of each, on the device; of several processes each takes its share. An epoch and a progress that are
                numbers are written into static tensors.
        """
        shares = [self.team.share(self.static(batch)) for batch in batches]
        if self._parts == 1:
            self._run(self._one, shares, preparing)
            return
        for number in range(self._parts):
            parts = []
            for batch, weight in shares:
                part, share = rows_of(batch, number, self._parts)
                parts.append((part, weight * share / self._parts))
            self._run(self._one if number == self._parts - 1 else self._add_gradients, parts, preparing)

    def _run(
        self, work: Callable[[Member, Batch, float, bool], None], shares: list[tuple[Batch, float]], preparing: bool
    ) -> None:
        """Do this for each trainee, with its batch and the weight of its terms; on a GPU at the same time."""
        for teacher in self._teachers:
            teacher.forget()
        works = [partial(work, member, *shares[member.stream], preparing) for member in self.members.values()]
        if self._branches is not None:
            self._branches.run(works)
        else:
            for each in works:
                each()

    def _add_gradients(self, member: Member, batch: Batch, weight: float, preparing: bool) -> None:
        with self.team.apart(member.module):
            self._backward(member, batch, weight, preparing)

    def _one(self, member: Member, batch: Batch, weight: float, preparing: bool) -> None:
        self._backward(member, batch, weight, preparing)
        trainee, optimizer = member.trainee, member.optimizer
        with self.clock.measure("optimizer"):
            if not preparing:
                trainee.method.gradients(trainee.student)
            optimizer.clip()
            optimizer.step()
            if not preparing:
                trainee.method.after_step(trainee.student)
                trainee.move_average()

    def _backward(self, member: Member, batch: Batch, weight: float, preparing: bool) -> None:
        measure = self.clock.measure
        with measure("forward"), autocast(self.device, self.precision), member.layers.at_once():
            terms = member.module(batch, preparing)
        if weight != 1:
            terms = {name: weight * term for name, term in terms.items()}
        with measure("backward"):
            total(terms).backward()
        _add(member.sums[preparing], terms)

    def static(self, batch: Batch) -> Batch:
        """The batch with its epoch and progress in tensors that are the same ones in every step."""
        if isinstance(batch.epoch, Tensor):
            return batch
        if batch.epoch != self._filled:
            self.epoch.fill_(batch.epoch)
            self._filled = batch.epoch
        self.progress.fill_(batch.progress)
        return batch._replace(epoch=self.epoch, progress=self.progress)

    def set_lr(self, lr: float) -> None:
        """The learning rate of the steps that follow; 0 before the first call."""
        for member in self.members.values():
            member.optimizer.set_lr(lr)

    def start_phase(self) -> None:
        """Have all optimizers start anew, as at the beginning of the main phase."""
        for member in self.members.values():
            member.optimizer.start_anew()

    def train(self) -> None:
        """Put all trainees into training mode."""
        for member in self.members.values():
            member.trainee.train()

    def mean_terms(self, steps: int, preparing: bool = False) -> dict[str, dict[str, float]]:
        """Mean of each loss term over the last `steps` steps, by cell id; the sums start anew. Waits for the device.

        Raises:
            DivergedError: a mean is not finite.
        """
        means: dict[str, dict[str, float]] = {}
        for cell_id, member in self.members.items():
            sums = member.sums[preparing]
            values = self.team.sum(torch.stack(list(sums.values()))) / (self.team.size * steps)
            means[cell_id] = dict(zip(sums, values.tolist(), strict=True))
            for value in sums.values():
                value.zero_()
        bad = {
            cell_id: ", ".join(f"{name} is {value}" for name, value in terms.items() if not math.isfinite(value))
            for cell_id, terms in means.items()
        }
        if diverged := [cell_id for cell_id, words in bad.items() if words]:
            raise DivergedError("; ".join(f"{cell_id}: {bad[cell_id]}" for cell_id in diverged), diverged)
        return means


def _add(sums: dict[str, Tensor], terms: dict[str, Tensor]) -> None:
    """Add terms to their sums, in place. A term that is new gets a sum, in float64."""
    for name, term in terms.items():
        if name in sums:
            sums[name].add_(term.detach())
        else:
            sums[name] = term.detach().to(torch.float64, copy=True)
