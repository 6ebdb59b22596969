"""What a run would do, and about how much it would cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import timedelta
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from bench.cell import Cell
from bench.grid import Grid, describe
from bench.models import MODELS
from bench.progress import STATES, state_of
from bench.record import Cost
from bench.store import Store

SHAPES = {  # channels, side, classes and training images, so that a plan needs no data
    "digits": (1, 8, 10, 1000),
    "cifar10": (3, 32, 10, 50_000),
    "cifar100": (3, 32, 100, 50_000),
    "fashion_mnist": (1, 28, 10, 60_000),
    "svhn": (3, 32, 10, 73_257),
}


def show(grid: Grid, store: Store, console: Console) -> None:
    """Print the cells by pair and method with their states, what is skipped and why, and the estimate."""
    states = {cell.id: state_of(store, grid.name, cell.id) for cell in grid.cells}
    rows: dict[tuple[str, str, str], list[Cell]] = defaultdict(list)
    teachers = {cell.teacher.cell for cell in grid.cells if cell.teacher}
    for cell in grid.cells:
        role = cell.label + (" (teaches)" if cell.id in teachers else "")
        rows[describe(cell.student), describe(cell.teacher.model) if cell.teacher else "–", role].append(cell)
    table = Table("student", "teacher", "method", "seeds", *STATES, title=f"{grid.name}: {grid.about}", title_justify="left")
    for (student, teacher, label), cells in rows.items():
        counts = Counter(states[cell.id] for cell in cells)
        seeds = ", ".join(str(cell.seed) for cell in cells)
        table.add_row(student, teacher, label, seeds, *(str(counts[state] or "") for state in STATES))
    console.print(table)
    for skip in grid.skipped:
        console.print(f"skipped {skip.what}: {skip.reason}", highlight=False, markup=False)
    counts = Counter(states.values())
    console.print(f"{len(grid.cells)} cells: " + ", ".join(f"{counts[state]} {state}" for state in STATES), highlight=False)
    left = [cell for cell in grid.cells if states[cell.id] != "done"]
    if left:
        console.print(f"left to do: {estimate(left, store.costs(grid.name)[0])}", highlight=False)


def estimate(cells: list[Cell], costs: list[Cost]) -> str:
    """Operations of the networks (three forwards for a training step, one for the teacher's), and hours where probed."""
    flops = 0.0
    counted: dict[str, float] = {}
    hardware = Counter(cost.machine.hardware for cost in costs).most_common(1)
    known = {cost.key: cost for cost in costs if hardware and cost.machine.hardware == hardware[0][0]}
    hours, timed = 0.0, 0
    for cell in cells:
        shape = SHAPES.get(cell.data["type"]) or _user_shape(cell)
        samples = round((cell.data["train_images"] or shape[3]) * (1 - cell.recipe.validation))
        images = samples * cell.recipe.epochs
        side = cell.recipe.image_size or shape[1]
        for spec, passes in [(cell.student, 3), *([(cell.teacher.model, 1)] if cell.teacher else [])]:
            key = f"{describe(spec)} {shape[0]} {side} {shape[2]}"
            if key not in counted:
                counted[key] = forward_flops(spec, shape[0], side, shape[2])
            flops += passes * counted[key] * images
        if cell.cost_key in known:
            cost = known[cell.cost_key]
            steps = -(-samples // cell.recipe.batch_size)
            hours += cost.step.median_ms * steps * cell.recipe.epochs / 3.6e6
            timed += 1
    text = f"about {_engineering(flops)}FLOP in the networks"
    if timed:
        text += f"; {timedelta(hours=round(hours, 2))} one after the other on {hardware[0][0]}"
        text += f" for the {timed} of {len(cells)} cells whose step was probed" if timed < len(cells) else ""
    return text


def forward_flops(spec: dict[str, Any], channels: int, side: int, classes: int) -> float:
    """Of one image; counted on shapes alone, without memory or arithmetic."""
    with torch.device("meta"):
        network = MODELS.build({**spec, "classes": classes, "channels": channels}).eval()
        image = torch.empty(1, channels, side, side)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


def _user_shape(cell: Cell) -> tuple[int, int, int, int]:
    return (3, cell.recipe.image_size or 32, 100, cell.data["train_images"] or 50_000)


def _engineering(value: float) -> str:
    for exponent, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if value >= 10**exponent:
            return f"{value / 10**exponent:.3g} {prefix}"
    return f"{value:.3g} "
