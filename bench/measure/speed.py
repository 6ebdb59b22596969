"""How fast this engine trains on this machine: against the usual loop, against what the machine can do, piece by piece.

Whatever is compared is timed in turn in one process, many times over; what counts is the ratio within a turn.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import nn

from bench.engine.device import keep_freed_memory, machine, resolve_device
from bench.engine.lockstep import companions
from bench.engine.loop import Group
from bench.engine.train import Bench, assemble, build_network, count_flops
from bench.engine.trainee import Optimiser, Teacher, Trainee
from bench.measure.probe import Subject, untrained
from bench.measure.usual_loop import UsualLoop
from bench.models import Network, Stage
from bench.plan.expand import Grid
from bench.records.cell import Cell
from bench.records.naming import describe
from bench.records.options import Options
from bench.records.recipe import Recipe
from bench.records.record import Machine
from bench.records.store import Store
from methods import METHODS, Batch

TURNS = 7
SPAN_S = 1.0  # each loop's share of a turn takes at least this long


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of the turns."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


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


def measure(grid: Grid, store: Store, options: Options, ablate: bool, tell: Callable[[str], None]) -> Report:
    """Compare every (pair, method) of a grid; teachers are untrained, which costs the same."""
    device = resolve_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    cells: dict[str, Cell] = {}
    for cell in grid.cells:
        if cell.label != "none" or not any(each.teacher and each.teacher.cell == cell.id for each in grid.cells):
            cells.setdefault(cell.cost_key, cell)
    limits = measure_limits(device)
    tell(f"matrix peak {limits.matrix_gflops_per_s}, memory {limits.memory_gb_per_s:.1f} GB/s")
    rows, ablations = [], {}
    for cell in cells.values():
        bench = assemble([cell], store, grid.name, options, teacher_network=untrained)
        row = compare(cell, bench, limits)
        tell(f"{row.student} {row.method}: {row.ratio.median:.2f} times the usual loop")
        rows.append(row)
    keep_freed_memory()  # as in training; but not beside the usual loop, which would gain from it
    for row, cell in zip(rows, cells.values(), strict=True):
        if ablate:
            bench = assemble([cell], store, grid.name, options, teacher_network=untrained)
            ablations[f"{row.student} {row.method}"] = switch_off(cell, bench)
    together = in_lock_step(list(cells.values()), store, grid.name, options)
    for case, share in together.items():
        tell(f"{case}: in lock-step {share.median:.2f} of the time apart")
    overhead = engine_overhead(device)
    first = next(iter(cells.values()))
    return Report(
        machine(device), torch.get_num_threads(), first.recipe.batch_size, limits, overhead, rows, together, ablations
    )


def compare(cell: Cell, bench: Bench, limits: Limits) -> Row:
    ours, usual = Subject.of(cell, bench), usual_loop(cell, bench)
    loops: dict[str, Callable[[], None]] = {"ours": ours.step, "usual": usual.step}
    speeds = {name: [cell.recipe.batch_size / s for s in turns] for name, turns in in_turn(loops, bench.device).items()}
    flops = count_flops(bench, bench.trainees[cell.id]).step
    rate = flops / cell.recipe.batch_size * statistics.median(speeds["ours"]) / 1e9
    return Row(
        student=describe(cell.student),
        teacher=describe(cell.teacher.model) if cell.teacher else "",
        method=cell.label,
        images_per_s=Spread.of(speeds["ours"]),
        usual_images_per_s=Spread.of(speeds["usual"]),
        ratio=Spread.of([a / b for a, b in zip(speeds["ours"], speeds["usual"], strict=True)]),
        gflops_per_s=rate,
        peak_share=rate / limits.matrix_gflops_per_s[cell.precision],
    )


def usual_loop(cell: Cell, bench: Bench) -> UsualLoop:
    """The same student, teacher and method in single precision and contiguous layout."""
    gc.collect()  # loaders of before end here, lest the new one's processes inherit them
    trainee = bench.trainees[cell.id].rehearsal()
    student = build_network(cell.student, bench.dataset).to(bench.device)
    teacher = trainee.networks.teacher
    plain = None
    if teacher and cell.teacher:
        plain = build_network(cell.teacher.model, bench.dataset).to(bench.device).eval().requires_grad_(False)
    workers = torch.get_num_threads() if bench.device.type == "cpu" else 8
    method = trainee.method.to(memory_format=torch.contiguous_format)
    return UsualLoop(student, plain, method, bench.train, bench.dataset, cell.recipe, bench.device, workers)


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


def switch_off(cell: Cell, bench: Bench) -> dict[str, Spread]:
    """How many times longer a step takes without each piece, all others in place."""
    variants: dict[str, Callable[[], None]] = {"everything": Subject.of(cell, bench).step}
    variants["bf16"] = _variant(cell, bench, precision="fp32").step
    contiguous = _variant(cell, bench)
    contiguous.trainee.to(memory_format=torch.contiguous_format)
    contiguous.batches = map(_contiguous, contiguous.batches)
    variants["channels_last"] = contiguous.step
    unfused = _variant(cell, bench)
    unfused.optimiser.optimizer.defaults["fused"] = None  # as torch chooses
    for group in unfused.optimiser.param_groups:
        group["fused"] = None
    variants["fused optimiser"] = unfused.step
    loader = usual_loop(cell, bench)
    loaded = _variant(cell, bench)
    loaded.batches = (
        Batch(image.to(bench.device, memory_format=torch.channels_last), target.to(bench.device), index.to(bench.device))
        for image, target, index in loader.batches
    )
    variants["data on the device"] = loaded.step
    if bench.trainees[cell.id].networks.teacher:
        variants["folded teacher"] = _variant(cell, bench, fold=False).step
    turns = in_turn(variants, bench.device)
    whole = turns.pop("everything")
    return {name: Spread.of([a / b for a, b in zip(values, whole, strict=True)]) for name, values in turns.items()}


def _variant(cell: Cell, bench: Bench, precision: str | None = None, fold: bool = True) -> Subject:
    """A subject that may be altered; unless `fold`, its teacher answers as it was trained."""
    trainee = bench.trainees[cell.id]
    altered = cell.model_copy(update={"precision": precision or cell.precision})
    teacher = trainee.networks.teacher
    if teacher and (not fold or altered.precision != cell.precision):
        teacher = Teacher(teacher.network, bench.sample() if fold else None, altered.precision)
    variant = Trainee(trainee.student, trainee.method, teacher, cell.recipe)
    return Subject.of(altered, replace(bench, trainees={altered.id: variant}))


def _contiguous(batch: Batch) -> Batch:
    return batch._replace(image=batch.image.contiguous())


def in_lock_step(cells: list[Cell], store: Store, grid: str, options: Options) -> dict[str, Spread]:
    """What `run --together` saves: the methods of one student on one stream, with one forward pass of the teacher."""
    shares = {}
    left = cells
    while left:
        cell, *left = left
        group = [cell, *(other for other in companions(cell, left) if other.student == cell.student)]
        left = [other for other in left if other not in group]
        if len(group) < 2:
            continue
        bench = assemble(group, store, grid, options, teacher_network=untrained)
        apart = {each.id: Subject.of(each, bench).step for each in group}
        members = {each.id: Subject.of(each, bench) for each in group}
        together = Group({cell_id: member.trainee for cell_id, member in members.items()})
        optimisers = {cell_id: member.optimiser for cell_id, member in members.items()}
        batches = members[cell.id].batches

        def step(together: Group = together, batches: Iterator[Batch] = batches, optimisers: Any = optimisers) -> None:
            together.train_step(next(batches), optimisers)
            together.terms.clear()

        turns = in_turn({"together": step, **apart}, bench.device)
        whole = turns.pop("together")
        case = f"{describe(cell.student)}: {', '.join(each.label for each in group)}"
        shares[case] = Spread.of([a / sum(each) for a, *each in zip(whole, *turns.values(), strict=True)])
    return shares


def measure_limits(device: torch.device) -> Limits:
    size = 8192 if device.type == "cuda" else 2048
    peaks = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = torch.randn(2, size, size, device=device).to(dtype)

        def multiply(left: torch.Tensor = left, right: torch.Tensor = right) -> None:
            left @ right

        timed(multiply, 1, device)
        peaks[name] = 2 * size**3 / min(timed(multiply, 3, device) for _ in range(5)) / 1e9
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
    group = Group({"cell": trainee})
    optimisers = {"cell": Optimiser(trainee.optimiser(), device, "fp32", 0.0)}
    network = _Trivial().to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=5e-4, fused=True)

    def engine() -> None:
        for parameters in optimisers["cell"].param_groups:
            parameters["lr"] = recipe.lr
        group.train_step(batch, optimisers)
        if len(group.terms["cell"]) == 1000:
            group.mean_terms()

    def bare() -> None:
        loss = F.cross_entropy(network(batch.image).logits, batch.target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    turns = in_turn({"engine": engine, "bare": bare}, device)
    return Spread.of([1e6 * (a - b) for a, b in zip(turns["engine"], turns["bare"], strict=True)])


def tables(report: Report) -> list[Any]:
    """For the terminal."""
    limits = report.limits
    peaks = ", ".join(f"{value:,.0f} GFLOP/s {name}" for name, value in limits.matrix_gflops_per_s.items())
    about = f"{report.machine.hardware}, {report.threads} threads; limits: {peaks}, memory {limits.memory_gb_per_s:.1f} GB/s"
    head = ("student", "teacher", "method", "images/s", "usual loop", "ratio (quartiles)", "GFLOP/s", "of the peak")
    rows = Table(*head, title=about, title_justify="left", box=None, pad_edge=False)
    for row in report.rows:
        ratio = f"{row.ratio.median:.2f} ({row.ratio.low:.2f} to {row.ratio.high:.2f})"
        speeds = f"{row.images_per_s.median:,.0f}", f"{row.usual_images_per_s.median:,.0f}"
        rows.add_row(
            row.student, row.teacher, row.method, *speeds, ratio, f"{row.gflops_per_s:,.0f}", f"{100 * row.peak_share:.0f} %"
        )
    shown: list[Any] = [rows]
    for case, pieces in report.ablations.items():
        table = Table("without", "step takes", title=f"\n{case}", title_justify="left", box=None, pad_edge=False)
        for name, spread in pieces.items():
            table.add_row(name, f"{spread.median:.2f} times as long ({spread.low:.2f} to {spread.high:.2f})")
        shown.append(table)
    for case, share in report.together.items():
        shown.append(f"in lock-step, {case}: {share.median:.2f} of the time apart ({share.low:.2f} to {share.high:.2f})")
    over = report.overhead_us
    shown.append(f"engine overhead over a bare loop: {over.median:.0f} µs a step ({over.low:.0f} to {over.high:.0f})")
    return shown


def as_json(report: Report) -> dict[str, Any]:
    return {**asdict(report), "machine": report.machine.model_dump(mode="json")}


def markdown(report: dict[str, Any]) -> str:
    """The tables of a report, as `as_json` gives it, for the README: medians, quartiles in brackets."""

    machine, limits = report["machine"], report["limits"]
    peaks = ", ".join(f"{value:,.0f} GFLOP/s in {name}" for name, value in limits["matrix_gflops_per_s"].items())
    lines = [
        f"{machine['cpu']}, {report['threads']} threads, torch {machine['versions']['torch']}, batch {report['batch_size']}. "
        f"The machine's measured limits: {peaks}, {limits['memory_gb_per_s']:.0f} GB/s.",
        "",
        "| student | teacher | method | images/s | usual loop | times as fast | of the matrix peak | 240 epochs of CIFAR-100 |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        speeds = f"{row['images_per_s']['median']:,.0f} | {row['usual_images_per_s']['median']:,.0f}"
        names = f"{row['student']} | {row['teacher'] or '–'} | {row['method']}"
        hours = 240 * 50_000 / row["images_per_s"]["median"] / 3600  # a training as most papers on CIFAR-100 have it
        lines.append(
            f"| {names} | {speeds} | {_with_quartiles(row['ratio'])} | {100 * row['peak_share']:.0f} % | {hours:.1f} h |"
        )
    pieces = list(dict.fromkeys(piece for case in report["ablations"].values() for piece in case))
    if pieces:
        lines += ["", "How many times as long a step takes with one piece switched off, all others in place:", ""]
        lines += [f"| without | {' | '.join(report['ablations'])} |", "|---" * (1 + len(report["ablations"])) + "|"]
        for piece in pieces:
            cells = [_with_quartiles(case[piece]) if piece in case else "–" for case in report["ablations"].values()]
            lines.append(f"| {piece} | {' | '.join(cells)} |")
    lines += ["", "240 epochs of CIFAR-100 are 12 million images; that column counts training steps alone.", ""]
    lines += [f"The engine's overhead over a bare loop is {report['overhead_us']['median']:.0f} µs a step."]
    return "\n".join(lines) + "\n" + lock_step_markdown(report)


def lock_step_markdown(report: dict[str, Any]) -> str:
    """What `run --together` saves, a line for each student."""
    return "".join(
        f"In lock-step, {case} together take {_with_quartiles(share)} of the time they take apart.\n"
        for case, share in report["together"].items()
    )


def _with_quartiles(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['low']:.2f}–{value['high']:.2f})"
