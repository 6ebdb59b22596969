"""One run on a GPU of at most nine minutes: what no CPU can show. `make gpu`, or by hand:

    gpu_driver.py [--limit 540] [--device cuda] [--out FOLDER] [--images IMAGES.npz] [--tiny] [--only PART ...]

Every part is a process of its own under a time limit and appends JSON lines to OUT/lines.jsonl, so that a failure costs its own
lines alone. What parts print is in OUT/logs, records and curves are in OUT/results.tar.gz. With `--tiny` and `--device cpu` all
of it runs without a GPU, in small: the driver's own mistakes are found before a GPU is at hand.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

Part = Callable[["Setting"], Iterator[dict[str, Any]]]
LIMITS_S = {  # of each part, in this order; `real` gets what is left
    "imports": 60,
    "same_as_cpu": 90,
    "capture": 120,
    "resume": 60,
    "speed": 120,
    "kernels": 60,
    "compiled": 90,
    "energy": 40,
    "real": 480,
}
CASE_BY_CASE = ("same_as_cpu", "capture")  # parts that can go on where they ended
SHARES = 3  # processes among which the cases of such a part are divided
UNTIMED = (*CASE_BY_CASE, "resume")  # parts that measure no time run side by side
ENDED_EARLY = 3  # exit code of a part after an error that no process survives on a GPU
PACKING_S = 15  # that are kept for packing the results


class Setting:
    """What all parts are given."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.device: str = given.device
        self.tiny: bool = given.tiny
        self.out = Path(given.out).resolve()
        self.images: str | None = given.images
        self.left_s: float = given.limit  # for this part, or for all
        self.share: int | None = given.share

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"


def note(setting: Setting, part: str, **facts: Any) -> None:
    """Append one line."""
    setting.out.mkdir(parents=True, exist_ok=True)
    with (setting.out / "lines.jsonl").open("a") as file:
        file.write(json.dumps({"part": part, **facts}) + "\n")


def lines_of(setting: Setting) -> list[dict[str, Any]]:
    """What was noted so far."""
    path = setting.out / "lines.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def drive(given: argparse.Namespace) -> int:
    """Run every part in a process of its own; returns how many failed."""
    setting, began = Setting(given), time.monotonic()
    names = list(given.only or LIMITS_S)

    def left_s() -> float:
        return given.limit - PACKING_S - (time.monotonic() - began)

    def attempt(name: str, share: int | None = None) -> bool:
        """Whether a part, or a share of it, ended well."""
        if left_s() < 5:
            note(setting, name, skipped="no time was left")
            return True
        ends = time.monotonic() + min(LIMITS_S[name], left_s())
        code = ENDED_EARLY
        while code == ENDED_EARLY and time.monotonic() < ends - 5:
            code = _in_process(setting, given, name, ends - time.monotonic(), share)
            if name not in CASE_BY_CASE:
                break
        return code == 0

    with ThreadPoolExecutor(16) as pool:
        ended_well = [attempt(name) for name in names if name == "imports"]
        parts = [None] if setting.tiny else range(SHARES)
        shares = [(name, share) for name in names if name in CASE_BY_CASE for share in parts]
        shares += [(name, None) for name in names if name in UNTIMED and name not in CASE_BY_CASE]
        ended_well += pool.map(lambda each: attempt(*each), shares)
    ended_well += [attempt(name) for name in names if name != "imports" and name not in UNTIMED]
    failed = ended_well.count(False)
    if (setting.out / "results").exists():
        with tarfile.open(setting.out / "results.tar.gz", "w:gz", compresslevel=1) as tar:
            for file in sorted((setting.out / "results").rglob("*")):
                if file.suffix in (".json", ".csv", ".txt"):  # weights would be most of it
                    tar.add(file, file.relative_to(setting.out))
    note(setting, "driver", failed=failed, seconds=round(time.monotonic() - began, 1))
    return failed


def _in_process(setting: Setting, given: argparse.Namespace, name: str, limit_s: float, share: int | None) -> int:
    log = setting.out / "logs" / f"{name}{'' if share is None else f'-{share}'}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    options = ["--device", given.device, "--out", str(setting.out), "--limit", str(limit_s), *["--tiny"] * given.tiny]
    options += ["--images", given.images] if given.images else []
    options += ["--share", str(share)] if share is not None else []
    command, began = [sys.executable, str(Path(__file__).resolve()), "--part", name, *options], time.monotonic()
    threads = {"OMP_NUM_THREADS": "1"} if name in UNTIMED else {}  # side by side, more would wait for each other
    with log.open("a") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ | threads
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = 124
            for number in (signal.SIGINT, signal.SIGKILL):  # trainings keep their checkpoints at the first
                os.killpg(process.pid, number)
                try:
                    process.wait(8)
                    break
                except subprocess.TimeoutExpired:
                    continue
    tail = log.read_text(errors="replace").splitlines()[-4:] if code else []
    note(setting, name, code=code, seconds=round(time.monotonic() - began, 1), **({"tail": tail} if tail else {}))
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=540.0, metavar="S", help="seconds for everything (default: 540)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", default=os.environ.get("OUT") or "gpu_out")
    parser.add_argument("--images", help="an .npz file for the real training, such as CIFAR-100's")
    parser.add_argument("--tiny", action="store_true", help="all in small, for a rehearsal on a CPU")
    parser.add_argument("--only", nargs="*", choices=LIMITS_S, help="these parts alone")
    parser.add_argument("--part", choices=LIMITS_S, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.part:
        return drive(given)
    sys.modules["transformers"] = None  # type: ignore[assignment]  # only mmengine would import it: ten seconds for nothing
    import gpu_parts

    from bench.engine.device import choose_repeatable_kernels

    choose_repeatable_kernels()  # as training does
    setting = Setting(given)
    for facts in gpu_parts.PARTS[given.part](setting):
        ends_process = facts.pop("ends_process", False)
        note(setting, given.part, **facts)
        print(facts, flush=True)
        if ends_process:
            return ENDED_EARLY
    return 0


if __name__ == "__main__":
    sys.exit(main())
