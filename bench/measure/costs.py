"""The costs of a run: what of them was measured before, and the rest by the probe, with a line for each."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from bench.engine.device import machine, resolve_device
from bench.measure import meters, probe
from bench.records.cell import Cell
from bench.records.folders import GridFolder
from bench.records.options import Options
from bench.records.record import BUSY_PERCENT


def measure(
    cells: Sequence[Cell],
    folder: GridFolder,
    options: Options | None = None,
    force: bool = False,
    console: Console | None = None,
) -> int:
    """Measure what a step of these cells costs, where it was not measured on this hardware; untrained networks take as long.

    Args:
        force: measure again what was measured.

    Returns:
        How many cells there were to measure; those with one `cost_key` are measured once.
    """
    options, console = options or Options(), console or Console(quiet=True)
    known, _ = folder.costs()
    wanted = (
        list(cells) if force else probe.missing(list(cells), known, machine(resolve_device(options.device)), options.threads)
    )
    if not wanted:
        return 0
    busy = meters.neighbours_percent(resolve_device(options.device))
    console.print("measuring costs; leave the machine alone meanwhile", highlight=False)
    if busy > BUSY_PERCENT:
        console.print(f"[yellow]this machine is {busy:.0f} % busy with other work[/]: the spread will show it")
    for cost in probe.measure(wanted, folder, options):
        step = cost.step
        line = f"  {cost.label:<24} {step.median_ms:8.2f} ms a step ({step.low_ms:.2f} to {step.high_ms:.2f})"
        console.print(line, highlight=False)
    return len(wanted)
