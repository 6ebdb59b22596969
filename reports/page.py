"""One self-contained HTML page from a results folder, with its figures and tables as files beside it."""

from __future__ import annotations

import base64
import dataclasses
import gc
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup

from bench.records.batch import replace
from bench.records.files import Folder
from bench.records.folders import GridFolder
from bench.records.source import code_of, mixed_code
from bench.texts import visible
from reports import overall, verdicts
from reports.behind import Facts, facts, pairs_in
from reports.design import Missing
from reports.figures import figures_of_pair, figures_of_report
from reports.figures.style import Figure
from reports.frame import SHARED_BY
from reports.pair import Pair
from reports.play import play
from reports.report import Report
from reports.style import DEFAULT
from reports.style import read as read_style
from reports.tables import tables_of_pair, tables_of_report
from reports.tables.compared import in_both_precisions
from reports.tables.table import Table, as_csv, markdown_text

HERE = Path(__file__).parent
PAGE = "report.html"
WRITTEN = "%d %B %Y, %H:%M UTC"
PNG = b"\x89PNG\r\n\x1a\n"
KINDS = (("none", "●", "without a teacher"), ("teacher", "■", "with a teacher"), ("self", "▲", "with a copy"))
SCRIPTS = ("page_state.js", "page_tables.js", "page_plot.js", "page.js")
ALL_FIGURES_UP_TO = 8  # pairs; with more of them only the first is drawn, their tables stay complete
FIRST_FIGURES = 1
OPEN_PAIRS = 8  # that are unfolded in the page
SENTENCES_ON_TOP = 3  # pairs; with more of them the top counts, and each pair's sentences stand in its section


class Kind(NamedTuple):
    """A section that spans the pairs: it shows the tables and figures that name it."""

    anchor: str
    link: str  # in the contents
    title: str
    text: str = ""


FIRST = (Kind("matrix", "Overview", "Every method on every pair"),)
ABOVE_PAIRS = (Kind("ranks", "Ranks", "Across pairs"),)
BELOW_PAIRS = (
    Kind("equal-cost", "Equal cost", "At the plain student's cost"),
    Kind("steps", "Steps", "Steps of cells that are not trained yet"),
    Kind(
        "published",
        "Published",
        "Beside published numbers",
        "Each published number stands beside two of ours. One is chosen by the rule of its source: best epoch on the test set, "
        "best of so many runs. The other is chosen by our rule: last epoch, mean of all seeds.",
    ),
    Kind("precisions", "Precisions", "The same trainings in both precisions"),
    Kind("compared", "Compared", "Beside another results folder", "A is this report's folder, B is {other}."),
    Kind("across", "Teachers", "Teachers and searches"),
)


@dataclass(frozen=True)
class Section:
    """A section that spans the pairs, filled."""

    kind: Kind
    text: str
    figures: list[Figure]
    tables: list[Table]


@dataclass(frozen=True)
class PairSection:
    """The section of one pair."""

    pair: Pair
    short: Table  # what stands at the top of the page
    sentences: list[verdicts.Sentence]
    figures: list[Figure]
    tables: list[Table]


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    grid: str
    about: str
    written: str
    cells: int
    done: int
    places: Sequence[str]
    overall: list[verdicts.Sentence]
    caveats: list[str]
    first: list[Section]
    above: list[Section]
    pairs: list[PairSection]
    below: list[Section]
    drawn: int  # pairs that have figures
    on_top: bool  # whether the sentences of all pairs stand at the top
    open_pairs: int
    maps: list[str]  # PNG as Base64
    missing: Sequence[Missing]
    skipped: list[tuple[str, str]]  # what, why
    problems: list[tuple[str, str]]  # path, what is wrong
    facts: Facts
    grid_text: str
    play: dict[str, Any]  # for the script, see `reports.play`
    home: str = ""  # link to the page that leads here


class Written(NamedTuple):
    """What a report left."""

    page: Path
    summary: pd.DataFrame  # one row for every method of every pair; empty where no student has been trained
    notes: tuple[str, ...]  # what the style hides, and what it names in vain
    content: Page


