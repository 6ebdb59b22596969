"""`verify` finds what it says it checks; `merge` takes over what is missing and names what contradicts."""

from __future__ import annotations

import json
import os
import re
import socket

import numpy as np
import pytest
import synthetic

import run_bench
from bench.errors import UserError
from bench.jobs import scripts
from bench.records import batch, files, upkeep
from bench.records.files import Folder
from bench.records.folders import ResultsFolder

GRID = "synthetic"


@pytest.fixture
def grid(tmp_path):
    records = synthetic.draw({"none": 0.0, "kd": 1.0}, 2, np.random.default_rng(0))
    return synthetic.filled(tmp_path / "ours", GRID, records)


def _edit_record(folder):
    path = folder / "record.json"
    path.write_text(path.read_text().replace('"top1": ', '"top1": 1'))


def _cut_record(folder):
    path = folder / "record.json"
    path.write_bytes(path.read_bytes()[:300])


def _newer_schema(folder):
    body = files.read_json(folder / "record.json")
    files.write_json(folder / "record.json", {**body, "schema_version": 99})


def _impossible_value(folder):
    body = files.read_json(folder / "record.json")
    body["accuracies"]["last"]["top1"] = 101.0
    files.write_json(folder / "record.json", body)


def _other_identity(folder):
    body = files.read_json(folder / "record.json")
    body["cell"]["seed"] = 7
    files.write_json(folder / "record.json", body)


def _other_curves(folder):
    (folder / "curves.csv").write_text("epoch\n1\n")


def _no_curves(folder):
    (folder / "curves.csv").unlink()


def _other_weights(folder):
    (folder / "weights.safetensors").write_bytes(b"something else")


def _lost_teacher(folder):
    for path in folder.parent.glob("*resnet110*/record.json"):
        path.unlink()


def _edited_cost(folder):
    path = next((folder.parent / "cost").glob("*.json"))
    path.write_text(path.read_text().replace('"threads": 1', '"threads": 2'))


def _edited_manifest(folder):
    path = folder.parent / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "about": "better"}))


def _set_aside(folder):
    (folder / "checkpoint").write_bytes(b"broken")
    files.Folder(folder).aside("checkpoint")


def _stranger(folder):
    (folder.parent / "not-in-the-manifest").mkdir()


def test_nothing_is_wrong_with_sound_results(grid):
    assert upkeep.verify(grid) == []


@pytest.mark.parametrize(
    ("harm", "where", "why"),
    [
        (_edit_record, "record.json", "edited by hand"),
        (_cut_record, "record.json", "not JSON"),
        (_newer_schema, "record.json", "version 99"),
        (_impossible_value, "record.json", "accuracies.last.top1"),
        (_other_identity, "record.json", "its contents give"),
        (_other_curves, "curves.csv", "not the one"),
        (_no_curves, "curves.csv", "missing"),
        (_other_weights, "weights.safetensors", "not the one"),
        (_lost_teacher, "record.json", "its teacher"),
        (_edited_cost, "cost/", "edited by hand"),
        (_edited_manifest, "manifest.json", "edited by hand"),
        (_set_aside, "checkpoint.damaged-1", "set aside"),
        (_stranger, "not-in-the-manifest", "no cell of the manifest"),
    ],
)
def test_verify_names_each_kind_of_harm(grid, harm, where, why):
    folder = next(path for path in sorted((grid.results.root / GRID).glob("*-kd-s0-*")))
    harm(folder)
    problems = upkeep.verify(grid)
    assert problems
    assert all(where in problem.path and why in problem.reason for problem in problems)
    assert len(problems) == (2 if harm is _lost_teacher else 1)  # two students miss the teacher


