"""How fast this engine trains on this machine: against the usual loop, against the machine's limits, piece by piece.

All that is compared is timed in turn in one process, many times over; the ratio within a turn counts. Tables of a report are
in `reports/speed.py`.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.engine.assemble import Assembly, assemble, build_network, untrained_teacher
from bench.engine.capture import StepRunner, runner
from bench.engine.device import keep_freed_memory, machine, resolve_device
from bench.engine.distributed import ALONE
from bench.engine.flops import count_flops
from bench.engine.lockstep import may_join
from bench.engine.step import Step
from bench.engine.trainee import Teacher, Trainee
from bench.measure.probe import Probe
from bench.measure.usual_loop import UsualLoop, training_loader
from bench.models import Network, Stage
from bench.plan.grid import Grid
from bench.records.cell import Cell
from bench.records.folders import GridFolder
from bench.records.naming import describe
from bench.records.options import Options
from bench.records.recipe import Recipe
from bench.records.record import Machine
from methods import METHODS, Batch

TURNS = 7
SPAN_S = 1.0  # each loop's share of a turn takes at least this long


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of the turns."""

    median: float
    low: float
    high: float


def spread(values: list[float]) -> Spread:
    """Median and quartiles of values, one for each turn."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


@dataclass(frozen=True)
class Row:
    """One pair and method: images a second of both loops, and how many times faster ours is."""

    student: str
    teacher: str
    method: str
    images_per_s: Spread
    usual_images_per_s: Spread
    ratio: Spread
    gflops_per_s: float  # of matrix products and convolutions
    peak_share: float  # of the machine's measured matrix peak in this precision


@dataclass(frozen=True)
class Limits:
    """What the machine can do, measured."""

    matrix_gflops_per_s: dict[str, float]  # square matrix products, best of several, by precision
    memory_gb_per_s: float  # reading and writing while a large tensor is copied


@dataclass(frozen=True)
class Report:
    machine: Machine
    threads: int
    batch_size: int
    limits: Limits
    overhead_us: Spread  # of the engine over a bare loop, a step
    rows: list[Row]
    together: dict[str, Spread]  # methods of a student in lock-step -> time of a step of all, relative to their steps apart
    ablations: dict[str, dict[str, Spread]]  # case -> piece -> how many times longer a step takes without it


def measure(grid: Grid, folder: GridFolder, options: Options, ablate: bool, log: Callable[[str], None]) -> Report:
    """Compare every pair and method of a grid; teachers are untrained, which costs the same.

    Args:
        ablate: also switch off each piece in turn.
        log: gets a line for each finding as it comes.
    """
    device = resolve_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    cells: dict[str, Cell] = {}
    waited_for = {name for cell in grid.cells for name in cell.waits_for}
    for cell in grid.cells:
        if cell.method["type"] != "none" or cell.id not in waited_for:
            cells.setdefault(cell.cost_key, cell)
    limits = measure_limits(device)
    log(f"matrix peak {limits.matrix_gflops_per_s}, memory {limits.memory_gb_per_s:.1f} GB/s")
    rows, ablations = [], {}
    for cell in cells.values():
        assembly = assemble([cell], folder, options, teacher_network=untrained_teacher)
        row = compare(cell, assembly, limits)
        log(f"{row.student} {row.method}: {row.ratio.median:.2f} times the usual loop")
        rows.append(row)
    keep_freed_memory()  # as in training; but not beside the usual loop, which would gain from it
    for row, cell in zip(rows, cells.values(), strict=True):
        if ablate:
            assembly = assemble([cell], folder, options, teacher_network=untrained_teacher)
            ablations[f"{row.student} {row.method}"] = switch_off(cell, assembly)
    together = in_lock_step(list(cells.values()), folder, options)
    for case, share in together.items():
        log(f"{case}: in lock-step {share.median:.2f} of the time apart")
    overhead = engine_overhead(device)
    first = next(iter(cells.values()))
    return Report(
        machine(device), torch.get_num_threads(), first.recipe.batch_size, limits, overhead, rows, together, ablations
    )


def compare(cell: Cell, assembly: Assembly, limits: Limits) -> Row:
    """Time a cell's training step in this engine and in the usual loop."""
    ours, usual = Probe(cell, assembly), usual_loop(cell, assembly)
    loops: dict[str, Callable[[], None]] = {"ours": ours.take_step, "usual": usual.step}
    speeds = {name: [cell.recipe.batch_size / s for s in turns] for name, turns in in_turn(loops, assembly.device).items()}
    flops = count_flops(assembly, assembly.trainees[cell.id]).step
    rate = flops / cell.recipe.batch_size * statistics.median(speeds["ours"]) / 1e9
    return Row(
        student=describe(cell.student),
        teacher=" + ".join(describe(teacher.model) for teacher in cell.teachers),
        method=cell.label,
        images_per_s=spread(speeds["ours"]),
        usual_images_per_s=spread(speeds["usual"]),
        ratio=spread([a / b for a, b in zip(speeds["ours"], speeds["usual"], strict=True)]),
        gflops_per_s=rate,
        peak_share=rate / limits.matrix_gflops_per_s[cell.precision],
    )


