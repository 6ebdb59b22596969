"""The campaign of faults, and its figures: injected, survived, lost, doubled, tracebacks, escapes, hangs.

    python tests/fault_figures.py                             3,500 faults: 40 minutes of a core
    python tests/fault_figures.py --all                       each kind at each operation, each hostile folder: hours
    python tests/fault_figures.py --parts merge status        one part, or some
    python tests/fault_figures.py --most 100 --seed 1         at most so many of each part, others than with seed 0
    python tests/fault_figures.py --minutes 5                 no part takes longer

Parts: `run` and `together` (lock-step) train in one process, `worker` and `dispatcher` in several; `merge`, `report`, `clean`,
`status` and `verify` read; all meet a fault at each operation on a file. `hostile`: see hostile.py. `random`: real processes,
killed at random moments, see fault_campaign.py. Cases come in random order, so that a part that is stopped is a fair sample.
SIGTERM and Ctrl-C end a part with its figures as well.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import fault_points
from fault_campaign import Campaign
from fault_points import COUNTED, Figures
from hostile import Hostile
from hostile import cases as hostile_cases

MOST = {"run": 300, "together": 300, "worker": 200, "dispatcher": 150, "merge": 600, "report": 300}
MOST |= {"clean": 200, "status": 100, "verify": 300, "hostile": 1000, "random": 100}
A_ROUND = 20  # faults at random, on one folder
Case = Callable[[], None]


class StoppedError(Exception):
    """Somebody has asked for the end."""


class Part:
    """A part of the campaign: its cases, and what came of them so far."""

    def __init__(self, name: str) -> None:
        self.name, self.figures = name, Figures()
        self.total, self.ended, self.minutes, self.stopped = 0, 0, 0.0, ""

    def run(self, folder: Path, most: int | None, seed: int, minutes: float | None) -> None:
        """Have its cases, in an order that the seed gives.

        Args:
            most: cases; None: all there are.
            minutes: after which no further case begins; None: no limit.

        Raises:
            StoppedError: see there; the figures are those so far.
        """
        start = time.monotonic()
        try:
            cases = self._cases(folder, most, seed)
            random.Random(seed).shuffle(cases)
            cases = cases[:most]
            self.total = len(cases)
            for case in cases:
                if minutes is not None and time.monotonic() - start > 60 * minutes:
                    self.stopped = f"its {minutes:g} minutes were over"
                    return
                case()
                self.ended += 1
                if self.ended % 100 == 0:
                    print(
                        f"  {self.name}: {self.ended} of {self.total}, {len(self.figures.bad)} bad", file=sys.stderr, flush=True
                    )
        except StoppedError:
            self.stopped = "from outside"
            raise
        finally:
            self.minutes = (time.monotonic() - start) / 60

    def _cases(self, folder: Path, most: int | None, seed: int) -> list[Case]:
        if self.name == "hostile":
            sound = fault_points.reported(folder)
            hostile = Hostile(folder / "hostile", sound, fault_points.grid_file(folder))
            self.figures = hostile.figures
            return [lambda case=case: hostile.attack(case) for case in hostile_cases(sound, most and seed)]  # type: ignore[misc]
        if self.name == "random":
            return self._rounds(folder / "random", most or 2 * MOST["random"], seed)
        scenario = fault_points.scenario(self.name, folder)
        self.figures = scenario.figures
        return [lambda point=point, kind=kind: scenario.inject(point, kind) for point, kind in scenario.cases()]  # type: ignore[misc]

    def _rounds(self, folder: Path, faults: int, seed: int) -> list[Case]:
        folder.mkdir()
        campaign = Campaign(folder, seed)

        def one() -> None:
            campaign.go_on(min(A_ROUND, faults))
            found = campaign.figures
            self.figures = Figures(Counter(found.injected), found.survived, list(found.lost))

        return [one] * -(-faults // A_ROUND)

    def __str__(self) -> str:
        state = f" STOPPED after {self.ended} of {self.total} ({self.stopped})" if self.stopped else ""
        return f"{self.name}:{state} {self.minutes:.1f} min: {self.figures}"


def table(parts: Sequence[Part]) -> str:
    """A line for each part."""
    names = ("part", "injected", "survived", *COUNTED, "minutes", "")
    lines = [f"{names[0]:<11}" + "".join(f"{name:>11}" for name in names[1:])]
    for part in parts:
        counts = [sum(part.figures.injected.values()), part.figures.survived]
        counts += [len(getattr(part.figures, name)) for name in COUNTED]
        line = f"{part.name:<11}" + "".join(f"{count:>11}" for count in counts) + f"{part.minutes:>11.1f}"
        lines.append(line + (f"  stopped after {part.ended} of {part.total}" if part.stopped else ""))
    return "\n".join(lines)


def stop(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    raise StoppedError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(MOST), default=list(MOST))
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--most", type=int, help="cases of each part")
    which.add_argument("--all", action="store_true", help="every case of each part")
    parser.add_argument("--minutes", type=float, help="of each part")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    folder, total = Path(tempfile.mkdtemp(prefix="faults-")), Figures()
    parts = []
    for name in sorted(options.parts, key=lambda name: name != "random"):  # first: the others replace real processes by forks
        parts.append(part := Part(name))
        most = None if options.all else options.most or MOST[name]
        try:
            part.run(folder, most, options.seed, options.minutes)
        except StoppedError:
            break
        finally:
            print(part, flush=True)
    for part in parts:
        total.add(part.figures)
    print(table(parts))
    print(f"all: {total}", flush=True)
    if not total.bad:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if total.bad or any(part.stopped for part in parts) else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # without what libraries print at an ordinary end
