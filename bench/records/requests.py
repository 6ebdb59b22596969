"""What was asked of a grid, request by request: it shows how often somebody could look before more seeds were added. No torch.

A manifest's "requests" is such a list, in order of time. A group is the runs of one method on one pair, see `Cell.cost_key`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from bench.records.record import Record

Request = Mapping[str, Any]
"""{"time", "commit", "seeds": {group: [seed, ...]}, "done": likewise, what was trained by then, "rebuilt": true where the
request was not written down but is guessed from records; "rule": of sequential seeds, see `bench.stats.SeedRule`}."""
Look = Mapping[str, Any]
"""{"time", "commit", "rule", "comparisons": [{"method", "baseline": groups, "seeds", "word", "decided", "cells", ...}]}."""


def appended(
    former: Sequence[Request],
    cells: Iterable[Mapping[str, Any]],
    done: Callable[[str], bool],
    commit: str | None,
    rule: Mapping[str, float] | None = None,
) -> list[Request]:
    """The requests, and the present one where it asks for other trainings than the last, or by another rule.

    Args:
        former: the requests so far.
        cells: of the present manifest, with "id", "group" and "seed"; a manifest of a former version has no groups.
        done: whether the cell of an id is trained; asked only where the request is new.
        commit: of this project.
        rule: of sequential seeds.
    """
    grouped = [cell for cell in cells if "group" in cell]
    seeds = _by_group((cell["group"], cell["seed"]) for cell in grouped)
    if not seeds or (former and former[-1]["seeds"] == seeds and former[-1].get("rule") == (rule or None)):
        return list(former)
    trained = _by_group((cell["group"], cell["seed"]) for cell in grouped if done(cell["id"]))
    request = {"time": _now(), "commit": commit, "seeds": seeds, "done": trained}
    return [*former, request | ({"rule": dict(rule)} if rule else {})]


def with_look(
    former: Sequence[Look], rule: Mapping[str, float], compared: Sequence[Mapping[str, Any]], commit: str | None
) -> list[Look]:
    """The looks at sequential seeds, and the present one where it has found anything else than the last."""
    if former and (former[-1]["rule"], former[-1]["comparisons"]) == (rule, compared):
        return list(former)
    return [*former, {"time": _now(), "commit": commit, "rule": rule, "comparisons": compared}]


def merged(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Both histories, of requests or of looks, as one, in order of time."""
    return sorted([*ours, *(each for each in theirs if each not in ours)], key=lambda request: str(request["time"]))


def rebuilt(records: Iterable[Record]) -> list[Request]:
    """A guess for folders that have no history: trainings of one commit were asked for together, and with all before them."""
    found: list[Request] = []
    batches: dict[str | None, list[Record]] = defaultdict(list)
    known = sorted(records, key=lambda record: record.started)
    for record in known:
        batches[record.commit].append(record)
    asked: list[Record] = []
    for commit, batch in batches.items():
        asked += batch
        start = batch[0].started
        done = [record for record in known if record.finished <= start]
        seeds, trained = (_by_group((each.cell.cost_key, each.cell.seed) for each in some) for some in (asked, done))
        found.append({"time": start, "commit": commit, "seeds": seeds, "done": trained, "rebuilt": True})
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _by_group(runs: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    found = defaultdict(set)
    for group, seed in runs:
        found[group].add(seed)
    return {group: sorted(seeds) for group, seeds in sorted(found.items())}
