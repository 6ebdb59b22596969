"""The exclusive probe: what a step of each method costs, measured apart from the accuracy runs, on a machine left to itself.

Methods of one pair are timed in turn, many times over, so that a drift of the machine's speed meets all of them alike.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.cell import Cell
from bench.data import Stream
from bench.energy import joules
from bench.engine.device import autocast, machine
from bench.engine.loop import Clock
from bench.engine.train import Bench, Options, assemble
from bench.engine.trainee import Optimiser, Trainee
from bench.record import Cost, Machine, Timing
from bench.store import Store
from methods.base import Batch, Networks, Output

REPEATS = 9  # measurements of each quantity
WARM_UP_STEPS = 3
ENERGY_SPAN_S = 1.0  # energy meters are read some ten times a second
SPAN_S = 0.1  # a measurement of whole steps takes at least this long
PARTS = ("data", "student", "teacher", "method", "backward", "optimiser")
BUSY_PERCENT = 10  # other processes' share of the machine above which the probe says that it is not alone


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that are created inside and still alive, for devices that do not count them."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        inputs = {StorageWeakRef(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(answer):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference not in inputs:  # neither a view nor an operation in place
                    self._alive[reference] = storage.nbytes()
        self._alive = {reference: size for reference, size in self._alive.items() if not reference.expired()}
        self.peak_bytes = max(self.peak_bytes, sum(self._alive.values()))
        return answer


class Timed:
    """A network that notes how long it takes to answer."""

    def __init__(self, answers: Any, clock: Clock, name: str) -> None:
        self._answers, self._clock, self._name = answers, clock, name

    def __call__(self, image: Tensor) -> Output:
        with self._clock.measure(self._name):
            return self._answers(image)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._answers, name)


@dataclass
class Subject:
    """One method under the probe: a copy of its trainee, with an optimiser of its own."""

    cell: Cell
    bench: Bench
    trainee: Trainee
    optimiser: Optimiser
    batches: Iterator[Batch]  # full ones, without end
    steps_a_span: int = 1
    spans: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # milliseconds by quantity

    @classmethod
    def of(cls, cell: Cell, bench: Bench) -> Subject:
        trainee = bench.trainees[cell.id].rehearsal()
        trainee.train()
        optimiser = Optimiser(trainee.optimiser(), bench.device, cell.precision, cell.recipe.clip_grad_norm)
        for group in optimiser.param_groups:
            group["lr"] = 0.0  # weights that stay where they are cannot diverge
        return cls(cell, bench, trainee, optimiser, endless(bench.stream(trainee), cell.recipe.batch_size))

    def step(self, preparing: bool = False) -> None:
        """A whole step, as the engine does it."""
        batch = next(self.batches)
        with self.optimiser.optim_context(self.trainee):
            terms = self.trainee(batch, preparing)
        self.optimiser.update_params(sum(terms.values()))
        if self.trainee.average and not preparing:
            self.trainee.average.update_parameters(self.trainee.core)

    def _steps(self, count: int, preparing: bool) -> None:
        for _ in range(count):
            self.step(preparing)

    def time_steps(self, name: str, preparing: bool) -> None:
        elapsed = self._timed(lambda: self._steps(self.steps_a_span, preparing))
        self.spans[name].append(elapsed / self.steps_a_span)

    def calibrate(self) -> None:
        for _ in range(WARM_UP_STEPS):
            self.step()
        one_ms = self._timed(self.step)
        self.steps_a_span = max(1, round(1000 * SPAN_S / max(one_ms, 0.01)))

    def time_parts(self) -> None:
        """One step, its parts timed apart; each waits for the device, so that they sum to more than a whole step."""
        seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        clock = Clock(self.bench.device, seconds)
        plain = self.trainee.networks
        teacher = plain.teacher
        with clock.measure("data"):
            batch = next(self.batches)
        if teacher:
            teacher = Timed(teacher, clock, "teacher")
        self.trainee.networks = Networks(Timed(plain.student, clock, "student"), teacher)
        try:
            with clock.measure("forward"), self.optimiser.optim_context(self.trainee):
                loss = sum(self.trainee(batch).values())
        finally:
            self.trainee.networks = plain
        with clock.measure("backward"):
            loss.backward()
        with clock.measure("optimiser"):
            self.optimiser.step()
            self.optimiser.zero_grad()
        seconds["method"] = max(0.0, seconds.pop("forward") - seconds["student"] - seconds["teacher"])
        for name, value in seconds.items():
            self.spans[name].append(1000 * value)

    def time_inference(self) -> None:
        """The deployed network on a batch, and on a single image."""
        network = self.trainee.predictor().eval()
        image = next(self.batches).image
        with torch.no_grad(), autocast(self.bench.device, self.cell.precision):
            for name, images in (("inference", image), ("latency", image[:1])):
                network(images)
                self.spans[name].append(self._timed(partial(network, images)))
        self.trainee.train()

    def energy_j_per_step(self) -> float | None:
        """Over about a second of steps; None where the machine does not tell."""
        steps = max(1, round(ENERGY_SPAN_S / SPAN_S)) * self.steps_a_span
        energy_j = joules(lambda: self._steps(steps, preparing=False), self.bench.device)
        return None if energy_j is None else energy_j / steps

    def peak_mib(self) -> float:
        """Most device memory that tensors hold during a step: parameters, optimiser state, activations, the batch."""
        device = self.bench.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            others = torch.cuda.memory_allocated(device) - self._held_bytes()
            self.step()
            return (torch.cuda.max_memory_allocated(device) - others) / 2**20
        with LiveTensors() as live:
            self.step()
        return (self._held_bytes() + live.peak_bytes) / 2**20

    def _held_bytes(self) -> int:
        """Bytes that stay between steps: networks, method and momenta."""
        tensors = [*self.trainee.parameters(), *self.trainee.buffers()]
        if teacher := self.trainee.networks.teacher:
            tensors += [*teacher.answering.parameters(), *teacher.answering.buffers()]
        tensors += [
            value for state in self.optimiser.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
        ]
        return sum(tensor.nbytes for tensor in tensors)

    def _timed(self, action: Callable[[], Any]) -> float:
        seconds: dict[str, float] = {}
        with Clock(self.bench.device, seconds).measure("span"):
            action()
        return 1000 * seconds["span"]

    def timing(self, name: str) -> Timing | None:
        values = self.spans.get(name)
        if not values:
            return None
        low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return Timing(median_ms=median, low_ms=low, high_ms=high, repeats=len(values))

    def cost(self, facts: Machine) -> Cost:
        step = self.timing("step")
        assert step is not None
        return Cost(
            key=self.cell.cost_key,
            label=self.cell.label,
            example=self.cell.id,
            step=step,
            prepare_step=self.timing("prepare_step"),
            parts={name: timing for name in PARTS if (timing := self.timing(name))},
            inference=self.timing("inference"),
            inference_batch=self.cell.recipe.batch_size,
            latency=self.timing("latency"),
            peak_mib=self.peak_mib(),
            energy_j_per_step=self.energy_j_per_step(),
            threads=torch.get_num_threads(),
            machine=facts,
            measured=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def endless(stream: Stream, batch_size: int) -> Iterator[Batch]:
    """Full batches, epoch after epoch."""
    while True:
        for batch in stream.epoch(0):
            if len(batch.target) == batch_size or len(stream) == 1:
                yield batch


def groups(cells: list[Cell]) -> list[list[Cell]]:
    """One cell of each cost, grouped by what they share: the methods of a group are timed in turn."""
    chosen: dict[str, Cell] = {}
    for cell in cells:
        chosen.setdefault(cell.cost_key, cell)
    grouped: dict[str, list[Cell]] = defaultdict(list)
    for cell in chosen.values():
        grouped[
            cell.model_copy(update={"method": {}, "teacher": None, "seed": 0}).model_dump_json(
                include={"data", "student", "recipe", "precision"}
            )
        ].append(cell)
    return list(grouped.values())


def measure(cells: list[Cell], store: Store, grid: str, options: Options) -> Iterator[Cost]:
    """Probe every distinct cost among finished cells, write it, and yield it."""
    if options.threads:
        torch.set_num_threads(options.threads)
    for group in groups(cells):
        bench = assemble(group, store, grid, options)
        subjects = [Subject.of(cell, bench) for cell in group]
        for subject in subjects:
            subject.calibrate()
        for _ in range(REPEATS):
            for subject in subjects:
                subject.time_steps("step", preparing=False)
        for subject in subjects:
            if subject.trainee.method.prepare_epochs:
                for _ in range(REPEATS):
                    subject.time_steps("prepare_step", preparing=True)
        for _ in range(REPEATS):
            for subject in subjects:
                subject.time_parts()
                subject.time_inference()
        facts = machine(bench.device)
        for subject in subjects:
            cost = subject.cost(facts)
            store.write_cost(grid, cost)
            yield cost


def missing(cells: list[Cell], costs: list[Cost], facts: Machine) -> list[Cell]:
    """Cells whose cost has not been measured on this hardware."""
    known = {cost.key for cost in costs if cost.machine.hardware == facts.hardware}
    return [cell for cell in cells if cell.cost_key not in known]


def neighbours_percent() -> float:
    """Share of the machine that is in use right now, in percent; the probe wants to be alone."""
    return psutil.cpu_percent(interval=0.5)
