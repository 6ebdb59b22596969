"""What a run would do, and roughly what it would cost."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from rich.text import Text
from torch import nn

from bench.data import Shape
from bench.engine.code import own_code
from bench.plan import choice, seeds
from bench.plan.compatibility import ShapesOnly, forward_shapes
from bench.plan.grid import Grid
from bench.records.board import RARE_STATES, STATES, settings
from bench.records.cell import Cell, Spec, digest
from bench.records.folders import GridFolder
from bench.records.naming import describe
from bench.records.record import Cost
from bench.records.source import stale
from bench.records.teacher import accuracy_lines, source_of
from bench.screen import Screen, Table
from methods import METHODS


def show(grid: Grid, folder: GridFolder, console: Screen, grams_per_kwh: float | None = None) -> list[str]:
    """Print the cells by pair and method with their states, what is skipped and why, and the estimate.

    Args:
        grams_per_kwh: of CO2.

    Returns:
        Ids of cells whose records this version cannot read; they are left alone.
    """
    cells = grid.by_id
    started = set(folder.folders())
    states: dict[str, str] = {name: folder.cell(name).state() if name in started else "missing" for name in cells}
    rows: dict[tuple[str, ...], list[str]] = defaultdict(list)
    teachers = {name for cell in cells.values() for name in cell.waits_for}
    setting = settings(cells)
    for name, cell in cells.items():
        role = cell.label + (" (teaches)" if name in teachers else "")
        rows[setting[name], describe(cell.student), source_of(cell), role].append(name)
    several = any(setting.values())
    console.print(Text(f"{grid.name}: {grid.about}" if grid.about else grid.name, style="italic"))
    columns = [*["setting"] * several, "student", "teacher", "method", "seeds", "cells"]
    table = Table(*columns, last_needed=[columns.index("seeds")])
    for key, names in rows.items():
        counts = Counter(states[name] for name in names)
        shown = [*(key if several else key[1:]), _ranges(cells[name].seed for name in names)]
        table.add_row(*map(Text, shown), _counted(counts, [state for state in (*STATES, *RARE_STATES) if counts[state]]))
    console.print(table)
    for name, found in grid.data:
        console.print(f"data {name}: {found.shape}")
    for line in grid.warnings:
        console.print(line, style="yellow")
    for skip in grid.skipped:
        console.print(f"skipped {skip.what}: {skip.reason}")
    for line in accuracy_lines(grid.cells, folder.results.teacher_accuracy):
        console.print(line)
    if other := stale(grid.cells, folder, own_code(grid.cells)):
        count = f"{len(other)} result was" if len(other) == 1 else f"{len(other)} results were"
        console.print(f"{count} made by other code: `run` trains again what it made")
    unreadable = [name for name, state in states.items() if state == "unreadable"]
    for name in unreadable:
        console.print(f"unreadable {name}: {folder.cell(name).unreadable()}")
    counts = Counter(states.values())
    shown_states = [*STATES, *(state for state in RARE_STATES if counts[state])]
    console.print(f"{len(grid.cells)} cells: {_counted(counts, shown_states)}")
    left = [cell for name, cell in cells.items() if states[name] not in ("done", "unreadable")]
    if left:
        costs = [cost for name in {*folder.results.grids(), folder.name} for cost in folder.results.grid(name).costs()[0]]
        console.print(f"left to do: {estimate(left, grid.shapes, costs, grams_per_kwh)}")
    for line in choice.explained(grid, folder):
        console.print(line)
    _show_seeds(grid, folder, left, console)
    return unreadable


def _show_seeds(grid: Grid, folder: GridFolder, left: Sequence[Cell], console: Screen) -> None:
    """Of sequential seeds: the rule, what it does on average, where comparisons stand, and the most that it may take."""
    if (rule := grid.rule) is None:
        return
    for line in seeds.late_rule(grid, folder):
        console.print(line, soft_wrap=True, style="yellow")
    standings = seeds.look(grid, folder)
    for line in [*seeds.explained(rule), *map(str, standings), seeds.summed_up(rule, standings)]:
        console.print(line, soft_wrap=True)
    started = {cell.id for cell in grid.cells}
    further = [cell for cell in seeds.worst_case(grid, standings) if cell.id not in started]
    if further:
        worst = estimate([*left, *further], grid.shapes, folder.costs()[0])
        console.print(f"in the worst case {len(left) + len(further)} cells are left: {worst}", soft_wrap=True)


def _counted(counts: Mapping[str, int], states: Iterable[str]) -> str:
    return ", ".join(f"{counts[state]} {state}" for state in states)


def _ranges(numbers: Iterable[int]) -> str:
    """'0–4, 7'."""
    ranges: list[list[int]] = []
    for seed in sorted(numbers):
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ", ".join(str(low) if low == high else f"{low}–{high}" for low, high in ranges)


class Work(NamedTuple):
    """What cells will take, one after the other."""

    flops: float  # of the networks: a student's training step counts as three forward passes, a teacher's as one
    seconds: float  # NaN where no step was probed
    joules: float  # NaN where none was metered
    hardware: str  # of both
    timed: int  # cells whose own step was probed; the others' time is by their FLOPs


def work(cells: Sequence[Cell], shapes: Mapping[str, Shape], costs: Iterable[Cost]) -> Work:
    """What it takes to train cells. A cell whose step was not probed takes as long a FLOP as the median of those that were.

    Args:
        shapes: of the data sets, by the digest of a cell's `data`.
        costs: probed ones; those of the hardware that knows most of the cells are used.
    """
    flops = _flops(cells, shapes)
    keys = {cell.cost_key for cell in cells}
    known: dict[str, dict[str, Cost]] = defaultdict(dict)
    for cost in sorted(costs, key=lambda cost: cost.path != "eager"):  # recorded steps, where there are any, are training's
        if cost.key in keys:
            known[cost.machine.hardware][cost.key] = cost
    if not known:
        return Work(sum(flops), math.nan, math.nan, "", 0)
    hardware, here = max(known.items(), key=lambda item: len(item[1]))
    steps = [_steps(cell, shapes) for cell in cells]
    seconds = [_main_and_prepare(each, here.get(cell.cost_key), _seconds) for cell, each in zip(cells, steps, strict=True)]
    joules = [_main_and_prepare(each, here.get(cell.cost_key), _joules) for cell, each in zip(cells, steps, strict=True)]
    timed = sum(not math.isnan(value) for value in seconds)
    seconds = _filled(seconds, flops)
    return Work(sum(flops), sum(seconds), sum(_filled(joules, seconds)), hardware, timed)


def _flops(cells: Sequence[Cell], shapes: Mapping[str, Shape]) -> list[float]:
    """Of each cell's training."""
    counted: dict[tuple[str, Shape], float] = {}
    found = []
    for cell in cells:
        shape = shapes[digest(cell.data)].resized(cell.recipe.image_size)
        images = _samples(cell, shapes) * (cell.recipe.epochs + METHODS.build(cell.method).prepare_epochs)
        total = 0.0
        for spec, passes in [(cell.student, 3), *((teacher.model, 1) for teacher in cell.teachers)]:
            key = digest(spec), shape
            if key not in counted:
                counted[key] = forward_flops(spec, shape)
            total += passes * counted[key] * images
        found.append(total)
    return found


