"""The exclusive probe: what a step of each method costs, measured apart from the accuracy runs, on a machine left to itself.

Methods of one student are timed in turn, many short turns over, so that a drift of the machine's speed meets all of them alike
and a hiccup spoils one turn: what counts is the median over the turns, and of two methods the ratio within a turn. Teachers
are not trained for this: one that has learned nothing answers as fast as one that has.
"""

from __future__ import annotations

import contextlib
import gc
import random
import statistics
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial

import torch
from torch import Tensor

from bench.data import Stream
from bench.engine.assemble import Assembly, assemble, untrained_teacher
from bench.engine.capture import runner
from bench.engine.clock import SILENT, Clock
from bench.engine.code import own_code
from bench.engine.device import autocast, choose_repeatable_kernels, keep_freed_memory, machine
from bench.engine.distributed import ALONE
from bench.engine.step import Step
from bench.measure.meters import LiveTensors, OtherWork, host_peak_mib, joules
from bench.measure.pace import FEWEST, Pace, tight
from bench.records.cell import Cell
from bench.records.folders import GridFolder
from bench.records.naming import describe
from bench.records.options import Options
from bench.records.record import PARTS_ON_DISK, Cost, Machine, Timing
from bench.records.source import own_source
from methods.base import Batch, NetworkLike, Networks, Output
from methods.parts import Wrapped

TURNS = 25  # measurements of each quantity, at most
WARM_UP_STEPS = 3
ENERGY_SPAN_S = 5.5  # by the median step, so that a window lasts 5 s; energy meters are read some ten times a second
ENERGY_WINDOWS = 3  # of each method, in random order
STEPS_SHARE, TURNS_SHARE = 0.5, 0.85  # of a group's time: until when steps are timed, and until when their parts are
SPAN_S = 0.04  # a measurement of full steps takes at least this long
PARTS = ("data", "student", "teacher", "method", "backward", "optimizer")


class TimedNetwork(Wrapped):
    """A network that adds up how long its answers take."""

    def __init__(self, network: NetworkLike, clock: Clock, name: str) -> None:
        super().__init__(network)
        self._clock, self._name = clock, name

    def __call__(self, image: Tensor) -> Output:
        with self._clock.measure(self._name):
            return super().__call__(image)


