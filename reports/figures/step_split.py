"""Where the time of a training step goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from bench.records.record import PARTS_IN_CODE, PARTS_ON_DISK, Cost
from reports.figures import figures_of_pair
from reports.figures.style import INK, PAPER, PLAIN, Figure, canvas, characters, drawn, finished, names_beside, row_inches
from reports.pair import Pair

PARTS = {
    "data": "#e69f00",
    "student": "#0072b2",
    "teacher": "#d55e00",
    "method": "#cc79a7",
    "backward": "#56b4e9",
    PARTS_ON_DISK["optimizer"]: "#009e73",
}


@figures_of_pair(30)
def step_split(pair: Pair) -> Figure | None:
    """One training step by its parts, the whole step as a tick."""
    rows = pair.methods[pair.methods["method_id"].isin(pair.costs.keys())].sort_values("step_ms")
    rows = rows.iloc[pair.style.arranged(list(rows["label"]))[::-1]]  # the first on top
    if rows.empty:
        return None
    costs = [pair.costs[method_id] for method_id in rows["method_id"]]
    title = f"{pair.full_title}: where a step's time goes"
    with drawn(pair.style):
        names = names_beside(list(rows["label"]), characters(28))
        figure, axes = canvas(1.2 + row_inches(names) * len(costs), title)
        _draw_parts(axes, costs)
        steps = [cost.step for cost in costs]
        low_high = [[s.median_ms - s.low_ms for s in steps], [s.high_ms - s.median_ms for s in steps]]
        medians, bars = [s.median_ms for s in steps], np.abs(low_high)
        axes.errorbar(medians, range(len(costs)), xerr=bars, fmt="|", color=INK, ms=13, mew=1.6, lw=1, label="whole step")
        axes.set_yticks(range(len(costs)), names)
        axes.set(xlabel="Milliseconds a step, measured alone on the machine", xlim=(0, None))
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower left", ncols=4)
        values = "; ".join(
            f"{label} {cost.step.median_ms:.1f} ms, of which the teacher {_part_ms(cost, 'teacher'):.1f}"
            for label, cost in reversed(list(zip(rows["label"], costs, strict=True)))
        )
        return finished(figure, f"{pair.name}-step", title, f"Stacked bars of one training step by part: {values}.")


def _draw_parts(axes: Axes, costs: Sequence[Cost]) -> None:
    left = np.zeros(len(costs))
    for key in [*PARTS, *sorted({key for cost in costs for key in cost.parts} - set(PARTS))]:
        widths = np.array([_part_ms(cost, key) for cost in costs])
        if widths.any():
            axes.barh(
                range(len(costs)),
                widths,
                left=left,
                color=PARTS.get(key, PLAIN),
                label=PARTS_IN_CODE.get(key, key),
                height=0.62,
                hatch="////" if key == "teacher" else None,
                edgecolor=PAPER,
                lw=0.6,
            )
        left += widths


def _part_ms(cost: Cost, key: str) -> float:
    return cost.parts[key].median_ms if key in cost.parts else 0.0
