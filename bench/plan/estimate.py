"""What a run would do, and roughly what it would cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from bench.data import Shape
from bench.engine.code import own_code
from bench.plan import seeds
from bench.plan.compatibility import ShapesOnly, forward_shapes
from bench.plan.grid import Grid
from bench.records.board import RARE_STATES, STATES, settings
from bench.records.cell import Cell, Spec, digest
from bench.records.folders import GridFolder
from bench.records.naming import describe
from bench.records.record import Cost
from bench.records.source import stale
from bench.records.teacher import accuracy_lines, source_of
from methods import METHODS


def show(grid: Grid, folder: GridFolder, console: Console) -> list[str]:
    """Print the cells by pair and method with their states, what is skipped and why, and the estimate.

    Returns:
        Ids of cells whose records this version cannot read; they are left alone.
    """
    cells = grid.by_id
    started = set(folder.folders())
    states: dict[str, str] = {name: folder.cell(name).state() if name in started else "missing" for name in cells}
    rows: dict[tuple[str, ...], list[str]] = defaultdict(list)
    teachers = {cell.teacher.cell for cell in cells.values() if cell.teacher}
    setting = settings(cells)
    for name, cell in cells.items():
        role = cell.label + (" (teaches)" if name in teachers else "")
        rows[setting[name], describe(cell.student), source_of(cell), role].append(name)
    several = any(setting.values())
    console.print(f"{grid.name}: {grid.about}", highlight=False, markup=False, style="italic")
    table = Table(box=None, pad_edge=False)
    for column in ["setting"] * several + ["student", "teacher", "method", "seeds", "cells"]:
        table.add_column(column, overflow="fold")
    for key, names in rows.items():
        counts = Counter(states[name] for name in names)
        shown = [*(key if several else key[1:]), _ranges(cells[name].seed for name in names)]
        table.add_row(*map(escape, shown), _counted(counts, [state for state in (*STATES, *RARE_STATES) if counts[state]]))
    console.print(table)
    for name, found in grid.data:
        console.print(f"data {name}: {found.shape}", highlight=False, markup=False)
    for line in grid.warnings:
        console.print(line, highlight=False, markup=False, style="yellow")
    for skip in grid.skipped:
        console.print(f"skipped {skip.what}: {skip.reason}", highlight=False, markup=False)
    for line in accuracy_lines(grid.cells, folder.results.teacher_accuracy):
        console.print(line, highlight=False, markup=False)
    if other := stale(grid.cells, folder, own_code(grid.cells)):
        count = f"{len(other)} result was" if len(other) == 1 else f"{len(other)} results were"
        console.print(f"{count} made by other code: `run` trains again what it made", highlight=False)
    unreadable = [name for name, state in states.items() if state == "unreadable"]
    for name in unreadable:
        console.print(f"unreadable {name}: {folder.cell(name).unreadable()}", highlight=False, markup=False)
    counts = Counter(states.values())
    shown_states = [*STATES, *(state for state in RARE_STATES if counts[state])]
    console.print(f"{len(grid.cells)} cells: {_counted(counts, shown_states)}", highlight=False)
    left = [cell for name, cell in cells.items() if states[name] not in ("done", "unreadable")]
    if left:
        console.print(f"left to do: {estimate(left, grid.shapes, folder.costs()[0])}", highlight=False)
    _show_seeds(grid, folder, left, console)
    return unreadable


def _show_seeds(grid: Grid, folder: GridFolder, left: Sequence[Cell], console: Console) -> None:
    """Of sequential seeds: the rule, what it does on average, where comparisons stand, and the most that it may take."""
    if (rule := grid.rule) is None:
        return
    standings = seeds.look(grid, folder)
    for line in [*seeds.explained(rule), *map(str, standings), seeds.summed_up(rule, standings)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    started = {cell.id for cell in grid.cells}
    further = [cell for cell in seeds.worst_case(grid, standings) if cell.id not in started]
    if further:
        worst = estimate([*left, *further], grid.shapes, folder.costs()[0])
        console.print(f"in the worst case {len(left) + len(further)} cells are left: {worst}", highlight=False, soft_wrap=True)


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


def estimate(cells: list[Cell], shapes: dict[str, Shape], costs: list[Cost]) -> str:
    """FLOPs of the networks in a line, and hours for the cells whose training step was probed.

    A student's training step counts as three forward passes, a teacher's as one.

    Args:
        shapes: of the data sets, by the digest of a cell's `data`.
        costs: probed ones; those of the most frequent hardware are used.
    """
    flops = 0.0
    counted: dict[tuple[str, Shape], float] = {}
    hardware = Counter(cost.machine.hardware for cost in costs).most_common(1)
    known = {cost.key: cost for cost in costs if hardware and cost.machine.hardware == hardware[0][0]}
    hours, timed = 0.0, 0
    for cell in cells:
        shape = shapes[digest(cell.data)].resized(cell.recipe.image_size)
        samples = round(shape.samples * (1 - cell.recipe.validation))
        prepare_epochs = METHODS.build(cell.method).prepare_epochs
        images = samples * (cell.recipe.epochs + prepare_epochs)
        for spec, passes in [(cell.student, 3), *([(cell.teacher.model, 1)] if cell.teacher else [])]:
            key = digest(spec), shape
            if key not in counted:
                counted[key] = forward_flops(spec, shape)
            flops += passes * counted[key] * images
        if cost := known.get(cell.cost_key):
            steps_an_epoch = -(-samples // cell.recipe.batch_size)
            ms = cost.step.median_ms * cell.recipe.epochs
            ms += cost.prepare_step.median_ms * prepare_epochs if cost.prepare_step else 0
            hours += ms * steps_an_epoch / 3.6e6
            timed += 1
    text = f"about {_engineering(flops)}FLOP in the networks"
    if timed:
        text += f"; {timedelta(hours=round(hours, 2))} one after the other on {hardware[0][0]}"
        text += f" for the {timed} of {len(cells)} cells whose step was probed" if timed < len(cells) else ""
    return text


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