@contextmanager
def uncollected() -> Iterator[None]:
    """Garbage collection off: it would walk through all records again and again, a sixth of the time of a large report."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@uncollected()
def write(
    folder: GridFolder,
    to: Path | None = None,
    compare: str | Path | None = None,
    style: str | Path | None = None,
    grams_per_kwh: float | None = None,
    home: str = "",
) -> Written:
    """Write the report of a grid.

    Args:
        folder: the grid.
        to: the report's folder, by default the grid's own; what a former report wrote there is replaced, all of it or
            nothing, and what the verb `maps` drew in `maps` is shown.
        compare: a second results folder with a grid of this name, or a grid's own folder, to set beside the first.
        style: a style file, by default `reports/style.yaml`, which explains the keys.
        grams_per_kwh: of CO2, for the table of energy.
        home: link to a page over several reports, if this is one of them.

    Returns:
        The page, `report.html`, what it shows, and the summary. Beside the page: report.md, records.csv (the tidy frame),
        tables/ (Markdown, CSV, LaTeX) and figures/ (PNG, SVG, PDF).

    Raises:
        UserError: a grid has no manifest, or the style file cannot be used.
        OSError: the folder cannot be written; the former report is as it was.
    """
    look = read_style(style or DEFAULT)
    report = Report.of_grid(folder, compare, look, grams_per_kwh)
    place = Folder(to) if to else folder.report_place()
    made = [(entry.section, table.styled(look)) for entry in tables_of_report for table in _several(entry.make(report))]
    made = [(section, table) for section, table in made if table]
    drawings = [(entry.section, drawing) for entry in figures_of_report for drawing in _several(entry.make(report))]
    drawn = len(report.pairs) if len(report.pairs) <= ALL_FIGURES_UP_TO else FIRST_FIGURES
    pairs = [_pair_section(pair, index < drawn) for index, pair in enumerate(report.pairs)]
    page = _page(report, pairs, drawn, made, drawings, folder.report_place().at("maps"))
    page = dataclasses.replace(page, home=home)
    tables = [table for section, table in made if section == "files"]
    tables += [table for section in pairs for table in (section.short, *section.tables)]
    tables += [table for section, table in made if section != "files"]
    figures = [*(drawing for _, drawing in drawings), *(drawing for section in pairs for drawing in section.figures)]
    files = {f"tables/{name}": content for table in tables for name, content in _table_files(table)}
    files |= {f"figures/{name}": content for figure in figures for name, content in figure.files()}
    files["records.csv"] = as_csv(report.frame)
    files["report.md"] = _markdown(page, [table for table in tables if not table.narrow])
    files[PAGE] = render(page)
    replace(place, files, last=PAGE)
    return Written(
        (to or folder.report_folder()) / PAGE, report.style.shown(report.summary), report.hidden + report.in_vain, page
    )


def _several(made: Table | Figure | Sequence[Table] | Sequence[Figure] | None) -> list:
    return [] if made is None else list(made) if isinstance(made, Sequence) else [made]


def _pair_section(pair: Pair, with_figures: bool) -> PairSection:
    """The section of a pair."""
    made = [(entry.section, table.styled(pair.style)) for entry in tables_of_pair for table in _several(entry.make(pair))]
    made = [(section, table) for section, table in made if table]
    [short] = [table for section, table in made if section == "top"]
    drawings = [drawing for entry in figures_of_pair for drawing in _several(entry.make(pair))] if with_figures else []
    return PairSection(pair, short, verdicts.of_pair(pair), drawings, [table for section, table in made if section != "top"])


def _overall(report: Report) -> list[verdicts.Sentence]:
    """Sentences over several pairs, and over both precisions."""
    found = overall.of_methods(report.style.shown(report.over)) if len(report.pairs) > 1 else []
    precisions = in_both_precisions(report.frame, report.design)
    return found + overall.of_precisions(precisions.frame if precisions else None)


def _page(
    report: Report,
    pairs: list[PairSection],
    drawn: int,
    made: list[tuple[str, Table]],
    drawings: list[tuple[str, Figure]],
    maps: Folder,
) -> Page:
    def filled(kinds: Iterable[Kind]) -> list[Section]:
        found = []
        for kind in kinds:
            figures = [drawing for section, drawing in drawings if section == kind.anchor]
            tables = [table for section, table in made if section == kind.anchor]
            if figures or tables:
                text = kind.text.format(other=report.other.name if report.other else "")
                found.append(Section(kind, text, figures, tables))
        return found

    behind = facts(report)
    of_costs = report.places, behind.busy_percent, behind.processes
    caveats = overall.caveats(report.summary, report.design, len(report.problems), *of_costs) if report.pairs else []
    caveats += [f"{warning[0].upper()}{warning[1:]}." for found in report.teachers.values() if (warning := found.warning)]
    caveats += report.hidden
    caveats += mixed_code(report.records, code_of(report.manifest))
    return Page(
        grid=report.grid,
        about=str(report.manifest.get("about") or ""),
        written=datetime.now(UTC).strftime(WRITTEN),
        cells=len(report.manifest["cells"]),
        done=len(report.records),
        places=report.places if report.pairs else (),
        overall=_overall(report),
        caveats=caveats,
        first=filled(FIRST),
        above=filled(ABOVE_PAIRS),
        pairs=pairs,
        below=filled(BELOW_PAIRS),
        drawn=drawn,
        on_top=len(pairs) <= SENTENCES_ON_TOP,
        open_pairs=OPEN_PAIRS,
        maps=[base64.b64encode(picture).decode() for picture in _pictures(maps)],
        missing=[cell._replace(label=report.style.named(cell.label)) for cell in report.design.missing],
        skipped=pairs_in(report.manifest.get("skipped", []), "what", "reason"),
        problems=[(problem.path, problem.reason) for problem in report.problems],
        facts=behind,
        grid_text=json.dumps(report.manifest.get("grid", {}), indent=2, ensure_ascii=False),
        play=play(report),
    )


def environment() -> jinja2.Environment:
    """Templates of this folder; everything is escaped that is not marked as our own."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,  # not our own markup
    )
    made.policies["json.dumps_kwargs"] = {"sort_keys": False}  # the first quantity is the one to start with
    made.filters["beyond"] = _beyond
    made.filters["drawing"] = lambda figure: Markup(figure.inline())  # noqa: S704 - matplotlib escapes its texts
    return made


