"""Grids through a real Slurm of one machine: see tests/slurm_cluster.py. Without one skipped; with REQUIRE_SLURM=1 failed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
import slurm_cluster
from slurm_cluster import SlurmCluster
from small import results, trainings, write_grid
from test_distributed import RECIPE, check_against_by_hand

from bench.errors import UserError
from bench.jobs import base, cluster_file, slurm, waits
from bench.plan import grid_file
from bench.plan.expand import expand
from bench.records.cell import Cell
from bench.records.folders import GridFolder, ResultsFolder
from bench.records.options import Options
from bench.records.progress import Progress
from bench.screen import Screen
from run_bench import main

PATIENCE_S = 120
LIMIT_S = 240  # of one test on the cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    if reason := slurm_cluster.lacking():
        if os.environ.get("REQUIRE_SLURM") == "1":
            pytest.fail(f"REQUIRE_SLURM=1, but {reason}")
        pytest.skip(f"no Slurm: {reason}")
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(cluster.config))
        patch.setenv("PATH", slurm_cluster.PATH)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(autouse=True)
def _bounded(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test on the cluster that hangs fails after a while, and leaves no job and no drained node to the next one."""
    if "cluster" not in request.fixturenames:
        yield
        return
    cluster = request.getfixturevalue("cluster")

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"not done after {LIMIT_S} s")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
        for command in (["scancel", "--me"], ["scontrol", "update", "nodename=localhost", "state=resume"]):
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                cluster.call(*command)


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    """Options of a run on the cluster."""
    path = tmp_path / "cluster.yaml"
    path.write_text("{kind: slurm, partition: ci, minutes: 30, gpus: 0, threads: 1, memory_gib: 1}")
    quiet = ["--device", "cpu", "--no-cost", "--no-report", "--no-check"]
    return ["--cluster", str(path), *quiet, "--results", str(tmp_path / "results")]


def until(ready: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not ready():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.2)


def assert_trained_once(root: Path) -> None:
    until(lambda: all(trainings(root).values()))  # a log's last line follows the record
    assert set(trainings(root).values()) == {1}


def small(folder: Path, grid: str = "small") -> GridFolder:
    return ResultsFolder(folder / "results").grid(grid)


def cell(root: Path, method: str) -> Path | None:
    return next(root.glob(f"results/small/digits-resnet8-{method}-s*"), None)


def test_grid_through_slurm_equals_a_local_run(cluster: SlurmCluster, asked: list[str], tmp_path: Path) -> None:
    grid = write_grid(tmp_path, seeds=[0, 1])
    asked.remove("--no-check")
    assert main(["run", grid, *asked]) == 0
    assert [finding.error for finding in small(tmp_path).checks().values()] == [""] * 4  # tried out here, before any job starts
    assert main(["run", grid, *asked, "--wait"]) == 0  # comes back; nothing is handed over twice

    folder = small(tmp_path)
    (launch,) = folder.launches().values()
    assert launch.backend == "slurm"
    assert all(len(jobs) <= slurm_cluster.ARRAY_SIZE for jobs in launch.arrays)
    assert len(launch.arrays) > 2
    assert_trained_once(folder.results.root)
    students = [record for record in folder.records()[0] if record.cell.teacher]
    assert len(students) == 2
    for student in students:
        teacher = folder.cell(student.cell.teacher.cell).record()
        assert datetime.fromisoformat(teacher.finished) <= datetime.fromisoformat(student.started)
    assert (
        main(
            ["run", grid, "--no-cost", "--no-report", "--results", str(tmp_path / "local"), "--device", "cpu", "--threads", "1"]
        )
        == 0
    )
    assert results(tmp_path / "results") == results(tmp_path / "local")


def test_sequential_seeds_are_handed_over_round_by_round(cluster: SlurmCluster, asked: list[str], tmp_path: Path) -> None:
    seeds = {"first": 2, "most": 3, "until": 0.001}  # neither equivalent nor, with so few, shown
    grid = write_grid(tmp_path, seeds=seeds, methods=["none", "ls"], recipe={"name": "digits", "epochs": 1})
    assert main(["run", grid, *asked]) == 0
    folder = small(tmp_path)
    assert sum(len(cells) for launch in folder.launches().values() for jobs in launch.arrays for cells in jobs) == 4
    assert main(["run", grid, *asked, "--wait"]) == 0  # waits for these, looks, and hands over the third seed
    assert {record.cell.seed for record in folder.records()[0]} == {0, 1, 2}
    assert len(folder.launches()) == 2
    assert [look["comparisons"][0]["seeds"] for look in folder.manifest()["looks"]] == [2, 3]


