"""The training loop, from top to bottom. No method's name appears in it; nothing in a step waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn

from bench.data import Stream
from bench.engine.capture import StepRunner
from bench.engine.clock import Clock
from bench.engine.schedule import learning_rate
from bench.records.cell import seed_from
from bench.records.recipe import Recipe
from bench.records.record import Clocks, Machine

DRAW_AHEAD_ON = ("cuda",)  # devices beside which a thread draws for the next epoch: on a CPU it would take cores from the steps
Row = dict[str, float]  # one line of the curves: what is known after an epoch


class End(NamedTuple):
    """What a trained network gets right, beside the last row of its curves."""

    correct: Tensor  # (N,) of bool: test images, in their order
    nll: float  # of the test set, nats
    calibration_error: float  # likewise, in percent
    train_top1: float  # of the training images without augmentation, in percent


class Loop:
    """First the preparation phase, if there is one, then the recipe's epochs.

    Hooks are mmengine's; they are called in their order, and what they get as `runner` is this loop.

    Args:
        runner: what takes the steps. Its trainees share recipe and data.
        streams: the batches that they see: of each step as many as there are streams.
        prepare_epochs: length of the preparation phase.
        prepare_lr: its learning rate, which is constant.
        seed: with the epoch it seeds torch's generators, so that resuming needs no generator's state. That of the cell that
            draws from them, if there is one.

    Attributes:
        steps: of an epoch.
        epoch: epochs that are finished, preparation included; `max_epochs` in the end.
        iter: steps that are finished; `max_iters` in the end.
        terms: mean of each loss term over the last epoch, by cell id.
        history: rows of the curves, by cell id.
        ends: what is known after the last epoch alone, by cell id.
        seconds: wall seconds, by the fields of `Clocks`.
        sources: whose code trains, by cell id; for checkpoints.
        machines: what trains, by cell id: in order, the last one is this. For checkpoints as well.
    """

    def __init__(
        self, runner: StepRunner, streams: Sequence[Stream], recipe: Recipe, prepare_epochs: int, prepare_lr: float, seed: int
    ) -> None:
        self.runner, self.step, self.streams, self.recipe, self.seed = runner, runner.step, streams, recipe, seed
        self.steps = len(streams[0])
        self.prepare_epochs, self.prepare_lr = prepare_epochs, prepare_lr
        self.max_epochs = prepare_epochs + recipe.epochs
        self.max_iters = self.max_epochs * self.steps
        self.epoch = self.iter = 0
        self.terms: dict[str, dict[str, float]] = {}
        self.history: dict[str, list[Row]] = {cell_id: [] for cell_id in self.step.members}
        self.ends: dict[str, End] = {}
        self.seconds: dict[str, float] = dict.fromkeys(Clocks.model_fields, 0.0)
        self.sources: dict[str, str] = {}
        self.machines: dict[str, list[Machine]] = {}
        self.clock = Clock(self.step.device, self.seconds)
        self.hooks: list[Hook] = []

    @property
    def model(self) -> nn.Module:
        """All trainees, for hooks of the user."""
        return nn.ModuleList(member.trainee for member in self.step.members.values())

    def run(self, hooks: Sequence[Hook]) -> None:
        """Train from `epoch` to `max_epochs`.

        Raises:
            DivergedError: a loss is not finite.
        """
        self.hooks = list(hooks)
        self.call("before_run")
        self.call("before_train")
        while self.epoch < self.max_epochs:
            if self.epoch == self.prepare_epochs:
                self.step.start_phase()
            self._run_epoch()
        self.call("after_train")
        self.call("after_run")

    def _run_epoch(self) -> None:
        preparing, epoch = self._phase(self.epoch)
        draws_ahead = self.step.device.type in DRAW_AHEAD_ON and self.epoch + 1 < self.max_epochs
        following = self._phase(self.epoch + 1)[1] if draws_ahead else None
        step, team, steps = self.step, self.step.team, self.steps
        before, after = self._with_stage("before_train_iter"), self._with_stage("after_train_iter")
        torch.manual_seed(seed_from(self.seed, self.epoch, *([] if team.leads else [team.rank])))
        step.train()
        self.call("before_train_epoch")
        with self.clock.measure("prepare_s" if preparing else "train_s"):
            streams = [stream.epoch(epoch, following) for stream in self.streams]
            for index, batches in enumerate(zip(*streams, strict=True)):
                step.set_lr(self.prepare_lr if preparing else learning_rate(self.recipe, epoch * steps + index, steps))
                for hook in before:
                    hook.before_train_iter(self, index, batches[0])
                self.runner(*batches, preparing=preparing)
                self.iter += 1
                for hook in after:
                    hook.after_train_iter(self, index, batches[0])
            self.terms = step.mean_terms(steps, preparing)
            for member in step.members.values():
                team.follow_leader(member.trainee)
        self.epoch += 1
        self.call("after_train_epoch")

    def _phase(self, epoch: int) -> tuple[bool, int]:
        """Whether an epoch belongs to the preparation, and which of its phase it is."""
        preparing = epoch < self.prepare_epochs
        return preparing, epoch if preparing else epoch - self.prepare_epochs

    def call(self, stage: str) -> None:
        """Have every hook do what it does at a stage, such as "after_train_epoch"."""
        for hook in self.hooks:
            getattr(hook, stage)(self)

    def _with_stage(self, stage: str) -> list[Hook]:
        """Hooks that do something at a stage of single steps: calling the others would cost time in every step."""
        return [hook for hook in self.hooks if getattr(type(hook), stage) is not getattr(Hook, stage)]
