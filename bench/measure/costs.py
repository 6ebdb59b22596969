"""The costs of a run: what of them was measured before, and the rest by the probe, with a line for each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from rich.live import Live
from rich.text import Text

from bench.engine.device import machine, resolve_device
from bench.measure import meters, probe
from bench.measure.pace import Pace
from bench.records.cell import Cell
from bench.records.folders import GridFolder
from bench.records.options import COST_MINUTES, Options
from bench.records.record import BUSY_PERCENT
from bench.screen import Screen


def measure(
    cells: Sequence[Cell],
    folder: GridFolder,
    options: Options | None = None,
    force: bool = False,
    console: Screen | None = None,
    minutes: float = COST_MINUTES,
) -> int:
    """Measure what a step of these cells costs, where it was not measured on this hardware; untrained networks take as long.

    Ctrl-C ends the measuring alone: what is measured is kept, and the caller goes on.

    Args:
        force: measure again what was measured.
        minutes: for all of it; 0: no limit.

    Returns:
        How many cells there were to measure; those with one `cost_key` are measured once.
    """
    options, console = options or Options(), console or Screen(quiet=True)
    known, _ = folder.costs()
    wanted = (
        list(cells) if force else probe.missing(list(cells), known, machine(resolve_device(options.device)), options.threads)
    )
    if not wanted:
        return 0
    busy = meters.neighbours_percent(resolve_device(options.device))
    limit = f"about {minutes:g} min at most; " if minutes else ""
    console.print(f"measuring costs; {limit}leave the machine alone meanwhile; Ctrl-C goes on without them")
    if busy > BUSY_PERCENT:
        console.print(f"this machine is {busy:.0f} % busy with other work: the spread will show it", style="yellow")
    methods = sum(map(len, probe.groups(wanted)))
    measured: set[str] = set()
    # refreshed between turns alone: a thread that draws would take its share of what is measured
    with Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else nullcontext() as live:

        def show(line: str) -> None:
            if live:
                live.update(Text(f"  {line}", no_wrap=True), refresh=True)

        pace = Pace(60 * minutes, show)
        try:
            for cost in probe.measure(wanted, folder, options, pace):
                measured.add(cost.key)
                step = cost.step
                line = f"  {cost.label:<24} {step.median_ms:8.2f} ms a step ({step.low_ms:.2f} to {step.high_ms:.2f})"
                console.print(line)
        except KeyboardInterrupt:
            console.print("measuring was interrupted")
    if len(measured) < methods:
        left = f"{methods - len(measured)} of {methods} costs are not measured"
        console.print(f"{left}; `cost` measures them, with --cost-minutes for a longer time")
    return len(wanted)