def test_preempted_job_goes_on_from_its_checkpoint(cluster: SlurmCluster, asked: list[str], tmp_path: Path) -> None:
    grid = write_grid(tmp_path, methods=["none"], recipe={"name": "digits", "epochs": 150})
    assert main(["run", grid, *asked, "--checkpoint-s", "0"]) == 0
    until(lambda: (folder := cell(tmp_path, "none")) and (folder / "checkpoint").exists())
    cluster.call("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    until(lambda: cluster.call("squeue", "--noheader", "--partition=ci", "--format=%T").strip() != "RUNNING")
    assert main(["run", grid, *asked, "--wait"]) == 0

    (log,) = (tmp_path / "results/small").glob("*/log.txt")
    assert " stopped" in log.read_text()
    assert_trained_once(tmp_path / "results")
    rows = log.read_text().count("epoch ")
    assert 150 <= rows < 160  # a few epochs at most were done again
    assert (
        main(
            ["run", grid, "--no-cost", "--no-report", "--results", str(tmp_path / "local"), "--device", "cpu", "--threads", "1"]
        )
        == 0
    )
    assert results(tmp_path / "results") == results(tmp_path / "local")


def test_cancel_ends_this_grid_only(
    cluster: SlurmCluster, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_grid(tmp_path, "small", recipe={"name": "digits", "epochs": 3000})
    second = write_grid(tmp_path, "other", methods=["none"], recipe={"name": "digits", "epochs": 3000})
    main(["run", first, *asked])
    main(["run", second, *asked])
    capsys.readouterr()
    root = ["--results", str(tmp_path / "results")]
    assert main(["status", "small", *root]) == 0
    assert "queued" in capsys.readouterr().out
    main(["cancel", "small", *root])
    assert capsys.readouterr().out.startswith("4 cells")
    first_folder, second_folder = small(tmp_path), small(tmp_path, "other")
    until(lambda: not base.queue(first_folder))
    assert len(base.queue(second_folder)) == 1
    main(["cancel", "other", *root])
    until(lambda: not base.queue(second_folder))


def test_restarted_controller_loses_nothing_and_runs_nothing_twice(
    cluster: SlurmCluster, asked: list[str], tmp_path: Path
) -> None:
    grid = write_grid(tmp_path, recipe={"name": "digits", "epochs": 30})
    main(["run", grid, *asked])
    cluster.stop_daemon("slurmctld", kill=True)
    cluster.stop_daemon("slurmdbd", kill=True)
    with pytest.raises(UserError):
        base.queue(small(tmp_path))
    assert main(["run", grid, *asked]) == 2  # who does not know the queue hands nothing over
    cluster.start_daemon("slurmdbd")
    cluster.start_daemon("slurmctld")
    assert main(["run", grid, *asked, "--wait"]) == 0
    assert_trained_once(tmp_path / "results")


def test_students_of_a_lost_teacher_do_not_start(cluster: SlurmCluster, asked: list[str], tmp_path: Path) -> None:
    grid = write_grid(tmp_path, methods=["kd"], recipe={"name": "digits", "epochs": 3000})
    main(["run", grid, *asked])
    folder = small(tmp_path)
    until(lambda: any(job.state == "RUNNING" for job in base.queue(folder).values()))
    teacher = next(job for job in base.queue(folder).values() if job.state == "RUNNING")
    cluster.call("scancel", teacher.job_id)
    until(lambda: not base.queue(folder))
    assert folder.records()[0] == []
    assert not (tmp_path / "results/small/report").exists()


def test_two_processes_through_slurm_equal_two_halves_by_hand(cluster: SlurmCluster, asked: list[str], tmp_path: Path) -> None:
    grid = write_grid(tmp_path, methods=["none"], recipe=RECIPE)
    assert main(["run", grid, *asked, "--wait"]) == 0
    check_against_by_hand(tmp_path / "results", grid)


def test_scripts_of_a_dry_run_train_what_a_run_would(cluster: SlurmCluster, asked: list[str], tmp_path: Path) -> None:
    grid, scripts = write_grid(tmp_path, methods=["kd"]), tmp_path / "scripts"
    where = [word for word in asked if not word.startswith("--no-")]
    (tmp_path / "cluster.yaml").write_text(
        "{kind: slurm, partition: ci, minutes: 30, gpus: 0, threads: 1, memory_gib: 1, sbatch: {comment: from a test}}"
    )
    assert main(["plan", grid, *where, "--dry-run", str(scripts)]) == 0
    subprocess.run([str(scripts / "submit.sh")], check=True, timeout=60)
    until(lambda: len(results(tmp_path / "results")) == 2)
    started = {record.id: record.started for record in small(tmp_path).records()[0]}
    assert max(started, key=lambda cell_id: started[cell_id]).startswith("digits-resnet8-kd")  # behind its teacher


def test_a_run_that_waits_names_what_holds_its_jobs(
    cluster: SlurmCluster, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(tmp_path, methods=["none"])
    cluster.call("scontrol", "update", "partitionname=ci", "state=down")
    monkeypatch.setattr(waits, "PATIENCE_S", 0.0)
    see = waits.Waits.see

    def seen(self: waits.Waits, reasons: dict[str, list[str]]) -> None:
        see(self, reasons)
        if any("Partition" in reason for reason in reasons):
            cluster.call("scontrol", "update", "partitionname=ci", "state=up")

    monkeypatch.setattr(waits.Waits, "see", seen)
    assert main(["run", grid, *asked, "--wait"]) == 0
    assert re.search(r"waiting since [\d:]+ for digits-\S+: pending in Slurm's queue: Partition\w+", capsys.readouterr().out)


# Without Slurm


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    name, raw = grid_file.read(write_grid(tmp_path, seeds=[0, 1, 2, 3], methods=["none", "kd", "tfd"]))
    return expand(name, raw, device="cpu").cells


def test_plan_puts_teachers_first_and_keeps_to_the_limit(cells: list[Cell]) -> None:
    arrays = list(slurm.plan(cells, set(), cells_per_job=2, array_size=3))
    assert [cell.id for array, _ in arrays for job in array for cell in job] != []
    assert sorted(cell.id for array, _ in arrays for job in array for cell in job) == sorted(cell.id for cell in cells)
    assert all(len(array) <= 3 for array, _ in arrays)
    (teacher,) = {cell.teacher.cell for cell in cells if cell.teacher}
    first, behind = arrays[0]
    assert ([[cell.id for cell in job] for job in first], behind) == ([[teacher]], ())
    for array, behind in arrays[1:]:
        wanted = {cell.waits_for for job in array for cell in job}
        assert wanted == {behind}
        assert all(len(job) <= 2 for job in array)


def test_students_of_a_finished_teacher_wait_for_nothing(cells: list[Cell]) -> None:
    (teacher,) = {cell.teacher.cell for cell in cells if cell.teacher}
    left = [cell for cell in cells if cell.id != teacher]
    assert {behind for _, behind in slurm.plan(left, set(), 1, 100)} == {()}
    assert {behind for _, behind in slurm.plan(left, {teacher}, 1, 100)} == {(), (teacher,)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partiton: gpu", "did you mean 'partition'"),
        ("minutes: soon", "minutes: a whole number, not 'soon'"),
        ("gpus: yes", "gpus"),
        ("partition: 'a b'", "partition"),
        ("partition: 'a\n#SBATCH --wrap=x'", "partition"),
        ("{kind: local, partition: gpu}", "has no effect"),
        ("{kind: slurm, per_gpu: 2}", "has no effect"),
        ("[gpu]", "a cluster file is a mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_mistakes_in_a_cluster_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml") as error:
        cluster_file.read(str(path), {})
    assert message in str(error.value)


def test_options_stand_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("{partition: gpu, minutes: 60}")
    found = cluster_file.read(str(path), {"minutes": 5, "account": None})
    assert isinstance(found, slurm.Slurm)
    assert (found.kind, found.partition, found.minutes, found.account) == ("slurm", "gpu", 5, None)


@pytest.mark.parametrize(
    ("fstype", "options", "refused"),
    [
        ("nfs4", "rw,vers=4.2,local_lock=none", False),
        ("nfs", "rw,nolock,vers=3", True),
        ("nfs", "rw,local_lock=flock", True),
        ("lustre", "rw,flock,lazystatfs", False),
        ("lustre", "rw,localflock", True),
        ("ext4", "rw,relatime", False),
    ],
)
def test_locks_that_hold_on_one_machine_only_are_refused(fstype: str, options: str, refused: bool) -> None:
    assert bool(slurm.local_locks(fstype, options)) is refused


def test_what_slurm_lost_is_handed_over_again_and_named(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small(tmp_path)

    def submit(self: slurm.Slurm, left: list[Cell], *_: object) -> int:
        for each in left:
            folder.cell(each.id).write_failure("it ends")
        return len(left)

    monkeypatch.setattr(slurm, "FORGETS_S", 0.0)
    monkeypatch.setattr(slurm, "WAIT_S", 0.0)
    monkeypatch.setattr(slurm.Slurm, "queue", lambda *_: {})
    monkeypatch.setattr(slurm.Slurm, "submit", submit)
    slurm.Slurm().follow(cells, folder, Options(), Progress(folder, [], Screen()))
    lost = f"{len(cells)} of {len(cells)} cells handed to Slurm again: their jobs ended before they were done, see"
    assert f"{lost} {tmp_path}/results/small/launches" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(("reason", "shown"), [("None", ""), ("JobHeldUser", ": JobHeldUser")])
def test_why_a_job_waits_is_what_slurm_answers(reason: str, shown: str) -> None:
    places = {"a": base.Queued("7", "SUSPENDED", reason), "b": base.Queued("8", "RUNNING", "None")}
    assert slurm.why_waiting(places) == {f"suspended in Slurm's queue{shown}": ["a"]}
