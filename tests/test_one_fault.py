"""One fault never ends the others: a cell that cannot be used, a hint of another version, a want of memory, a full disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import synthetic
from small import results, write_grid
from test_gate import Failing
from tiny_grid import expanded

import run_bench
from bench.data import standard
from bench.jobs import check, waits, worker
from bench.jobs.base import give_up
from bench.jobs.check import wants_memory
from bench.records import files, handles
from bench.records.folders import GridFolder, ResultsFolder
from bench.records.options import Options

ROOT = Path(__file__).resolve().parent.parent
GRID = "synthetic"


def options(root: Path) -> list[str]:
    return ["--results", str(root), "--device", "cpu", "--no-cost", "--no-report", "--cluster", "debug", "--threads", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two students, trained without a teacher."""
    folder = tmp_path_factory.mktemp("trained")
    assert run_bench.main(["run", write_grid(folder, methods=["none", "tfd"]), *options(folder)]) == 0
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> GridFolder:
    """A copy of it."""
    shutil.copytree(trained, tmp_path / "results")
    return ResultsFolder(tmp_path / "results").grid("small")


@pytest.fixture
def grid(tmp_path: Path) -> str:
    return write_grid(tmp_path, methods=["none", "tfd"])


def place(folder: GridFolder, method: str) -> Path:
    return next((folder.results.root / folder.name).glob(f"*-{method}-s0-*"))


