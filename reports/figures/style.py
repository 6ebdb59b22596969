"""How figures look: drawn once with matplotlib, written as PNG, SVG and PDF, and set inline in the page in its own colors."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from bench.errors import unknown
from bench.records.naming import abbreviated
from reports.figures import letters
from reports.style import FONT_SIZE, WIDTH, Style

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
    "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "reports",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.8, "axes.linewidth": 0.8, "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": PAPER, "axes.facecolor": "none", "savefig.facecolor": PAPER, "pdf.fonttype": 42, "hatch.linewidth": 0.6,
}  # fmt: skip


SMALL = 8.5 / FONT_SIZE  # size of legends, titles and names, relative to the font's


def look(style: Style) -> dict[Any, Any]:
    """Matplotlib's parameters for a style.

    Raises:
        UserError: the font is not installed.
    """
    if style.font not in (*font_manager.font_family_aliases, *installed()):
        raise unknown("font", style.font, {"serif", "sans-serif", "monospace", *installed()}, "style")
    small = SMALL * style.font_size
    sizes = {"font.size": style.font_size, "legend.fontsize": small, "figure.titlesize": small}
    return STYLE | sizes | {"font.family": style.font, "figure.figsize": (style.width, style.width)}


@cache
def installed() -> frozenset[str]:
    """Families of fonts."""
    return frozenset(font_manager.get_font_names())


@contextmanager
def drawn(style: Style, **changes: Any) -> Iterator[None]:
    """Within it `canvas` and `finished` make a figure in this style.

    Args:
        changes: of parameters, such as `axes_grid=False`.
    """
    with mpl.rc_context(look(style) | {name.replace("_", "."): value for name, value in changes.items()}):
        yield


def small() -> float:
    """Size of small text, points."""
    return float(mpl.rcParams["legend.fontsize"])


def characters(most: int) -> int:
    """As many characters as are `most` in a figure of the default width and font."""
    return max(10, round(most * mpl.rcParams["figure.figsize"][0] / WIDTH * FONT_SIZE / mpl.rcParams["font.size"]))


@dataclass(frozen=True)
class Figure:
    """A drawing, and what it shows in words for those who cannot see it."""

    name: str  # of its files
    title: str
    alt: str
    svg: str
    canvas: Canvas
    look: dict[Any, Any]  # matplotlib's parameters

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

    def files(self) -> Iterator[tuple[str, bytes | str]]:
        """Names and contents: SVG, PNG and PDF."""
        yield f"{self.name}.svg", self.svg
        with mpl.rc_context(self.look):
            for suffix, options in (("png", {"dpi": DPI}), ("pdf", {"metadata": {"CreationDate": None}})):
                buffer = io.BytesIO()
                self.canvas.savefig(buffer, format=suffix, **options)
                yield f"{self.name}.{suffix}", buffer.getvalue()


def _themed(color: str) -> str:
    return f"var({THEME[color]})" if color in THEME else color


def canvas(height: float, title: str, wider: float = 1.0) -> tuple[Canvas, Axes]:
    """An empty drawing with its title, since it may stand alone; the page strips the title for its own caption.

    Args:
        height: inches, for text of the default size; the title's lines add to it.
        wider: than the style's figures, times.
    """
    scale = mpl.rcParams["font.size"] / FONT_SIZE
    size = wider * mpl.rcParams["figure.figsize"][0], height * scale
    figure = Canvas(figsize=size, dpi=DPI, layout="constrained")  # text is as wide as in the PNG
    FigureCanvasAgg(figure)
    text = figure.suptitle(title, x=0.01, ha="left", color=MUTED, gid="title")
    with letters.unwarned():
        for most in range(len(title), 20, -2):
            if text.get_window_extent().x1 <= figure.bbox.width:
                break
            text.set_text("\n".join(textwrap.wrap(title, most)))
    figure.set_figheight(scale * (height + 0.16 * (1 + text.get_text().count("\n"))))
    return figure, figure.add_subplot()


def names_beside(labels: Sequence[str], width: int = 28) -> list[str]:
    """The names as a drawing shows them: on lines of `width` characters, two of them where that is enough; never equal."""
    wrapped = [textwrap.wrap(name, width) for name in abbreviated(labels, 2 * width)]
    return ["\n".join(lines) for lines in wrapped]


def row_inches(names: Sequence[str]) -> float:
    """Height of a row with one of these names beside it."""
    return 0.26 + 0.14 * max(name.count("\n") for name in names)


def finished(figure: Canvas, name: str, title: str, alt: str) -> Figure:
    """The figure, laid out and drawn as SVG; to be called within `drawn`.

    Args:
        name: of its files.
        alt: what it shows, in words.
    """
    buffer = io.StringIO()
    with letters.unwarned():  # fonts and ticks are settled only now
        letters.make_visible(figure)
        figure.draw_without_rendering()
        lacking = letters.lacking(figure)
        unknown = letters.find_font(figure, lacking)
        if lacking != unknown:
            figure.draw_without_rendering()
        _fit(figure)
        figure.set_layout_engine("none")  # laid out once is enough for three formats
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        letters.replace(figure, unknown)  # in PNG and PDF
    return Figure(name, title, alt, buffer.getvalue(), figure, {name: mpl.rcParams[name] for name in look(Style())})


def _fit(figure: Canvas) -> None:
    """Fewer columns in the legend and more lines in the labels of axes, until nothing is cut off."""
    width, height = figure.bbox.width, figure.bbox.height
    for legend in list(figure.legends):
        while legend.get_window_extent().x1 > width and legend._ncols > 1:  # type: ignore[attr-defined]
            legend.remove()
            handles = figure.axes[0].get_legend_handles_labels()
            columns = legend._ncols - 1  # type: ignore[attr-defined]
            legend = figure.legend(*handles, loc="outside lower left", ncols=columns)
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
