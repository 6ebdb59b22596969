"""The old way into the results folder, by grid and id; call sites move to the handles of `bench.records.folders`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel

from bench.records import files
from bench.records.cell_folder import CellFolder
from bench.records.files import DamagedError, Problem, parse
from bench.records.folders import OTHER_FOLDERS, ResultsFolder
from bench.records.record import Cost, Record

__all__ = ["OTHER_FOLDERS", "DamagedError", "Problem", "Store", "parse"]


class Store:
    def __init__(self, root: str | Path) -> None:
        self.results, self.root = ResultsFolder(root), Path(root)

    def grids(self) -> list[str]:
        return self.results.grids()

    def at(self, grid: str, cell_id: str) -> CellFolder:
        return self.results.grid(grid).cell(cell_id)

    def folder(self, grid: str) -> Path:
        return self.results.grid(grid)._path

    def cell(self, grid: str, cell_id: str) -> Path:
        return self.at(grid, cell_id)._path

    def report_folder(self, grid: str) -> Path:
        return self.results.grid(grid).report_folder()

    def lock(self, grid: str, cell_id: str) -> FileLock:
        return self.at(grid, cell_id).lock()

    def check_writable(self, grid: str) -> None:
        self.results.grid(grid).check_writable()

    def write(self, path: Path, content: bytes | str) -> str:
        return files.write(path, content)

    def write_json(self, path: Path, body: dict[str, Any] | BaseModel) -> None:
        files.write_json(path, body)

    def read_json(self, path: Path) -> dict[str, Any]:
        return files.read_json(path)

    def set_aside(self, path: Path) -> Path:
        return files.set_aside(path)

    def write_record(self, grid: str, record: Record) -> None:
        self.at(grid, record.id).write_record(record)

    def write_cost(self, grid: str, cost: Cost) -> None:
        self.results.grid(grid).write_cost(cost)

    def write_manifest(self, grid: str, manifest: dict[str, Any]) -> None:
        self.results.grid(grid).write_manifest(manifest)

    def manifest(self, grid: str) -> dict[str, Any]:
        return self.results.grid(grid).manifest()

    def launches(self, grid: str) -> dict[str, list[list[list[str]]]]:
        return {name: launch.arrays for name, launch in self.results.grid(grid).launches().items()}

    def record(self, grid: str, cell_id: str) -> Record | None:
        return self.at(grid, cell_id).record()

    def done(self, grid: str, cell_id: str) -> bool:
        return self.at(grid, cell_id).done()

    def records(self, grid: str) -> tuple[list[Record], list[Problem]]:
        return self.results.grid(grid).records()

    def costs(self, grid: str) -> tuple[list[Cost], list[Problem]]:
        return self.results.grid(grid).costs()

    def curves(self, grid: str, record: Record) -> str:
        return self.at(grid, record.id).curves(record)

    def weights(self, grid: str, record: Record) -> bytes:
        return self.at(grid, record.id).weights(record)

    def write_checkpoint(self, grid: str, cell_id: str, raw: bytes) -> None:
        self.at(grid, cell_id).write_checkpoint(raw)

    def read_checkpoint(self, grid: str, cell_id: str) -> bytes | None:
        return self.at(grid, cell_id).read_checkpoint()

    def scratch(self, grid: str, cell_id: str, name: str) -> dict[str, Any] | None:
        return files.read_hint(self.cell(grid, cell_id) / name)

    def locked(self, grid: str, cell_id: str) -> bool:
        return self.at(grid, cell_id).locked()

    def find(self, text: str) -> tuple[str, str]:
        found = self.results.find(text)
        return found.grid.name, found.id

    def settled(self, grid: str, cell_id: str) -> bool:
        return self.at(grid, cell_id).settled()

    def begin_attempt(self, grid: str, cell_id: str) -> int:
        return self.at(grid, cell_id).begin_attempt()

    def end_attempts(self, grid: str, cell_id: str) -> None:
        self.at(grid, cell_id).end_attempts()

    def launch_folder(self, grid: str, launch: str) -> Path:
        return self.results.grid(grid).launch_folder(launch)

    def write_launch(self, grid: str, launch: str, arrays: list[list[list[str]]]) -> None:
        self.results.grid(grid).write_launch(launch, "slurm", arrays)

    def clean(self, grid: str, weights: bool) -> int:
        return self.results.grid(grid).clean(weights)
