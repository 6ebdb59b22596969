"""How far each training of a grid is, as methods by seeds: what `run` shows while it goes on, and `status`. No torch here."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from bench.records.cell import Cell, safe
from bench.records.cell_folder import CellFolder
from bench.records.folders import GridFolder
from bench.records.naming import abbreviated, describe
from bench.records.teacher import source_of
from bench.screen import Table
from bench.texts import one_line

STATES = ("done", "running", "failed", "missing")  # always counted
RARE_STATES = ("queued", "unreadable")  # counted where there are any
FINAL_STATES = ("done", "failed", "unreadable")
STYLES = {"done": "", "running": "cyan", "failed": "red", "unreadable": "red", "queued": "yellow", "missing": "bright_black"}
SIGNS = {"done": "●", "running": "◐", "failed": "✗", "unreadable": "?", "queued": "…", "missing": "·"}  # where seeds are many
COLUMN = 7  # characters of a seed's column, the gap beside it included
MOST_NAMED = 8  # running cells that have a line of their own
LONGEST_S = 1e8  # a longer time left is no estimate


# Where a cell stands


class Place(NamedTuple):
    """A cell's place among methods and seeds."""

    group: str  # student, teacher and setting: cells of one group are compared
    method: str
    seed: int


def facts(cells: Mapping[str, Cell]) -> dict[str, dict[str, str]]:
    """By id what a manifest's entries hold of the cells' places: "student", "source" (the teacher) and "setting"."""
    deviations = settings(cells)
    found = {}
    for name, cell in cells.items():
        source = source_of(cell) if cell.needs == "teacher" else ""
        entry = {"student": describe(cell.student), "source": source, "setting": deviations[name]}
        found[name] = {key: value for key, value in entry.items() if value}
    return found


def settings(cells: Mapping[str, Cell]) -> dict[str, str]:
    """By id: the settings of data, precision and recipe in which a cell differs from most cells; trials from the others."""
    found = {
        name: {"data": describe(cell.data), "precision": cell.precision} | cell.recipe.model_dump(mode="json")
        for name, cell in cells.items()
    }
    usual = {key: Counter(str(each[key]) for each in found.values()).most_common(1)[0][0] for key in next(iter(found.values()))}
    usual["validation"] = str(min(cell.recipe.validation for cell in cells.values()))
    return {
        name: ", ".join(f"{key}={value}" for key, value in each.items() if str(value) != usual[key])
        for name, each in found.items()
    }


def places(entries: Iterable[Mapping[str, Any]]) -> dict[str, Place]:
    """Of a manifest's cells, by id. Entries of a former version lack the student: it is taken from the id."""
    entries = list(entries)
    networks = [(_student(entry), str(entry.get("setting", ""))) for entry in entries]
    sources: dict[tuple[str, str], set[str]] = defaultdict(set)
    for network, entry in zip(networks, entries, strict=True):
        sources[network] |= {str(entry["source"])} if entry.get("source") else set()
    found = {}
    for network, entry in zip(networks, entries, strict=True):
        student, setting = network
        teachers = sources[network]
        taught = f" taught by {next(iter(teachers))}" if len(teachers) == 1 else ""
        method = str(entry["label"]) + (" (teaches)" if entry.get("teacher") is True else "")
        method += f" ({entry['source']})" if len(teachers) > 1 and entry.get("source") else ""
        group = student + taught + (f", {setting}" if setting else "")
        found[str(entry["id"])] = Place(one_line(group), one_line(method), _seed(entry))
    return found


def _student(entry: Mapping[str, Any]) -> str:
    if entry.get("student"):
        return str(entry["student"])
    stem = re.sub(r"-s\d+-[0-9a-f]{12}$", "", str(entry["id"]))
    family = re.sub(r"\(.*?\)|\[.*?\]", "", str(entry["label"]))  # 'tfd+kd' of 'tfd(weight=1)+kd'
    return stem.removesuffix("-" + safe(str(entry.get("family", family))))


