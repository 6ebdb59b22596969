"""What the system does not give: a grid, a manifest or a file that cannot be read is its own fault and ends no other."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic

import run_bench
from bench.errors import UserError
from bench.records import files, handles
from bench.records.folders import ResultsFolder
from bench.records.upkeep import prepare


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with the grids "first" and "second"."""
    root = tmp_path_factory.mktemp("sound")
    for name, methods in (("first", {"none": 0.0}), ("second", {"none": 0.0, "tfd": 1.0})):
        synthetic.filled(root, name, synthetic.draw(methods, 2, np.random.default_rng(0)))
    return root


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(sound, tmp_path / "results")


class Barring:
    """`os` that opens nothing of some names, and finds nothing in what they hold."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str, *arguments: Any, **options: Any) -> int:
        if path in self.names:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return os.open(path, *arguments, **options)


@contextmanager
def barred(*names: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handles, "os", Barring(*names))
        patch.setattr(files, "os", Barring(*names))
        yield


def test_a_grid_that_cannot_be_looked_into_ends_no_verb_about_others(
    root: Path, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    why = "it cannot be looked into: Permission denied"
    (root / "lost+found").mkdir()
    ours = ["--results", str(root)]
    cell = next((root / "second").glob("*-tfd-s0-*")).name
    with barred("first", "lost+found"):
        assert ResultsFolder(root).grids() == ["second"]
        assert run_bench.main(["verify", "--all", *ours]) == 1
        assert capsys.readouterr().out.endswith(f"\nfirst: {why}\n1 grids, 1 problems\n")
        assert run_bench.main(["logs", cell, *ours]) == 0
        assert run_bench.main(["logs", "nothing", *ours]) == 2
        assert capsys.readouterr().err.endswith(f"; first: {why}\n")
        assert run_bench.main(["status", "first", *ours]) == 2
        assert capsys.readouterr().err == f"error: {root}/first/manifest.json: Permission denied\n"
        assert run_bench.main(["merge", str(root), "--results", str(tmp_path / "ours")]) == 1
        assert capsys.readouterr().out == f"{root}/first: {why}\n5 copied, 1 conflicts\n"
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "first").touch()
    assert run_bench.main(["merge", str(sound), "--results", str(tmp_path / "others")]) == 1
    assert capsys.readouterr().out.endswith("first is a file: a folder belongs there\n5 copied, 1 conflicts\n")


@pytest.mark.parametrize("name", ["manifest.json", "record.json", "curves.csv"])
def test_a_file_that_cannot_be_read_ends_no_verb_about_others(
    name: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file of that name, of which all else is used."""
    with barred(name):
        assert run_bench.main(["verify", "--all", "--results", str(root)]) == 1
        printed = capsys.readouterr().out
        assert "first" in printed
        assert "second" in printed
        assert run_bench.main(["merge", str(root), "--results", str(tmp_path / "ours")]) == 1
        printed = capsys.readouterr().out
        assert printed.count("Permission denied") == {"manifest.json": 2}.get(name, 8)
        assert "0 copied" in printed


def test_a_manifest_is_never_lost(root: Path) -> None:
    """One that cannot be read now stays; one that is damaged, or of another version, is set aside."""
    folder = ResultsFolder(root).grid("first")
    path = root / "first" / "manifest.json"
    before, manifest = path.read_bytes(), folder.manifest()
    with barred("manifest.json"), pytest.raises(PermissionError):
        folder.request(manifest)
    assert path.read_bytes() == before
    with barred("manifest.json"), pytest.raises(UserError, match="Permission denied"):
        folder.manifest()
    files.write_json(path, manifest | {"requests": {"of": "another version"}})
    other = path.read_bytes()
    folder.request(manifest)
    assert path.with_name("manifest.json.damaged-1").read_bytes() == other
    assert folder.set_aside_files() == ["first/manifest.json.damaged-1"]
    assert json.loads(path.read_text())["cells"] == manifest["cells"]