def _samples(cell: Cell, shapes: Mapping[str, Shape]) -> int:
    return round(shapes[digest(cell.data)].samples * (1 - cell.recipe.validation))


def _steps(cell: Cell, shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Of the main phase and of the preparation."""
    an_epoch = -(-_samples(cell, shapes) // cell.recipe.batch_size)
    return an_epoch * cell.recipe.epochs, an_epoch * METHODS.build(cell.method).prepare_epochs


def _seconds(cost: Cost) -> tuple[float, float]:
    return cost.step.median_ms / 1000, cost.prepare_step.median_ms / 1000 if cost.prepare_step else 0.0


def _joules(cost: Cost) -> tuple[float, float]:
    nan = math.nan
    return nan if cost.energy_j_per_step is None else cost.energy_j_per_step, cost.energy_j_per_prepare_step or 0.0


def _main_and_prepare(steps: tuple[int, int], cost: Cost | None, each: Callable[[Cost], tuple[float, float]]) -> float:
    """Steps times what each takes; NaN where it is not known."""
    return math.nan if cost is None else steps[0] * each(cost)[0] + steps[1] * each(cost)[1]


def _filled(values: Sequence[float], by: Sequence[float]) -> list[float]:
    """The values, and for those that are NaN what the median rate of the others gives; NaN where there are no others."""
    rates = [value / base for value, base in zip(values, by, strict=True) if not math.isnan(value) and base]
    rate = statistics.median(rates) if rates else math.nan
    return [rate * base if math.isnan(value) else value for value, base in zip(values, by, strict=True)]


def estimate(
    cells: Sequence[Cell], shapes: Mapping[str, Shape], costs: Iterable[Cost], grams_per_kwh: float | None = None
) -> str:
    """What is left to do, in a line: FLOPs, hours on the hardware that was probed, and kWh where that was metered.

    Args:
        shapes: see `work`.
        costs: see `work`.
        grams_per_kwh: of CO2.
    """
    found = work(cells, shapes, costs)
    text = f"about {_engineering(found.flops)}FLOP in the networks"
    if math.isnan(found.seconds):
        return text + "; `cost` measures the steps, and then the time is known"
    gpu = " / " in found.hardware  # see `Machine.hardware`
    hours = f"{found.seconds / 3600:.2g} GPU-hours" if gpu else f"{_time(found.seconds)} one after the other"
    text += f"; about {hours} on {found.hardware}"
    if found.timed < len(cells):
        text += f" ({found.timed} of {len(cells)} cells by their probed step, the others by their FLOPs)"
    if not math.isnan(found.joules):
        kwh = found.joules / 3.6e6
        text += f"; about {kwh:.2g} kWh"
        text += f", {kwh * grams_per_kwh / 1000:.2g} kg of CO2" if grams_per_kwh else ""
    return text


def _time(seconds: float) -> str:
    """'50 seconds', '36 minutes', '9.6 hours'."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if unit == "hours" else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def forward_flops(spec: Spec, shape: Shape) -> float:
    """FLOPs of a forward pass of one image: convolutions and linear layers, a multiply-add counted as two, from shapes alone.

    Counted by hooks: torch's FlopCounterMode, with which a training's are counted, takes a second to import torch's compiler.
    """
    network, _ = forward_shapes(spec, shape)
    counted = []

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        counted.append(2 * output.numel() * layer.weight[0].numel())

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with ShapesOnly(), torch.no_grad():
        network(torch.empty(1, *shape[:3], device=network.classifier.weight.device))
    for hook in hooks:
        hook.remove()
    return sum(counted)


def _engineering(value: float) -> str:
    """'4.05 P', '123 G': three digits and the prefix of a unit."""
    for exponent, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if value >= 10**exponent:
            return f"{value / 10**exponent:.3g} {prefix}"
    return f"{value:.3g} "