def _seed(entry: Mapping[str, Any]) -> int:
    seed = entry.get("seed")
    if isinstance(seed, int):
        return seed
    found = re.search(r"-s(\d+)-[0-9a-f]{12}$", str(entry["id"]))
    return int(found[1]) if found else 0


# What is known of a cell


class Glance(NamedTuple):
    """What a look at a cell's folder has found."""

    state: str  # of STATES or RARE_STATES
    top1: float | None = None  # %, on the test set after the last epoch so far
    share: float = 0.0  # that is trained, in [0, 1]
    seconds: float = 0.0  # that this took
    images_per_s: float = 0.0
    epoch: str = ""  # "3 of 30"

    @property
    def all_s(self) -> float:
        """Seconds of the training from its start to its end; NaN where it has hardly begun."""
        return self.seconds / self.share if self.share > 0.01 and self.seconds else math.nan


def glance(cell: CellFolder) -> Glance:
    """What a cell's folder shows right now. A record is read once: grids have thousands."""
    try:
        record = cell.record()
    except (ValueError, OSError):  # its state says so
        record = None
    if record:
        spent = record.clocks
        seconds = spent.train_s + spent.prepare_s + spent.evaluate_s + spent.checkpoint_s + spent.log_s
        return Glance("done", record.accuracies.last.top1, 1.0, seconds)
    state = cell.state()
    if state == "done":  # it ended between the two looks
        return glance(cell)
    latest = cell.progress() if state == "running" else None
    if not latest:
        return Glance(state)
    clocks = latest.get("clocks")
    return Glance(
        state,
        top1=_number(latest.get("top1")) if latest.get("top1") is not None else None,
        share=min(1.0, max(0.0, _number(latest.get("share")))),
        seconds=sum(map(_number, clocks.values())) if isinstance(clocks, dict) else 0.0,
        images_per_s=_number(latest.get("images_per_s")),
        epoch=f"{latest.get('epoch', 0)} of {latest.get('epochs', '?')}",
    )