def usual_loop(cell: Cell, assembly: Assembly) -> UsualLoop:
    """The same student, teachers and method in single precision and contiguous layout.

    Its learning rate is 0, as the probe's is: weights that stay where they are cannot diverge.
    """
    gc.collect()  # loaders of before end here, lest the new one's processes inherit them
    trainee = assembly.trainees[cell.id].duplicate()
    student = build_network(cell.student, assembly.dataset).to(assembly.device)
    built = [build_network(source.model, assembly.dataset).to(assembly.device) for source in cell.teachers]
    teachers = tuple(teacher.eval().requires_grad_(False) for teacher in built)
    workers = torch.get_num_threads() if assembly.device.type == "cpu" else 8
    method = trainee.method.to(memory_format=torch.contiguous_format)
    loader = training_loader(assembly.train, assembly.dataset, cell.recipe, assembly.device, workers)
    recipe = cell.recipe.model_copy(update={"lr": 0.0})
    return UsualLoop(student, teachers[0] if teachers else None, method, loader, recipe, assembly.device, teachers[1:])


def in_turn(loops: dict[str, Callable[[], None]], device: torch.device) -> dict[str, list[float]]:
    """Seconds a step of each loop, one value a turn."""
    steps = {}
    for name, step in loops.items():
        timed(step, 3, device)
        steps[name] = max(1, round(SPAN_S / timed(step, 2, device)))
    turns: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(TURNS):
        for name, step in loops.items():
            turns[name].append(timed(step, steps[name], device))
    return turns


