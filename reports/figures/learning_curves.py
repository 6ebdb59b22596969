"""Learning curves."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.ticker import MaxNLocator

from bench import stats
from bench.records.comparisons import Baseline
from reports.figures import figures_of_pair
from reports.figures.style import CYCLE, Figure, canvas, characters, drawn, finished, names_beside
from reports.pair import Pair


@figures_of_pair(40)
def learning_curves(pair: Pair) -> Figure | None:
    """Test accuracy after each epoch: mean over the seeds with its 95 % t-interval.

    The first methods of the tables, eight at most, the plain student always among them and last.
    """
    runs = pair.runs[pair.runs["id"].isin(pair.curves.keys())].groupby("method_id")["id"].agg(list)
    known = pair.methods[pair.methods["method_id"].isin(runs.index)]
    plain = known[known["baseline"] == Baseline.NONE]
    others = known[known["baseline"] != Baseline.NONE].head(len(CYCLE) - len(plain))
    shown = [*zip(others["method_id"], others["label"], strict=True), *zip(plain["method_id"], plain["label"], strict=True)]
    if not shown:
        return None
    rest = [
        label for method_id, label in zip(known["method_id"], known["label"], strict=True) if (method_id, label) not in shown
    ]
    title = f"{pair.full_title}: learning curves"
    with drawn(pair.style):
        names = names_beside([label for _, label in shown], characters(28))
        figure, axes = canvas(3.4 + 0.07 * sum(name.count("\n") for name in names), title)
        ends, lowest = [], math.inf
        for index, (method_id, label) in enumerate(shown):
            curves = [pair.curves[cell].top1 for cell in runs[method_id]]
            lowest = min(lowest, *(float(curve[len(curve) // 5]) for curve in curves))
            values = np.array([curve[: min(map(len, curves))] for curve in curves])
            epochs, mean = np.arange(1, values.shape[1] + 1), values.mean(axis=0)
            color = pair.style.color(label, CYCLE[index])
            axes.plot(epochs, mean, color=color, lw=1.4, ls=("-", (0, (5, 1.5)))[index % 2], label=names[index])
            if len(values) > 1:
                half = _half_interval(values)
                axes.fill_between(epochs, mean - half, mean + half, color=color, alpha=0.15, lw=0)
            ends.append(f"{label} ends at {mean[-1]:.2f} %")
        cut = (
            f"\n{len(shown)} of {len(known)} methods: the most accurate{', and the plain student' * len(plain)}" if rest else ""
        )
        axes.set(xlabel=f"Epoch{cut}", ylabel="Top-1 accuracy on the test set, %", ylim=(lowest - 1, None))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        figure.legend(loc="outside lower left", ncols=4)
        alt = f"Learning curves with 95 % bands over seeds: {'; '.join(ends)}." + (
            f" Not drawn: {', '.join(rest)}." if rest else ""
        )
        return finished(figure, f"{pair.name}-curves", title, alt)


def _half_interval(runs: np.ndarray) -> np.ndarray:
    """Half of the 95 % t-interval of each column's mean."""
    return stats.t_quantile(len(runs) - 1) * runs.std(axis=0, ddof=1) / math.sqrt(len(runs))