@pytest.mark.parametrize("kind", ["file", "link", "link to nothing", "pipe"])
def test_what_stands_in_a_cells_place_is_that_cells_problem(
    kind: str, folder: GridFolder, grid: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In `run`, `status`, `verify`, `report`, `clean` and `merge`."""
    root, cell = folder.results.root, place(folder, "none")
    shutil.move(cell, root.parent / "elsewhere")
    if kind == "file":
        cell.touch()
    elif kind == "pipe":
        os.mkfifo(cell)
    else:
        cell.symlink_to(root.parent / ("elsewhere" if kind == "link" else "nowhere"))
    shutil.rmtree(place(folder, "tfd"))
    capsys.readouterr()
    assert run_bench.main(["run", grid, *options(root)]) == 1
    printed = capsys.readouterr().out
    assert "1 of 2 done" in printed
    assert cell.name in printed
    assert run_bench.main(["status", "small", "--results", str(root)]) == 1
    assert f"unreadable {cell.name}: " in capsys.readouterr().out
    assert run_bench.main(["verify", "small", "--results", str(root)]) == 1
    assert f"small/{cell.name}: a folder belongs there" in capsys.readouterr().out
    assert run_bench.main(["report", "small", "--results", str(root)]) == 0
    assert "a folder belongs there" in (folder.report_folder() / "report.html").read_text()
    assert run_bench.main(["clean", "small", "--results", str(root)]) == 0
    assert run_bench.main(["merge", str(root), "--results", str(root.parent / "ours")]) == 1
    printed = capsys.readouterr().out
    assert "1 copied, 1 conflicts" in printed


def test_a_record_that_the_system_does_not_give_is_left_alone(
    folder: GridFolder, grid: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = results(folder.results.root)
    refused = place(folder, "none").name

    class Refusing(Failing):
        """`os` that gives no file of one cell."""

        def __init__(self) -> None:
            super().__init__("read", errno.EACCES, 10**9)

        def __getattr__(self, name: str) -> object:
            if name != "open":
                return getattr(os, name)

            def call(path: str, *arguments: object, **options: object) -> object:
                if path == refused:
                    raise PermissionError(errno.EACCES, "Permission denied")
                return os.open(path, *arguments, **options)  # type: ignore[arg-type]

            return call

    with monkeypatch.context() as patch:
        patch.setattr(handles, "os", Refusing())
        assert run_bench.main(["run", grid, *options(folder.results.root)]) == 1
        assert "1 of 2 done, 0 failed, 1 unreadable" in capsys.readouterr().out
        assert run_bench.main(["status", "small", "--results", str(folder.results.root)]) == 1
        assert f"unreadable {refused}: it cannot be read: Permission denied" in capsys.readouterr().out
        assert run_bench.main(["report", "small", "--results", str(folder.results.root)]) == 0
    assert results(folder.results.root) == before


@pytest.mark.parametrize(
    "hint",
    [{}, {"epoch": 1}, {"clocks": None}, {"clocks": {"train_s": "long"}}, {"share": "half", "clocks": {}}, {"epoch": []}],
)
def test_hints_of_another_version_are_ignored(hint: dict[str, object], folder: GridFolder, grid: str) -> None:
    before = results(folder.results.root)
    cell = folder.cell(place(folder, "none").name)
    record = cell.record()
    assert record
    (place(folder, "none") / "record.json").unlink()
    for name in ("progress.json", "attempts.json", "failure.json", "eager.json"):
        files.write_json(place(folder, "none") / name, hint)
    assert run_bench.main(["status", "small", "--results", str(folder.results.root)]) == 0
    assert run_bench.main(["run", grid, *options(folder.results.root)]) == 0
    assert results(folder.results.root) == before


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("could not create a primitive", True),
        ("libgomp.so: failed to map segment from shared object", True),
        ("DataLoader worker (pid 7) is killed by signal: Killed.", True),
        ("It is possible that dataloader's workers are out of shared memory.", True),
        ("[Errno 12] Cannot allocate memory", True),
        ("std::bad_alloc", True),
        ("can't start new thread", True),
        ("Caught KeyError in DataLoader worker process 0.", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_want_of_memory_is_known_in_every_form(message: str, wanted: bool) -> None:
    assert wants_memory(RuntimeError(message)) is wanted


# Reports


@pytest.fixture
def reported(tmp_path: Path) -> GridFolder:
    """A grid with a report."""
    found = synthetic.filled(tmp_path / "ours", GRID, synthetic.draw({"none": 0.0, "tfd": 1.0}, 2, np.random.default_rng(0)))
    assert run_bench.main(["report", GRID, "--results", str(found.results.root)]) == 0
    return found


def tree(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name != ".files.json"}


@pytest.mark.parametrize(("call", "code"), [("write", errno.ENOSPC), ("open", errno.EROFS), ("write", errno.EDQUOT)])
def test_a_report_that_cannot_be_written_leaves_the_former_one(
    call: str, code: int, reported: GridFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(reported.report_folder())

    class Full(Failing):
        """`os` on a disk that takes nothing."""

        def __init__(self) -> None:
            super().__init__(call, code, 10**9)

        def __getattr__(self, name: str) -> object:
            if name != "open" or call != "open":
                return super().__getattr__(name)

            def opened(path: str, flags: int, *arguments: object, **options: object) -> object:
                if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                    raise OSError(code, os.strerror(code))
                return os.open(path, flags, *arguments, **options)  # type: ignore[arg-type]

            return opened

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(handles, "os", Full())
        patch.setattr(files, "os", Full())
        assert run_bench.main(["report", GRID, "--results", str(reported.results.root)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.endswith(f": {os.strerror(code)}\n")
    assert error.count("\n") == 1
    assert tree(reported.report_folder()) == before


def test_several_reports_at_once_leave_one(reported: GridFolder) -> None:
    command = [sys.executable, "run_bench.py", "report", GRID, "--results", str(reported.results.root)]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(3)]
    try:
        assert [process.communicate(timeout=100)[1] for process in running] == [b""] * 3
    finally:
        for process in running:
            process.kill()
    assert {process.returncode for process in running} == {0}
    left = tree(reported.report_folder())
    assert not [name for name in left if name.rpartition("/")[2].startswith(".") and not name.endswith(".lock")]


# Waiting


class Notes:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def test_a_reason_to_wait_is_named_once_and_again_when_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()
    seen = waits.Waits(notes)
    seen.see({"JobHeldUser": ["a", "b"]})
    assert notes.lines == []
    monkeypatch.setattr(waits, "PATIENCE_S", 0.0)
    for reasons in ({"JobHeldUser": ["a", "b"]}, {"JobHeldUser": ["a"]}, {}, {"JobHeldUser": ["a"]}):
        seen.see(reasons)
    assert [line.partition(" for ")[2] for line in notes.lines] == ["2 cells, a among them: JobHeldUser", "a: JobHeldUser"]


@contextlib.contextmanager
def locking(path: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds a lock until its stdin is closed."""
    code = "import sys\nfrom bench.records.files import Folder\n"
    code += f"with Folder({str(path.parent)!r}).lock({path.name!r}):\n    print(flush=True)\n    sys.stdin.read()"
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()  # whatever has happened, and even if it is suspended


@pytest.fixture
def held(folder: GridFolder) -> Iterator[tuple[Path, int]]:
    """A cell without a record whose lock another process holds for a while, and that process."""
    cell = place(folder, "none")
    (cell / "record.json").unlink()
    with locking(cell / "lock") as process:
        assert process.stdin
        timer = threading.Timer(3, process.stdin.close)
        timer.start()
        yield cell, process.pid
        timer.join()


def test_a_run_names_who_holds_what_it_waits_for(
    held: tuple[Path, int], folder: GridFolder, grid: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waits, "PATIENCE_S", 0.0)
    monkeypatch.setattr(waits.psutil.Process, "children", lambda self, recursive: [])  # the holder is one of this test
    assert run_bench.main(["run", grid, *options(folder.results.root)]) == 0
    cell, process = held
    printed = capsys.readouterr().out
    assert f" for {cell.name}: trained by process {process} on {socket.gethostname()}, since " in printed
    assert json.loads((cell / "record.json").read_text())


@pytest.mark.parametrize(("lock", "reason"), [("lock", "trained by"), ("../check.lock", "tried out by")])
def test_a_process_that_is_suspended_is_named_even_if_it_is_ours(
    lock: str, reason: str, folder: GridFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = place(folder, "none")
    with locking(Path(os.path.normpath(cell / lock))) as process:
        assert waits.held_by_others([cell.name], folder) == {}
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        hint = f"is suspended: `kill -CONT {process.pid}` lets it go on"
        assert waits.held_by_others([cell.name], folder) == {f"process {process.pid} of this run {hint}": [cell.name]}
        monkeypatch.setattr(waits.psutil.Process, "children", lambda self, recursive: [])  # as if another run had started it
        [(why, cells)] = waits.held_by_others([cell.name], folder).items()
    assert why.startswith(f"{reason} process {process.pid} on {socket.gethostname()}, since ")
    assert why.endswith(f", which {hint}")
    assert cells == [cell.name]


def test_trials_of_others_hold_up_nobody_whose_cells_are_in_training(folder: GridFolder) -> None:
    cell = place(folder, "none")
    with locking(folder.results.root / "small/check.lock", SLURM_JOB_ID="7") as process:
        [why] = waits.held_by_others([cell.name], folder, {"8"})
        assert f"process {process.pid} on {socket.gethostname()} (job 7), since" in why
        with folder.cell(cell.name).lock():
            assert waits.held_by_others([cell.name], folder) == {}


def test_cells_that_jobs_of_ours_train_wait_for_nobody(folder: GridFolder) -> None:
    cell = place(folder, "none")
    with locking(cell / "lock", SLURM_JOB_ID="8", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="1"):
        assert waits.held_by_others([cell.name], folder, {"7_1"}) == {}
        [why] = waits.held_by_others([cell.name], folder, {"7_2"})
    assert "(job 7_1)" in why


def test_who_waits_for_a_lock_or_a_download_says_so(
    folder: GridFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (files, standard):
        monkeypatch.setattr(module, "PATIENCE_S", 0.0)
    downloads = (tmp_path / ".CIFAR10.lock").open("w")
    fcntl.flock(downloads, fcntl.LOCK_EX)
    for lock, wait in (
        (folder.check_lock(), lambda: check.check([], folder, Options())),
        (downloads, standard._alone(tmp_path / ".CIFAR10.lock", "CIFAR10").__enter__),
    ):
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock)
            timer = threading.Timer(0.2, stack.pop_all().close)
            timer.start()
            wait()
            timer.join()
    tried, loaded = capsys.readouterr().err.splitlines()
    holder = f"held by process {os.getpid()} on {socket.gethostname()}, since "
    assert tried.startswith(f"waiting for {folder.results.root}/small/check.lock: {holder}")
    assert loaded == f"waiting for another process that downloads CIFAR10 (it holds {tmp_path}/.CIFAR10.lock)"


class Ending:
    """A folder whose cells others train until one of them was asked so many questions: then they end."""

    def __init__(self, questions: int, end: str) -> None:
        self.left, self.end = questions, end

    def cell(self, name: str) -> Ending:
        return self

    def _ask(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def locked(self) -> bool:
        return self._ask()

    def settled(self) -> bool:
        return not self._ask() and self.end != "lost"

    def done(self) -> bool:
        return not self._ask() and self.end == "done"

    def write_failure(self, *_: object, **__: object) -> None:
        raise AssertionError("it has not failed")


@pytest.mark.parametrize("questions", [0, 1, 2])
@pytest.mark.parametrize("end", ["done", "failed", "lost"])
@pytest.mark.parametrize("outcome", ["waiting", "locked"])
def test_a_worker_misses_no_end_of_what_it_waits_for(
    outcome: str, end: str, questions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "POLL_S", 0.0)
    monkeypatch.setattr(worker.Waits, "look", lambda *_: None)  # it would ask questions of its own
    cells = [cell for cell in expanded(methods=["kd"]).cells if cell.waits_for]
    outcomes = [outcome, "passed"]
    monkeypatch.setattr(worker, "_take", lambda *_: outcomes.pop(0))
    worker._lead(cells, Ending(questions, end), options=None, team=None, exclusive=True)
    nobody_trains_it = questions == 0 and end == "lost" and outcome == "waiting"
    assert outcomes == ["passed"] * nobody_trains_it


@pytest.mark.parametrize("questions", [0, 1, 2])
def test_what_ends_between_two_questions_is_not_named_as_failed(questions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = expanded().cells
    give_up(cells, Ending(questions, "done"), "", watch=None)
    monkeypatch.setattr(check, "kinds", lambda *_: {"kind": cells})
    check.name_failed(cells, Ending(questions, "done"), {"kind": check.Finding("it fails")}, options=None)
