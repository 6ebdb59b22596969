"""How figures look: drawn once with matplotlib, written as PNG, SVG and PDF, and set inline in the page in its own colors."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from bench.records.naming import abbreviated
from reports.figures import letters

# Colors that people with any color vision distinguish (Okabe and Ito), and the page's variables that take their place.
INK, MUTED, RULE, PAPER = "#1c1c1a", "#6b6b66", "#deded8", "#fefefd"
PLAIN, FREE, DISTILLED = "#737373", "#0072b2", "#d55e00"
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#737373", "#1c1c1a")
THEME = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"} | {
    "#0072b2": "--blue", "#d55e00": "--orange", "#009e73": "--green", "#cc79a7": "--pink", "#e69f00": "--yellow",
    "#56b4e9": "--sky", "#737373": "--grey",
}  # fmt: skip

KIND = {
    "none": ("o", FREE, "without a teacher"),
    "teacher": ("s", DISTILLED, "with a teacher"),
    "self": ("^", "#009e73", "with a copy of itself"),
}

DPI = 150
STYLE: dict[Any, Any] = {
    "font.size": 9.5, "font.family": "sans-serif", "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "reports",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.8, "axes.linewidth": 0.8, "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": PAPER, "axes.facecolor": "none", "savefig.facecolor": PAPER, "pdf.fonttype": 42, "hatch.linewidth": 0.6,
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A drawing, and what it shows in words for those who cannot see it."""

    name: str  # of its files
    title: str
    alt: str
    svg: str
    canvas: Canvas

    def inline(self) -> str:
        """The SVG for the page: its colors are the page's, its ids are its own."""
        svg = self.svg[self.svg.index("<svg") :]
        unwanted = r'<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|<g id="title">.*?</g>'
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
        svg = re.sub(r'\bid="', f'id="{self.name}.', svg)
        svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{self.name}.", svg)
        svg = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', svg)
        svg = svg.replace("xlink:href=", "href=")
        svg = re.sub(r'\b(fill|stroke)="(#[0-9a-f]{6})"', r'style="\g<1>: \g<2>"', svg)  # an attribute cannot hold a variable
        return re.sub(r"(fill|stroke): (#[0-9a-f]{6})", lambda hit: f"{hit[1]}: {_themed(hit[2])}", svg)

    def save(self, folder: Path) -> None:
        """Write PNG, SVG and PDF; the folder is made."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.svg").write_text(self.svg, encoding="utf-8")
        with mpl.rc_context(STYLE):
            self.canvas.savefig(folder / f"{self.name}.png", dpi=DPI)
            self.canvas.savefig(folder / f"{self.name}.pdf", metadata={"CreationDate": None})


def _themed(color: str) -> str:
    return f"var({THEME[color]})" if color in THEME else color


def canvas(height: float, title: str, width: float = 5.2) -> tuple[Canvas, Axes]:
    """An empty drawing with its title, since it may stand alone; the page strips the title for its own caption.

    Args:
        height, width: inches; the title's lines add to the height.
    """
    figure = Canvas(figsize=(width, height), dpi=DPI, layout="constrained")  # text is as wide as in the PNG
    FigureCanvasAgg(figure)
    text = figure.suptitle(title, x=0.01, ha="left", fontsize=8.5, color=MUTED, gid="title")
    with letters.unwarned():
        for most in range(len(title), 20, -2):
            if text.get_window_extent().x1 <= figure.bbox.width:
                break
            text.set_text("\n".join(textwrap.wrap(title, most)))
    figure.set_figheight(height + 0.16 * (1 + text.get_text().count("\n")))
    return figure, figure.add_subplot()


def names_beside(labels: Sequence[str], width: int = 28) -> list[str]:
    """The names as a drawing shows them: on lines of `width` characters, two of them where that is enough; never equal."""
    wrapped = [textwrap.wrap(name, width) for name in abbreviated(labels, 2 * width)]
    return ["\n".join(lines) for lines in wrapped]


def row_inches(names: Sequence[str]) -> float:
    """Height of a row with one of these names beside it."""
    return 0.26 + 0.14 * max(name.count("\n") for name in names)


def finished(figure: Canvas, name: str, title: str, alt: str) -> Figure:
    """The figure, laid out and drawn as SVG.

    Args:
        name: of its files.
        alt: what it shows, in words.
    """
    buffer = io.StringIO()
    with mpl.rc_context(STYLE), letters.unwarned():  # fonts and ticks are settled only now
        figure.draw_without_rendering()
        lacking = letters.lacking(figure)
        unknown = letters.find_font(figure, lacking)
        if lacking != unknown:
            figure.draw_without_rendering()
        _fit(figure)
        figure.set_layout_engine("none")  # laid out once is enough for three formats
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        letters.replace(figure, unknown)  # in PNG and PDF
    return Figure(name, title, alt, buffer.getvalue(), figure)


def _fit(figure: Canvas) -> None:
    """Fewer columns in the legend and more lines in the labels of axes, until nothing is cut off."""
    width, height = figure.bbox.width, figure.bbox.height
    for legend in list(figure.legends):
        while legend.get_window_extent().x1 > width and legend._ncols > 1:  # type: ignore[attr-defined]
            legend.remove()
            drawn = figure.axes[0].get_legend_handles_labels()
            columns = legend._ncols - 1  # type: ignore[attr-defined]
            legend = figure.legend(*drawn, loc="outside lower left", ncols=columns, fontsize=8.5)
            figure.draw_without_rendering()
    titles = [text for text in figure.texts if text.get_gid() == "title"]
    top = min((text.get_window_extent().y0 for text in titles), default=height)
    for axes in figure.axes:
        for label, most in ((axes.xaxis.label, width), (axes.yaxis.label, top)):
            text = label.get_text()
            for lines in range(2, 6):
                box = label.get_window_extent()
                if (box.x0 >= 0 and box.x1 <= most) if label is axes.xaxis.label else (box.y0 >= 0 and box.y1 <= most):
                    break
                label.set_text("\n".join(textwrap.wrap(text, math.ceil(len(text) / lines) + 4)))
                figure.draw_without_rendering()


def plus_minus(mean: float, half: float) -> str:
    """'70.12 ± 0.30', or the mean alone where the interval is not known."""
    return f"{mean:.2f}" if math.isnan(half) else f"{mean:.2f} ± {half:.2f}"
