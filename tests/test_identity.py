"""What must never change without a reason: ids of cells, keys of costs, and every byte of results that are there already."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import small
import yaml

import run_bench
from bench.engine.device import GPU_ELSEWHERE
from bench.plan import expand, grid_file
from bench.records.folders import ResultsFolder

REPOSITORY = Path(__file__).resolve().parent.parent
REFERENCE = REPOSITORY / "results/reference"
IDS = json.loads((Path(__file__).parent / "data/ids.json").read_text())
INSTEAD = {"paper_table3": ["data=cifar100"]}  # ids of ImageNet's cells contain the digest of its files


def identities(name: str) -> list[str]:
    """Id and cost key of every cell, sorted. For a GPU elsewhere, so that the precision is the same on every machine."""
    cells = expand.expand(*grid_file.read(name, INSTEAD.get(name, [])), None, GPU_ELSEWHERE).cells
    return sorted(f"{cell.id} {cell.cost_key}" for cell in cells)


def tree(root: Path) -> dict[str, str]:
    """SHA-256 of every file by its path."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def reference(tmp_path):
    """A copy of the shipped results."""
    return shutil.copytree(REFERENCE, tmp_path / "reference")


@pytest.mark.parametrize("name", [name for name in IDS if name != "every_method"])
def test_ids_and_cost_keys_of_shipped_grids_stay(name):
    found = identities(name)
    digest = hashlib.sha256("\n".join(found).encode()).hexdigest()
    assert {"cells": len(found), "sha256": digest} == IDS[name]


def test_ids_and_cost_keys_of_every_method_stay():
    assert set(IDS["every_method"]) <= set(identities("every_method"))  # a new method adds its own


@pytest.mark.parametrize("name", ResultsFolder(REFERENCE).grids())
def test_shipped_records_and_costs_are_sound_and_keep_their_names(name):
    folder = ResultsFolder(REFERENCE).grid(name)
    records, problems = folder.records()
    assert problems == []  # a problem would be a broken seal, an unknown schema, or an id that its contents do not give
    assert {record.id for record in records} == {path.parent.name for path in (REFERENCE / name).glob("*/record.json")}
    assert [record.cell.id for record in records] == [record.id for record in records]
    costs, problems = folder.costs()
    assert problems == []
    assert len(costs) == len(list((REFERENCE / name).glob("cost/*.json")))
    cells = {record.id: record.cell for record in records}
    assert [cells[cost.example].cost_key for cost in costs] == [cost.key for cost in costs]


@pytest.mark.parametrize("name", ResultsFolder(REFERENCE).grids())
def test_verbs_that_read_change_no_byte(reference, name, capsys):
    before = tree(reference)
    own = REFERENCE / f"{name}.yaml"  # of a grid that is not shipped by name; its arrays are not here
    grid = [str(own), "--set", "data=cifar100"] if own.is_file() else [name]
    for verb in (
        ["plan", *grid, "--device", "cpu", "--set", "precision=fp32", "--set", "also=[]"],
        ["status", name],
        ["verify", name],
    ):
        assert run_bench.main([*verb, "--results", str(reference)]) == 0, capsys.readouterr()
    assert tree(reference) == before


def test_a_run_without_its_data_ends_before_it_writes(reference, tmp_path, capsys):
    manifest = ResultsFolder(reference).grid("cifar100_short").manifest()
    grid = tmp_path / "cifar100_short.yaml"
    grid.write_text(yaml.safe_dump(manifest["grid"] | {"precision": "fp32"}))
    before = tree(reference)
    arguments = [
        "--results",
        str(reference),
        "--data-root",
        str(tmp_path),
        "--device",
        "cpu",
        "--cluster",
        "debug",
        "--no-cost",
        "--no-report",
    ]
    assert run_bench.main(["run", str(grid), *arguments]) == 2
    assert "error: cifar100_short, data" in capsys.readouterr().err
    assert tree(reference) == before


def test_a_run_with_nothing_left_changes_no_byte(tmp_path):
    grid = small.write_grid(tmp_path, methods=["none", "kd"], recipe={"name": "digits", "epochs": 1})
    arguments = [
        "--results",
        str(tmp_path / "results"),
        "--device",
        "cpu",
        "--cluster",
        "debug",
        "--threads",
        "1",
        "--no-cost",
        "--no-report",
    ]
    assert run_bench.main(["run", grid, *arguments]) == 0
    before = tree(tmp_path / "results")
    assert run_bench.main(["run", grid, *arguments]) == 0
    assert tree(tmp_path / "results") == before
