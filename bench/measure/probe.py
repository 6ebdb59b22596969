"""The exclusive probe: what a step of each method costs, measured apart from the accuracy runs, on a machine left to itself.

Methods of one student are timed in turn, many short turns over, so that a drift of the machine's speed meets all of them alike
and a hiccup spoils one turn: what counts is the median over the turns, and of two methods the ratio within a turn. Teachers
are not trained for this: one that has learned nothing answers as fast as one that has.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import statistics
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.data import Dataset, Stream
from bench.engine.device import autocast, hand_back_freed_memory, keep_freed_memory, machine
from bench.engine.loop import Clock, total
from bench.engine.train import Bench, assemble, build_network
from bench.engine.trainee import Optimiser, Trainee
from bench.measure.meters import joules
from bench.models import Network
from bench.records.cell import Cell
from bench.records.naming import describe
from bench.records.options import Options
from bench.records.record import Cost, Machine, Timing
from bench.records.store import Store
from methods.base import Batch, Networks, Output

TURNS = 25  # measurements of each quantity
WARM_UP_STEPS = 3
ENERGY_SPAN_S = 1.0  # energy meters are read some ten times a second
SPAN_S = 0.04  # a measurement of whole steps takes at least this long
PARTS = ("data", "student", "teacher", "method", "backward", "optimiser")


class OtherWork:
    """How busy other processes keep this one's CPU cores, from here on."""

    def __init__(self) -> None:
        self._start = self._look()

    def percent(self) -> float:
        """Of what the cores could have done since."""
        busy, own, passed = (now - then for now, then in zip(self._look(), self._start, strict=True))
        return min(100.0, max(0.0, 100 * (busy - own) / max(passed, 1e-6)))

    @staticmethod
    def _look() -> tuple[float, float, float]:
        """Seconds that the cores have been busy, that this process has computed, and that have passed on all cores."""
        cores = psutil.cpu_times(percpu=True)
        if hasattr(os, "sched_getaffinity"):
            mine = os.sched_getaffinity(0)
            cores = [core for number, core in enumerate(cores) if number in mine] or cores
        busy = sum(core.user + core.nice + core.system + getattr(core, "steal", 0.0) for core in cores)
        return busy, time.process_time(), len(cores) * time.perf_counter()


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
        self.optimiser.update_params(total(terms))
        if not preparing:
            self.trainee.move_average()

    def _steps(self, count: int, preparing: bool) -> None:
        for _ in range(count):
            self.step(preparing)

    def time_steps(self) -> None:
        """Whole steps, of the preparation phase as well where there is one."""
        phases = {"step": False} | ({"prepare_step": True} if self.trainee.method.prepare_epochs else {})
        for name, preparing in phases.items():
            elapsed = self._timed(partial(self._steps, self.steps_a_span, preparing))
            self.spans[name].append(elapsed / self.steps_a_span)

    def calibrate(self) -> None:
        for _ in range(WARM_UP_STEPS):
            self.step()
        one_ms = self._timed(self.step)
        steps = max(1, round(1000 * SPAN_S / max(one_ms, 0.01)))
        together = self.bench.stream(self.trainee).batches_at_once  # so that every span holds its share of the augmentation
        self.steps_a_span = -(-steps // together) * together

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
                loss = total(self.trainee(batch))
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

        if teacher:
            plain.teacher.forget()
            with self.optimiser.optim_context(self.trainee):
                self.spans["teacher_alone"].append(self._timed(partial(plain.teacher, batch.image)))

    def time_inference(self) -> None:
        """The deployed network on a batch, and on a single image."""
        network = self.trainee.predictor().eval()
        image = next(self.batches).image
        with torch.no_grad(), autocast(self.bench.device, self.cell.precision):
            for name, images in (("inference", image), ("latency", image[:1])):
                network(images)
                self.spans[name].append(self._timed(partial(network, images)))
        self.trainee.train()

    def energy_j_per_step(self, name: str = "step") -> float | None:
        """Over about a second of such steps; None where the machine does not tell, or nothing is prepared."""
        if name not in self.spans:
            return None
        steps = max(1, round(1000 * ENERGY_SPAN_S / statistics.median(self.spans[name])))
        energy_j = joules(lambda: self._steps(steps, preparing=name == "prepare_step"), self.bench.device)
        return None if energy_j is None else energy_j / steps

    def peak_mib(self) -> float:
        """Most device memory that tensors hold during a step: parameters, optimiser state, activations, the batch."""
        device = self.bench.device
        if device.type == "cuda":
            if teacher := self.trainee.networks.teacher:
                teacher.forget()  # its last answer would pass for something that others hold
            torch.cuda.reset_peak_memory_stats(device)
            others = torch.cuda.memory_allocated(device) - self._held_bytes()
            self.step()
            return (torch.cuda.max_memory_allocated(device) - others) / 2**20
        with LiveTensors() as live:
            self.step()
        return (self._held_bytes() + live.peak_bytes) / 2**20

    def host_peak_mib(self) -> float:
        """See `Cost`. Where the system keeps no high-water mark, what is resident after the step."""
        hand_back_freed_memory()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the mark starts anew
        self.step()
        with contextlib.suppress(OSError, KeyError):
            facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            return int(facts["VmHWM"].split()[0]) / 2**10
        return psutil.Process().memory_info().rss / 2**20

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
        return Timing(turns_ms=tuple(self.spans[name])) if name in self.spans else None

    def cost(self, facts: Machine, session: str, busy_percent: float) -> Cost:
        step = self.timing("step")
        assert step is not None
        cell = self.cell
        return Cost(
            key=cell.cost_key,
            label=cell.label,
            example=cell.id,
            student=describe(cell.student),
            teacher=describe(cell.teacher.model) if cell.teacher else "",
            session=session,
            step=step,
            prepare_step=self.timing("prepare_step"),
            parts={name: timing for name in PARTS if (timing := self.timing(name))},
            teacher_alone=self.timing("teacher_alone"),
            inference=self.timing("inference"),
            inference_batch=cell.recipe.batch_size,
            latency=self.timing("latency"),
            peak_mib=self.peak_mib(),
            host_peak_mib=self.host_peak_mib(),
            energy_j_per_step=self.energy_j_per_step(),
            energy_j_per_prepare_step=self.energy_j_per_step("prepare_step"),
            busy_percent=busy_percent,
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


def untrained(cell: Cell, store: Store, grid: str, dataset: Dataset) -> Network:
    """The teacher's network without its weights."""
    assert cell.teacher is not None
    model = cell.teacher.model
    return build_network({**model, "pretrained": False} if "pretrained" in model else model, dataset)


def measure(cells: list[Cell], store: Store, grid: str, options: Options) -> Iterator[Cost]:
    """Probe every distinct cost of the cells, which need not be trained, write it, and yield it."""
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    for group in groups(cells):
        bench = assemble(group, store, grid, options, teacher_network=untrained)
        subjects = [Subject.of(cell, bench) for cell in group]
        for subject in subjects:
            subject.calibrate()
        others = OtherWork()
        order = random.Random(0)  # nobody always follows the same one  # noqa: S311
        for _ in range(TURNS):
            for subject in order.sample(subjects, len(subjects)):
                subject.time_steps()
        for _ in range(TURNS):
            for subject in order.sample(subjects, len(subjects)):
                subject.time_parts()
                subject.time_inference()
        busy_percent = others.percent()
        facts, session = machine(bench.device), uuid.uuid4().hex[:12]
        for subject in subjects:
            cost = subject.cost(facts, session, busy_percent)
            store.write_cost(grid, cost)
            yield cost
        del bench, subjects, subject  # before the next group takes its place on the device
        gc.collect()
        torch.cuda.empty_cache()


def missing(cells: list[Cell], costs: list[Cost], facts: Machine, threads: int = 0) -> list[Cell]:
    """Cells whose cost has not been measured on this hardware, and those that are timed in turn with them.

    Args:
        threads: of the CPU that the measurement must have had; 0: any number.
    """
    known = {cost.key for cost in costs if cost.machine.hardware == facts.hardware and threads in (0, cost.threads)}
    lacking = {cell.cost_key for group in groups(cells) if any(c.cost_key not in known for c in group) for cell in group}
    return [cell for cell in cells if cell.cost_key in lacking]


def neighbours_percent() -> float:
    """How busy other processes keep the machine right now; the probe wants to be alone."""
    others = OtherWork()
    time.sleep(0.5)
    return others.percent()