def timed(step: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds a step, over `count` steps."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / count


def switch_off(cell: Cell, assembly: Assembly) -> dict[str, Spread]:
    """How many times longer a step takes without each piece, all others in place."""
    variants: dict[str, Callable[[], None]] = {"everything": Probe(cell, assembly).take_step}
    variants["bf16"] = _variant(cell, assembly, precision="fp32").take_step
    contiguous = _variant(cell, assembly)
    contiguous.trainee.to(memory_format=torch.contiguous_format)
    contiguous.step = Step({cell.id: contiguous.trainee}, assembly.device, cell.precision)  # with momenta in that layout
    contiguous.runner = runner(contiguous.step, assembly.dataset, ALONE, None)
    contiguous.batches = map(_contiguous, contiguous.batches)
    variants["channels_last"] = contiguous.take_step
    unfused = _variant(cell, assembly)
    plain = unfused.step.members[cell.id].optimizer.inner
    plain.defaults["fused"] = None  # as torch chooses
    for group in plain.param_groups:
        group |= {"fused": None, "lr": 0.0}
    variants["fused optimizer"] = unfused.take_step
    loader = usual_loop(cell, assembly)
    loaded = _variant(cell, assembly)
    loaded.batches = map(partial(_from_loader, assembly.device), loader.batches)
    variants["data on the device"] = loaded.take_step
    if assembly.trainees[cell.id].teacher:
        variants["folded teacher"] = _variant(cell, assembly, fold=False).take_step
    turns = in_turn(variants, assembly.device)
    everything = turns.pop("everything")
    return {name: spread([a / b for a, b in zip(values, everything, strict=True)]) for name, values in turns.items()}


def _variant(cell: Cell, assembly: Assembly, precision: str | None = None, fold: bool = True) -> Probe:
    """A probe that may be altered. Unless `fold`, its teachers are not folded."""
    trainee = assembly.trainees[cell.id]
    altered = cell.model_copy(update={"precision": precision or cell.precision})
    teachers = trainee.teachers
    if not fold or altered.precision != cell.precision:
        sample = assembly.sample() if fold else None
        teachers = tuple(Teacher(teacher.network, sample, altered.precision) for teacher in teachers)
    variant = Trainee(trainee.student, trainee.method, teachers[0] if teachers else None, cell.recipe, teachers[1:])
    return Probe(altered, replace(assembly, trainees={altered.id: variant}))


def _from_loader(device: torch.device, loaded: tuple[Tensor, Tensor, Tensor]) -> Batch:
    image, target, index = loaded
    return Batch(image.to(device, memory_format=torch.channels_last), target.to(device), index.to(device))


def _contiguous(batch: Batch) -> Batch:
    return batch._replace(image=batch.image.contiguous())


def in_lock_step(cells: list[Cell], folder: GridFolder, options: Options) -> dict[str, Spread]:
    """What `run --together` saves: the methods of one student on one stream, with one forward pass of the teacher."""
    shares = {}
    left = cells
    while left:
        cell, *left = left
        group = [cell]
        for other in left:
            if other.student == cell.student and may_join(group, other):
                group.append(other)
        left = [other for other in left if other not in group]
        if len(group) < 2:
            continue
        assembly = assemble(group, folder, options, teacher_network=untrained_teacher)
        apart = {each.id: Probe(each, assembly).take_step for each in group}
        members = {each.id: Probe(each, assembly) for each in group}
        shared = Step({cell_id: member.trainee for cell_id, member in members.items()}, assembly.device, cell.precision)
        batches, take = members[cell.id].batches, runner(shared, assembly.dataset, ALONE, None)

        def together(step: StepRunner = take, batches: Iterator[Batch] = batches) -> None:
            step(next(batches))

        turns = in_turn({"together": together, **apart}, assembly.device)
        shared_turns = turns.pop("together")
        case = f"{describe(cell.student)}: {', '.join(each.label for each in group)}"
        shares[case] = spread([a / sum(each) for a, *each in zip(shared_turns, *turns.values(), strict=True)])
    return shares


def measure_limits(device: torch.device) -> Limits:
    """Measure what the machine can do. On a GPU fp32 is with TF32 where convolutions have it, as what is compared with it."""
    size = 8192 if device.type == "cuda" else 2048
    peaks = {}
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = torch.randn(2, size, size, device=device).to(dtype)

        def multiply(left: torch.Tensor = left, right: torch.Tensor = right) -> None:
            left @ right

        timed(multiply, 1, device)
        peaks[name] = 2 * size**3 / min(timed(multiply, 3, device) for _ in range(5)) / 1e9
    torch.backends.cuda.matmul.allow_tf32 = before
    source = torch.randn((2**30 if device.type == "cuda" else 2**26) // 4, device=device)
    target = torch.empty_like(source)
    seconds = min(timed(lambda: target.copy_(source), 3, device) for _ in range(5))
    return Limits(peaks, 2 * source.nbytes / seconds / 1e9)


class _Trivial(Network):
    """A network whose arithmetic costs next to nothing."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), [Stage(nn.Sequential(nn.Identity()), nn.Identity())], nn.Linear(4, 2), [None])


def engine_overhead(device: torch.device) -> Spread:
    """Microseconds that a step costs in the engine more than in the barest loop that trains the same."""
    recipe = Recipe()
    batch = Batch(
        torch.randn(2, 4, 1, 1, device=device),
        torch.zeros(2, dtype=torch.int64, device=device),
        torch.zeros(2, dtype=torch.int64, device=device),
    )
    trainee = Trainee(_Trivial().to(device), METHODS.build({"type": "none"}), None, recipe)
    step = Step({"cell": trainee}, device, "fp32")
    network = _Trivial().to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=5e-4, fused=True)

    def engine() -> None:
        step.set_lr(recipe.lr)
        step(batch)

    def bare() -> None:
        loss = F.cross_entropy(network(batch.image).logits, batch.target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    turns = in_turn({"engine": engine, "bare": bare}, device)
    return spread([1e6 * (a - b) for a, b in zip(turns["engine"], turns["bare"], strict=True)])


def as_json(report: Report) -> dict[str, Any]:
    return {**asdict(report), "machine": report.machine.model_dump(mode="json")}
