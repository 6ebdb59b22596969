"""The gate of results: nothing is read or written through a link, and what is no regular file is refused at once."""

from __future__ import annotations

import ast
import contextlib
import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.records import batch, files, handles, record
from bench.records.files import Folder
from bench.records.folders import ResultsFolder
from bench.records.problems import BarredError, DamagedError, RefusedError
from bench.records.sealed import unsealed

ROOT = Path(__file__).resolve().parent.parent
GATE = ("bench/records/files.py", "bench/records/handles.py", "bench/records/batch.py")
OWN_FILES = {  # of this project, and of places that the user names: never below a results folder
    "bench/records/naming.py": {"read_text", "is_file"},  # the source of a method's class
    "reports/headline.py": {"exists"},  # whether a grid's file lies beside its records
    "reports/page.py": {"read_text"},  # style and script
    "reports/site.py": {"read_text"},  # style
    "reports/readme.py": {"read_text", "write_text", "is_file", "open"},  # our pages and their picture
    "reports/published.py": {"read_text", "glob"},  # numbers that ship with this project
    "reports/style.py": {"read_text", "is_file"},  # a style file that the user names
    "reports/report.py": {"exists"},  # which of two forms --compare has
    "run_bench.py": {"exists", "is_dir"},  # which of two forms a grid has
}
OPENERS = {
    *("open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "touch", "unlink", "rmdir", "rmtree"),
    *("glob", "rglob", "iterdir", "is_dir", "is_file", "exists", "copyfile", "copytree", "chmod", "symlink_to"),
    *("mkstemp", "NamedTemporaryFile", "TemporaryDirectory", "FileLock", "FileHandler", "listdir", "scandir", "makedirs"),
}


def test_nothing_else_opens_files_of_results() -> None:
    for path in [*(ROOT / "bench/records").glob("*.py"), *(ROOT / "reports").rglob("*.py"), ROOT / "run_bench.py"]:
        name = str(path.relative_to(ROOT))
        if name in GATE:
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
        assert names & OPENERS <= OWN_FILES.get(name, set()), f"{name} opens files by itself"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that is nobody's business."""
    path = tmp_path / "outside" / "secret"
    path.parent.mkdir()
    path.write_text("secret")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "results/grid").mkdir(parents=True)
    return Folder(tmp_path / "results").at("grid")


def place(folder: Folder, name: str = "file") -> Path:
    return Path(str(folder)) / name


def test_what_is_written_is_read(folder: Folder) -> None:
    inner = folder.at("a", "b")
    assert inner.entries() == []
    inner.write("file", "text")
    assert inner.read("file") == b"text"
    assert inner.head("file", 2) == b"te"
    assert [entry.name for entry in inner.entries()] == ["file"]
    assert folder.at("a").entries() == [("b", "folder")]
    with inner.append("log") as log:
        log.write("line\n")
    assert inner.read("log") == b"line\n"


def plant(path: Path, kind: str, target: Path) -> None:
    if kind == "link":
        path.symlink_to(target)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 2**40)


@pytest.mark.parametrize("kind", ["link", "loop", "pipe", "folder", "zeros", "sparse"])
def test_what_is_no_regular_file_is_refused(kind: str, folder: Folder, outside: Path) -> None:
    plant(place(folder), kind, outside)
    with pytest.raises(RefusedError):
        folder.read("file")
    with pytest.raises(RefusedError):
        folder.digest("file")
    assert folder.read_hint("file") is None
    if kind != "sparse":
        with pytest.raises(RefusedError):
            folder.append("file")
        with pytest.raises(RefusedError), folder.lock("file"):
            pass
        assert not folder.locked("file")
    if kind != "folder":  # what is written takes the place of the link, not of its target
        folder.write("file", "mine")
        assert folder.read("file") == b"mine"
    assert outside.read_text() == "secret"


