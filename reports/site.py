"""The reports of several grids with a start page: a folder as a web server or GitHub Pages serves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from bench.errors import UserError
from bench.records.batch import replace as replace_files
from bench.records.files import Folder
from bench.records.folders import GridFolder
from bench.records.problems import Problem
from bench.screen import Screen
from reports import page, verdicts

START = "index.html"
SENTENCES = 3  # of each grid, on the start page


class Entry(NamedTuple):
    """One grid on the start page."""

    page: page.Page
    link: str
    sentences: list[verdicts.Sentence]
    more: int  # sentences that only the report has
    drawing: Markup | None
    title: str
    alt: str


def report(folders: Sequence[GridFolder], to: Path, console: Screen, hidden: Sequence[Problem] = (), **look: Any) -> int:
    """Write the reports of these grids and their start page, and print where it lies; returns 1 where a grid has none.

    Args:
        to: what lies there stays, except for what former reports wrote.
        hidden: what looks like a grid of the folder and cannot be used; named on the page.
        look: see `page.write`.

    Raises:
        UserError: there is no grid, or the folder is the grids' own or lies within it.
    """
    failed: list[tuple[str, str]] = [*hidden]
    if not folders:
        more = "".join(f"; {name}: {reason}" for name, reason in failed)
        raise UserError(f"--site: the results folder holds no grid{more}")
    if any(to.resolve().is_relative_to(folder.results.root.resolve()) for folder in folders):
        raise UserError(f"--site: {to} lies in the results folder itself; name a folder elsewhere")
    entries: list[Entry] = []
    for folder in folders:
        try:
            written = page.write(folder, to / folder.name, home=f"../{START}", **look)
        except UserError as error:
            failed.append((folder.name, str(error)))
        else:
            entries.append(_entry(written.content, f"{quote(folder.name)}/{page.PAGE}", len(entries)))
    for name, reason in failed:
        console.print(f"{name}: {reason}", soft_wrap=True)
    files = {START: _render(entries, failed), ".nojekyll": ""}  # the latter for GitHub Pages, which would leave files out
    replace_files(Folder(to), files, last=START)
    console.print(f"site: {to / START}", soft_wrap=True)
    return 1 if failed else 0


def _entry(content: page.Page, link: str, index: int) -> Entry:
    several = len(content.pairs) > 1
    sentences = [
        sentence._replace(text=f"{section.pair.full_title}: {sentence.text}") if several else sentence
        for section in content.pairs
        for sentence in section.sentences
    ]
    sentences = [*content.overall, *sentences]
    figures = content.pairs[0].figures if content.pairs else []
    drawing, title, alt = None, "", ""
    if figures:
        own = replace(figures[0], name=f"{index}.{figures[0].name}")  # names become ids, which differ between grids
        drawing, title, alt = Markup(own.inline()), own.title, own.alt  # noqa: S704 - matplotlib escapes its texts
    return Entry(content, link, sentences[:SENTENCES], max(0, len(sentences) - SENTENCES), drawing, title, alt)


def _render(entries: Sequence[Entry], failed: Sequence[tuple[str, str]]) -> str:
    style = Markup((page.HERE / "page.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    written = datetime.now(UTC).strftime(page.WRITTEN)
    return page.environment().get_template("site.html").render(entries=entries, failed=failed, style=style, written=written)
