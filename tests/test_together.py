"""`run --together`: cells in lock-step give what they give alone, whoever of them fails."""

from __future__ import annotations

import pytest
import small

import run_bench
from bench.engine import train as engine
from bench.engine.lockstep import alone_because, companions
from bench.records.folders import ResultsFolder

METHODS = ["none", "kd", "at", "tfd", {"cskd": {}}, {"crd": {}}]


def run(folder, *arguments, **changes):
    grid = small.write_grid(folder, methods=METHODS, seeds=[0, 1], **changes)
    common = ["--device", "cpu", "--threads", "1", "--no-cost", "--cluster", "debug"]
    return run_bench.main(["run", grid, "--results", str(folder / "results"), *common, *arguments])


@pytest.fixture
def groups(monkeypatch):
    """Sizes of the groups that were trained."""
    sizes = []
    train = engine.train

    def counting(cells, *rest):
        sizes.append(len(cells))
        return train(cells, *rest)

    monkeypatch.setattr(engine, "train", counting)
    return sizes


def test_together_equals_apart(tmp_path, groups, capsys):
    for name in ("apart", "together"):
        (tmp_path / name).mkdir()
    assert run(tmp_path / "apart") == 0
    assert set(groups) == {1}
    groups.clear()
    assert run(tmp_path / "together", "--together") == 0
    assert sorted(groups, reverse=True)[:2] == [4, 4]  # none, kd, at and tfd of each seed
    assert "alone: crd: its method draws random numbers" in capsys.readouterr().out
    assert small.results(tmp_path / "together/results") == small.results(tmp_path / "apart/results")


def test_one_that_fails_does_not_stop_its_companions(tmp_path, groups):
    bad = {"tfd": {"weight": 1e30, "ramp_epochs": 0}}
    assert run(tmp_path, "--together", "--set", f"methods=[none, kd, {bad}]") == 1
    assert 3 in groups
    root = tmp_path / "results"
    assert sorted(record.cell.label for record in ResultsFolder(root).grid("small").records()[0]) == [
        "kd",
        "kd",
        "none",
        "none",
        "none",
    ]
    failed = [path.parent.name for path in (root / "small").glob("*/failure.json")]
    assert len(failed) == 2
    assert all("-tfd-" in name for name in failed)


def test_only_cells_of_one_stream_are_companions(tiny):
    grid = tiny(methods=["none", "ls", "cskd", "dlb", {"ft": {"prepare_epochs": 1}}], seeds=[0, 1])
    first = next(cell for cell in grid.cells if cell.label == "none" and cell.seed == 0)
    assert {(cell.label, cell.seed) for cell in companions(first, grid.cells)} == {("ls", 0)}
    assert {alone_because(cell) for cell in grid.cells if cell.label.startswith("ft")} == {"its method has a preparation phase"}
    [*dropped] = tiny(recipe={"name": "digits", "epochs": 2, "dropout": 0.1}).cells
    assert "dropout" in alone_because(dropped[0])