def test_a_link_on_the_way_is_refused_with_its_reason(folder: Folder, outside: Path) -> None:
    place(folder, "cell").symlink_to(outside.parent)
    cell = folder.at("cell")
    for act in (lambda: cell.read("secret"), lambda: cell.write("secret", "x"), lambda: cell.remove("secret"), cell.entries):
        with pytest.raises(BarredError, match="cell is a link: nothing below a results folder is reached through links"):
            act()
    with pytest.raises(RefusedError):
        folder.at("..")
    assert outside.read_text() == "secret"


def test_the_results_folder_itself_may_be_a_link(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(tmp_path / "results")
    Folder(tmp_path / "linked").at("grid").write("file", "x")
    assert folder.read("file") == b"x"


def test_what_has_another_name_is_never_written_into(folder: Folder, outside: Path) -> None:
    for name in ("log", "lock"):
        os.link(outside, place(folder, name))
    with folder.append("log") as log:
        log.write("more")
    with folder.lock("lock"):
        pass
    assert folder.read("log") == b"secretmore"
    assert outside.read_text() == "secret"


def test_a_lock_names_its_holder_and_is_free_when_that_dies(folder: Folder) -> None:
    code = f"from bench.records.files import Folder\nf = Folder({folder.root!r}).at('grid')\n"
    code += "with f.lock('lock'):\n    print(flush=True)\n    input()"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert folder.locked("lock")
        assert (holder := folder.holder("lock"))
        assert holder.process == process.pid
        with pytest.raises(TimeoutError, match=f"held by process {process.pid} on "), folder.lock("lock", 0.05):
            pass
        process.kill()
    assert not folder.locked("lock")
    with folder.lock("lock"):
        assert folder.locked("lock")
    assert folder.read("lock") == b""


class Failing:
    """`os` with a call that fails so many times."""

    def __init__(self, name: str, code: int, times: int) -> None:
        self.name, self.code, self.times = name, code, times

    def __getattr__(self, name: str) -> object:
        if name != self.name:
            return getattr(os, name)

        def call(*arguments: object, **options: object) -> object:
            self.times -= 1
            if self.times >= 0:
                raise OSError(self.code, os.strerror(self.code))
            return getattr(os, name)(*arguments, **options)

        return call


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO])
def test_a_stale_read_is_made_again(code: int, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write("file", "x")
    monkeypatch.setattr(handles, "os", Failing("read", code, 2))
    assert folder.read("file") == b"x"
    monkeypatch.setattr(handles, "os", Failing("read", code, 3))
    with pytest.raises(OSError, match="grid/file"):
        folder.read("file")


def test_several_files_are_replaced_all_or_none(folder: Folder, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch.replace(folder, {"tables/a": "1", "tables/b": "1", "page": "1"}, last="page")
    place(folder, "tables/mine").write_text("not theirs to remove")
    with monkeypatch.context() as patch:
        patch.setattr(handles, "os", Failing("write", errno.ENOSPC, 99))
        with pytest.raises(OSError, match="No space left"):
            batch.replace(folder, {"tables/a": "2", "page": "2"}, last="page")
    assert {path.name for path in place(folder, "tables").iterdir()} == {"a", "b", "mine"}
    assert folder.read("page") == folder.at("tables").read("a") == b"1"
    batch.replace(folder, {"tables/a": "2", "page": "2"}, last="page")
    assert {path.name for path in place(folder, "tables").iterdir()} == {"a", "mine"}
    folder.write_json(batch.LISTING, {"files": ["../outside/secret", "../../outside/secret", str(outside), "page"]})
    batch.replace(folder, {"page": "3"}, last="page")
    assert outside.read_text() == "secret"
    assert folder.read("page") == b"3"
    assert files.read_json(place(folder, batch.LISTING)) == {"files": ["page"]}


def test_a_former_file_that_cannot_be_removed_goes_the_next_time(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    batch.replace(folder, {"old": "1", "page": "1"}, last="page")
    with monkeypatch.context() as patch:
        patch.setattr(files, "os", Failing("unlink", errno.EIO, 1))
        batch.replace(folder, {"page": "2"}, last="page")
    assert folder.has("old")
    with monkeypatch.context() as patch:
        patch.setattr(handles, "os", Failing("read", errno.EIO, 3))
        with pytest.raises(OSError, match=r"files\.json"):  # else it would be forgotten
            batch.replace(folder, {"page": "3"}, last="page")
    assert folder.read("page") == b"2"
    batch.replace(folder, {"page": "4"}, last="page")
    assert not folder.has("old")


@pytest.mark.parametrize("raw", [b'"\\ud800"', b'"\xed\xa0\x80"'])
def test_half_a_letter_can_be_printed(raw: bytes, folder: Folder) -> None:
    body = {"name": "\ud800", "\udfffkey": ["x\ud800"]}
    folder.write("file", json.dumps(record.seal(body)).encode().replace(b'"\\ud800"', raw))
    assert folder.read_json("file") == {"name": "?", "?key": ["x?"]}


def test_a_name_that_is_no_text_is_spelled_out_in_a_report(folder: Folder) -> None:
    batch.replace(folder, {"page": "cost/\udcff.json", "table": "\udcff"}, last="page")
    assert folder.read("page") == rb"cost/\udcff.json"


def test_a_log_that_a_full_disk_does_not_take_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = ResultsFolder(tmp_path).grid("grid").cell("cell").log_handler()
    assert isinstance(handler, logging.StreamHandler)
    with open("/dev/full", "w") as full:  # noqa: PTH123
        handler.stream.close()
        handler.stream = full
        handler.emit(logging.makeLogRecord({"msg": "x"}))
        handler.close()
    assert capsys.readouterr().err == ""


def test_folders_outlive_a_power_cut(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(handles.os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), fsync(file)))
    Folder(tmp_path / "above" / "root", "grid", "cell").write("record.json", b"x")
    for made in ("", "above", "above/root", "above/root/grid", "above/root/grid/cell"):
        assert (tmp_path / made).stat().st_ino in synced, made
    synced.clear()
    cell, aside = Folder(tmp_path / "above/root", "grid", "cell"), Folder(tmp_path / "above/root", "grid", "superseded")
    assert cell.move("record.json", aside, "record.json")
    assert {(tmp_path / "above/root/grid" / name).stat().st_ino for name in ("cell", "superseded")} <= set(synced)


@pytest.mark.parametrize(("code", "ignored"), [("EINVAL", True), ("ENOTSUP", True), ("EIO", False), ("ENOSPC", False)])
def test_only_a_file_system_that_cannot_sync_folders_is_forgiven(tmp_path, monkeypatch, code, ignored):
    def refuse(_: int) -> None:
        raise OSError(getattr(errno, code), code)

    monkeypatch.setattr(handles.os, "fsync", refuse)
    with contextlib.nullcontext() if ignored else pytest.raises(OSError, match=code):
        handles.sync_folder(0)


def test_a_slip_in_what_is_logged_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = ResultsFolder(tmp_path).grid("grid").cell("cell").log_handler()
    handler.handle(logging.makeLogRecord({"msg": "%d cells", "args": ("many",)}))
    handler.close()
    assert "TypeError: %d format: a real number is required" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("9" * 5000, "a number of 5000 digits"),
        ("-" + "9" * 100, "a number of 101 digits"),
        ("1e308", "the number 1e308"),
        ("NaN", "the number NaN"),
        ("-Infinity", "the number -Infinity"),
    ],
)
def test_a_number_beyond_all_bounds_is_named(text: str, why: str) -> None:
    with pytest.raises(DamagedError, match=f"^it holds {why}$"):
        unsealed(f'{{"a": {text}}}'.encode())


def test_numbers_within_the_bounds_are_as_they_were() -> None:
    body = {"a": 10**99, "b": [-1e99, 5e-324, 0.1, -3]}
    assert unsealed(json.dumps(record.seal(body)).encode()) == body