def test_an_old_result_that_cannot_be_moved_ends_no_preparation(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ResultsFolder(root).grid("first")
    (root / "first" / "superseded").symlink_to(root)
    cells = [record.cell for record in folder.records()[0]]
    monkeypatch.setattr("bench.records.upkeep.stale", lambda *_: [cells[0].id])
    lines = prepare(cells, folder, retry=False, force=False)
    assert len(lines) == 2
    assert f"first/{cells[0].id}: " in lines[1]
    assert "superseded is a link" in lines[1]


def test_no_export_takes_the_place_of_results(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And of a cell that several grids hold the one with weights is meant."""
    [cell] = (root / "second").glob("*-resnet20-none-s0-*")
    digest = files.write(cell / "weights.safetensors", b"w")
    files.write_json(cell / "record.json", files.read_json(cell / "record.json") | {"weights_sha256": digest})
    (tmp_path / "link").symlink_to(root / "second")
    for place in (root / "second/report", tmp_path / "link/manifest.json", cell / "record.json"):
        assert run_bench.main(["export", cell.name, "--results", str(root), "--to", str(place)]) == 2
        assert capsys.readouterr().err == f"error: --to: {place} lies among the files of results; name another place\n"
    assert run_bench.main(["export", cell.name, "--results", str(root), "--to", str(root / "mine")]) == 0
    assert (root / "mine").read_bytes() == b"w"
    assert run_bench.main(["export", cell.name, "--results", str(root), "--to", "."]) == 2
    assert capsys.readouterr().err == "error: .: it is a folder; name a file\n"


def test_merge_names_a_folder_that_cannot_be_meant(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_bench.main(["merge", str(root / "first"), "--results", str(root)]) == 2
    assert capsys.readouterr().err.endswith("it is one grid's own folder: name the folder that holds it\n")
    assert run_bench.main(["merge", str(root), "--results", str(root / "first")]) == 2
    assert capsys.readouterr().err == f"error: {root}: the folder of --results lies in it; name another one\n"


def test_of_one_cost_in_two_files_the_later_counts(root: Path) -> None:
    folder = ResultsFolder(root).grid("second")
    [name] = {path.name for path in (root / "second/cost").iterdir() if "tfd" in path.read_text()}
    former = files.read_json(root / "second/cost" / name)
    files.write_json(root / "second/cost/a.json", former)
    assert len(folder.costs()[0]) == 3
    assert folder.costs()[1] == []
    files.write_json(root / "second/cost/a.json", former | {"measured": "2027-01-01T00:00:00+00:00", "threads": 7})
    costs, [problem] = folder.costs()
    assert [cost.threads for cost in costs if cost.label == "tfd"] == [7]
    assert problem == (f"second/cost/{name}", "the same was measured later, see a.json; this is left out")


def test_a_grid_without_cells_has_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ResultsFolder(tmp_path).grid("g").write_manifest({"cells": [], "skipped": []})
    assert run_bench.main(["status", "g", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "g: 0 of 0 done\n"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_ends_a_merge_in_one_line(
    code: int, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(Barring):
        def write(self, *_: Any) -> int:
            raise OSError(code, os.strerror(code))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handles, "os", Full())
        assert run_bench.main(["merge", str(sound), "--results", str(tmp_path)]) == 2
    error = f"cannot write results in {tmp_path}/first: {os.strerror(code)}; choose another folder with --results"
    assert capsys.readouterr() == ("", f"error: {error}\n")


def test_an_error_of_the_system_names_one_place(root: Path) -> None:
    with barred("manifest.json"), pytest.raises(PermissionError) as caught:
        ResultsFolder(root).place.at("first").read("manifest.json")
    assert str(caught.value) == f"[Errno {errno.EACCES}] Permission denied: '{root}/first/manifest.json'"
    (root / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"/folder'$"):
        ResultsFolder(root).place.write("folder", b"x")