class Probe:
    """Measures one method, on a copy of its trainee that takes training's own steps at a learning rate of 0.

    Weights that stay where they are cannot diverge.

    Args:
        eager: why steps are to be taken one by one on a GPU; None: as training takes them.

    Attributes:
        step: what training runs.
        runner: how training runs it.
        batches: full ones, without end.
        spans: milliseconds by quantity, one for each turn.
        energies: joules a step by kind of step, one for each window.
    """

    def __init__(self, cell: Cell, assembly: Assembly, eager: str | None = None) -> None:
        self.cell, self.assembly = cell, assembly
        self.trainee = assembly.trainees[cell.id].duplicate()
        self.trainee.train()
        self.step = Step({cell.id: self.trainee}, assembly.device, cell.precision)
        self.runner = runner(self.step, assembly.dataset, ALONE, eager)
        self.batches = endless(assembly.stream(self.trainee), cell.recipe.batch_size)
        self.steps_a_span = 1
        self.spans: dict[str, list[float]] = defaultdict(list)
        self.energies: dict[str, list[float]] = defaultdict(list)

    def take_step(self, preparing: bool = False) -> None:
        """The next batch, and a step on it."""
        self.runner(next(self.batches), preparing=preparing)

    def take_steps(self, count: int, preparing: bool = False) -> None:
        """That many in a row."""
        for _ in range(count):
            self.take_step(preparing)

    def calibrate(self) -> None:
        """Warm up, and choose how many steps a span has."""
        self.take_steps(WARM_UP_STEPS)
        one_ms = self._timed(self.take_step)
        steps = max(1, round(1000 * SPAN_S / max(one_ms, 0.01)))
        together = self.assembly.stream(self.trainee).batches_at_once  # so that every span holds its share of the augmentation
        self.steps_a_span = -(-steps // together) * together

    def time_steps(self) -> None:
        """Full steps, of the preparation phase as well where there is one."""
        phases = {"step": False} | ({"prepare_step": True} if self.trainee.method.prepare_epochs else {})
        for name, preparing in phases.items():
            elapsed = self._timed(partial(self.take_steps, self.steps_a_span, preparing))
            self.spans[name].append(elapsed / self.steps_a_span)

    def time_parts(self) -> None:
        """One step, its parts timed apart; each waits for the device, so that they sum to more than a full step."""
        seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        clock = Clock(self.assembly.device, seconds)
        with clock.measure("data"):
            batch = next(self.batches)
        with self._split(clock):
            self.step(batch)
        seconds["method"] = max(0.0, seconds.pop("forward") - seconds["student"] - seconds["teacher"])
        for name, value in seconds.items():
            self.spans[name].append(1000 * value)
        if teachers := self.trainee.teachers:
            for teacher in teachers:
                teacher.forget()
            with autocast(self.assembly.device, self.cell.precision):
                self.spans["teacher_alone"].append(self._timed(lambda: [teacher(batch.image) for teacher in teachers]))

    @contextlib.contextmanager
    def _split(self, clock: Clock) -> Iterator[None]:
        """Steps inside put their parts on a clock; networks too, since a method's step is what calls them."""
        plain = self.trainee.networks
        teachers = [TimedNetwork(each, clock, "teacher") for each in plain.teachers]
        student = TimedNetwork(plain.student, clock, "student")
        self.trainee.networks = Networks(student, teachers[0] if teachers else None, tuple(teachers[1:]))
        self.step.clock = clock
        try:
            yield
        finally:
            self.trainee.networks, self.step.clock = plain, SILENT

    def time_inference(self) -> None:
        """The deployed network on a batch, and on a single image."""
        network = self.trainee.predictor().eval()
        image = next(self.batches).image
        with torch.no_grad(), autocast(self.assembly.device, self.cell.precision):
            for name, images in (("inference", image), ("latency", image[:1])):
                network(images)
                self.spans[name].append(self._timed(partial(network, images)))
        self.trainee.train()

    def measure_energy(self) -> None:
        """A window of at least 5 s of steps, and one of steps of the preparation where there is one."""
        for name in ("step", "prepare_step"):
            if name in self.spans:
                steps = max(1, round(1000 * ENERGY_SPAN_S / statistics.median(self.spans[name])))
                action = partial(self.take_steps, steps, preparing=name == "prepare_step")
                if (energy_j := joules(action, self.assembly.device)) is not None:
                    self.energies[name].append(energy_j / steps)

    def peak_mib(self) -> float:
        """Most device memory that tensors hold during a step: parameters, momenta, activations, the batch."""
        device = self.assembly.device
        if device.type == "cuda":
            for teacher in self.trainee.teachers:
                teacher.forget()  # its last answer would pass for something that others hold
            batch = next(self.batches)  # before, since now and then the next one comes with many more
            own = self._held_bytes() + sum(value.nbytes for value in batch if isinstance(value, Tensor))
            torch.cuda.reset_peak_memory_stats(device)
            others = torch.cuda.memory_allocated(device) - own
            self.step(batch)  # one by one: a replay takes its memory when it is recorded
            return (torch.cuda.max_memory_allocated(device) - others) / 2**20
        with LiveTensors() as live:
            self.take_step()
        return (self._held_bytes() + live.peak_bytes) / 2**20

    def _held_bytes(self) -> int:
        """Bytes that stay between steps: networks, method and momenta."""
        tensors = [*self.trainee.parameters(), *self.trainee.buffers()]
        for teacher in self.trainee.teachers:
            tensors += [*teacher.inference.parameters(), *teacher.inference.buffers()]
        tensors += [momentum for member in self.step.members.values() for momentum in member.optimizer.momenta()]
        return sum(tensor.nbytes for tensor in tensors)

    def _timed(self, action: Callable[[], object]) -> float:
        """Milliseconds."""
        seconds: dict[str, float] = {}
        with Clock(self.assembly.device, seconds).measure("span"):
            action()
        return 1000 * seconds["span"]

    def timing(self, name: str) -> Timing | None:
        """All turns of a quantity; None where it was not measured."""
        return Timing(turns_ms=tuple(self.spans[name])) if name in self.spans else None

    def _energy(self, name: str) -> float | None:
        """Joules a step, the median of the windows; None where none was measured."""
        return statistics.median(self.energies[name]) if self.energies[name] else None

    def cost(self, facts: Machine, session: str, busy_percent: float) -> Cost:
        """What the probe has found, with what it measures once: memory and energy."""
        step = self.timing("step")
        assert step is not None
        cell = self.cell
        return Cost(
            key=cell.cost_key,
            label=cell.label,
            example=cell.id,
            student=describe(cell.student),
            teacher=" + ".join(describe(teacher.model) for teacher in cell.teachers),
            session=session,
            step=step,
            prepare_step=self.timing("prepare_step"),
            parts={PARTS_ON_DISK.get(name, name): timing for name in PARTS if (timing := self.timing(name))},
            teacher_alone=self.timing("teacher_alone"),
            inference=self.timing("inference"),
            inference_batch=cell.recipe.batch_size,
            latency=self.timing("latency"),
            peak_mib=self.peak_mib(),
            host_peak_mib=host_peak_mib(self.take_step),
            energy_j_per_step=self._energy("step"),
            energy_j_per_prepare_step=self._energy("prepare_step"),
            energy_windows_j_per_step=tuple(self.energies["step"]) or None,
            busy_percent=busy_percent,
            threads=torch.get_num_threads(),
            machine=facts,
            own_source=own_source(cell, own_code([cell])) or None,
            measured=datetime.now(UTC).isoformat(timespec="seconds"),
            path=self.runner.path,
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


def measure(cells: list[Cell], folder: GridFolder, options: Options, pace: Pace | None = None) -> Iterator[Cost]:
    """Probe every distinct cost of the cells, which need not be trained, write it, and yield it.

    Args:
        pace: limits the time; groups for which none is left are left out. Default: no limit.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    choose_repeatable_kernels()
    every, pace = groups(cells), pace or Pace()
    pace.begin([len(group) for group in every])
    for group in every:
        if not pace.enter_group(2 * TURNS):
            return
        assembly = assemble(group, folder, options, teacher_network=untrained_teacher)
        ways = [None, *(["to compare"] if assembly.device.type == "cuda" else [])]  # eager steps are what public code pays
        probes = [Probe(cell, assembly, eager) for cell in group for eager in ways]
        busy_percent = take_turns(probes, pace)
        facts, session = machine(assembly.device), uuid.uuid4().hex[:12]
        for probe in probes:
            cost = probe.cost(facts, session, busy_percent)
            folder.write_cost(cost)
            yield cost
        del assembly, probes, probe  # before the next group takes its place on the device
        gc.collect()
        torch.cuda.empty_cache()


def take_turns(probes: list[Probe], pace: Pace) -> float:
    """Time all probes of a group in turn, until their ratios are tight or their time is used up; then meter their energy.

    Returns:
        How busy other processes kept the cores meanwhile, in percent.
    """
    for probe in probes:
        probe.calibrate()
    others = OtherWork()
    order = random.Random(0)  # nobody always follows the same one  # noqa: S311
    metered = joules(lambda: None, probes[0].assembly.device) is not None
    turns = 0
    while turns < TURNS:
        for probe in order.sample(probes, len(probes)):
            probe.time_steps()
        turns += 1
        pace.count()
        if turns >= FEWEST and (pace.over(STEPS_SHARE) or tight([probe.spans["step"] for probe in probes])):
            break
    for turn in range(turns):
        for probe in order.sample(probes, len(probes)):
            probe.time_parts()
            probe.time_inference()
        pace.count(most=2 * turns)
        if turn + 1 >= FEWEST and pace.over(TURNS_SHARE):
            break
    busy_percent = others.percent()
    for window in range(ENERGY_WINDOWS if metered else 0):
        if window and pace.over():
            break
        for probe in order.sample(probes, len(probes)):
            probe.measure_energy()
    return busy_percent


def missing(cells: list[Cell], costs: list[Cost], facts: Machine, threads: int = 0) -> list[Cell]:
    """Cells whose cost has not been measured on this hardware, and those that are timed in turn with them.

    A cost that other code of the user's own had counts as not measured.

    Args:
        threads: of the CPU that the measurement must have had; 0: any number.
    """
    code = own_code(cells)
    here = [cost for cost in costs if cost.machine.hardware == facts.hardware and threads in (0, cost.threads)]
    known = {(cost.key, cost.own_source or "") for cost in here}
    known_of = {cell.cost_key: (cell.cost_key, own_source(cell, code)) in known for cell in cells}
    lacking = {cell.cost_key for group in groups(cells) if not all(known_of[each.cost_key] for each in group) for cell in group}
    return [cell for cell in cells if cell.cost_key in lacking]
