"""Nothing is lost: see also tests/fault_campaign.py, of which a short run is made here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fault_campaign import Campaign
from small import results, trainings, write_grid

from bench.errors import at_time_limit
from bench.jobs import local, worker
from bench.records import files
from bench.records.cell import Cell
from bench.records.folders import GridFolder, ResultsFolder
from bench.records.record import Record
from run_bench import main

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def here(tmp_path: Path) -> list[str]:
    """Options of a run in this process."""
    return [
        "--results",
        str(tmp_path / "results"),
        "--device",
        "cpu",
        "--no-cost",
        "--no-report",
        "--cluster",
        "debug",
        "--threads",
        "1",
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher and its student."""
    folder = tmp_path_factory.mktemp("finished")
    grid = write_grid(folder, methods=["kd"])
    assert (
        main(["run", grid, "--results", str(folder), "--device", "cpu", "--no-cost", "--no-report", "--cluster", "debug"]) == 0
    )
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> GridFolder:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "results")
    return ResultsFolder(tmp_path / "results").grid("small")


def teacher_and_student(folder: GridFolder) -> tuple[Record, Record]:
    teacher, student = sorted(folder.records()[0], key=lambda record: record.cell.teacher is not None)
    return teacher, student


def path_of(folder: GridFolder, record: Record, name: str) -> Path:
    return folder.results.root / folder.name / record.id / name


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("name", ["record.json", "weights.safetensors", "curves.csv", "correct.bin"])
def test_run_again_mends_a_damaged_teacher(folder: GridFolder, tmp_path: Path, here: list[str], name: str) -> None:
    before = results(folder.results.root)
    teacher, student = teacher_and_student(folder)
    damage(path_of(folder, teacher, name))
    path_of(folder, student, "record.json").unlink()
    assert main(["run", write_grid(tmp_path, methods=["kd"]), *here]) == 0
    assert results(folder.results.root) == before


@pytest.mark.parametrize("content", [b"", b"0" * 64, b"0" * 500])
def test_a_corrupt_checkpoint_is_set_aside(folder: GridFolder, tmp_path: Path, here: list[str], content: bytes) -> None:
    before = results(folder.results.root)
    _, student = teacher_and_student(folder)
    path_of(folder, student, "record.json").unlink()
    path_of(folder, student, "checkpoint").write_bytes(content)
    assert main(["run", write_grid(tmp_path, methods=["kd"]), *here]) == 0
    assert results(folder.results.root) == before
    assert [path.name for path in path_of(folder, student, "").glob("checkpoint*")] == ["checkpoint.damaged-1"]


def test_a_sealed_checkpoint_of_something_else_is_set_aside(folder: GridFolder, tmp_path: Path, here: list[str]) -> None:
    from bench.engine.checkpoint import pack

    before = results(folder.results.root)
    _, student = teacher_and_student(folder)
    path_of(folder, student, "record.json").unlink()
    folder.cell(student.id).write_checkpoint(pack({"epoch": 1, "threads": 1, "trainee": {}, "optimizer": {}, "history": []}))
    main(["run", write_grid(tmp_path, methods=["kd"]), *here])
    assert main(["run", write_grid(tmp_path, methods=["kd"]), *here]) == 0
    assert results(folder.results.root) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path / "results"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk_is_named_and_run_again_completes(
    small_disk: Path, tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(tmp_path)
    main(["plan", grid, "--results", str(small_disk)])
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * (16 * 2**20 - 2**18))  # a quarter of a MiB is left: the start fits, weights do not
    assert main(["run", grid, *here]) in (1, 2)
    printed = capsys.readouterr()
    assert "No space left" in printed.out + printed.err
    assert results(small_disk) == {}
    filler.unlink()
    assert main(["run", grid, *here]) == 0
    assert len(results(small_disk)) == 4


