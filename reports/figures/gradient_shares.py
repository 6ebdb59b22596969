"""How large the gradients of loss terms are along a training."""

from __future__ import annotations

from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from reports.figures import figures_of_pair
from reports.figures.style import CYCLE, Figure, canvas, characters, drawn, finished, names_beside
from reports.gradients import shares
from reports.pair import Pair
from reports.tables.gradient_shares import percent


@figures_of_pair(45)
def gradient_shares(pair: Pair) -> Figure | None:
    """Norm of each term's gradient relative to the loss's, when each epoch begins: mean over seeds.

    The first methods of the tables, eight terms at most.
    """
    lines = [(label, term, rows) for (label, term), rows in shares(pair).groupby(["label", "term"], sort=False)]
    lines = [line for line in lines if (line[2]["of_loss"] > 0).any()]
    if not lines:
        return None
    shown, rest = lines[: len(CYCLE)], lines[len(CYCLE) :]
    title = f"{pair.full_title}: gradients of loss terms"
    with drawn(pair.style):
        names = names_beside([f"{label}: {term}" for label, term, _ in shown], characters(28))
        figure, axes = canvas(3.2 + 0.07 * sum(name.count("\n") for name in names), title)
        values = []
        for index, (label, term, rows) in enumerate(shown):
            known = rows[rows["of_loss"] > 0]
            color = pair.style.color(f"{label}: {term}", CYCLE[index])
            axes.plot(known["epoch"], 100 * known["of_loss"], color=color, lw=1.4, marker=".", ms=4, label=names[index])
            first, last = (known["of_loss"].iloc[place] for place in (0, -1))
            values.append(f"{term} of {label} from {percent(first)} to {percent(last)}")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="Epoch, when it begins", ylabel="Norm of the term's gradient, % of the loss's")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        figure.legend(loc="outside lower left", ncols=4)
        alt = f"Norm of each term's gradient relative to that of the loss, along the training: {'; '.join(values)}."
        alt += f" Not drawn: {', '.join(f'{term} of {label}' for label, term, _ in rest)}." if rest else ""
        return finished(figure, f"{pair.name}-gradients", title, alt)