def _number(value: object) -> float:
    """A number of a hint; 0 where it is none."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return number if math.isfinite(number) else 0.0


class Board:
    """The cells of a grid by group, method and seed, with what the last look has found of each."""

    def __init__(self, folder: GridFolder, found: Mapping[str, Place], former: Mapping[str, Glance] | None = None) -> None:
        """
        Args:
            former: what an earlier look has found, by id; cells that were done by then are not looked at again.
        """
        self.places = dict(found)
        self.cells = {cell_id: folder.cell(cell_id) for cell_id in self.places}
        known = {cell_id: each for cell_id, each in (former or {}).items() if each.state == "done"}
        self.glances = {cell_id: known.get(cell_id) or glance(cell) for cell_id, cell in self.cells.items()}

    def look(self) -> list[str]:
        """Look again at what is not done: another `run` may try a failed cell again, and a record that could not be read may
        be legible now. Returns the ids of the cells that have ended since the last look.
        """
        ended = []
        for cell_id, former in self.glances.items():
            if former.state != "done":
                found = self.glances[cell_id] = glance(self.cells[cell_id])
                ended += [cell_id] if found.state in FINAL_STATES and found.state != former.state else []
        return ended

    def leave_out(self, cells: Iterable[str]) -> None:
        for cell_id in list(cells):
            del self.places[cell_id], self.cells[cell_id], self.glances[cell_id]

    def of_state(self, state: str) -> list[str]:
        """Ids of the cells in that state."""
        return [cell_id for cell_id, found in self.glances.items() if found.state == state]

    @property
    def counts(self) -> dict[str, int]:
        found = Counter(each.state for each in self.glances.values())
        return {state: found[state] for state in (*STATES, *(state for state in RARE_STATES if found[state]))}

    def name(self, cell_id: str) -> str:
        """'kd, seed 0', with the group where the grid has several."""
        place = self.places[cell_id]
        several = len({each.group for each in self.places.values()}) > 1
        return f"{place.method}, seed {place.seed}" + (f" ({place.group})" if several else "")

    # Time

    def seconds_left(self) -> float:
        """Estimate: what is left of all trainings, shared by those that run now; NaN where nothing runs or is known.

        A training takes as long as the mean of its method's, else as the mean of all whose time is known.
        """
        known: dict[tuple[str, str], list[float]] = defaultdict(list)
        for cell_id, each in self.glances.items():
            if not math.isnan(each.all_s):
                known[self.places[cell_id][:2]].append(each.all_s)
        every = [value for values in known.values() for value in values]
        running = self.of_state("running")
        if not (every and running):
            return math.nan
        left = 0.0
        for cell_id, each in self.glances.items():
            if each.state not in FINAL_STATES:
                alike = known.get(self.places[cell_id][:2], every)
                left += (1 - each.share) * (sum(alike) / len(alike) if math.isnan(each.all_s) else each.all_s)
        return left / len(running)

    def headline(self) -> str:
        """'3 of 13 done, 2 running, 1 failed, 7 missing; 5,200 images/s; 0:01:30 left'."""
        counts = self.counts
        shown = [f"{counts['done']} of {len(self.glances)} done"]
        shown += [f"{count} {state}" for state, count in counts.items() if state != "done" and count]
        line = ", ".join(shown)
        if counts["running"]:
            rate = sum(each.images_per_s for each in self.glances.values() if each.state == "running")
            line += f"; {rate:,.0f} images/s" if rate else ""
            line += f"; {duration(left)} left" if not math.isnan(left := self.seconds_left()) else ""
        return line

    # Pictures

    def view(self, width: int, height: int | None = None) -> Group:
        """Tables of methods by seeds, a line for each running cell; in so many characters and, where given, lines."""
        running = self.of_state("running")
        named = running[: MOST_NAMED if height is None else max(1, min(MOST_NAMED, height // 4))]
        lines = [Text(self._running(cell_id, width), no_wrap=True, overflow="ellipsis") for cell_id in named]
        if len(running) > len(named):
            lines.append(Text(f"and {len(running) - len(named)} more running"))
        tables = self._tables(width, None if height is None else height - len(lines))
        return Group(*tables, *lines)

    def _running(self, cell_id: str, width: int) -> str:
        """How far a cell is; a name that is too long is cut, not the numbers."""
        found = self.glances[cell_id]
        parts = [f"epoch {found.epoch}"] if found.epoch else ["starts"]
        parts += [f"{found.top1:.2f} %"] if found.top1 is not None else []
        parts += [f"{found.images_per_s:,.0f} images/s"] if found.images_per_s else []
        left = found.all_s * (1 - found.share)
        parts += [] if math.isnan(left) else [f"{duration(left)} left"]
        numbers, name = ", ".join(parts), self.name(cell_id)
        space = max(12, width - len(f"running : {numbers}"))
        return f"running {name if len(name) <= space else name[: space - 1] + '…'}: {numbers}"

    def _tables(self, width: int, height: int | None) -> list[RenderableType]:
        groups: dict[str, dict[str, dict[int, Glance]]] = defaultdict(lambda: defaultdict(dict))
        for cell_id, (group, method, seed) in self.places.items():
            groups[group][method][seed] = self.glances[cell_id]
        rows = [(group, method) for group, methods in groups.items() for method in methods]
        shown = set(rows) if height is None else _fitting(rows, groups, height)
        most = max(12, min(max(20, width // 2 - 4), width - COLUMN))
        titles = dict(zip(groups, abbreviated([*groups], most), strict=True))
        methods = list(dict.fromkeys(method for _, method in rows))
        names = dict(zip(methods, abbreviated(methods, most), strict=True))
        label_width = max(map(len, (*titles.values(), *names.values())), default=0)
        tables: list[RenderableType] = []
        for group, found in groups.items():
            if kept := {names[method]: seeds for method, seeds in found.items() if (group, method) in shown}:
                tables.append(_table(titles[group], kept, label_width, width))
        if len(shown) < len(rows):
            tables.append(Text(f"and {len(rows) - len(shown)} more methods; `status` shows all", style="bright_black"))
        return tables


def _fitting(
    rows: Sequence[tuple[str, str]], groups: Mapping[str, Mapping[str, Mapping[int, Glance]]], height: int
) -> set[tuple[str, str]]:
    """(group, method) of the rows that fit into so many lines, with a head for each group: first those with running cells."""

    def busy(row: tuple[str, str]) -> bool:
        return any(each.state == "running" for each in groups[row[0]][row[1]].values())

    if len(rows) + len(groups) <= height:
        return set(rows)
    shown: set[tuple[str, str]] = set()
    lines = 1  # that counts what is left out
    for row in sorted(rows, key=lambda row: not busy(row)):
        needed = 1 + (row[0] not in {group for group, _ in shown})
        if lines + needed <= height:
            shown.add(row)
            lines += needed
    return shown


def _table(title: str, rows: Mapping[str, Mapping[int, Glance]], label_width: int, width: int) -> Table:
    """A group's methods by seeds; where the seeds are too many for the width, a sign for each."""
    seeds = sorted(set[int]().union(*rows.values()))
    by_seed = label_width + 1 + COLUMN * (len(seeds) + 1) <= width
    table = Table(padding=(0, 1, 0, 0), last_needed=() if by_seed else (3, 2))
    table.add_column(Text(title), width=label_width, no_wrap=True, overflow="ellipsis")
    if by_seed:
        for seed in seeds:
            table.add_column(f"s{seed}", width=COLUMN - 1, justify="right", no_wrap=True)
    table.add_column("mean", width=COLUMN - 1, justify="right", no_wrap=True)
    if not by_seed:
        table.add_column("done", width=COLUMN - 1, justify="right", no_wrap=True)
        space = max(1, width - label_width - 1 - 2 * COLUMN)
        head = f"seeds {seeds[0]} to {seeds[-1]}"
        table.add_column(Text(head), width=min(space, max(len(seeds), len(head))), no_wrap=True, overflow="ellipsis")
    for name, found in rows.items():
        done = [each.top1 for each in found.values() if each.state == "done" and each.top1 is not None]
        mean = f"{sum(done) / len(done):.2f}" if len(done) > by_seed else ""
        if by_seed:
            table.add_row(Text(name), *(_value(found.get(seed)) for seed in seeds), mean)
        else:
            signs = Text.assemble(*(_sign(found.get(seed)) for seed in seeds))
            table.add_row(Text(name), mean, f"{len(done)}/{len(found)}", signs)
    return table


