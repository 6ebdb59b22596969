"""The training loop, from top to bottom. No method's name appears in it; nothing in a step waits for the device."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Any

import torch
from mmengine.runner import BaseLoop
from torch import Tensor, nn

from bench.engine.distributed import ALONE, Team
from bench.engine.schedule import learning_rate
from bench.engine.trainee import Trainee
from bench.records.cell import seed_from
from bench.records.recipe import Recipe
from methods.base import Batch

HOOK_INTERVAL_STEPS = 50  # hooks of single steps run this often: they cost more than a small network's step


class DivergedError(ArithmeticError):
    """A loss became NaN or infinite."""


def total(terms: dict[str, Tensor]) -> Tensor:
    """The loss. Python's `sum` would begin with an addition to 0."""
    return reduce(add, terms.values())


class Group(nn.Module):
    """Trainees that train in lock-step on one stream of batches; mmengine's Runner sees them as one model."""

    def __init__(self, trainees: dict[str, Trainee], team: Team = ALONE, device: torch.device | None = None) -> None:
        super().__init__()
        self.trainees, self.team = trainees, team  # by cell id
        self.members = nn.ModuleList(trainees.values())
        self.wrapped = {cell_id: team.wrap(trainee, device or torch.device("cpu")) for cell_id, trainee in trainees.items()}
        self.terms: dict[str, list[dict[str, Tensor]]] = {}

    def train_step(self, batch: Batch, optimisers: Any, preparing: bool = False) -> None:
        """One step of every trainee. The terms stay on the device until `mean_terms`."""
        batch, weight = self.team.share(batch)
        for cell_id, trainee in self.trainees.items():
            optimiser = optimisers[cell_id]
            with optimiser.optim_context(trainee):
                terms = self.wrapped[cell_id](batch, preparing)
            if weight != 1:
                terms = {name: weight * term for name, term in terms.items()}
            optimiser.update_params(total(terms))
            if not preparing:
                trainee.move_average()
            self.terms.setdefault(cell_id, []).append({name: term.detach() for name, term in terms.items()})

    def mean_terms(self) -> dict[str, dict[str, float]]:
        """Mean of each term over the steps since the last call, by cell id. Waits for the device.

        Raises:
            DivergedError: a mean is not finite.
        """
        means = {}
        for cell_id, steps in self.terms.items():
            stacked = [torch.stack([terms[name].float() for terms in steps]).mean() for name in steps[0]]
            values = self.team.sum(torch.stack(stacked)) / self.team.size
            means[cell_id] = dict(zip(steps[0], values.tolist(), strict=True))
        self.terms = {}
        for cell_id, terms in means.items():
            bad = {name: value for name, value in terms.items() if not math.isfinite(value)}
            if bad:
                raise DivergedError(f"{cell_id}: {', '.join(f'{name} is {value}' for name, value in bad.items())}")
        return means


class Clock:
    """Wall seconds by what they were spent on; waits for the device where a span begins and ends."""

    def __init__(self, device: torch.device, seconds: dict[str, float]) -> None:
        self.device, self.seconds = device, seconds

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class TrainLoop(BaseLoop):
    """First the preparation phase, if there is one, then the recipe's epochs; hooks at every epoch's end.

    Args:
        dataloader: a `bench.data.Stream`.
        prepare_epochs: length of the preparation phase.
        seed: of the cells; with the epoch it seeds every generator, so that resuming needs no generator's state.
        done: epochs that are behind, preparation included.
    """

    def __init__(
        self, runner: Any, dataloader: Any, recipe: Recipe, prepare_epochs: int, seed: int, clock: Clock, done: int = 0
    ) -> None:
        super().__init__(runner, dataloader)
        self.recipe, self.prepare_epochs, self.seed, self.clock = recipe, prepare_epochs, seed, clock
        self.max_epochs = prepare_epochs + recipe.epochs
        self.max_iters = self.max_epochs * len(dataloader)
        self.epoch = done
        self.iter = done * len(dataloader)
        self.terms: dict[str, dict[str, float]] = {}  # means over the last epoch

    @property
    def preparing(self) -> bool:
        return self.epoch < self.prepare_epochs

    def run(self) -> nn.Module:
        self.runner.call_hook("before_train")
        while self.epoch < self.max_epochs:
            if self.epoch in (0, self.prepare_epochs):
                self._new_optimisers()
            self._run_epoch()
        self.runner.call_hook("after_train")
        return self.runner.model

    def _new_optimisers(self) -> None:
        for cell_id, trainee in self.runner.model.trainees.items():
            self.runner.optim_wrapper[cell_id].optimizer = trainee.optimiser()

    def _run_epoch(self) -> None:
        preparing = self.preparing
        epoch = self.epoch if preparing else self.epoch - self.prepare_epochs  # of the phase
        team = self.runner.model.team
        torch.manual_seed(seed_from(self.seed, self.epoch, *([] if team.leads else [team.rank])))
        self.runner.model.train()
        self.runner.call_hook("before_train_epoch")
        group, optimisers, steps = self.runner.model, self.runner.optim_wrapper, len(self.dataloader)
        with self.clock.measure("prepare_s" if preparing else "train_s"):
            for step, batch in enumerate(self.dataloader.epoch(epoch)):
                lr = self.recipe.lr if preparing else learning_rate(self.recipe, epoch * steps + step, steps)
                for optimiser in optimisers.values():
                    for parameters in optimiser.param_groups:
                        parameters["lr"] = lr
                group.train_step(batch, optimisers, preparing)
                self.iter += 1
                if self.iter % HOOK_INTERVAL_STEPS == 0:
                    self.runner.call_hook("after_train_iter", batch_idx=step, data_batch=None, outputs=None)
            self.terms = group.mean_terms()
            for trainee in group.trainees.values():
                team.follow_leader(trainee)
        self.epoch += 1
        self.runner.call_hook("after_train_epoch")
