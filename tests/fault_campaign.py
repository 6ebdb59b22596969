"""Trains a tiny grid again and again while things go wrong at random moments, and counts what was lost: nothing, it should be.

    python tests/fault_campaign.py --faults 200 --seed 0
    python tests/fault_campaign.py --faults 20 --slurm

A round: faults are injected while `run` works on a fresh folder; then `run` is left alone until it says that all is done. The
records must equal those of an undisturbed run, except for clocks and moments, and no cell may have been trained to its end
twice unless its files were damaged. On a small file system of its own where we are root, so that the disk can be filled.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import psutil
import slurm_cluster
from slurm_cluster import SlurmCluster
from small import results, trainings, write_grid

import bench.engine.train
import bench.plan.expand  # noqa: F401  (imported once, here: every dispatcher is a fork of this process)
from bench.records import upkeep
from bench.records.folders import ResultsFolder
from run_bench import main as bench_main

SETTLE_RUNS = 6  # undisturbed runs after which everything must be done
LATEST_S = 2.0  # between two faults
DISK_MIB = 24
SLURM_DAEMONS = ("slurmctld", "slurmd", "slurmdbd")


@dataclass
class Figures:
    injected: Counter[str] = field(default_factory=Counter)
    survived: int = 0
    lost: list[str] = field(default_factory=list)
    rounds: int = 0

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.injected.items()))
        total = sum(self.injected.values())
        head = f"{total} faults in {self.rounds} rounds: {self.survived} survived, {len(self.lost)} lost"
        return "\n".join([f"{head} ({kinds})", *self.lost])


class Campaign:
    def __init__(self, folder: Path, seed: int, cluster: SlurmCluster | None = None) -> None:
        self.folder, self.chance, self.cluster = folder, random.Random(seed), cluster
        self.grid = write_grid(
            folder, pairs=[{"student": "resnet8", "teacher": "resnet14"}], seeds=[0, 1], recipe={"name": "digits", "epochs": 60}
        )
        self.results = folder / "results"
        self.figures = Figures()
        self.runs: list[int] = []  # process ids of dispatchers
        self.damaged: set[str] = set()  # cells
        self.log = (folder / "campaign.log").open("ab")

    # Runs

    def start(self, results: Path, calm: bool = False) -> int:
        """A dispatcher in a process of its own."""
        arguments = [
            "run",
            self.grid,
            "--results",
            str(results),
            "--device",
            "cpu",
            "--no-cost",
            "--no-report",
            "--checkpoint-s",
            "0",
        ]
        if self.cluster and not calm:
            asked = self.folder / "cluster.yaml"
            asked.write_text("{kind: slurm, partition: ci, minutes: 30, gpus: 0, threads: 1}")
            arguments += ["--cluster", str(asked), "--wait"]
        else:
            arguments += ["--jobs", "2", "--threads", "1"]
        process_id = os.fork()
        if process_id == 0:
            os.setsid()
            os.dup2(self.log.fileno(), 1)
            os.dup2(self.log.fileno(), 2)
            code = 1
            try:
                code = bench_main(arguments)
            finally:
                sys.stdout.flush()
                os._exit(code)
        return process_id

    def finish(self, process_id: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1])

    def going(self) -> list[int]:
        self.runs = [process_id for process_id in self.runs if os.waitpid(process_id, os.WNOHANG)[0] == 0]
        return self.runs

    def workers(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                ours = self.cluster is None and any(parent.pid in self.runs for parent in process.parents())
                if "submitit.core._submit" in words and (ours or words[-1].startswith(str(self.results))):
                    found.append(process)
        return found

    # Faults: each returns whether it could be injected

    def kill_worker(self) -> bool:
        return self._signal_worker(signal.SIGKILL)

    def stop_worker(self) -> bool:
        return self._signal_worker(signal.SIGTERM)

    def _signal_worker(self, number: signal.Signals) -> bool:
        if workers := self.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                self.chance.choice(workers).send_signal(number)
                return True
        return False

    def kill_dispatcher(self) -> bool:
        os.kill(self.chance.choice(self.runs), signal.SIGKILL)
        return True

    def stop_dispatcher(self) -> bool:
        os.kill(self.chance.choice(self.runs), self.chance.choice([signal.SIGTERM, signal.SIGINT]))
        return True

    def second_dispatcher(self) -> bool:
        if len(self.runs) > 1:
            return False
        self.runs.append(self.start(self.results))
        return True

    def truncate(self) -> bool:
        if path := self._some_file():
            with contextlib.suppress(FileNotFoundError):
                os.truncate(path, self.chance.randrange(path.stat().st_size))
                return True
        return False

    def flip(self) -> bool:
        if path := self._some_file():
            with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
                place = self.chance.randrange(path.stat().st_size)
                file.seek(place)
                byte = file.read(1)
                file.seek(place)
                file.write(bytes([byte[0] ^ (1 << self.chance.randrange(8))]) if byte else b"")
                return True
        return False

    def _some_file(self) -> Path | None:
        names = {
            "record.json",
            "curves.csv",
            "correct.bin",
            "weights.safetensors",
            "checkpoint",
            "progress.json",
            "attempts.json",
            "failure.json",
        }
        files = [path for path in sorted(self.results.glob("small/*/*")) if path.name in names]
        files += self.results.glob("small/manifest.json")
        with contextlib.suppress(FileNotFoundError):
            files = [path for path in files if path.stat().st_size]
        if not files:
            return None
        path = self.chance.choice(files)
        if path.name in ("record.json", "curves.csv", "correct.bin", "weights.safetensors"):
            self.damaged.add(path.parent.name)
        return path

    def fill_disk(self) -> bool:
        if not self.results.is_mount():
            return False
        filler = self.results / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"0" * 4096)
        time.sleep(self.chance.uniform(0.2, 3))
        filler.unlink()
        return True

    def requeue(self) -> bool:
        assert self.cluster
        jobs = self.cluster.call("squeue", "--noheader", "--states=RUNNING", "--format=%A").split()
        if jobs:
            with contextlib.suppress(RuntimeError):
                self.cluster.call("scontrol", "requeue", self.chance.choice(jobs))
                return True
        return False

    def stop_daemon(self) -> bool:
        assert self.cluster
        name = self.chance.choice(SLURM_DAEMONS)
        self.cluster.stop_daemon(name, kill=self.chance.random() < 0.5)
        time.sleep(self.chance.uniform(0, 3))
        self.cluster.start_daemon(name)
        self.figures.injected[f"stop_{name}"] += 1
        return False  # counted

    # Rounds

    def round(self, faults: int) -> None:
        kinds = ["kill_worker", "stop_worker", "kill_dispatcher", "stop_dispatcher", "second_dispatcher", "truncate", "flip"]
        kinds += ["requeue", "stop_daemon", "requeue", "stop_daemon"] if self.cluster else ["fill_disk"]
        before = sum(self.figures.injected.values())
        self.damaged = set()
        with self._fresh_results():
            while sum(self.figures.injected.values()) - before < faults:
                if not self.going():
                    if same_cells_done(self.results, self.folder / "undisturbed"):
                        break
                    self.runs = [self.start(self.results)]
                    time.sleep(self.chance.uniform(0, 3 * LATEST_S))  # workers need some seconds to start
                kind = self.chance.choice(kinds)
                if self.going() and getattr(self, kind)():
                    self.figures.injected[kind] += 1
                time.sleep(self.chance.uniform(0, LATEST_S))
            for process_id in self.going():
                self.finish(process_id)
            self.runs = []
            for _ in range(SETTLE_RUNS):
                if (code := self.finish(self.start(self.results))) == 0:
                    break
            lost = [] if code == 0 else [f"round {self.figures.rounds}: `run` ends with {code}"]
            lost += self._compare()
            self.figures.rounds += 1
            self.figures.lost += lost
            if not lost:
                self.figures.survived += sum(self.figures.injected.values()) - before
            else:
                shutil.copytree(self.results, self.folder / f"lost-{self.figures.rounds}")

    def _compare(self) -> list[str]:
        here, there = results(self.results), results(self.folder / "undisturbed")
        lost = [f"{cell_id}: missing" for cell_id in there.keys() - here.keys()]
        lost += [f"{cell_id}: another record" for cell_id, record in here.items() if record != there.get(cell_id)]
        for cell_id, count in trainings(self.results).items():
            if count > 1 and cell_id not in self.damaged:
                lost.append(f"{cell_id}: trained {count} times")
        problems = upkeep.verify(ResultsFolder(self.results).grid("small"))
        return lost + [f"{problem.path}: {problem.reason}" for problem in problems if "was set aside" not in problem.reason]

    @contextlib.contextmanager
    def _fresh_results(self) -> Iterator[None]:
        self.results.mkdir()
        mounted = False
        if self.cluster is None and os.geteuid() == 0:
            command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(self.results)]
            mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
        try:
            yield
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", str(self.results)], check=True)
            shutil.rmtree(self.results)

    def go_on(self, faults: int) -> None:
        """A round; before the first one the undisturbed run, with which all are compared."""
        undisturbed = self.folder / "undisturbed"
        if not undisturbed.exists() and self.finish(self.start(undisturbed, calm=True)) != 0:
            raise RuntimeError(f"the undisturbed run failed: see {self.log.name}")
        self.round(faults)

    def run(self, faults: int, a_round: int = 20) -> Figures:
        while (left := faults - sum(self.figures.injected.values())) > 0:
            self.go_on(min(a_round, left))
            print(self.figures, flush=True)
        return self.figures


def same_cells_done(root: Path, other: Path) -> bool:
    mine, theirs = ({record.id for record in ResultsFolder(each).grid("small").records()[0]} for each in (root, other))
    return mine == theirs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slurm", action="store_true", help="on a private Slurm of one machine")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    cluster = None
    if options.slurm:
        if reason := slurm_cluster.lacking():
            parser.error(f"no Slurm: {reason}")
        cluster = SlurmCluster(folder / "slurm")
        os.environ.update(SLURM_CONF=str(cluster.config), PATH=slurm_cluster.PATH)
        cluster.start()
    try:
        figures = Campaign(folder, options.seed, cluster).run(options.faults)
    finally:
        if cluster:
            cluster.stop()
    if not figures.lost:
        shutil.rmtree(folder)
    return 1 if figures.lost else 0


if __name__ == "__main__":
    sys.exit(main())