def test_read_only_folder_is_named(
    small_disk: Path, tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert main(["run", write_grid(tmp_path), *here]) == 2
    assert "cannot write results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_want_of_memory_is_not_the_cells_own_fault(
    error: Exception, again: bool, tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("bench.engine.train.train", fails)
    assert main(["run", write_grid(tmp_path, methods=["none"]), *here]) == 1
    (failure,) = (tmp_path / "results").glob("small/*/failure.json")
    assert json.loads(failure.read_text())["again"] is again


def test_a_time_limit_of_a_cluster_is_no_fault_of_a_cell(
    tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*_: object) -> None:  # as submitit's handler of the signal before the limit does
        worker.Worker().checkpoint(None)
        sys.exit(-1)

    monkeypatch.setattr("bench.engine.train.train", ends)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    try:
        with pytest.raises(SystemExit):
            main(["run", write_grid(tmp_path, methods=["none"]), *here, "--no-check"])
    finally:
        at_time_limit.clear()
    (cell,) = (tmp_path / "results").glob("small/digits-*")
    assert not (cell / "failure.json").exists()
    assert json.loads((cell / "attempts.json").read_text())["attempts"] == 1  # too short a limit ends in a failure


@pytest.mark.parametrize("together", [False, True])
def test_after_an_error_of_the_gpu_itself_nothing_more_is_tried_in_this_process(
    together: bool, tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fails(cells: list[Cell], *_: object) -> None:
        tried.append([cell.label for cell in cells])
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("bench.engine.train.train", fails)
    with pytest.raises(torch.AcceleratorError):
        main(["run", write_grid(tmp_path, methods=["none", "tfd"]), *here, *["--together"] * together])
    assert tried == ([["none", "tfd"]] if together else [["none"]])
    blamed = list((tmp_path / "results").glob("small/*/failure.json"))
    assert len(blamed) == (0 if together else 1)


def test_a_cell_that_kills_its_workers_is_named_and_does_not_stop_the_others(tmp_path: Path) -> None:
    plugin = tmp_path / "deadly.py"
    plugin.write_text(
        "import os, signal\n"
        "from methods.base import METHODS, Card, Method\n"
        "@METHODS.register_module()\n"
        "class deadly(Method):\n"
        "    card = Card('Deadly', '-', '-')\n"
        "    def loss(self, student, teacher, batch):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = tmp_path / "results"
    options = ["--results", str(root), "--device", "cpu", "--no-cost", "--no-report", "--jobs", "1", "--import", str(plugin)]
    assert main(["run", write_grid(tmp_path, methods=["deadly", "none"]), *options]) == 1
    assert [record.cell.method["type"] for record in ResultsFolder(root).grid("small").records()[0]] == ["none"]
    (failed,) = (root / "small").glob("*/failure.json")
    assert "3 workers died on it" in files.read_json(failed)["error"]


def test_a_stopped_run_leaves_the_last_checkpoint_and_no_process(tmp_path: Path) -> None:
    grid = write_grid(tmp_path, methods=["none"], recipe={"name": "digits", "epochs": 5000})
    root = tmp_path / "results"
    options = [
        "--results",
        str(root),
        "--device",
        "cpu",
        "--no-cost",
        "--no-report",
        "--checkpoint-s",
        "0",
        "--threads",
        "1",
        "--jobs",
        "1",
    ]
    run = subprocess.Popen([sys.executable, ROOT / "run_bench.py", "run", grid, *options], cwd=tmp_path)
    try:
        end = time.monotonic() + 60
        while not (found := list(root.glob("small/*/checkpoint"))):
            assert time.monotonic() < end
            time.sleep(0.2)
        run.send_signal(signal.SIGTERM)
        assert run.wait(20) == 128 + signal.SIGTERM
    finally:
        run.kill()  # its workers end with it
    cell = ResultsFolder(root).grid("small").cell(found[0].parent.name)
    assert not cell.locked()
    assert cell.read_checkpoint()
    assert not (found[0].parent / "failure.json").exists()


def test_each_local_job_has_a_device_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "teller.py"
    plugin.write_text(
        "import os, pathlib, time\n"
        "from methods.base import METHODS, Card, Method\n"
        "@METHODS.register_module()\n"
        "class teller(Method):\n"
        "    card = Card('Teller', '-', '-')\n"
        "    def setup(self, *_, **__):\n"
        f"        folder = pathlib.Path({str(tmp_path)!r})\n"
        "        (folder / f'device-{os.environ[\"CUDA_VISIBLE_DEVICES\"]}-{os.getpid()}').touch()\n"
        f"        if os.getpid() != {os.getpid()}:\n"  # a grid's check sets methods up as well
        "            time.sleep(3)\n"  # so that no worker takes all
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")  # torch sees none of them: the jobs train on the CPU
    options = [
        "--results",
        str(tmp_path / "results"),
        "--no-cost",
        "--no-report",
        "--jobs",
        "4",
        "--threads",
        "1",
        "--import",
        str(plugin),
    ]
    assert main(["run", write_grid(tmp_path, methods=["teller"], seeds=[0, 1, 2, 3]), *options]) == 0
    devices = [path.name.removeprefix("device-").rpartition("-") for path in tmp_path.glob("device-*")]
    assert sorted(device for device, _, process in devices if process != str(os.getpid())) == ["GPU-a", "GPU-b"]


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cpu", "0,1", ([], "cpu")),
        ("auto", "2,5", (["2", "5"], "auto")),
        ("auto", "", ([], "auto")),
        ("auto", "-1", ([], "auto")),
        ("cuda:1", "2,5", (["5"], "cuda")),
        ("auto", "MIG-1,GPU-2", (["MIG-1", "GPU-2"], "auto")),
    ],
)
def test_devices_of_jobs(monkeypatch: pytest.MonkeyPatch, device: str, visible: str, expected: tuple[list[str], str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local.visible_gpus(device) == expected


def test_short_fault_campaign(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, seed=1)
    figures = campaign.run(faults=6)
    assert figures.lost == []
    assert figures.survived == sum(figures.injected.values()) >= 6
    assert trainings(tmp_path / "undisturbed").keys() == results(tmp_path / "undisturbed").keys()