def _value(found: Glance | None) -> Text:
    """A cell of the table: accuracy, share that is trained, or state."""
    if found is None:
        return Text("")
    if found.state == "done":
        return Text(f"{found.top1:.2f}")
    text = f"{found.share:.0%}".replace("%", " %") if found.state == "running" else found.state
    return Text({"missing": "·", "unreadable": "?"}.get(text, text), style=STYLES[found.state])


def _sign(found: Glance | None) -> tuple[str, str]:
    return (SIGNS[found.state], STYLES[found.state]) if found else (" ", "")


def bar(share: float, width: int) -> Text:
    """A bar of so many characters, filled to a share in [0, 1]."""
    filled = round(share * width)
    return Text("█" * filled + "░" * (width - filled), no_wrap=True)


def duration(seconds: float) -> str:
    """'0:01:30', '2 days, 3:00:00', or '?' where it is not known."""
    return "?" if math.isnan(seconds) or seconds > LONGEST_S else str(timedelta(seconds=round(seconds)))


# Failures


def failures(board: Board, again: str = "") -> list[str]:
    """Why cells have failed, equal reasons together, and what to type to learn more or to try again.

    Args:
        again: the command that trains failed cells again.
    """
    reasons: dict[str, list[str]] = defaultdict(list)
    for cell_id in board.of_state("failed"):
        error = " ".join(str((board.cells[cell_id].failure() or {}).get("error", "")).split())
        reasons[error].append(cell_id)
    lines = []
    for error, cells in reasons.items():
        more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
        lines.append(f"failed  {board.name(cells[0])}{more}: {error}")
        lines.append(f"        logs {cells[0].rpartition('-')[2]} shows more of {cells[0]}")
    return [*lines, f"{again} trains failed cells again"] if lines and again else lines
