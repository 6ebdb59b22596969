"""How large the gradients of loss terms are along a training."""

from __future__ import annotations

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from reports.figures import figures_of_pair
from reports.figures.style import CYCLE, Figure, canvas, characters, drawn, finished, names_beside
from reports.gradients import shares
from reports.pair import Pair
from reports.tables.gradient_shares import percent

MARGIN = 1.6  # below and above, so that one of 1, 2, 5 is within


@figures_of_pair(45)
def gradient_shares(pair: Pair) -> Figure | None:
    """Norm of each term's gradient relative to the loss's, when each epoch begins: mean over seeds.

    The first methods of the tables, eight terms at most.
    """
    along = shares(pair)
    lines = list(along[along["of_loss"] > 0].groupby(["label", "term"], sort=False))  # of 0 there is no logarithm
    if not lines:
        return None
    called = [term if term == label else f"{label}: {term}" for (label, term), _ in lines]
    title = f"{pair.full_title}: gradients of loss terms"
    with drawn(pair.style):
        names = names_beside(called[: len(CYCLE)], characters(28))
        figure, axes = canvas(3.2 + 0.07 * sum(name.count("\n") for name in names), title)
        values = []
        for name, line, color, (_, rows) in zip(names, called, CYCLE, lines, strict=False):
            percents = 100 * rows["of_loss"]
            axes.plot(rows["epoch"], percents, color=pair.style.color(line, color), lw=1.4, marker=".", ms=4, label=name)
            values.append((f"{line} from {percent(rows['of_loss'].iloc[0])} to {percent(rows['of_loss'].iloc[-1])}", percents))
        axes.set_yscale("log")
        axes.set_ylim(min(each.min() for _, each in values) / MARGIN, max(each.max() for _, each in values) * MARGIN)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="Epoch, when it begins", ylabel="Norm of the term's gradient, % of the loss's")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        figure.legend(loc="outside lower left", ncols=4)
        rest = called[len(CYCLE) :]
        alt = "Norm of each term's gradient relative to that of the loss, along the training: "
        alt += "; ".join(text for text, _ in values) + "." + (f" Not drawn: {', '.join(rest)}." if rest else "")
        return finished(figure, f"{pair.name}-gradients", title, alt)