def render(page: Page) -> str:
    """The page's HTML: everything is escaped but our own style, script and drawings; its policy forbids any request."""
    script = "".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment()
        .get_template("page.html")
        .render(
            page=page,
            shared_by=SHARED_BY,
            kinds=[
                kind
                for kind in KINDS
                if any(kind[0] in (row["needs"] for row in pair["methods"]) for pair in page.play["pairs"])
            ],
            style=Markup((HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
            script=Markup(script),  # noqa: S704 - our own file
            script_hash=f"sha256-{allowed}",
        )
    )


def _beyond(title: str, within: str) -> str:
    """A title without what its section names already: the pair and the setting."""
    rest = title.removeprefix(f"{within}: ")
    return rest[:1].upper() + rest[1:]


def _pictures(maps: Folder) -> Iterator[bytes]:
    """What the verb `maps` drew; nothing else that lies there goes into a page that is shared."""
    with suppress(ValueError, OSError):
        for name in maps.files(".png"):
            with suppress(ValueError, OSError):
                if (picture := maps.read(name)).startswith(PNG):
                    yield picture


def _table_files(table: Table) -> Iterator[tuple[str, str]]:
    """Names and contents."""
    for suffix, content in (("md", table.markdown()), ("csv", table.csv()), ("tex", table.latex())):
        yield f"{table.name}.{suffix}", content


def _markdown(page: Page, tables: Sequence[Table]) -> str:
    lines = [f"# {markdown_text(page.grid)}", "", markdown_text(page.about), ""]
    lines += [*(f"- {markdown_text(sentence.text)}" for sentence in page.overall), ""] if page.overall else []
    for section in page.pairs:
        lines += [
            f"## {markdown_text(section.pair.full_title)}",
            "",
            *(f"- {markdown_text(sentence.text)}" for sentence in section.sentences),
            "",
        ]
    lines += [f"> {markdown_text(caveat)}" for caveat in page.caveats]
    lines += ["", *(table.markdown() for table in tables)]
    listed = {
        "Missing": [f"{cell.label} ({cell.id}): {cell.reason}" for cell in page.missing],
        "Skipped": [f"{what}: {reason}" for what, reason in page.skipped],
        "Problems": [f"{path}: {reason}" for path, reason in page.problems],
    }
    for title, items in listed.items():
        if items:
            lines += [f"### {title}", "", *(f"- {markdown_text(item)}" for item in items), ""]
    return "\n".join(lines)
