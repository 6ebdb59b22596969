"""The long run of faults, and its figures: injected, survived, lost, doubled, tracebacks, escapes, hangs.

    python tests/fault_figures.py                               all of it: hours
    python tests/fault_figures.py --parts merge status          one part, or some
    python tests/fault_figures.py --parts hostile --most 500    a part of a part, chosen by --seed

Parts: `run` and `together` (lock-step) train in one process, `worker` and `dispatcher` in several; `merge`, `report`, `clean`,
`status` and `verify` read; all meet a fault at each operation on a file. `hostile`: see hostile.py. `random`: real processes,
killed at random moments, see fault_campaign.py.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import fault_points
from fault_campaign import Campaign
from fault_points import Figures
from hostile import Hostile
from hostile import cases as hostile_cases

ONCE = ("run", "together", "report", "worker", "dispatcher")  # one for each (caller, call, kind): they take seconds each
EVERY = ("merge", "clean", "status", "verify")  # each operation with each kind
RANDOM = 200
Item = TypeVar("Item")


def some(items: Sequence[Item], most: int, seed: int) -> list[Item]:
    return list(items) if len(items) <= most else random.Random(seed).sample(items, most)


def shown(items: Sequence[Item], figures: Figures) -> Iterator[Item]:
    """The items; now and then a line on how far they are."""
    for number, item in enumerate(items):
        if number % 100 == 99:
            print(f"  {number + 1} of {len(items)}, {len(figures.bad)} bad", file=sys.stderr, flush=True)
        yield item


def parts(names: Sequence[str], folder: Path, most: int, seed: int) -> Iterator[tuple[str, Figures]]:
    """(name, figures) of each part, as soon as it has ended."""
    for scenario in fault_points.scenarios(folder, [name for name in names if name not in ("hostile", "random")]):
        for point, kind in shown(some(list(scenario.cases(scenario.name in ONCE)), most, seed), scenario.figures):
            scenario.inject(point, kind)
        yield scenario.name, scenario.figures
    if "hostile" in names:
        hostile = Hostile(folder / "hostile", fault_points.reported(folder), fault_points.grid_file(folder))
        for case in shown(some(list(hostile_cases()), most, seed), hostile.figures):
            hostile.attack(*case)
        yield "hostile", hostile.figures
    if "random" in names:
        (folder / "random").mkdir()
        found = Campaign(folder / "random", seed).run(min(most, RANDOM))
        yield "random", Figures(Counter(found.injected), found.survived, found.lost)


def main() -> int:
    every = [*ONCE, *EVERY, "hostile", "random"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=every, default=every)
    parser.add_argument("--most", type=int, default=10**9, help="cases of each part")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder, total = Path(tempfile.mkdtemp(prefix="faults-")), Figures()
    for name, figures in parts(options.parts, folder, options.most, options.seed):
        print(f"{name}: {figures}", flush=True)
        total.add(figures)
    print(f"all: {total}", flush=True)
    if not total.bad:
        shutil.rmtree(folder)
    return 1 if total.bad else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # without what libraries print at an ordinary end