@pytest.mark.parametrize(
    "verb",
    [
        ["report", GRID, "--results", "FILE"],
        ["verify", GRID, "--results", "FILE"],
        ["export", "kd-s0", "--results", "OURS", "--to", "FILE/x"],
        ["export", "kd-s0", "--results", "OURS", "--to", "OURS"],
    ],
)
def test_a_place_that_cannot_be_one_is_named(grid, tmp_path, verb, capsys):
    (tmp_path / "file").touch()
    for cell in (grid.results.root / GRID).glob("*-kd-s0-*"):
        body = files.read_json(cell / "record.json")
        files.write_json(cell / "record.json", body | {"weights_sha256": files.write(cell / "weights.safetensors", b"weights")})
    places = {"FILE": str(tmp_path / "file"), "OURS": str(grid.results.root)}
    arguments = [re.sub("FILE|OURS", lambda name: places[name[0]], word) for word in verb]
    assert run_bench.main(arguments) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: .*/(file|ours)(/\S+)?: (Not a directory|Is a directory|File exists)\n", error)


def test_merge_takes_what_is_missing_and_names_contradictions(grid, tmp_path):
    theirs = synthetic.draw(
        {"none": 0.0, "kd": 1.0, "at": 0.5}, 2, np.random.default_rng(1)
    )  # other results for the same cells
    other = synthetic.filled(tmp_path / "theirs", GRID, theirs)
    again = next(cost for cost in other.costs()[0] if cost.label == "none" and not cost.teacher)
    other.write_cost(again.model_copy(update={"session": "theirs"}))
    before = {record.id: record for record in grid.records()[0]}
    costs = grid.costs()[0]
    copied, conflicts = upkeep.merge(grid.results, other.results)
    after = {record.id: record for record in grid.records()[0]}
    assert copied == 2  # at with two seeds
    assert {cell_id: after[cell_id] for cell_id in before} == before  # ours stay
    assert len(after) == len(before) + 2
    assert [cost for cost in grid.costs()[0] if cost.label != "at"] == costs  # ours stay, on the same hardware
    assert len(grid.costs()[0]) == len(costs) + 1
    assert {problem.path.split("/")[1] for problem in conflicts} == {one for one in before if "resnet110" not in one}
    assert all("trained twice" in problem.reason for problem in conflicts)
    assert upkeep.verify(grid) == []
    assert upkeep.merge(grid.results, ResultsFolder(grid.results.root))[0] == 0  # with itself: nothing to do


@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a pipe"])
def test_no_output_takes_the_place_of_a_device(kind, grid, tmp_path, capsys):
    for cell in grid.cells():
        body = files.read_json(cell_path := grid.results.root / cell.place("record.json"))
        files.write_json(cell_path, body | {"weights_sha256": files.write(cell_path.with_name("weights.safetensors"), b"w")})
    place = tmp_path / "site/index.html"
    place.parent.mkdir()
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(str(place))
    else:
        os.mkfifo(place if kind == "pipe" else tmp_path / "pipe")
        if kind == "link to a pipe":
            place.symlink_to(tmp_path / "pipe")
    at = ["--results", str(grid.results.root)]
    assert run_bench.main(["export", "kd-s0", *at, "--to", str(place)]) == 2
    assert re.fullmatch(r"error: \S+/index.html: it is .*a device, a pipe or a socket; name a file\n", capsys.readouterr().err)
    with pytest.raises(UserError, match=r"it is .*a device, a pipe or a socket; name a file"):
        scripts.write({place.name: "text"}, place.parent)
    if kind == "link to a pipe":
        assert place.is_symlink()
    else:
        with pytest.raises(UserError, match=r"index.html: it is a device, a pipe or a socket; name a file"):
            batch.replace(Folder(place.parent), {place.name: "text", "more": "text"}, last="more")
        assert not place.is_file()
        assert not (place.parent / "more").exists()
    assert run_bench.main(["export", "kd-s0", *at, "--to", f"{place}/x"]) == 2
    assert capsys.readouterr().err.endswith(": Not a directory\n")


def test_an_output_replaces_a_link_to_a_file_and_not_the_systems_own(tmp_path):
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.write(tmp_path / "link", "mine")
    assert ((tmp_path / "link").read_text(), (tmp_path / "target").read_text()) == ("mine", "kept")
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    with pytest.raises(UserError, match="it is the system's link to an open file"):
        files.write(tmp_path / "stdout", "mine")
